"""What a picture shows, as plain values: the page and the figures for papers are drawn from the same."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from curlora_lab.report import wording

Value = float | None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What it shows.
        x: Positions, numbers or labels, one a point.
        y: Values; ``None`` leaves a gap.
        low: Lower ends of intervals, where there are any.
        high: Upper ends.
        hover: What a pointer shows, one text a point.
        marked: Indices drawn as filled points; the others are hollow.
        colour: Index into the palette.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[Value]
    low: Sequence[Value] | None = None
    high: Sequence[Value] | None = None
    hover: Sequence[str] = ()
    marked: frozenset[int] = frozenset()
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A horizontal line that values are held against.

    Attributes:
        name: What it is, such as ``constant``.
        value: Where it lies.
        grave: Whether being below it is a fault.
    """

    name: str
    value: float
    grave: bool = False


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Series over stages, steps or values of an option.

    Attributes:
        name: Name of the file, unique among the figures of a page.
        title: What it is.
        description: What it shows, for who cannot see it.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        series: The lines.
        references: Horizontal lines.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic; values must then be positive.
        dense: Whether the points are so many that only the line is drawn.
        ticks: Positions to label on a numeric horizontal axis.
    """

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    references: Sequence[Reference] = ()
    log_x: bool = False
    log_y: bool = False
    dense: bool = False
    ticks: Sequence[float] | None = None
    kind: Literal["lines"] = "lines"

    @property
    def positions(self) -> list[float]:
        """All numeric horizontal positions."""
        return [x for one in self.series for x in one.x if isinstance(x, int | float)]

    @property
    def values(self) -> list[float]:
        """Everything that the vertical axis must hold but the references."""
        parts = (part for one in self.series for part in (one.y, one.low or (), one.high or ()))
        return [value for part in parts for value in part if value is not None]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.values


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration in a scatter chart.

    Attributes:
        name: What it is.
        group: Which method it belongs to; one entry of the legend.
        x: Horizontal value.
        y: Vertical value.
        x_half: Half of the interval of ``x``, where there is one.
        y_half: Half of the interval of ``y``.
        hover: What a pointer shows.
        colour: Index into the palette.
    """

    name: str
    group: str = ""
    x: float
    y: float
    x_half: Value = None
    y_half: Value = None
    hover: str = ""
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """One trade: what is gained upwards against what it costs to the right, and the front that nothing dominates.

    Attributes:
        name: Name of the file.
        title: What it is.
        description: What it shows, for who cannot see it.
        x_label: What is better when smaller.
        y_label: What is better when larger.
        points: The configurations.
        log_x: Whether the horizontal axis is logarithmic.
    """

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    points: Sequence[Point]
    log_x: bool = False
    kind: Literal["scatter"] = "scatter"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.points

    @property
    def front(self) -> list[int]:
        """Indices of the points that no other dominates, from left to right: see :func:`pareto_front`."""
        return pareto_front([(point.x, point.y) for point in self.points])


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Values by row and column.

    Attributes:
        name: Name of the file.
        title: What it is.
        description: What it shows, for who cannot see it.
        x_label: What the columns are.
        y_label: What the rows are.
        columns: Their names.
        rows: Their names, from the top.
        values: One list a row.
        shades: Where each value lies on its scale, from -1 (bad) over 0 to 1 (good); ``None``: shaded by the value itself.
        value_label: What the values are.
        hover: What a pointer shows, one list a row.
        framed: (row, column) of the cells to point out.
    """

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[Value]]
    value_label: str
    shades: Sequence[Sequence[float]] | None = None
    hover: Sequence[Sequence[str]] = ()
    framed: frozenset[tuple[int, int]] = frozenset()
    kind: Literal["heatmap"] = field(default="heatmap")

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(value is not None for row in self.values for value in row)


Figure = Lines | Scatter | Heatmap


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Points that no other dominates.

    Args:
        points: (x, y) pairs; x is better when smaller, y when larger.

    Returns:
        Their indices by ascending x; of equal points all are kept.
    """
    front = [k for k, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    return sorted(front, key=lambda k: _to_digits(points[k]))


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether x is at most as large and y at least as large, one of them strictly; the last bits of a mean do not count."""
    (a, b), (x, y) = _to_digits(one), _to_digits(other)
    return a <= x and b >= y and (a < x or b > y)


def _to_digits(point: tuple[float, float]) -> tuple[float, float]:
    return float(f"{point[0]:.12g}"), float(f"{point[1]:.12g}")


def slug(text: str) -> str:
    """A text as part of a file name or an id: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "x"


def unique(figures: Sequence[Figure]) -> list[str]:
    """Names of the figures, made different where two would be the same file."""
    seen: dict[str, int] = {}
    names = []
    for figure in figures:
        seen[figure.name] = seen.get(figure.name, 0) + 1
        names.append(figure.name if seen[figure.name] == 1 else f"{figure.name}-{seen[figure.name]}")
    return names


def as_table(figure: Figure) -> tuple[list[str], list[list[str]]]:
    """The numbers behind a figure.

    Returns:
        Names of the columns, and one list of texts a row.
    """
    if figure.kind == "heatmap":
        rows = [[name, *map(wording.number, row)] for name, row in zip(figure.rows, figure.values, strict=True)]
        return [figure.y_label, *figure.columns], rows
    if figure.kind == "scatter":
        front = set(figure.front)
        return ["", figure.x_label, figure.y_label, "on the front"], [
            [p.name, with_half(p.x, p.x_half), with_half(p.y, p.y_half), "yes" if k in front else "no"]
            for k, p in enumerate(figure.points)
        ]
    positions = list(dict.fromkeys(x for one in figure.series for x in one.x))
    rows = [[x if isinstance(x, str) else f"{x:g}", *(_at(one, x) for one in figure.series)] for x in positions]
    return [figure.x_label, *(one.name for one in figure.series)], rows


def with_half(value: float, half: Value) -> str:
    """A value, with half of its interval where it has one."""
    return wording.number(value) if half is None else f"{wording.number(value)} ± {wording.number(half)}"


def _at(series: Series, x: float | str) -> str:
    """A series' value at a position, with its interval."""
    if x not in series.x:
        return ""
    k = list(series.x).index(x)
    value, high = series.y[k], series.high[k] if series.high else None
    if value is None:
        return wording.MISSING
    return with_half(value, None if high is None else high - value)
