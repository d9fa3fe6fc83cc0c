"""The score matrix as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from curlora_lab.loggers.content import stage_names

COLOURS = "YlGnBu"


def score_heatmap(record: Mapping[str, Any]) -> Figure:
    """Draw the score matrix: a row a stage, a column a task, numbers in the cells.

    Colour runs within each task from its lowest to its highest value (the constant answer's included), since metrics
    differ: down a column one sees when a task was learnt and whether it faded. The cell in which a task was learnt has a
    frame; a missing score is grey. Drawn without pyplot, so that no global state and no display is touched.

    Args:
        record: a finished run's record.
    """
    scores, tasks = record["scores"], record["tasks"]
    figure = Figure(figsize=(2.2 + 1.3 * len(tasks), 1.4 + 0.5 * len(scores)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for column, task in enumerate(tasks):
        constant = record["baselines"].get(task, {}).get("constant")
        shades = _shades([row[column] for row in scores], constant)
        for stage, (row, shade) in enumerate(zip(scores, shades, strict=True)):
            _cell(axes, column, stage, row[column], shade, framed=record["learnt_in"][task] == stage)
    axes.set_xlim(-0.5, len(tasks) - 0.5)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xticks(range(len(tasks)), [f"{task}\n{record['metric'][task]}" for task in tasks])
    names = stage_names(record)
    axes.set_yticks(range(len(scores)), [names[0], *(f"after {name}" for name in names[1:])])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(record["name"], fontsize="small")
    return figure


def _cell(axes: Any, column: int, stage: int, score: float | None, shade: float | None, *, framed: bool) -> None:
    """One cell: its colour, its number, a frame where the task was learnt."""
    colour = "lightgrey" if shade is None else colormaps[COLOURS](shade)
    axes.add_patch(Rectangle((column - 0.5, stage - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
    if framed:
        axes.add_patch(
            Rectangle((column - 0.47, stage - 0.47), 0.94, 0.94, fill=False, edgecolor="black", linewidth=1.6)
        )
    text = "n/a" if score is None else f"{score:.3f}"
    axes.text(column, stage, text, ha="center", va="center", color="white" if (shade or 0) > 0.6 else "black")


def _shades(column: Sequence[float | None], constant: float | None) -> list[float | None]:
    """Position of each value between the lowest and the highest, kept off the ends of the colour scale."""
    known = [value for value in (*column, constant) if value is not None]
    if not known:
        return [None] * len(column)
    low, width = min(known), max(known) - min(known)
    return [None if value is None else 0.05 + 0.85 * ((value - low) / width if width else 0.5) for value in column]
