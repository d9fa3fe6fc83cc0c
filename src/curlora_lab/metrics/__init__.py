"""What a score means: classification and language metrics, continual-learning metrics, and warnings about them."""

from curlora_lab.metrics.classification import (
    METRICS,
    classification_scores,
    constant_baseline,
    score_interval,
    wilson_interval,
)
from curlora_lab.metrics.entities import (
    TOKEN_METRICS,
    constant_tag,
    entities,
    token_interval,
    token_scores,
)
from curlora_lab.metrics.findings import Finding, classification_findings, language_findings, score_findings
from curlora_lab.metrics.generation import TEXT_METRICS, generation_scores, normalized, text_findings
from curlora_lab.metrics.language import bits_per_character, log_ratio, perplexity, unigram_nll
from curlora_lab.metrics.regression import (
    REGRESSION_METRICS,
    constant_number,
    regression_interval,
    regression_scores,
)
from curlora_lab.metrics.spans import ANSWER_METRICS, answer_interval, answer_scores, constant_answer
from curlora_lab.metrics.summary import ContinualSummary, summarise

__all__ = [
    "ANSWER_METRICS",
    "METRICS",
    "REGRESSION_METRICS",
    "TEXT_METRICS",
    "TOKEN_METRICS",
    "ContinualSummary",
    "Finding",
    "answer_interval",
    "answer_scores",
    "bits_per_character",
    "classification_findings",
    "classification_scores",
    "constant_answer",
    "constant_baseline",
    "constant_number",
    "constant_tag",
    "entities",
    "generation_scores",
    "language_findings",
    "log_ratio",
    "normalized",
    "perplexity",
    "regression_interval",
    "regression_scores",
    "score_findings",
    "score_interval",
    "summarise",
    "text_findings",
    "token_interval",
    "token_scores",
    "unigram_nll",
    "wilson_interval",
]
