"""Scores of answers found in a text, as SQuAD's script computes them, and how sure they are."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torchmetrics.functional.text import squad

from curlora_lab.metrics.classification import wilson_interval
from curlora_lab.metrics.intervals import bootstrap_interval

ANSWER_METRICS = ("exact_match", "f1")
NO_ANSWER = ""

Answers = Sequence[str]
"""The right answers to one question; none at all where the text has none."""


def answer_scores(names: Sequence[str], predictions: Sequence[str], answers: Sequence[Answers]) -> dict[str, float]:
    """Score the answers to many questions: the mean over questions of the best score against any of the right answers.

    Before they are compared, answers lose case, punctuation, the words *a*, *an*, *the*, and surplus white space.
    ``exact_match``: whether nothing differs then. ``f1``: harmonic mean of precision and recall of the words. A question
    without an answer is answered rightly by the empty text, and by nothing else.

    Args:
        names: Metrics, out of :data:`ANSWER_METRICS`.
        predictions: Predicted answer of each question; empty for none.
        answers: Right answers of each question.

    Returns:
        Score by metric, in the order of ``names``; in [0, 1], where SQuAD's script prints per cent.

    Raises:
        ValueError: For an unknown name, no questions, or lists of different length.

    Reference:
        Rajpurkar et al. 2016, 2018 (evaluate-v1.1.py, evaluate-v2.0.py).
    """
    values = {name: _each(name, predictions, answers) for name in names}
    return {name: math.fsum(found) / len(found) for name, found in values.items()}


def constant_answer(metric: str, answers: Sequence[Answers]) -> tuple[float, str]:
    """Score of answering every question with the same text: with nothing, or with the most frequent right answer.

    Args:
        metric: One of :data:`ANSWER_METRICS`.
        answers: Right answers of each question.

    Returns:
        The better of the two scores, and that answer.

    Raises:
        ValueError: For an unknown name or no questions.
    """
    counts = Counter(text for right in answers for text in dict.fromkeys(right))
    rivals = [NO_ANSWER, *([min(counts, key=lambda text: (-counts[text], text))] if counts else [])]
    scores = {text: answer_scores([metric], [text] * len(answers), answers)[metric] for text in rivals}
    best = max(rivals, key=lambda text: scores[text])
    return scores[best], best


def answer_interval(
    metric: str, predictions: Sequence[str], answers: Sequence[Answers], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a score over questions: Wilson for exact match, percentile bootstrap of the questions for F1.

    Args:
        metric: One of :data:`ANSWER_METRICS`.
        predictions: Predicted answer of each question.
        answers: Right answers of each question.
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: As :func:`answer_scores`.
    """
    values = _each(metric, predictions, answers)
    if metric == "exact_match":
        return wilson_interval(round(sum(values)), len(values), confidence=confidence)
    return bootstrap_interval(np.array(values)[:, None], lambda sums: sums[:, 0] / len(values), confidence=confidence)


def _each(name: str, predictions: Sequence[str], answers: Sequence[Answers]) -> list[float]:
    """Score of each question."""
    if name not in ANSWER_METRICS:
        known = ", ".join(ANSWER_METRICS)
        raise ValueError(f"metric '{name}' is not known for question answering; choose from: {known}")
    if not answers or len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} questions: as many, at least one")
    return [_score(name, given, right) for given, right in zip(predictions, answers, strict=True)]


def _score(name: str, prediction: str, right: Answers) -> float:
    rivals = list(right) or [NO_ANSWER]
    if len(rivals) > 1 and _is_nothing(prediction):
        # v2.0 drops answers of which nothing is left; only a prediction of which nothing is left could be like them
        rivals = [text for text in rivals if not _is_nothing(text)] or [NO_ANSWER]
    return _squad(name, prediction, rivals)


def _is_nothing(text: str) -> bool:
    """Whether articles, punctuation and white space are all there is."""
    return _squad("exact_match", text, [NO_ANSWER]) == 1


def _squad(name: str, prediction: str, right: Sequence[str]) -> float:
    # one question at a time: an interval needs them apart, and torchmetrics sums in float32
    target: dict[str, Any] = {"id": "0", "answers": {"text": list(right), "answer_start": [0]}}
    found = squad([{"id": "0", "prediction_text": prediction}], [target])
    return float(found[name].double()) / 100
