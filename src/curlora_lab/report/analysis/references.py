"""What a task reaches alone, and all tasks together: intransigence, forward transfer, the gap to joint training."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from curlora_lab.report.analysis.quantities import learnt
from curlora_lab.report.analysis.samples import Group, Run, Sample, Study, by_seed
from curlora_lab.report.analysis.statistics import Difference, paired
from curlora_lab.report.record import Record
from curlora_lab.report.study import settings_of

#: Settings in which a reference may differ from the runs that it is the reference of; for the strategy see :func:`_matching`.
NOT_COMPARED = ("scenario", "repeats", "strategy", "source", "gradient_batches", "eval_batch_size")
NO_STRATEGY = "curlora_lab.continual.strategies.Strategy"
#: Strategies that a run without a sequence can have: they guard the language model, not an earlier task.
WITHOUT_SEQUENCE = (".Strategy", ".Anchor")


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
    values: dict[str, list[tuple[Run, float]]] = {name: [] for name in ("intransigence", "transfer", "joint")}
    for run in sample.runs.values():
        drawn = run.seed, run.draw
        by_name = {
            "intransigence": _over_tasks(run.record, alone.get(drawn), first=0, sign=-1),
            "transfer": _over_tasks(run.record, alone.get(drawn), first=1, sign=1),
            "joint": _joint_gap(run.record, together.get(drawn)),
        }
        for name, value in by_name.items():
            if value is not None:
                values[name].append((run, value))
    found = {}
    for name, those in values.items():
        differences = by_seed(those) or {}
        found[name] = paired(differences, dict.fromkeys(differences, 0.0), position=["reference", name])
    missing = {name: _command(sample, name) for name, runs in (("independent", alone), ("joint", together)) if not runs}
    return Referenced(
        sample=sample,
        intransigence=found["intransigence"],
        transfer=found["transfer"],
        joint_gap=found["joint"],
        missing=missing,
    )


def _matching(sample: Sample, runs: Sequence[Run]) -> dict[tuple[str, str], Record]:
    """Reference runs of the same configuration by seed and draw: with the same strategy, else without one.

    One with another strategy would count what that strategy does as what the sequence does.
    """
    key, model, own = _key(sample.first), _model(sample.first), _strategy(sample.first)
    alike = [run for run in runs if _model(run.record) == model and _key(run.record) == key]
    found = {(run.seed, run.draw): run.record for run in alike if _strategy(run.record)["_target_"] == NO_STRATEGY}
    return found | {(run.seed, run.draw): run.record for run in alike if _strategy(run.record) == own}


def _model(record: Record) -> Any:
    return record["provenance"]["model"].get("fingerprint")


def _strategy(record: Record) -> dict[str, Any]:
    """The strategy with all its settings."""
    return {"_target_": NO_STRATEGY, **(record["config"].get("strategy") or {})}


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
    left_out = {"seed", "draw", "scenario", "order", "repeats"}
    if not _strategy(sample.first)["_target_"].endswith(WITHOUT_SEQUENCE):
        left_out.add("strategy")
    names = [(text.partition("=")[0].lstrip("+~"), text) for text in sample.first["overrides"]]
    own = [text for name, text in names if name.partition(".")[0] not in left_out]
    draws = _listed({run.draw for run in sample.runs.values()})
    words = ["python", "train.py", "-m", *own, f"scenario={scenario}", f"seed={_listed(set(sample.seeds))}"]
    return shlex.join([*words, *([f"draw={draws}"] if draws != "0" else [])])


def _listed(numbers: Iterable[str]) -> str:
    return ",".join(sorted(numbers, key=lambda text: (len(text), text)))
