"""A figure for the page: data and layout for plotly.js as plain JSON values.

Colours are written as names (``@c0``, ``@ink``); the page's script puts in the colours of the theme that is shown.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from curlora_lab.report import wording
from curlora_lab.report.axes import dodges, log_ticks, place_of_name, range_of
from curlora_lab.report.figures import Figure, Heatmap, Lines, Reference, Scatter, Series
from curlora_lab.report.palette import DASHES, SYMBOLS, dash, hue

HEIGHT = 290
LEFT = 64
MOST_NUMBERS = 220
MOST_LABELS = 12
MARKER_PIXELS = 7


def plotly_spec(figure: Figure) -> dict[str, Any]:
    """What plotly draws.

    Args:
        figure: The figure.

    Returns:
        ``data`` and ``layout``; every text that comes from a record is escaped for plotly's own small markup.
    """
    if figure.kind == "heatmap":
        return _heatmap(figure)
    return _scatter(figure) if figure.kind == "scatter" else _lines(figure)


def escaped(text: str) -> str:
    """A text that plotly shows as it is: plotly reads a subset of HTML in every label."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("\n", "<br>")


def _lines(figure: Lines) -> dict[str, Any]:
    shifts = dodges(figure)
    traces = [_trace(one, shift, dense=figure.dense) for one, shift in zip(figure.series, shifts, strict=True)]
    legend = len(figure.series) > 1
    layout = _layout(figure.x_label, figure.y_label, legend=legend, entries=len(figure.series))
    layout["xaxis"] |= _axis_kind(figure.log_x, figure.ticks or (log_ticks(figure.positions) if figure.log_x else None))
    layout["yaxis"] |= _axis_kind(figure.log_y, log_ticks(figure.values) if figure.log_y else None)
    if figure.ticks and not figure.log_x:  # room for the first and last point, which sit on the edge else
        span = (max(figure.ticks) - min(figure.ticks)) or 1
        layout["xaxis"]["range"] = [min(figure.ticks) - 0.06 * span, max(figure.ticks) + 0.06 * span]
    layout["shapes"] = [_reference_line(reference) for reference in figure.references]
    layout["annotations"] = [_reference_name(reference, figure) for reference in figure.references]
    if figure.references and not figure.log_y:
        layout["yaxis"]["range"] = range_of(figure)
    return {"data": traces, "layout": layout}


def _trace(series: Series, shift: float, *, dense: bool) -> dict[str, Any]:
    colour, style = f"@c{hue(series.colour)}", DASHES[dash(series.colour)]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines" if dense else "lines+markers",
        "name": escaped(series.name),
        "x": [escaped(x) if isinstance(x, str) else x + shift for x in series.x],
        "y": list(series.y),
        "hovertext": [escaped(text) for text in series.hover],
        "hoverinfo": "text" if series.hover else "x+y+name",
        "line": {"color": colour, "width": 1.6 if dense else 2.4, "dash": style},
        "connectgaps": False,
    }
    if not dense:
        symbol = SYMBOLS[hue(series.colour)]
        hollow = [k not in series.marked for k in range(len(series.x))] if series.marked else [False] * len(series.x)
        trace["marker"] = {
            "color": colour,
            "size": [8 if empty else 10 for empty in hollow],
            "symbol": [f"{symbol}-open" if empty else symbol for empty in hollow],
            "opacity": 1,
            "line": {"color": colour, "width": 2},
        }
    if series.low and series.high:
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [_minus(high, y) for high, y in zip(series.high, series.y, strict=True)],
            "arrayminus": [_minus(y, low) for low, y in zip(series.low, series.y, strict=True)],
            "color": colour,
            "thickness": 1.3,
            "width": 4,
        }
    return trace


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _reference_line(reference: Reference) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": reference.value,
        "y1": reference.value,
        "layer": "below",
        "line": {"color": "@bad" if reference.grave else "@muted", "width": 1.4, "dash": "dot"},
    }


def _reference_name(reference: Reference, figure: Lines) -> dict[str, Any]:
    """The name of a reference at its line, where it meets the fewest lines; what it meets goes on behind it."""
    place = place_of_name(reference, figure)
    right = place.right
    return {
        "xref": "paper",
        "x": 0.99 if right else 0.01,
        "xanchor": "right" if right else "left",
        # plotly wants the logarithm where the axis is logarithmic
        "y": math.log10(reference.value) if figure.log_y else reference.value,
        "yanchor": "bottom" if place.above else "top",
        "yshift": (MARKER_PIXELS if place.above else -MARKER_PIXELS) if place.lift else 0,
        "text": escaped(reference.name),
        "showarrow": False,
        "bgcolor": "@surface",
        "borderpad": 0,
        "font": {"size": 11, "color": "@bad" if reference.grave else "@muted"},
    }


def _scatter(figure: Scatter) -> dict[str, Any]:
    groups = list(dict.fromkeys(point.group for point in figure.points))
    named = len(groups) < len(figure.points) <= MOST_LABELS
    traces: list[dict[str, Any]] = [_front(figure)]
    for group in groups:
        points = [point for point in figure.points if point.group == group]
        colour, symbol = f"@c{hue(points[0].colour)}", SYMBOLS[hue(points[0].colour)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text" if named else "markers",
                "name": escaped(group),
                "x": [point.x for point in points],
                "y": [point.y for point in points],
                "text": [escaped(point.name.removeprefix(group).strip(" ·")) for point in points],
                "textposition": "top center",
                "textfont": {"color": "@muted", "size": 10},
                "hovertext": [escaped(point.hover) for point in points],
                "hoverinfo": "text",
                "marker": {"color": colour, "size": 12, "symbol": symbol, "line": {"color": "@surface", "width": 1}},
                "error_x": _bars([point.x_half for point in points], colour),
                "error_y": _bars([point.y_half for point in points], colour),
                "cliponaxis": False,
            }
        )
    layout = _layout(figure.x_label, figure.y_label, legend=True, entries=len(groups) + 1)
    layout["xaxis"] |= _axis_kind(figure.log_x, log_ticks([p.x for p in figure.points]) if figure.log_x else None)
    layout["height"] += 90
    return {"data": traces, "layout": layout}


def _front(figure: Scatter) -> dict[str, Any]:
    front = figure.front
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "not dominated",
        "x": [figure.points[k].x for k in front],
        "y": [figure.points[k].y for k in front],
        "line": {"color": "@muted", "width": 1.6, "dash": "dash", "shape": "hv"},
        "hoverinfo": "skip",
    }


def _bars(halves: Sequence[float | None], colour: str) -> dict[str, Any]:
    visible = any(half is not None for half in halves)
    return {"type": "data", "array": list(halves), "visible": visible, "color": colour, "thickness": 1.3, "width": 4}


def _heatmap(figure: Heatmap) -> dict[str, Any]:
    cells = [[cell_text(value) for value in row] for row in figure.values]
    hover = figure.hover or [
        [f"{row}, {column}\n{figure.value_label} {text}" for column, text in zip(figure.columns, texts, strict=True)]
        for row, texts in zip(figure.rows, cells, strict=True)
    ]
    numbers = len(figure.rows) * len(figure.columns) <= MOST_NUMBERS
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": [escaped(column) for column in figure.columns],
        "y": [escaped(row) for row in figure.rows],
        "z": [list(row) for row in (figure.shades or figure.values)],
        "text": cells if numbers else None,
        "texttemplate": "%{text}" if numbers else None,
        "textfont": {"color": "@ink"},
        "hovertext": [[escaped(text) for text in row] for row in hover],
        "hoverinfo": "text",
        "xgap": 3,
        "ygap": 3,
        "showscale": not figure.shades,
        "colorbar": {
            "thickness": 12,
            "outlinewidth": 0,
            "title": {"text": escaped(figure.value_label), "side": "right"},
        },
        "colorscale": [[0, "@seq0"], [0.5, "@seq1"], [1, "@seq2"]],
    }
    if figure.shades:
        trace |= {"zmin": -1, "zmax": 1, "colorscale": [[0, "@bad"], [0.5, "@seq0"], [1, "@good"]]}
    layout = _layout(figure.x_label, figure.y_label, legend=False, entries=0)
    layout["height"] = 110 + max(30 * len(figure.rows), 60)
    slanted = sum(map(len, figure.columns)) > 40
    layout["xaxis"] |= {"type": "category", "showgrid": False, "tickangle": -40 if slanted else 0}
    layout["yaxis"] |= {"type": "category", "showgrid": False, "autorange": "reversed", "automargin": True}
    layout["margin"]["l"] = 12
    return {"data": [trace], "layout": layout}


def cell_text(value: float | None) -> str:
    """A number short enough for a cell: two significant digits."""
    return wording.MISSING if value is None else f"{value:.2g}".replace("-", wording.MINUS)


def _layout(x_label: str, y_label: str, *, legend: bool, entries: int) -> dict[str, Any]:
    axis: Mapping[str, Any] = {
        "automargin": True,
        "gridcolor": "@line",
        "zeroline": False,
        "linecolor": "@line",
        "ticks": "outside",
        "tickcolor": "@line",
        "ticklen": 4,
    }
    return {
        "height": HEIGHT + (18 * entries if legend else 0),
        "margin": {"l": LEFT, "r": 14, "t": 14, "b": 12},
        "paper_bgcolor": "@clear",
        "plot_bgcolor": "@clear",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": "@ink"},
        "hoverlabel": {
            "bgcolor": "@surface",
            "bordercolor": "@muted",
            "font": {"color": "@ink", "size": 12},
            "align": "left",
        },
        "hovermode": "closest",
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top", "font": {"size": 12}},
        "xaxis": {**axis, "title": {"text": escaped(x_label), "standoff": 8}},
        # Numbers have a known width; left to itself, plotly can go to and fro between two margins without end.
        "yaxis": {**axis, "automargin": False, "title": {"text": escaped(y_label), "standoff": 8}},
    }


def _axis_kind(log: bool, ticks: Sequence[float] | None) -> dict[str, Any]:
    if ticks is not None:
        texts = [wording.number(tick) for tick in ticks]
        return {"type": "log" if log else "linear", "tickmode": "array", "tickvals": list(ticks), "ticktext": texts}
    return {"type": "log" if log else "linear"}
