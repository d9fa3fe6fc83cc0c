"""Geometry of the report's charts: numbers in, coordinates out; the templates draw them as inline SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 46.0, 12.0, 10.0, 24.0


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What it shows.
        values: One value a row of the score matrix; ``None`` leaves a gap.
        marked: Indices drawn as larger points.
    """

    name: str
    values: Sequence[float | None]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis.

    Attributes:
        at: Coordinate.
        label: Text.
    """

    at: float
    label: str


@dataclass(frozen=True)
class Point:
    """A drawn value.

    Attributes:
        x: Horizontal coordinate.
        y: Vertical coordinate, downwards.
        label: What a pointer shows.
        marked: Whether it is drawn larger.
    """

    x: float
    y: float
    label: str
    marked: bool


@dataclass(frozen=True)
class Line:
    """A drawn series.

    Attributes:
        name: What it shows.
        path: Path data; empty when there is no value.
        points: Its values.
    """

    name: str
    path: str
    points: list[Point]


@dataclass(frozen=True)
class Chart:
    """A chart ready to draw.

    Attributes:
        width: Width of the view box.
        height: Height of the view box.
        left: Left edge of the plot area.
        right: Right edge of the plot area.
        top: Upper edge of the plot area.
        bottom: Lower edge of the plot area.
        lines: The series.
        references: Horizontal lines with their names.
        x_ticks: Labels below.
        y_ticks: Labels on the left.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    lines: list[Line]
    references: list[Tick]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def line_chart(
    series: Sequence[Series],
    x_labels: Sequence[str],
    *,
    describe: Callable[[float], str],
    references: Sequence[tuple[str, float]] = (),
    log: bool = False,
    width: float = 320.0,
    height: float = 180.0,
) -> Chart | None:
    """Lay out lines over equally spaced rows.

    Args:
        series: The lines.
        x_labels: One label a row.
        describe: Turns a value into text for labels.
        references: Name and value of horizontal lines.
        log: Logarithmic vertical axis; values must then be positive.
        width: Width of the view box.
        height: Height of the view box.

    Returns:
        The chart, or ``None`` when there is nothing to draw.
    """
    known = [value for line in series for value in line.values if value is not None]
    if not known:
        return None
    known += [value for _, value in references]
    scale = math.log if log else float
    ticks = log_ticks(min(known), max(known)) if log else nice_ticks(min(known), max(known))
    low, high = scale(min(ticks[0], *known)), scale(max(ticks[-1], *known))
    left, right, top, bottom = MARGIN_LEFT, width - MARGIN_RIGHT, MARGIN_TOP, height - MARGIN_BOTTOM

    def x(index: int) -> float:
        return round(left + (right - left) * (index / (len(x_labels) - 1) if len(x_labels) > 1 else 0.5), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (scale(value) - low) / (high - low), 1)

    return Chart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        lines=[_line(one, x, y, lambda i, value: f"{x_labels[i]}: {describe(value)}") for one in series],
        references=[Tick(y(value), name) for name, value in references],
        x_ticks=[Tick(x(i), str(i)) for i in range(len(x_labels))],
        y_ticks=[Tick(y(value), _tick_label(value)) for value in ticks],
    )


def scatter_chart(
    points: Sequence[tuple[str, float, float]], *, width: float = 520.0, height: float = 300.0
) -> Chart | None:
    """Lay out named points on two linear axes.

    Args:
        points: Name, horizontal and vertical value of each.
        width: Width of the view box.
        height: Height of the view box.

    Returns:
        The chart with one line that holds all points, or ``None`` when there are none.
    """
    if not points:
        return None
    across = nice_ticks(min(x for _, x, _ in points), max(x for _, x, _ in points))
    up = nice_ticks(min(y for _, _, y in points), max(y for _, _, y in points))
    left, right, top, bottom = MARGIN_LEFT, width - MARGIN_RIGHT, MARGIN_TOP, height - MARGIN_BOTTOM

    def at_x(value: float) -> float:
        return round(left + (right - left) * (value - across[0]) / (across[-1] - across[0]), 1)

    def at_y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - up[0]) / (up[-1] - up[0]), 1)

    return Chart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        lines=[Line("runs", "", [Point(at_x(x), at_y(y), name, False) for name, x, y in points])],
        references=[],
        x_ticks=[Tick(at_x(value), _tick_label(value)) for value in across],
        y_ticks=[Tick(at_y(value), _tick_label(value)) for value in up],
    )


def nice_ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers that cover a range.

    Args:
        low: Smallest value.
        high: Largest value.
        about: How many steps are wanted.

    Returns:
        At least two ascending numbers, the first ≤ ``low``, the last ≥ ``high``.
    """
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers of the form 1, 2, 5 times a power of ten (powers only, over a wide range) that cover a positive range.

    Args:
        low: Smallest value, positive.
        high: Largest value.

    Returns:
        At least two ascending numbers, the first ≤ ``low``, the last ≥ ``high``.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(decades) > 4 else (1, 2, 5)
    candidates = [factor * 10.0**power for power in decades for factor in factors]
    first = max((k for k, tick in enumerate(candidates) if tick <= low * (1 + 1e-9)), default=0)
    last = next((k for k, tick in enumerate(candidates) if tick >= high * (1 - 1e-9)), len(candidates) - 1)
    return candidates[first : max(last, first + 1) + 1]


def _line(
    series: Series, x: Callable[[int], float], y: Callable[[float], float], label: Callable[[int, float], str]
) -> Line:
    """Path and points of a series; a missing value lifts the pen."""
    points, path, pen_down = [], "", False
    for i, value in enumerate(series.values):
        if value is None:
            pen_down = False
            continue
        points.append(Point(x(i), y(value), label(i, value), i in series.marked))
        path += f"{'L' if pen_down else 'M'}{x(i)} {y(value)}"
        pen_down = True
    return Line(series.name, path, points)


def _tick_label(value: float) -> str:
    if value and (abs(value) >= 100_000 or abs(value) < 0.001):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e−")
    return f"{value:,.6g}".replace("-", "−") if abs(value) >= 1000 else f"{value:.4g}".replace("-", "−")
