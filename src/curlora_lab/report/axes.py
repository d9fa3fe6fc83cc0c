"""Where ticks, reference names and crowded points go: shared by the page and by figures for papers."""

import itertools
import math
from collections.abc import Sequence

from curlora_lab.report.figures import Lines, Reference, Value

NARROW = 6.0
MOST_STAGES = 9


def nice_ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers inside a range.

    Args:
        low: Smallest value.
        high: Largest value.
        about: How many steps are wanted.

    Returns:
        Ascending numbers between ``low`` and ``high``; none where both are equal and not round.
    """
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(values: Sequence[Value]) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5 times a power of ten, or plain round numbers where the range is narrow.

    Args:
        values: What the axis shows; only what is positive counts.

    Returns:
        Ascending numbers, possibly none.
    """
    there = [value for value in values if value is not None and value > 0]
    if not there:
        return []
    low, high = min(there), max(there)
    if high / low < NARROW:
        return nice_ticks(low, high) if high > low else [low]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(decades) > 4 else (1, 2, 5)
    ticks = [factor * 10.0**power for power in decades for factor in factors]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def stage_ticks(rows: int) -> list[float]:
    """Stages to label on an axis: all, or every second, third, ... where there are many.

    Args:
        rows: Number of rows of the score matrix.
    """
    return list(map(float, range(0, rows, -(-rows // MOST_STAGES))))


def range_of(figure: Lines) -> list[float]:
    """A vertical range that holds the series, their intervals and the references, with a little room."""
    there = [*figure.values, *(reference.value for reference in figure.references)]
    low, high = min(there), max(there)
    room = 0.08 * ((high - low) or abs(high) or 1.0)
    return [low - room, high + room]


def reference_on_right(reference: Reference, figure: Lines) -> bool:
    """Whether the right end of a reference has more room for its name than the left one."""

    def nearest(end: int) -> float:
        ends = [one.y[end] for one in figure.series if one.y]
        return min((abs(y - reference.value) for y in ends if y is not None), default=math.inf)

    return nearest(-1) > nearest(0)


def dodges(figure: Lines) -> list[float]:
    """How far each series moves to the side, so that intervals at the same place can be told apart."""
    crowd = [one.low is not None for one in figure.series]
    positions = sorted(set(figure.positions))
    if sum(crowd) < 2 or figure.log_x or len(positions) < 2:
        return [0.0] * len(figure.series)
    step = 0.3 * min(b - a for a, b in itertools.pairwise(positions)) / max(len(crowd), 4)
    return [step * (k - (len(crowd) - 1) / 2) for k in range(len(crowd))]
