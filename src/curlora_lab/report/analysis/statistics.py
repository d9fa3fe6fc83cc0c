"""Intervals, paired differences and the correction for looking at many of them."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
from scipy.stats import bootstrap
from scipy.stats import t as student

CONFIDENCE = 0.95
LEVEL = 0.05
RESAMPLES = 9999
ROUNDING = 1e-12
FEWEST_PAIRS = 3
FEW_PAIRS = 10
"""Below that many pairs a bootstrap over them is markedly too narrow."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float

    @property
    def width(self) -> float:
        """Upper minus lower end."""
        return self.high - self.low

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside."""
        return not self.low <= value <= self.high

    def mirrored(self) -> "Interval":
        """The interval of the negated quantity."""
        return Interval(-self.high, -self.low)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference between two samples.

    Attributes:
        mean: Mean over pairs.
        n: Number of pairs.
        student: Student's 95 % interval over pairs.
        bootstrap: Percentile bootstrap over pairs.
        rows: Bootstrap over test rows with the seeds held fixed, where the score is a mean over rows.
        crossed: Bootstrap over seeds and test rows at once.
        p: Two-sided p of the paired t test, see :func:`paired`.
        adjusted: The same after Holm's correction over the family that it stands in.
    """

    mean: float
    n: int
    student: Interval | None = None
    bootstrap: Interval | None = None
    rows: Interval | None = None
    crossed: Interval | None = None
    p: float | None = None
    adjusted: float | None = None

    @property
    def widest(self) -> Interval | None:
        """The widest of the intervals over seeds: what a conclusion has to stand on; ``None`` with too few pairs."""
        found = [one for one in (self.student, self.bootstrap, self.crossed) if one is not None]
        return None if self.student is None else max(found, key=lambda one: one.width)

    @property
    def sure(self) -> bool:
        """Whether zero is outside the widest interval and the corrected p is below 5 %."""
        interval = self.widest
        return interval is not None and interval.excludes(0) and self.adjusted is not None and self.adjusted < LEVEL

    def mirrored(self) -> "Difference":
        """The same pair, the other way round."""
        return replace(
            self,
            mean=-self.mean,
            student=self.student and self.student.mirrored(),
            bootstrap=self.bootstrap and self.bootstrap.mirrored(),
            rows=self.rows and self.rows.mirrored(),
            crossed=self.crossed and self.crossed.mirrored(),
        )


def paired(
    first: Mapping[str, float], second: Mapping[str, float], *, position: Sequence[str | int]
) -> Difference | None:
    """Mean difference ``first − second`` over the seeds that both have, with its intervals.

    Student: ``d̄ ± t(0.975, n − 1) s_d / √n``; bootstrap: percentiles of the mean of n pairs drawn with replacement. With n
    pairs the bootstrap's spread is ``√((n − 1) / n)`` of the truth and its tails are normal, so it is too narrow: both are
    given. Fewer than three pairs have no interval. Where all differences are the same, the spread is 0 and t infinite: p is
    then that of the exact test that flips their signs, ``2^(1 − n)``.

    Args:
        first: One value a seed: pairs have to be independent of one another.
        second: Values by seed.
        position: Names the place from which the bootstrap's seed follows.

    Returns:
        The difference; ``None`` without a common seed.

    Reference:
        Efron and Tibshirani 1993, chapter 13.
    """
    values = [_without_rounding(first[seed], second[seed]) for seed in first if seed in second]
    if not values:
        return None
    mean, n = fmean(values), len(values)
    if n < FEWEST_PAIRS:
        return Difference(mean=mean, n=n)
    spread = stdev(values)
    if spread <= ROUNDING * max(map(abs, values)):  # all pairs equal: nothing to resample
        point = Interval(mean, mean)
        return Difference(mean=mean, n=n, student=point, bootstrap=point, p=1.0 if mean == 0 else 2.0 ** (1 - n))
    half = float(student.ppf(0.5 + CONFIDENCE / 2, n - 1)) * spread / math.sqrt(n)
    p = 2 * float(student.sf(abs(mean) / (spread / math.sqrt(n)), n - 1))
    return Difference(
        mean=mean,
        n=n,
        student=Interval(mean - half, mean + half),
        bootstrap=bootstrap_mean(values, position=position),
        p=p,
    )


def _without_rounding(a: float, b: float) -> float:
    """``a − b``, 0 where they differ in the last bits only: three equal rounding errors would pass for a sure difference."""
    difference = a - b
    return 0.0 if abs(difference) <= ROUNDING * max(1.0, abs(a), abs(b)) else difference


def bootstrap_mean(values: Sequence[float], *, position: Sequence[str | int]) -> Interval:
    """Percentile bootstrap of a mean.

    Args:
        values: The sample, at least two.
        position: Names the place from which the seed follows: the same values there give the same interval.
    """
    found = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=generator_at("bootstrap", *position),
    )
    return Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))


def generator_at(*position: str | int) -> np.random.Generator:
    """A generator that depends on the position only, e.g. ``generator_at("bootstrap", "learning")``."""
    digest = hashlib.sha256("|".join(map(str, position)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the chance of one false discovery in the whole family stays below the level.

    The k-th smallest of m p values becomes ``max over i ≤ k of min(1, (m − i + 1) p_(i))``.

    Args:
        values: p values; those that are ``None`` are no part of the family.

    Returns:
        Corrected p values in the same places.

    Reference:
        Holm 1979.
    """
    ranked = sorted((value, k) for k, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, k) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * value))
        adjusted[k] = largest
    return adjusted


def corrected(family: Sequence[Difference | None]) -> list[Difference | None]:
    """The members of a family with Holm's p.

    Args:
        family: Everything that was looked at together.
    """
    found = holm([None if one is None else one.p for one in family])
    return [None if one is None else replace(one, adjusted=p) for one, p in zip(family, found, strict=True)]
