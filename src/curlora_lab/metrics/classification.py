"""Scores of a classifier from predicted and true labels, what a constant predictor would get, and how sure both are."""

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional import classification as torchmetrics

RESAMPLES = 2000
"""Bootstrap resamples behind an interval that has no closed form."""


def accuracy(predictions: Int[Tensor, " rows"], labels: Int[Tensor, " rows"], num_labels: int) -> float:
    """Share of rows with the right label.

    Args:
        predictions: Predicted label indices, shape (rows,).
        labels: True label indices, shape (rows,).
        num_labels: Number of labels of the task.

    Returns:
        Accuracy in [0, 1].
    """
    return float(torchmetrics.multiclass_accuracy(predictions, labels, num_labels, average="micro"))


def balanced_accuracy(predictions: Int[Tensor, " rows"], labels: Int[Tensor, " rows"], num_labels: int) -> float:
    """Mean over labels of the share of that label's rows that were found; labels without rows are left out.

    torchmetrics' macro accuracy counts a label that is predicted but has no rows as 0; this follows scikit-learn.

    Args:
        predictions: Predicted label indices, shape (rows,).
        labels: True label indices, shape (rows,).
        num_labels: Number of labels of the task.

    Returns:
        Balanced accuracy in [0, 1]; a constant predictor gets 1 / (labels with rows).
    """
    recall = torchmetrics.multiclass_recall(predictions, labels, num_labels, average="none")
    return float(recall[torch.bincount(labels, minlength=num_labels) > 0].mean())


def f1(predictions: Int[Tensor, " rows"], labels: Int[Tensor, " rows"], num_labels: int) -> float:
    """F1 of the *last* label when there are two, as GLUE scores MRPC and QQP; macro F1 when there are more.

    F1 = 2 TP / (2 TP + FP + FN), 0 when the label is neither predicted nor true.

    Args:
        predictions: Predicted label indices, shape (rows,).
        labels: True label indices, shape (rows,).
        num_labels: Number of labels of the task.

    Returns:
        F1 in [0, 1].
    """
    if num_labels > 2:
        return macro_f1(predictions, labels, num_labels)
    return float(torchmetrics.multiclass_f1_score(predictions, labels, num_labels, average="none")[-1])


def macro_f1(predictions: Int[Tensor, " rows"], labels: Int[Tensor, " rows"], num_labels: int) -> float:
    """Unweighted mean of F1 over the labels that are predicted or true somewhere.

    Args:
        predictions: Predicted label indices, shape (rows,).
        labels: True label indices, shape (rows,).
        num_labels: Number of labels of the task.

    Returns:
        Macro F1 in [0, 1].
    """
    return float(torchmetrics.multiclass_f1_score(predictions, labels, num_labels, average="macro"))


def mcc(predictions: Int[Tensor, " rows"], labels: Int[Tensor, " rows"], num_labels: int) -> float:
    """Matthews correlation coefficient of predicted and true labels (R_K for more than two labels).

    0 when either side is constant, as in scikit-learn: no correlation is defined there, and torchmetrics 1.9 returns
    ±0.18 for a constant predictor of five rows.

    Args:
        predictions: Predicted label indices, shape (rows,).
        labels: True label indices, shape (rows,).
        num_labels: Number of labels of the task.

    Returns:
        MCC in [-1, 1].

    Reference:
        Gorodkin 2004.
    """
    if is_constant(predictions) or is_constant(labels):
        return 0.0
    return float(torchmetrics.multiclass_matthews_corrcoef(predictions, labels, num_labels))


DIGITS = 7  # torchmetrics computes in float32; further digits are noise

METRICS: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "mcc": mcc,
}


def classification_scores(
    names: Sequence[str],
    predictions: Int[Tensor, " rows"],
    labels: Int[Tensor, " rows"],
    num_labels: int,
) -> dict[str, float]:
    """Score predictions by several metrics.

    Args:
        names: Metrics, out of :data:`METRICS`.
        predictions: Predicted label indices, shape (rows,).
        labels: True label indices, shape (rows,).
        num_labels: Number of labels of the task.

    Returns:
        Score by metric, in the order of ``names``; all are higher-is-better.

    Raises:
        ValueError: For an unknown name, no rows, shapes that differ, or an index outside the labels.
    """
    functions = {name: _metric(name) for name in names}
    _check(predictions, labels, num_labels)
    return {name: function(predictions, labels, num_labels) for name, function in functions.items()}


def constant_baseline(metric: str, labels: Int[Tensor, " rows"], num_labels: int) -> tuple[float, int]:
    """Best score that a predictor of one and the same label gets.

    Args:
        metric: One of :data:`METRICS`.
        labels: True label indices, shape (rows,).
        num_labels: Number of labels of the task.

    Returns:
        The score and the label's index. Of equally good labels the most frequent, then the lowest index.

    Raises:
        ValueError: For an unknown name, no rows, or an index outside the labels.
    """
    function = _metric(metric)
    _check(labels, labels, num_labels)
    counts = torch.bincount(labels, minlength=num_labels).tolist()
    scores = [function(torch.full_like(labels, index), labels, num_labels) for index in range(num_labels)]
    best = max(range(num_labels), key=lambda index: (scores[index], counts[index], -index))
    return scores[best], best


def is_constant(labels: Int[Tensor, " rows"]) -> bool:
    """Whether all entries are the same label.

    Args:
        labels: Label indices, shape (rows,).

    Returns:
        True for one distinct value, also when there is one row only.
    """
    return bool((labels == labels[0]).all())


def wilson_interval(correct: int, rows: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share: ``(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)``.

    Args:
        correct: Number of successes.
        rows: Number of trials n.
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ValueError: When ``rows`` is not positive or ``correct`` is outside 0..rows.

    Reference:
        Wilson 1927.
    """
    if rows < 1 or not 0 <= correct <= rows:
        raise ValueError(f"{correct} correct of {rows} rows: needs at least one row and 0 <= correct <= rows")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / rows
    centre = share + z * z / (2 * rows)
    half = z * (share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5
    width = 1 + z * z / rows
    # At 0 and 1 the bound is exact on paper and a rounding error in floats.
    low = 0.0 if correct == 0 else (centre - half) / width
    return low, (1.0 if correct == rows else (centre + half) / width)


def score_interval(
    metric: str,
    predictions: Int[Tensor, " rows"],
    labels: Int[Tensor, " rows"],
    num_labels: int,
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Interval of a score over test rows: Wilson for accuracy, percentile bootstrap of the rows for the others.

    The bootstrap resamples the confusion matrix (a multinomial draw is the same thing) with a fixed seed, so the same
    predictions always give the same interval.

    Args:
        metric: One of :data:`METRICS`.
        predictions: Predicted label indices, shape (rows,).
        labels: True label indices, shape (rows,).
        num_labels: Number of labels of the task.
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: For an unknown name, no rows, shapes that differ, or an index outside the labels.
    """
    _metric(metric)
    _check(predictions, labels, num_labels)
    if metric == "accuracy":
        return wilson_interval(int((predictions == labels).sum()), len(labels), confidence=confidence)
    cells = torch.bincount(labels * num_labels + predictions, minlength=num_labels**2).double().cpu()
    draws = np.random.default_rng(0).multinomial(len(labels), (cells / cells.sum()).numpy(), size=RESAMPLES)
    counts = torch.from_numpy(draws).double()
    scores = scores_from_confusion(metric, counts.view(RESAMPLES, num_labels, num_labels))
    low, high = torch.quantile(scores, torch.tensor([0.5 - confidence / 2, 0.5 + confidence / 2], dtype=torch.double))
    return float(low), float(high)


def scores_from_confusion(metric: str, confusion: Float[Tensor, "draws labels labels"]) -> Float[Tensor, " draws"]:
    """Score many confusion matrices at once, by the definitions of :data:`METRICS`.

    Args:
        metric: One of :data:`METRICS`.
        confusion: Counts, shape (draws, true labels, predicted labels).

    Returns:
        Scores, shape (draws,).

    Raises:
        ValueError: For an unknown name.
    """
    _metric(metric)
    hits = confusion.diagonal(dim1=-2, dim2=-1)
    true, predicted, total = confusion.sum(-1), confusion.sum(-2), confusion.sum((-2, -1))
    if metric == "accuracy":
        return hits.sum(-1) / total
    if metric == "balanced_accuracy":
        return (hits / true.clamp(min=1)).sum(-1) / (true > 0).sum(-1)
    if metric == "mcc":
        covariance = hits.sum(-1) * total - (true * predicted).sum(-1)
        spread = (total**2 - predicted.square().sum(-1)) * (total**2 - true.square().sum(-1))
        return torch.where(spread > 0, covariance / spread.clamp(min=1).sqrt(), torch.zeros_like(covariance))
    by_label = 2 * hits / (true + predicted).clamp(min=1)
    if metric == "f1" and confusion.shape[-1] == 2:
        return by_label[..., -1]
    return by_label.sum(-1) / (true + predicted > 0).sum(-1)


def _metric(name: str) -> Callable[[Tensor, Tensor, int], float]:
    if name not in METRICS:
        raise ValueError(f"metric '{name}' is not known for classification; choose from: {', '.join(sorted(METRICS))}")
    return lambda predictions, labels, num_labels: round(METRICS[name](predictions, labels, num_labels), DIGITS)


def _check(predictions: Tensor, labels: Tensor, num_labels: int) -> None:
    if predictions.shape != labels.shape or labels.dim() != 1:
        raise ValueError(
            f"predictions of shape {tuple(predictions.shape)} for labels of shape {tuple(labels.shape)}: "
            "both must be one-dimensional and equally long"
        )
    if not len(labels):
        raise ValueError("no rows to score: a score of nothing is not defined")
    for what, values in (("label", labels), ("prediction", predictions)):
        outside = values[(values < 0) | (values >= num_labels)]
        if len(outside):
            raise ValueError(
                f"{what} index {int(outside[0])} is outside the task's {num_labels} labels (0..{num_labels - 1})"
            )
