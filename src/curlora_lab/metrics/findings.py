"""Findings: what a sceptic would object to a score, in words, for the ``warnings`` of a record."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from jaxtyping import Int
from torch import Tensor

from curlora_lab.metrics.classification import classification_scores, constant_baseline, is_constant, score_interval


@dataclass(frozen=True)
class Finding:
    """One entry of ``warnings`` in results.json.

    Attributes:
        code: Machine-readable kind, such as ``constant_prediction``.
        task: The task it is about, or ``None`` for the whole run.
        stage: The stage after which it was seen, or ``None``.
        message: One sentence for the reader.
    """

    code: str
    task: str | None
    stage: int | None
    message: str

    def to_dict(self) -> dict[str, str | int | None]:
        """The entry as results.json holds it."""
        return asdict(self)


def classification_findings(
    task: str,
    stage: int,
    predictions: Int[Tensor, " rows"],
    labels: Int[Tensor, " rows"],
    *,
    label_names: Sequence[str],
    metric: str,
    learnt_in: int,
) -> list[Finding]:
    """What is wrong with the predictions for one task after one stage.

    Rules, by code:
      * ``constant_prediction``: every row got the same label though the true labels differ.
      * ``below_constant``: the score is lower than that of the best constant predictor on the same rows.
      * ``not_learnt``: right after the task's own stage, the lower bound of the score's 95 % interval over test rows
        (Wilson for accuracy, bootstrap otherwise) is not above that of the best constant predictor.

    Nothing is said about a task before its own stage: an untrained head is expected to be no better.

    Args:
        task: Name of the task.
        stage: Stage that was just trained, 0 for untrained.
        predictions: Predicted label indices, shape (rows,).
        labels: True label indices, shape (rows,).
        label_names: Names of the labels by index.
        metric: The task's main metric.
        learnt_in: Stage in which the task is learnt.

    Returns:
        The findings, possibly none.

    Raises:
        ValueError: For an unknown metric or labels that do not fit ``label_names``.
    """
    score = classification_scores([metric], predictions, labels, len(label_names))[metric]
    constant, label = constant_baseline(metric, labels, len(label_names))
    is_same = is_constant(predictions) and not is_constant(labels)
    return score_findings(
        task,
        stage,
        metric=metric,
        score=score,
        rows=len(labels),
        same=label_names[int(predictions[0])] if is_same else None,
        rival=(constant, label_names[label]),
        interval=lambda: score_interval(metric, predictions, labels, len(label_names)),
        learnt_in=learnt_in,
    )


def score_findings(
    task: str,
    stage: int,
    *,
    metric: str,
    score: float,
    rows: int,
    same: str | None,
    rival: tuple[float, str],
    interval: Callable[[], tuple[float, float]],
    learnt_in: int,
) -> list[Finding]:
    """What is wrong with a score, whatever it is a score of; the rules are those of :func:`classification_findings`.

    Args:
        task: Name of the task.
        stage: Stage that was just trained, 0 for untrained.
        metric: The task's main metric.
        score: What it is on the reported rows.
        rows: Number of these.
        same: The prediction, in words, if all rows got the same though they should not; else ``None``.
        rival: Score of the best constant predictor on the same rows, and what it predicts.
        interval: Gives the score's 95 % interval over test rows.
        learnt_in: Stage in which the task is learnt.

    Returns:
        The findings, possibly none.
    """
    if stage < learnt_in:
        return []
    findings = []
    if same is not None:
        findings.append(Finding("constant_prediction", task, stage, f"predicts '{same}' for all {rows} rows"))
    constant, always = rival
    words = f"always answering '{always}' gets {constant:.4f}"
    # Some scores are float32 means: a constant predictor must not be found "below" itself by a rounding error.
    if score < constant - 1e-6:
        findings.append(Finding("below_constant", task, stage, f"{metric} {score:.4f}, while {words}"))
    if stage == learnt_in:
        low, high = interval()
        if low <= constant:
            sure = f"{metric} {score:.4f} (95 % interval {low:.4f} to {high:.4f}, {rows} rows)"
            findings.append(Finding("not_learnt", task, stage, f"{sure} is not above {constant:.4f}: {words}"))
    return findings


def language_findings(
    task: str, stage: int, perplexity: float, *, before: float, unigram: float | None, learnt_in: int
) -> list[Finding]:
    """What is wrong with a language-modelling score after one stage.

    Rules, by code: ``below_constant`` when the perplexity is above that of the unigram model of the same text (the
    constant predictor of language), ``not_learnt`` when it is not lower right after its stage than untrained.

    Args:
        task: Name of the task.
        stage: Stage that was just trained, 0 for untrained.
        perplexity: Perplexity a token after that stage.
        before: Perplexity a token before any training.
        unigram: Perplexity a token of the unigram model, where known.
        learnt_in: Stage in which the task is learnt.

    Returns:
        The findings, possibly none.
    """
    findings = []
    if stage >= learnt_in and unigram is not None and perplexity > unigram:
        message = f"perplexity {perplexity:.4g} is above the {unigram:.4g} of always predicting token frequencies"
        findings.append(Finding("below_constant", task, stage, message))
    if stage == learnt_in and perplexity >= before:
        message = f"perplexity {perplexity:.4g} after its stage, {before:.4g} before any training"
        findings.append(Finding("not_learnt", task, stage, message))
    return findings
