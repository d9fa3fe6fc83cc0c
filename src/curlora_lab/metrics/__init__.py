"""What a score means: classification and language metrics, continual-learning metrics, and warnings about them."""

from curlora_lab.metrics.classification import (
    METRICS,
    classification_scores,
    constant_baseline,
    score_interval,
    wilson_interval,
)
from curlora_lab.metrics.findings import Finding, classification_findings, language_findings
from curlora_lab.metrics.language import bits_per_character, log_ratio, perplexity, unigram_nll
from curlora_lab.metrics.summary import ContinualSummary, summarise

__all__ = [
    "METRICS",
    "ContinualSummary",
    "Finding",
    "bits_per_character",
    "classification_findings",
    "classification_scores",
    "constant_baseline",
    "language_findings",
    "log_ratio",
    "perplexity",
    "score_interval",
    "summarise",
    "unigram_nll",
    "wilson_interval",
]
