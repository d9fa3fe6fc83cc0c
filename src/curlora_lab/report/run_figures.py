"""The pictures of one run, computed from its record and the files beside it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from curlora_lab.report import wording
from curlora_lab.report.axes import stage_ticks
from curlora_lab.report.extras import Extras
from curlora_lab.report.figures import Figure, Heatmap, Lines, Reference, Series, slug

Record = Mapping[str, Any]
MOST_POINTS = 400


def run_figures(record: Record, extras: Extras) -> dict[str, list[Figure]]:
    """All pictures of a run.

    Args:
        record: A valid record.
        extras: What lies beside it in the run folder.

    Returns:
        Figures by section: ``scores``, ``tasks``, ``training``, ``language``, ``weights``, ``energy``; none is empty.
    """
    found: dict[str, list[Figure]] = {
        "scores": [score_matrix(record)],
        "tasks": [trajectory(record, j) for j in range(len(record["tasks"]))],
        "training": [training_loss(extras)],
        "language": [one for name in record["probes"]["perplexity"] for one in probe(record, name)],
        "weights": [weight_shift(record), weight_course(record)],
        "energy": [energy(extras, stage) for stage in list(extras.energy)[-1:]],
    }
    return {section: [figure for figure in figures if not figure.empty] for section, figures in found.items()}


def score_matrix(record: Record) -> Heatmap:
    """Score of each task after each stage, shaded from a constant answer to the best there is."""
    tasks, rows = record["tasks"], record["scores"]
    return Heatmap(
        name="score-matrix",
        title="Scores after each stage",
        description=f"Score of {len(tasks)} tasks before training and after each of {len(rows) - 1} stages.",
        x_label="task",
        y_label="stage",
        columns=[f"{task}\n{record['metric'][task]}" for task in tasks],
        rows=[wording.stage_name(record, i) for i in range(len(rows))],
        values=rows,
        value_label="score",
        shades=[[shade(record, value, j) for j, value in enumerate(row)] for row in rows],
        framed=frozenset((stage, tasks.index(task)) for task, stage in wording.learnt_in(record).items()),
    )


def shade(record: Record, value: float | None, j: int) -> float:
    """Place of a score on its task's scale.

    Args:
        record: A valid record.
        value: The score.
        j: Column of the score matrix.

    Returns:
        0 at the constant predictor's score, 1 at the best known or reached, -1 as far below.
    """
    if value is None:
        return 0.0
    baseline = record["baselines"][record["tasks"][j]]
    column = [row[j] for row in record["scores"] if row[j] is not None]
    zero = baseline["constant"] if baseline["constant"] is not None else min(column)
    top = max([*column, zero] + ([baseline["best"]] if baseline["best"] is not None else []))
    # Without a known best a small gain must not look like full marks: at least a tenth of the scale is needed for that.
    span = max(top - zero, 0.1)
    return max(-1.0, min(1.0, (value - zero) / span))


def trajectory(record: Record, j: int) -> Lines:
    """One task over the stages, with what a constant answer gets and the best there is."""
    task, metric = record["tasks"][j], record["metric"][record["tasks"][j]]
    values = [row[j] for row in record["scores"]]
    names = [wording.stage_name(record, i) for i in range(len(values))]
    baseline = record["baselines"][task]
    lines = [("constant answer", baseline["constant"], True), ("best achievable", baseline["best"], False)]
    return Lines(
        name=f"task-{slug(task)}",
        title=task,
        description=f"{metric} of {task} over the stages: {', '.join(map(wording.score, values))}.",
        x_label="stage",
        y_label=metric,
        series=[
            Series(
                name=task,
                x=list(range(len(values))),
                y=values,
                hover=[f"{name}\n{metric} {wording.score(value)}" for name, value in zip(names, values, strict=True)],
                marked=frozenset({wording.learnt_in(record)[task]}),
                colour=j,
            )
        ],
        references=[
            Reference(name=name, value=value, grave=grave) for name, value, grave in lines if value is not None
        ],
        ticks=stage_ticks(len(values)),
    )


def training_loss(extras: Extras) -> Lines:
    """Training loss over the steps of all stages, one after the other."""
    series, begun = [], 0
    for number, (stage, (task, pairs)) in enumerate(sorted(extras.losses.items())):
        pairs = thinned(pairs)
        steps = [begun + step + 1 for step, _ in pairs]
        hover = [f"stage {stage} · {task}\nstep {step + 1}: {loss:.4g}" for step, loss in pairs]
        series.append(Series(name=task, x=steps, y=[loss for _, loss in pairs], hover=hover, colour=number))
        begun = steps[-1]
    return Lines(
        name="training-loss",
        title="Training loss",
        description="Loss of the training batches over the optimiser steps of all stages, one after the other.",
        x_label="optimiser step, all stages",
        y_label="loss",
        series=series,
        dense=True,
    )


def thinned(pairs: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most :data:`MOST_POINTS` pairs: means over neighbours of equal number, each at its last step."""
    size = -(-len(pairs) // MOST_POINTS)
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)] if size > 1 else []
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups] or list(pairs)


def probe(record: Record, name: str) -> list[Lines]:
    """Perplexity of the untouched language model over the stages, and how far its answers moved."""
    values, kl = record["probes"]["perplexity"][name], record["shift"]["output"].get(name, [])
    stages = list(range(len(values)))
    names = [wording.stage_name(record, i) for i in stages]
    shown = [f"{stage}\nperplexity {wording.perplexity(v)}" for stage, v in zip(names, values, strict=True)]
    moved = [f"{stage}\nKL {wording.small(v)} nats a token" for stage, v in zip(names, kl, strict=False)]
    before = [Reference(name="before training", value=values[0])] if values and values[0] is not None else []
    return [
        Lines(
            name=f"perplexity-{slug(name)}",
            title=f"Perplexity on {name}",
            description=f"Perplexity on {name} over the stages: {', '.join(map(wording.perplexity, values))}.",
            x_label="stage",
            y_label="perplexity",
            series=[Series(name=name, x=stages, y=values, hover=shown, colour=0, marked=frozenset(stages))],
            references=before,
            log_y=True,
            ticks=stage_ticks(len(stages)),
        ),
        Lines(
            name=f"kl-{slug(name)}",
            title=f"Answers moved on {name}",
            description=f"KL divergence from the base model's next token on {name}: {', '.join(map(wording.small, kl))}.",
            x_label="stage",
            y_label="KL, nats a token",
            series=[Series(name=name, x=stages[: len(kl)], y=kl, hover=moved, colour=1, marked=frozenset(stages))],
            ticks=stage_ticks(len(stages)),
        ),
    ]


def weight_shift(record: Record) -> Heatmap:
    """‖ΔW‖ / ‖W‖ of every adapted module after the last measured stage, by layer and kind of module."""
    row = record["shift"]["weight"][wording.last_row(record)] or {"modules": {}}
    return _by_layer(
        row["modules"],
        name="weight-shift",
        title="Weight shift by layer and module",
        value_label="‖ΔW‖ / ‖W‖",
        stage=wording.stage_name(record, wording.last_row(record)),
    )


def weight_course(record: Record) -> Lines:
    """‖ΔW‖ / ‖W‖ over all adapted modules, stage by stage."""
    values = [row["overall"] if row else None for row in record["shift"]["weight"]]
    stages = list(range(len(values)))
    hover = [f"{wording.stage_name(record, i)}\n‖ΔW‖ / ‖W‖ {wording.small(value)}" for i, value in enumerate(values)]
    return Lines(
        name="weight-course",
        title="Weight shift over the stages",
        description=f"‖ΔW‖ / ‖W‖ over all adapted modules by stage: {', '.join(map(wording.small, values))}.",
        x_label="stage",
        y_label="‖ΔW‖ / ‖W‖",
        series=[Series(name="all modules", x=stages, y=values, hover=hover, marked=frozenset(stages), colour=2)],
        ticks=stage_ticks(len(stages)),
    )


def energy(extras: Extras, stage: int) -> Heatmap:
    """Share of the gradient's energy that each module's basis lets through."""
    modules = extras.energy[stage]
    notes = {
        name: f"best of that rank {wording.small(one['ceiling'])}" for name, one in modules.items() if "ceiling" in one
    }
    return _by_layer(
        {name: one["captured"] for name, one in modules.items()},
        name="gradient-energy",
        title="Gradient energy that the basis lets through",
        value_label="captured share of ‖G‖²",
        stage=f"stage {stage}",
        notes=notes,
    )


def _by_layer(
    modules: Mapping[str, float | None],
    *,
    name: str,
    title: str,
    value_label: str,
    stage: str,
    notes: Mapping[str, str] | None = None,
) -> Heatmap:
    """Modules as a grid: a row a layer, a column a kind; a name without a layer is a row of its own."""
    places = {module: place(module) for module in modules}
    rows = sorted({layer for layer, _ in places.values()}, key=lambda layer: (not layer.isdigit(), layer.zfill(6)))
    columns = list(dict.fromkeys(kind for _, kind in places.values()))
    ancestor = f"{columns[0].partition('.')[0]}." if columns else ""
    shared = ancestor if len(columns) > 1 and all(column.startswith(ancestor) for column in columns) else ""
    values: list[list[float | None]] = [[None] * len(columns) for _ in rows]
    hover = [["not adapted"] * len(columns) for _ in rows]
    for module, value in modules.items():
        i, j = rows.index(places[module][0]), columns.index(places[module][1])
        note = f"\n{notes[module]}" if notes and module in notes else ""
        values[i][j], hover[i][j] = value, f"{module}\n{value_label} {wording.small(value)}{note}"
    return Heatmap(
        name=name,
        title=title,
        description=f"{value_label} of {len(modules)} adapted modules, {stage}, by layer and kind of module.",
        x_label="module",
        y_label="layer",
        columns=[column.removeprefix(shared) for column in columns],
        rows=rows,
        values=values,
        value_label=value_label,
        hover=hover,
    )


def place(module: str) -> tuple[str, str]:
    """Layer and kind of a module from its name.

    Args:
        module: Such as ``model.layers.3.self_attn.q_proj``.

    Returns:
        The first whole number of the name (else ``–``), and what stands behind it without its shared ancestors: ``("3",
        "self_attn.q_proj")``.
    """
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", module)
    return (found[1], found[2]) if found else (wording.MISSING, module)
