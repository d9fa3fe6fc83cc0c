"""What a task reaches alone, and all tasks together: intransigence, forward transfer, the gap to joint training."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from curlora_lab.report.analysis.quantities import learnt
from curlora_lab.report.analysis.samples import Group, Run, Sample, Study, Unit
from curlora_lab.report.analysis.statistics import Difference, paired
from curlora_lab.report.record import Record
from curlora_lab.report.study import settings_of

#: Settings in which a reference may differ from the runs that it is the reference of.
NOT_COMPARED = ("scenario", "repeats", "strategy", "source", "gradient_batches", "eval_batch_size")


@dataclass(frozen=True, kw_only=True)
class Referenced:
    """A sample held against its reference runs.

    Attributes:
        sample: The sample.
        intransigence: Mean over tasks of the score alone minus the score right after the own stage; positive: history hurt.
        transfer: Mean over tasks but the first of the score right after the own stage minus the score alone.
        joint_gap: Final average of joint training minus that of the sequence; positive: the sequence lost so much.
        missing: Scenarios that were not run, with the command that runs them.
    """

    sample: Sample
    intransigence: Difference | None
    transfer: Difference | None
    joint_gap: Difference | None
    missing: Mapping[str, str]


def referenced(study: Study, group: Group) -> list[Referenced]:
    """Every sample of a group against independent and joint runs of the same configuration and seed.

    Args:
        study: All runs.
        group: The samples.
    """
    return [_one(sample, study.independent, study.joint) for sample in group.samples]


def missing_notes(found: Iterable[Referenced]) -> Iterator[str]:
    """One note a scenario that was not run with some configurations, with the first of the commands that run it."""
    listed = list(found)
    for scenario, what in (
        ("independent", "intransigence and forward transfer"),
        ("joint", "the gap to joint training"),
    ):
        without = [one for one in listed if scenario in one.missing]
        if without:
            names = "; ".join(one.sample.label for one in without)
            more = ", the others' commands are in references.csv" if len(without) > 1 else ""
            command = without[0].missing[scenario]
            yield f"no run with scenario={scenario}, without which nothing is known of {what} of {names}; {command}{more}"


def _one(sample: Sample, independent: Sequence[Run], joint: Sequence[Run]) -> Referenced:
    alone, together = _matching(sample, independent), _matching(sample, joint)
    values: dict[str, tuple[dict[Unit, list[float]], dict[Unit, list[float]]]] = {
        name: ({}, {}) for name in ("intransigence", "transfer", "joint")
    }
    for (unit, _), run in sample.runs.items():
        by_name = {
            "intransigence": _over_tasks(run.record, alone.get(unit), first=0, sign=-1),
            "transfer": _over_tasks(run.record, alone.get(unit), first=1, sign=1),
            "joint": _joint_gap(run.record, together.get(unit)),
        }
        for name, value in by_name.items():
            if value is not None:
                values[name][0].setdefault(unit, []).append(value)
                values[name][1].setdefault(unit, []).append(0.0)
    found = {
        name: paired(
            {unit: fmean(those) for unit, those in pair[0].items()},
            {unit: fmean(those) for unit, those in pair[1].items()},
            position=["reference", name],
        )
        for name, pair in values.items()
    }
    missing = {name: _command(sample, name) for name, runs in (("independent", alone), ("joint", together)) if not runs}
    return Referenced(
        sample=sample,
        intransigence=found["intransigence"],
        transfer=found["transfer"],
        joint_gap=found["joint"],
        missing=missing,
    )


def _matching(sample: Sample, runs: Sequence[Run]) -> dict[Unit, Record]:
    """Reference runs of the same configuration by unit; one without a strategy before one with another strategy."""
    wanted = _key(sample.first)
    strategy = sample.setting("strategy", "_target_")
    found: dict[Unit, Record] = {}
    for run in sorted(runs, key=lambda run: (run.record["config"].get("strategy") or {}).get("_target_") != strategy):
        same_model = run.record["provenance"]["model"].get("fingerprint") == sample.first["provenance"]["model"].get(
            "fingerprint"
        )
        if same_model and _key(run.record) == wanted:
            found.setdefault(run.unit, run.record)
    return found


def _key(record: Record) -> str:
    settings = {
        key: value
        for key, value in settings_of(record, any_order=True).items()
        if key.partition(".")[0] not in NOT_COMPARED
    }
    return json.dumps(settings, sort_keys=True, default=str)


def _over_tasks(record: Record, reference: Record | None, *, first: int, sign: int) -> float | None:
    """Mean of sign · (score right after the own stage − score alone) over tasks from the ``first`` on."""
    tasks = record["tasks"][first:]
    if reference is None or not tasks or set(record["tasks"]) != set(reference["tasks"]):
        return None
    pairs = [(learnt(record, task), learnt(reference, task)) for task in tasks]
    there = [sign * (own - other) for own, other in pairs if own is not None and other is not None]
    return fmean(there) if len(there) == len(pairs) and record["continual"]["learning"] is not None else None


def _joint_gap(record: Record, reference: Record | None) -> float | None:
    values = [None if one is None else one["continual"]["average"] for one in (reference, record)]
    return None if values[0] is None or values[1] is None else float(values[0] - values[1])


def _command(sample: Sample, scenario: str) -> str:
    """The command that makes the missing runs, from what was given for the sample's own."""
    own = [
        text
        for text in sample.first["overrides"]
        if text.partition("=")[0].lstrip("+") not in ("seed", "scenario", "order")
    ]
    seeds = ",".join(sorted({seed for (seed, _) in sample.units}, key=lambda text: (len(text), text)))
    words = ["python", "train.py", "-m", *own, f"scenario={scenario}", f"seed={seeds}"]
    return shlex.join(words)
