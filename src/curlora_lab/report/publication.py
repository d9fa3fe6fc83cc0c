"""The same figures on paper: PDF, SVG and PNG by matplotlib, without pyplot, so that no global state is touched.

Files are byte for byte the same when drawn twice: no dates, a fixed salt for the ids of SVG elements.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from curlora_lab.report import palette, wording
from curlora_lab.report.axes import dodges, log_ticks, place_of_name, range_of
from curlora_lab.report.figures import Figure, Heatmap, Lines, Scatter, Series, unique

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None, "Producer": None, "Creator": None}},
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "png": {"metadata": {"Software": None}, "dpi": 300},
}
"""Formats by the end of the file's name, with what makes their files repeatable."""

STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#5b6570",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e0da",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "errorbar.capsize": 1.8,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # journals refuse type 3 fonts
    "svg.hashsalt": "curlora_lab",
    "text.parse_math": False,  # a task may be called "a$b$"
}
GRAVE, CALM = "#c2480f", "#5b6570"


def write_figures(
    figures: Sequence[Figure], folder: Path | str, *, formats: Sequence[str], width: float = 3.4, titles: bool = False
) -> list[Path]:
    """Draw figures into files.

    Args:
        figures: What to draw; empty ones are left out.
        folder: Where the files go; made if need be.
        formats: Keys of :data:`FORMATS`.
        width: Width in inches; 3.4 is one column of most two-column journals.
        titles: Whether each figure has its title above it; papers say it in the caption.

    Returns:
        Paths of the files.

    Raises:
        ValueError: For an unknown format or a width that nothing fits into.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"format {unknown[0]!r} is not known; choose among {', '.join(FORMATS)}")
    if not 1 <= width <= 40:
        raise ValueError(f"width {width:g} is not possible; give inches from 1 to 40")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    drawn = [figure for figure in figures if not figure.empty]
    paths = []
    for figure, name in zip(drawn, unique(drawn), strict=True):
        with mpl.rc_context(dict(STYLE)):
            canvas = draw(figure, width=width, title=titles)
            for kind in formats:
                paths.append(target / f"{name}.{kind}")
                canvas.savefig(paths[-1], format=kind, **FORMATS[kind])
    return paths


def draw(figure: Figure, *, width: float = 3.4, title: bool = False) -> Canvas:
    """Draw one figure.

    Args:
        figure: What to draw.
        width: Width in inches.
        title: Whether it has its title above it.

    Returns:
        A matplotlib figure; it belongs to no window.
    """
    canvas = Canvas(figsize=(width, _height(figure, width)), layout="constrained")
    axes = canvas.add_subplot()
    if figure.kind == "heatmap":
        _heatmap(canvas, axes, figure)
    elif figure.kind == "scatter":
        _scatter(axes, figure)
    else:
        _lines(axes, figure)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    if title:
        axes.set_title(figure.title)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        canvas.legend(handles, labels, loc="outside lower center", ncols=max(1, min(len(labels), int(width // 1.1))))
    return canvas


def _height(figure: Figure, width: float) -> float:
    if figure.kind == "heatmap":
        return 0.75 + 0.24 * max(len(figure.rows), 2)
    names = len({p.group for p in figure.points}) + 1 if figure.kind == "scatter" else len(figure.series)
    columns = max(1, min(names, int(width // 1.1)))
    legend = 0.14 * -(-names // columns) if names > 1 else 0
    return min(0.66 * width, 3.2) + legend


def _lines(axes: Axes, figure: Lines) -> None:
    for reference in figure.references:
        colour, place = GRAVE if reference.grave else CALM, place_of_name(reference, figure)
        right, off = place.right, 1.5 + (3 if place.lift else 0)
        axes.axhline(reference.value, color=colour, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate(
            reference.name,
            (1 if right else 0, reference.value),
            xycoords=("axes fraction", "data"),
            xytext=(-2 if right else 2, off if place.above else -off),
            textcoords="offset points",
            ha="right" if right else "left",
            va="bottom" if place.above else "top",
            fontsize=6,
            color=colour,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
            zorder=5,
        )
    for series, shift in zip(figure.series, dodges(figure), strict=True):
        _series(axes, series, shift, dense=figure.dense)
    if figure.log_y:
        _log(axes, "y", log_ticks(figure.values))
    elif figure.references:
        axes.set_ylim(*range_of(figure))
    if figure.log_x:
        _log(axes, "x", figure.ticks or log_ticks(figure.positions))
    elif figure.ticks is not None:
        axes.xaxis.set_major_locator(FixedLocator(list(figure.ticks)))


def _series(axes: Axes, series: Series, shift: float, *, dense: bool) -> None:
    """One line with its intervals; a missing value lifts the pen."""
    colour = palette.LIGHT[palette.hue(series.colour)]
    x = [value if isinstance(value, str) else value + shift for value in series.x]
    y = [float("nan") if value is None else value for value in series.y]
    style = palette.LINESTYLES[palette.dash(series.colour)]
    axes.plot(x, y, color=colour, linestyle=style, label=series.name, marker="" if dense else _marker(series))
    line = axes.lines[-1]
    if series.marked and not dense:  # hollow where the task was not learnt in that stage
        line.set_markerfacecolor("white")
        places = sorted(series.marked)
        axes.plot([x[k] for k in places], [y[k] for k in places], color=colour, linestyle="", marker=_marker(series))
    if series.low and series.high:
        known = [k for k, value in enumerate(series.y) if value is not None]
        low, high = [list(_distances(series, known, side)) for side in (series.low, series.high)]
        axes.errorbar(
            [x[k] for k in known], [y[k] for k in known], [low, high], color=colour, linestyle="", linewidth=0.8
        )


def _distances(series: Series, known: Sequence[int], side: Sequence[float | None]) -> Iterator[float]:
    for k in known:
        value, end = series.y[k], side[k]
        yield abs(end - value) if end is not None and value is not None else 0.0


def _marker(series: Series) -> str:
    return palette.MARKERS[palette.hue(series.colour)]


def _log(axes: Axes, which: str, ticks: Sequence[float]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: wording.number(value)))


def _scatter(axes: Axes, figure: Scatter) -> None:
    front = [figure.points[k] for k in figure.front]
    axes.step(
        [p.x for p in front],
        [p.y for p in front],
        where="post",
        color=CALM,
        linewidth=0.8,
        linestyle="--",
        label="not dominated",
    )
    for group in dict.fromkeys(point.group for point in figure.points):
        points = [point for point in figure.points if point.group == group]
        hue = palette.hue(points[0].colour)
        axes.errorbar(
            [p.x for p in points],
            [p.y for p in points],
            xerr=[p.x_half or 0 for p in points],
            yerr=[p.y_half or 0 for p in points],
            color=palette.LIGHT[hue],
            marker=palette.MARKERS[hue],
            linestyle="",
            linewidth=0.8,
            label=group,
        )
    if figure.log_x:
        _log(axes, "x", log_ticks([p.x for p in figure.points]))


def _heatmap(canvas: Canvas, axes: Axes, figure: Heatmap) -> None:
    shades = figure.shades or figure.values
    values = [[float("nan") if value is None else value for value in row] for row in shades]
    colours = (GRAVE, "#f1efea", "#0d8a7c") if figure.shades else palette.SEQUENTIAL_LIGHT
    there = [value for row in shades for value in row if value is not None]
    low, high = (-1.4, 1.4) if figure.shades else (min(there), max(there))  # ends stay pale enough for dark numbers
    colour_map = LinearSegmentedColormap.from_list("lab", colours)
    image = axes.imshow(values, aspect="auto", cmap=colour_map, vmin=low, vmax=high)
    axes.set_xticks(range(len(figure.columns)), list(figure.columns))
    axes.set_yticks(range(len(figure.rows)), list(figure.rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    for i, row in enumerate(figure.values):
        for j, value in enumerate(row):
            axes.text(
                j, i, wording.number(value) if figure.shades is None else wording.score(value),
                ha="center", va="center", fontsize=6.5, color="#1c2127",
            )  # fmt: skip
            if (i, j) in figure.framed:
                frame = Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, edgecolor="#0b6e63", linewidth=1.1)
                axes.add_patch(frame)
    if not figure.shades:
        canvas.colorbar(image, ax=axes, label=figure.value_label, fraction=0.06)
