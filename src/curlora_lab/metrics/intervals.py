"""How sure a score is: resampling the rows behind any score that is a function of sums over rows."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
_CHUNK = 100  # resamples held at once: a matrix of draws x rows

Counts = NDArray[np.float64]


def bootstrap_interval(
    counts: Counts, score: Callable[[Counts], Counts], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of the rows: rows are drawn with replacement, their counts summed, the sums scored.

    The draws come from a fixed seed, so the same rows always give the same interval.

    Args:
        counts: What each row adds, shape (rows, counts).
        score: Gives scores, shape (draws,), of summed counts, shape (draws, counts).
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: There are no rows.

    Reference:
        Efron 1979; a multinomial draw of how often each row is taken is the same as drawing rows.
    """
    rows = len(counts)
    if not rows:
        raise ValueError("no rows to score: an interval of nothing is not defined")
    generator = np.random.default_rng(0)
    chunks = [
        score(generator.multinomial(rows, np.full(rows, 1 / rows), size=_CHUNK) @ counts)
        for _ in range(RESAMPLES // _CHUNK)
    ]
    low, high = np.quantile(np.concatenate(chunks), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
