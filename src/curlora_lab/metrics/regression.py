"""Scores of predicted numbers, what a constant predictor would get, and how sure both are."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional import mean_squared_error, pearson_corrcoef, spearman_corrcoef

CONSTANT = 1e-6
"""Numbers that differ by less than this part of the true numbers' spread are taken for equal: correlations of rounding
errors mean nothing."""


def pearson(predictions: Float[Tensor, " rows"], targets: Float[Tensor, " rows"]) -> float:
    """Pearson's correlation of predicted and true numbers.

    0 where either side is constant: no correlation is defined there (scipy and torchmetrics say nan), and a predictor that
    says the same of every row knows nothing of their order. The record says so with the finding ``constant_prediction``.

    Args:
        predictions: Predicted numbers, shape (rows,).
        targets: True numbers, shape (rows,).

    Returns:
        Correlation in [-1, 1].

    Reference:
        GLUE's first metric for STS-B.
    """
    if is_constant(predictions, targets) or is_constant(targets, targets):
        return 0.0
    return float(pearson_corrcoef(_centred(predictions), _centred(targets)))


def spearman(predictions: Float[Tensor, " rows"], targets: Float[Tensor, " rows"]) -> float:
    """Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank; 0 where either side is constant.

    Args:
        predictions: Predicted numbers, shape (rows,).
        targets: True numbers, shape (rows,).

    Returns:
        Correlation in [-1, 1].

    Reference:
        GLUE's second metric for STS-B.
    """
    if is_constant(predictions, targets) or is_constant(targets, targets):
        return 0.0
    return float(spearman_corrcoef(predictions, targets))


def negative_mse(predictions: Float[Tensor, " rows"], targets: Float[Tensor, " rows"]) -> float:
    """Mean squared error, negated so that higher is better; in the square of the target's unit.

    Args:
        predictions: Predicted numbers, shape (rows,).
        targets: True numbers, shape (rows,).

    Returns:
        At most 0; a constant predictor gets at best minus the variance of the targets.
    """
    return -float(mean_squared_error(predictions, targets))


REGRESSION_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "pearson": pearson,
    "spearman": spearman,
    "negative_mse": negative_mse,
}


def regression_scores(
    names: Sequence[str], predictions: Float[Tensor, " rows"], targets: Float[Tensor, " rows"]
) -> dict[str, float]:
    """Score predictions by several metrics, in double precision.

    Args:
        names: Metrics, out of :data:`REGRESSION_METRICS`.
        predictions: Predicted numbers, shape (rows,).
        targets: True numbers, shape (rows,).

    Returns:
        Score by metric, in the order of ``names``; all are higher-is-better.

    Raises:
        ValueError: For an unknown name, no rows, or shapes that differ.
    """
    unknown = [name for name in names if name not in REGRESSION_METRICS]
    if unknown:
        known = ", ".join(REGRESSION_METRICS)
        raise ValueError(f"metric '{unknown[0]}' is not known for regression; choose from: {known}")
    if predictions.shape != targets.shape or targets.dim() != 1 or not len(targets):
        raise ValueError(
            f"predictions of shape {tuple(predictions.shape)} for targets of shape {tuple(targets.shape)}: both must be "
            "one-dimensional, equally long and not empty"
        )
    return {name: REGRESSION_METRICS[name](predictions.double(), targets.double()) for name in names}


def constant_number(metric: str, targets: Float[Tensor, " rows"]) -> tuple[float, float]:
    """Best score that a predictor of one and the same number gets, and a number that gets it: the mean of the targets.

    Args:
        metric: One of :data:`REGRESSION_METRICS`.
        targets: True numbers, shape (rows,).

    Returns:
        The score (0 for a correlation, minus the variance for ``negative_mse``) and the number.

    Raises:
        ValueError: For an unknown name or no rows.
    """
    mean = targets.double().mean()
    return regression_scores([metric], mean.expand(len(targets)), targets)[metric], float(mean)


def regression_interval(
    metric: str,
    predictions: Float[Tensor, " rows"],
    targets: Float[Tensor, " rows"],
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Interval of a score over test rows.

    Correlations: Fisher's ``tanh(atanh r ± z / sqrt(n - 3))`` (for Spearman's with Bonett and Wright's variance
    ``(1 + r²/2) / (n - 3)``), (-1, 1) for fewer than four rows. Mean squared error: normal, ``mean ± z s / sqrt(n)``.

    Args:
        metric: One of :data:`REGRESSION_METRICS`.
        predictions: Predicted numbers, shape (rows,).
        targets: True numbers, shape (rows,).
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: As :func:`regression_scores`.

    Reference:
        Fisher 1921; Bonett and Wright 2000.
    """
    score, rows = regression_scores([metric], predictions, targets)[metric], len(targets)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    if metric == "negative_mse":
        errors = (predictions.double() - targets.double()).square()
        half = z * float(errors.std()) / math.sqrt(rows) if rows > 1 else math.inf
        return score - half, score + half
    if rows < 4:
        return -1.0, 1.0
    variance = (1 + score * score / 2 if metric == "spearman" else 1.0) / (rows - 3)
    centre, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, score))), z * math.sqrt(variance)
    return math.tanh(centre - half), math.tanh(centre + half)


def is_constant(values: Float[Tensor, " rows"], targets: Float[Tensor, " rows"]) -> bool:
    """Whether numbers are all the same, measured by the spread of the targets.

    Args:
        values: The numbers, shape (rows,).
        targets: True numbers of the task, shape (rows,).

    Returns:
        True if their range is at most ``CONSTANT`` times that of the targets, also when that is 0.
    """
    return float(values.max() - values.min()) <= CONSTANT * float(targets.max() - targets.min())


def _centred(values: Tensor) -> Tensor:
    """Mean 0 and range 1: torchmetrics takes a small variance for none."""
    return (values - values.mean()) / (values.max() - values.min())
