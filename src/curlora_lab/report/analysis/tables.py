"""The tables of an analysis: what people read, and the same with all digits for programs."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from curlora_lab.report import wording
from curlora_lab.report.analysis.phrases import estimate_text, interval_text, signed
from curlora_lab.report.analysis.quantities import (
    AVERAGE,
    BWT,
    FORGETTING,
    FWT,
    GAIN,
    LEARNING,
    UPDATE_NORM,
    UPDATE_RATIO,
    costs,
    described,
    flags,
)
from curlora_lab.report.analysis.references import Referenced
from curlora_lab.report.analysis.samples import Group, Study
from curlora_lab.report.analysis.sceptic import Doubts
from curlora_lab.report.analysis.statistics import Difference
from curlora_lab.report.study import Estimate, Measure

Cell = str | float | int | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table.

    Attributes:
        name: Name of its file.
        title: Heading.
        note: What to know when reading it.
        columns: Names of the columns that people read.
        rows: Their texts.
        data_columns: Names of the columns of the file.
        data: Its rows, with all digits.
    """

    name: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data_columns: Sequence[str]
    data: Sequence[Sequence[Cell]] = field(repr=False)

    def csv(self) -> str:
        """The file's text: comma-separated, a missing value is empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.data_columns)
        writer.writerows([[_cell(value) for value in row] for row in self.data])
        return stream.getvalue()


def _cell(value: Cell) -> str:
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def estimates(groups: Sequence[Group]) -> Table:
    """Means and intervals of everything that is measured."""
    rows, data = [], []
    probes = dict.fromkeys(cost for group in groups for cost in costs(run.record for run in group.runs)[1:])
    shown = [
        AVERAGE,
        LEARNING,
        GAIN,
        FORGETTING,
        BWT,
        FWT,
        *{one.key: one for one in probes}.values(),
        UPDATE_NORM,
        UPDATE_RATIO,
    ]
    for group in groups:
        for sample in group.samples:
            parameters = sample.first["parameters"]
            rows.append(
                [sample.label, str(len(sample.seeds)), *(estimate_text(sample.estimate(one.measure)) for one in shown),
                 wording.count(parameters["adapter"]), wording.count(parameters["trainable"]),
                 estimate_text(sample.estimate(lambda record: float(record["cost"]["seconds"]))),
                 estimate_text(sample.estimate(flags("constant_prediction")))]
            )  # fmt: skip
            for one in described(run.record for run in group.runs):
                values, mean = sample.values(one.measure), sample.estimate(one.measure)
                sides = (
                    (None, None)
                    if mean is None or mean.half is None
                    else (mean.mean - mean.half, mean.mean + mean.half)
                )
                data.append(
                    [group.name, sample.label, one.key, len(values or {}), None if mean is None else mean.mean, *sides]
                )
    return Table(
        name="estimates",
        title="Estimates",
        note="Mean over seeds ± half of its 95 % interval (Student). Learning is the mean score right after each task; drift is "
        "ln(perplexity after / before) in nats a token: 0 leaves the language model as it was.",
        columns=["configuration", "seeds", *(one.name for one in shown), "adapter parameters", "trained parameters", "seconds",
                 "constant predictions"],
        rows=rows,
        data_columns=["group", "configuration", "quantity", "seeds", "mean", "low", "high"],
        data=data,
    )  # fmt: skip


def by_task(groups: Sequence[Group]) -> Table:
    """Each task right after its own stage, and at the end."""
    rows: list[list[str]] = []
    data: list[list[Cell]] = []
    for group in groups:
        tasks = group.samples[0].first["tasks"]
        for sample in group.samples:
            for one in described(run.record for run in group.runs):
                task = one.key.removeprefix("learning/")
                if task in tasks and task != one.key:
                    baseline, mean = sample.first["baselines"][task], sample.estimate(one.measure)
                    final = sample.estimate(_final(task))
                    constant, best = baseline["constant"], baseline["best"]
                    texts = [estimate_text(mean), estimate_text(final), wording.score(constant), wording.score(best)]
                    rows.append([sample.label, task, sample.first["metric"][task], *texts])
                    data.append(
                        [
                            group.name,
                            sample.label,
                            task,
                            sample.first["metric"][task],
                            *ends(mean),
                            *ends(final),
                            constant,
                            best,
                        ]
                    )
    return Table(
        name="tasks",
        title="Task by task",
        note="Score right after the task's own stage and at the end, with what the best constant answer gets and the best known.",
        columns=["configuration", "task", "metric", "after its stage", "at the end", "constant answer", "best"],
        rows=rows,
        data_columns=["group", "configuration", "task", "metric", "learnt_mean", "learnt_half", "final_mean", "final_half",
                      "constant", "best"],
        data=data,
    )  # fmt: skip


def _final(task: str) -> Measure:
    return lambda record: record["scores"][-1][record["tasks"].index(task)]


def ends(one: Estimate | None) -> list[Cell]:
    """Mean and half of the interval as two cells."""
    return [None, None] if one is None else [one.mean, one.half]


def references(found: Sequence[tuple[Group, Sequence[Referenced]]]) -> Table:
    """Against what each task reaches alone and all reach together."""
    listed = [(group, one) for group, those in found for one in those]
    values = [
        (group, one, [("intransigence", one.intransigence), ("transfer", one.transfer), ("joint gap", one.joint_gap)])
        for group, one in listed
    ]
    return Table(
        name="references",
        title="Against each task alone and all together",
        note="Intransigence: mean over tasks of the score alone (scenario=independent) minus that right after its own stage; "
        "forward transfer: the negative of it over the tasks that had a predecessor; joint gap: final average of scenario=joint "
        "minus that of the sequence. Same configuration and seed; 95 % intervals (the wider of Student and bootstrap).",
        columns=["configuration", "pairs", "intransigence", "forward transfer", "joint gap"],
        rows=[
            [
                one.sample.label,
                str(max(((d.n if d else 0) for _, d in those), default=0)),
                *(_with_interval(d) for _, d in those),
            ]
            for _, one, those in values
        ],
        data_columns=["group", "configuration", "quantity", "pairs", "mean", "low", "high", "command"],
        data=[
            [
                group.name,
                one.sample.label,
                name,
                d.n if d else 0,
                d.mean if d else None,
                *((d.widest.low, d.widest.high) if d and d.widest else (None, None)),
                one.missing.get("joint" if name == "joint gap" else "independent", ""),
            ]
            for group, one, those in values
            for name, d in those
        ],
    )


def _with_interval(one: Difference | None) -> str:
    if one is None:
        return wording.MISSING
    return signed(one.mean) + (f" ({interval_text(one.widest)})" if one.widest else "")


SCEPTIC = {
    "column_norm_spread": "spread of column norms", "row_norm_spread": "spread of row norms",
    "column_kl": "KL to uniform, columns", "row_kl": "KL to uniform, rows",
    "reconstruction_error": "‖W − CU*R‖/‖W‖", "captured": "captured gradient energy",
    "expected": "expected of random spans", "ceiling": "best possible", "update_ratio": "‖ΔW‖/‖W‖", "update_norm": "‖ΔW‖",
    "stable_rank": "stable rank of ΔW", "constant_predictions": "constant predictions", "below_constant": "scores below constant",
    "not_learnt": "tasks not learnt",
}  # fmt: skip


def sceptic(found: Sequence[tuple[Group, Sequence[Doubts]]]) -> Table:
    """The sceptic's table; columns of which no run has a value are left out."""
    listed = [(group, one) for group, those in found for one in those]
    keys = [key for key in SCEPTIC if any(one.numbers.get(key) is not None for _, one in listed)]
    absent = [SCEPTIC[key] for key in SCEPTIC if key not in keys]
    note = "Means over modules, stages and seeds. Spread: standard deviation over mean of the squared norms. Captured energy: "
    note += "share of the squared gradient that the span of C and R lets through; warnings are counted a run."
    return Table(
        name="sceptic",
        title="The sceptic's table",
        note=note + (f" Not in these run folders: {', '.join(absent)}." if absent else ""),
        columns=["configuration", *(SCEPTIC[key] for key in keys), "reached by the heads alone"],
        rows=[
            [one.sample.label, *(estimate_text(one.numbers.get(key)) for key in keys), _percent(one)]
            for _, one in listed
        ],
        data_columns=["group", "configuration", "quantity", "mean", "half"],
        data=[
            [group.name, one.sample.label, key, *ends(value)]
            for group, one in listed
            for key, value in {**one.numbers, "head_share": one.head_share}.items()
        ],
    )


def _percent(one: Doubts) -> str:
    return wording.MISSING if one.head_share is None else f"{100 * one.head_share.mean:.0f} %"


def runs(study: Study) -> Table:
    """Every run that went in: a file only."""
    every = [
        (group.name, sample.label, run)
        for group in study.groups
        for sample in group.samples
        for run in sample.runs.values()
    ]
    every += [("", run.scenario, run) for run in (*study.independent, *study.joint)]
    keys = ("average", "learning", "gain", "forgetting", "bwt", "fwt")
    return Table(
        name="runs",
        title="Runs",
        note="Every run that went in.",
        columns=[],
        rows=[],
        data_columns=["group", "configuration", "run", "scenario", "seed", "draw", "order", *keys, "adapter_parameters",
                      "seconds",                      "source_hash", "identity"],
        data=[
            [group, label, run.folder.name, run.scenario, *run.replicate, *(run.record["continual"][key] for key in keys),
             run.record["parameters"]["adapter"], float(run.record["cost"]["seconds"]),
             str(run.record["provenance"].get("source_hash", ""))[:16], str(run.record["provenance"].get("identity", ""))[:16]]
            for group, label, run in every
        ],
    )  # fmt: skip
