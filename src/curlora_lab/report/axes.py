"""Where ticks, reference names and crowded points go: shared by the page and by figures for papers."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from curlora_lab.report.figures import Lines, Reference, Value

NARROW = 6.0
MOST_STAGES = 9

#: About how wide and high a reference's name is in a small chart, and half of a marker, as shares of the axes.
NAME_WIDTH, NAME_HEIGHT, MARKER = 0.44, 0.09, 0.035
SAMPLES = 20


@dataclass(frozen=True)
class NamePlace:
    """Where the name of a reference stands at its line.

    Attributes:
        right: At the right end, not at the left one.
        above: Above the line, not below it.
        lift: Whether it stands off the line by the size of a marker.
    """

    right: bool
    above: bool
    lift: bool


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


def place_of_name(reference: Reference, figure: Lines) -> NamePlace:
    """The end and side of a reference's line where its name meets the fewest lines and points.

    Args:
        reference: The reference; its line goes across the whole chart.
        figure: The chart that it is in.
    """
    preferred = reference_on_right(reference, figure)
    places = [
        NamePlace(right, above, lift)
        for lift in (False, True)
        for above in (True, False)
        for right in (preferred, not preferred)
    ]
    return min(places, key=lambda place: _met(place, reference, figure))  # the first of equals


def _met(place: NamePlace, reference: Reference, figure: Lines) -> int:
    """How many samples of the lines, and of the points five times as much, a name there would cover."""
    level, step = _share_upwards(reference.value, figure), MARKER if place.lift else 0.0
    bottom = level + step if place.above else level - step - NAME_HEIGHT
    outside = int(bottom < 0 or bottom + NAME_HEIGHT > 1) * 1000
    left, right = (1 - NAME_WIDTH, 1.0) if place.right else (0.0, NAME_WIDTH)
    met = 0
    for points in _in_shares(figure):
        for (x, y), (next_x, next_y) in itertools.pairwise(points):
            ways = [k / SAMPLES for k in range(SAMPLES + 1)]
            line = [(x + way * (next_x - x), y + way * (next_y - y)) for way in ways]
            met += sum(left <= a <= right and bottom < b < bottom + NAME_HEIGHT for a, b in line)
        reach = 0.0 if figure.dense else MARKER
        met += 5 * sum(left <= a <= right and bottom - reach < b < bottom + NAME_HEIGHT + reach for a, b in points)
    return met + outside


def _share_upwards(value: float, figure: Lines) -> float:
    """Where a value lies between the lower and the upper edge of a chart, 0 to 1."""
    low, high = range_of(figure)
    if figure.log_y:
        there = [*figure.values, *(reference.value for reference in figure.references)]
        low, high, value = math.log(min(there)), math.log(max(there)), math.log(value)
    return (value - low) / ((high - low) or 1)


def _in_shares(figure: Lines) -> Iterator[list[tuple[float, float]]]:
    """The points of each series as shares of the axes; gaps are bridged."""
    names = list(dict.fromkeys(x for one in figure.series for x in one.x))

    def across(x: float | str) -> float:
        if isinstance(x, str) or not all(isinstance(name, int | float) for name in names):
            return names.index(x) / max(len(names) - 1, 1)
        numbers = [math.log(value) if figure.log_x else value for value in figure.positions]
        number = math.log(x) if figure.log_x else x
        return (number - min(numbers)) / ((max(numbers) - min(numbers)) or 1)

    for one in figure.series:
        pairs = [(across(x), y) for x, y in zip(one.x, one.y, strict=True) if y is not None]
        yield [(0.05 + 0.9 * x, _share_upwards(y, figure)) for x, y in pairs]


def dodges(figure: Lines) -> list[float]:
    """How far each series moves to the side, so that intervals at the same place can be told apart."""
    crowd = [one.low is not None for one in figure.series]
    positions = sorted(set(figure.positions))
    if sum(crowd) < 2 or figure.log_x or len(positions) < 2:
        return [0.0] * len(figure.series)
    step = 0.3 * min(b - a for a, b in itertools.pairwise(positions)) / max(len(crowd), 4)
    return [step * (k - (len(crowd) - 1) / 2) for k in range(len(crowd))]
