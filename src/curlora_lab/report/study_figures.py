"""The pictures of several runs: what each method pays for what it learns, and how it answers to its settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from curlora_lab.report import wording
from curlora_lab.report.axes import stage_ticks
from curlora_lab.report.figures import Figure, Heatmap, Lines, Point, Reference, Scatter, Series, slug
from curlora_lab.report.run_figures import place, shade
from curlora_lab.report.study import (
    Configuration,
    Estimate,
    Measure,
    continual,
    drift,
    estimate,
    is_number,
    probes_of,
)

Record = Mapping[str, Any]
MOST_LINES = 12
LOG_FROM = 4.0
DRIFT = "log perplexity ratio"


def study_figures(found: Sequence[Configuration]) -> dict[str, list[Figure]]:
    """All pictures of several runs.

    Args:
        found: The configurations.

    Returns:
        Figures by section: ``trade``, ``matrices``, ``tasks``, ``language``, ``response``, ``weights``, ``budget``.
    """
    probes = probes_of(record for one in found for record in one.records)
    shown = shown_lines(found)
    sections: dict[str, Sequence[Figure]] = {
        "trade": trades(found, probes),
        "matrices": [mean_matrix(one) for one in shown],
        "tasks": trajectories(shown),
        "language": [perplexities(shown, probe) for probe in probes],
        "response": responses(found, probes),
        "weights": [weights_by_layer(shown)],
        "budget": [budget(found)],
    }
    return {section: [figure for figure in figures if not figure.empty] for section, figures in sections.items()}


def shown_lines(found: Sequence[Configuration]) -> list[Configuration]:
    """The configurations that get a line each: all, or where there are too many those of each method that learnt most."""
    if len(found) <= MOST_LINES:
        return list(found)

    def learnt(one: Configuration) -> float:
        mean = estimate(one.records, continual("learning"))
        return -1e9 if mean is None else mean.mean

    by_method: dict[str, list[int]] = {}
    for k in sorted(range(len(found)), key=lambda k: -learnt(found[k])):
        by_method.setdefault(found[k].method, []).append(k)
    turns = sorted((turn, k) for members in by_method.values() for turn, k in enumerate(members))
    return [found[k] for k in sorted(k for _, k in turns[:MOST_LINES])]


def methods(found: Sequence[Configuration]) -> list[str]:
    """Names of the methods, in the order of their first runs; their places are their colours."""
    return list(dict.fromkeys(one.method for one in found))


def trades(found: Sequence[Configuration], probes: Sequence[str]) -> list[Scatter]:
    """Learning against forgetting, and against drift of the language model on each probe."""
    costs: list[tuple[str, str, Measure]] = [("forgetting", "forgetting", continual("forgetting"))]
    costs += [(f"drift-{slug(probe)}", f"{DRIFT}, {probe} (nats a token)", drift(probe)) for probe in probes]
    return [
        _trade(found, measure, name=f"learning-{name}", x_label=label, title=f"Learning against {label.split(' (')[0]}")
        for name, label, measure in costs
    ]


def _trade(found: Sequence[Configuration], cost: Measure, *, name: str, x_label: str, title: str) -> Scatter:
    order, points = methods(found), []
    for one in found:
        x, y = estimate(one.records, cost), estimate(one.records, continual("learning"))
        if x is not None and y is not None:
            hover = f"{one.label}\nlearning {y.text()}\n{x_label.split(' (')[0]} {x.text(signed=True)}\n{_seeds(one)}"
            points.append(_point(one, x, y, hover, order.index(one.method)))
    return Scatter(
        name=name,
        title=title,
        description=f"{title} of {len(points)} configurations; up is more learnt, left is less harm.",
        x_label=x_label,
        y_label="learning",
        points=points,
    )


def budget(found: Sequence[Configuration]) -> Scatter:
    """Final average against the number of adapter parameters."""
    order, points = methods(found), []
    for one in found:
        y, size = estimate(one.records, continual("average")), one.first["parameters"]["adapter"]
        if y is not None and size > 0:
            hover = f"{one.label}\naverage {y.text()}\n{wording.count(size)} adapter parameters\n{_seeds(one)}"
            points.append(_point(one, Estimate(float(size), None), y, hover, order.index(one.method)))
    return Scatter(
        name="average-parameters",
        title="Final average against adapter parameters",
        description=f"Final average score of {len(points)} configurations against their adapter parameters.",
        x_label="adapter parameters",
        y_label="average",
        points=points,
        log_x=True,
    )


def _point(one: Configuration, x: Estimate, y: Estimate, hover: str, colour: int) -> Point:
    return Point(
        name=one.label, group=one.method, x=x.mean, y=y.mean, x_half=x.half, y_half=y.half, hover=hover, colour=colour
    )


def _seeds(one: Configuration) -> str:
    return f"{len(one.records)} seed{'s' if len(one.records) > 1 else ''}"


def mean_matrix(one: Configuration) -> Heatmap:
    """Score matrix averaged over seeds."""
    first, rows = one.first, len(one.first["scores"])
    cells = [[estimate(one.records, _score(i, j)) for j in range(len(first["tasks"]))] for i in range(rows)]
    names = [wording.stage_name(first, i) for i in range(rows)]
    mean = {**first, "scores": [[None if cell is None else cell.mean for cell in row] for row in cells]}
    learnt = wording.learnt_in(first)
    return Heatmap(
        name=f"scores-{slug(one.label)}",
        title=one.label,
        description=f"Score of each task after each stage, {one.label}, mean over {_seeds(one)}.",
        x_label="task",
        y_label="stage",
        columns=[f"{task}\n{first['metric'][task]}" for task in first["tasks"]],
        rows=names,
        values=mean["scores"],
        value_label="score",
        shades=[[shade(mean, value, j) for j, value in enumerate(row)] for row in mean["scores"]],
        hover=[
            [
                f"{first['tasks'][j]}, {names[i]}\n{cell.text() if cell else wording.MISSING}"
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(cells)
        ],
        framed=frozenset((stage, first["tasks"].index(task)) for task, stage in learnt.items()),
    )


def _score(i: int, j: int) -> Measure:
    return lambda record: record["scores"][i][j] if i < len(record["scores"]) and j < len(record["scores"][i]) else None


def trajectories(found: Sequence[Configuration]) -> list[Lines]:
    """Each task over the stages, a line a configuration; only where all have the same tasks in the same stages."""
    first = found[0].first
    if any(
        (one.first["tasks"], wording.learnt_in(one.first)) != (first["tasks"], wording.learnt_in(first))
        for one in found
    ):
        return []
    figures = []
    for j, task in enumerate(first["tasks"]):
        baseline, metric = first["baselines"][task], first["metric"][task]
        lines = [("constant answer", baseline["constant"], True), ("best achievable", baseline["best"], False)]
        figures.append(
            _by_stage(
                found,
                lambda stage, j=j: _score(stage, j),
                name=f"task-{slug(task)}",
                title=task,
                y_label=metric,
                references=[Reference(name=n, value=value, grave=g) for n, value, g in lines if value is not None],
                marked=wording.learnt_in(first)[task],
            )
        )
    return figures


def perplexities(found: Sequence[Configuration], probe: str) -> Lines:
    """Perplexity on a probe over the stages, a line a configuration."""

    def measure(stage: int) -> Measure:
        def value(record: Record) -> float | None:
            values = record["probes"]["perplexity"].get(probe, [])
            return values[stage] if stage < len(values) else None

        return value

    return _by_stage(found, measure, name=f"perplexity-{slug(probe)}", title=probe, y_label="perplexity", log_y=True)


def _by_stage(
    found: Sequence[Configuration],
    measure: Any,
    *,
    name: str,
    title: str,
    y_label: str,
    references: Sequence[Reference] = (),
    marked: int | None = None,
    log_y: bool = False,
) -> Lines:
    """One value over the stages: mean over seeds with its interval, a line a configuration."""
    series = []
    for number, one in enumerate(found):
        stages = list(range(len(one.first["scores"])))
        means = [estimate(one.records, measure(stage)) for stage in stages]
        names = [wording.stage_name(one.first, stage) for stage in stages]
        hover = [
            f"{one.label}\n{where}\n{y_label} {mean.short() if mean else wording.MISSING}"
            for where, mean in zip(names, means, strict=True)
        ]
        line = _series(one.label, stages, means, hover, number, positive=log_y)
        series.append(Series(**{**vars(line), "marked": frozenset(() if marked is None else {marked})}))
    return Lines(
        name=name,
        title=title,
        description=f"{y_label} of {title} over the stages, {len(found)} configurations.",
        x_label="stage",
        y_label=y_label,
        series=series,
        references=references,
        log_y=log_y,
        ticks=stage_ticks(max((len(line.x) for line in series), default=1)),
    )


def _series(
    name: str,
    x: Sequence[float],
    means: Sequence[Estimate | None],
    hover: Sequence[str],
    colour: int,
    *,
    positive: bool = False,
) -> Series:
    """A line of means; where no mean has an interval there are none."""
    low: list[float | None] = [None if m is None else m.mean - (m.half or 0) for m in means]
    high: list[float | None] = [None if m is None else m.mean + (m.half or 0) for m in means]
    if positive:  # an interval that reaches below zero has no place on a logarithmic axis
        low = [
            None if value is None else max(value, (m.mean if m else 1.0) / 100)
            for value, m in zip(low, means, strict=True)
        ]
    any_interval = any(m is not None and m.half is not None for m in means)
    return Series(
        name=name,
        x=list(x),
        y=[None if m is None else m.mean for m in means],
        low=low if any_interval else None,
        high=high if any_interval else None,
        hover=hover,
        colour=colour,
    )


def responses(found: Sequence[Configuration], probes: Sequence[str]) -> list[Lines]:
    """How each method answers to rank, alpha, learning rate, or whatever number was swept."""
    keys = dict.fromkeys(key for one in found for key, value in one.settings.items() if is_number(value))
    measures = {key: continual(key) for key in ("average", "learning", "forgetting")}
    measures |= {f"{DRIFT}, {probe}": drift(probe) for probe in probes}
    figures = []
    for key in keys:
        families = _families(found, key)
        if max((len(members) for members in families.values()), default=0) < 2:
            continue
        figures += [_response(key, families, measure, label) for label, measure in measures.items()]
    return figures


def _families(found: Sequence[Configuration], key: str) -> dict[str, list[Configuration]]:
    """Configurations that differ in one number only, in its order."""
    families: dict[str, list[Configuration]] = {}
    for one in found:
        if is_number(one.settings.get(key)):
            others = [
                f"{k.rpartition('.')[2]} {v:g}" if is_number(v) else str(v) for k, v in one.settings.items() if k != key
            ]
            families.setdefault(" · ".join(others) or one.method, []).append(one)
    return {name: sorted(members, key=lambda one: float(one.settings[key])) for name, members in families.items()}


def _response(key: str, families: Mapping[str, Sequence[Configuration]], measure: Measure, label: str) -> Lines:
    short, series = key.rpartition(".")[2], []
    values = sorted({float(one.settings[key]) for members in families.values() for one in members})
    for number, (family, members) in enumerate(list(families.items())[:MOST_LINES]):
        means = [estimate(one.records, measure) for one in members]
        if not any(means):
            continue
        hover = [
            f"{one.label}\n{short} {one.settings[key]:g}\n{label} {mean.text() if mean else wording.MISSING}\n{_seeds(one)}"
            for one, mean in zip(members, means, strict=True)
        ]
        series.append(_series(family, [float(one.settings[key]) for one in members], means, hover, number))
    return Lines(
        name=f"response-{slug(key)}-{slug(label)}",
        title=f"{label} by {short}",
        description=f"{label} against {short} ({', '.join(f'{value:g}' for value in values)}), a line a method.",
        x_label=short,
        y_label=label,
        series=series,
        log_x=values[0] > 0 and values[-1] / values[0] >= LOG_FROM,
        ticks=values if len(values) <= 6 else None,
    )


def weights_by_layer(found: Sequence[Configuration]) -> Lines:
    """‖ΔW‖ / ‖W‖ after the last stage by layer, the root mean square over the layer's modules and the mean over seeds."""
    series = []
    for number, one in enumerate(found):
        layers = list(dict.fromkeys(layer for record in one.records for layer in layer_shift(record)))
        means = [estimate(one.records, _of_layer(layer)) for layer in layers]
        hover = [
            f"{one.label}\nlayer {layer}\n‖ΔW‖ / ‖W‖ {mean.short() if mean else wording.MISSING}"
            for layer, mean in zip(layers, means, strict=True)
        ]
        if layers:
            series.append(_series(one.label, layers, means, hover, number))
    return Lines(
        name="weights-by-layer",
        title="Weight shift by layer",
        description=f"‖ΔW‖ / ‖W‖ after the last stage by layer, {len(series)} configurations.",
        x_label="layer",
        y_label="‖ΔW‖ / ‖W‖",
        series=series,
        ticks=stage_ticks(int(max((x for line in series for x in line.x if isinstance(x, int)), default=0)) + 1),
    )


def _of_layer(layer: int) -> Measure:
    return lambda record: layer_shift(record).get(layer)


def layer_shift(record: Record) -> dict[int, float]:
    """Root mean square of ‖ΔW‖ / ‖W‖ over the modules of each layer after the last measured stage."""
    row = record["shift"]["weight"][wording.last_row(record)] or {"modules": {}}
    squares: dict[int, list[float]] = {}
    for module, value in row["modules"].items():
        layer = place(module)[0]
        if value is not None and layer.isdigit():
            squares.setdefault(int(layer), []).append(value * value)
    return {layer: (sum(found) / len(found)) ** 0.5 for layer, found in squares.items()}
