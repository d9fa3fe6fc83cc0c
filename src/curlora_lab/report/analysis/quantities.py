"""What is read from each record of a study, with its name and which way is better."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from curlora_lab.report import wording
from curlora_lab.report.study import Measure, Record, continual, probes_of

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number of a run.

    Attributes:
        key: Name in tables for programs, such as ``drift/builtin``.
        name: Name for readers.
        measure: Reads it from a record; ``None`` where it has none.
        better: Which way is better.
        measured_on: Reads what it was measured on; values are comparable only where this is the same.
        absent: Reads why a record has no value; empty where it does not say.
    """

    key: str
    name: str
    measure: Measure
    better: Better = "neither"
    measured_on: Callable[[Record], tuple[Any, ...]] = lambda record: ()
    absent: Callable[[Record], str] = lambda record: ""


def drift_of(probe: str) -> Quantity:
    """Drift of the language model on a probe: ``ln(perplexity after / before)``, nats a token."""
    return Quantity(
        key=f"drift/{probe}",
        name=f"drift, {probe}",
        measure=lambda record: _drift(record, probe),
        better="lower",
        measured_on=lambda record: _probe_text(record, probe),
        absent=lambda record: _no_perplexity(record, probe),
    )


def _drift(record: Record, probe: str) -> float | None:
    """From the bits a character where a perplexity is beyond the largest float: their difference needs no exponential."""
    ratio = wording.finite_log_ratio(record["probes"]["perplexity"].get(probe, []))
    bits = record["probes"]["bits_per_character"].get(probe) or [None]
    details = record["probes"]["details"].get(probe, {})
    if ratio is not None or bits[0] is None or bits[-1] is None or not details.get("tokens"):
        return ratio
    return float((bits[-1] - bits[0]) * math.log(2) * details["characters"] / details["tokens"])


def _probe_text(record: Record, probe: str) -> tuple[Any, ...]:
    """Text and protocol: windows and limits change a perplexity as another text does."""
    details = record["probes"]["details"].get(probe, {})
    return details.get("fingerprint"), details.get("protocol")


def _no_perplexity(record: Record, probe: str) -> str:
    values = record["probes"]["perplexity"].get(probe)
    if not values:
        return "the probe was not run"
    return str(record["reasons"].get(f"probes.perplexity.{probe}[{len(values) - 1}]", ""))


LEARNING = Quantity(key="learning", name="learning", measure=continual("learning"), better="higher")
FORGETTING = Quantity(key="forgetting", name="forgetting", measure=continual("forgetting"), better="lower")
AVERAGE = Quantity(key="average", name="average", measure=continual("average"), better="higher")
GAIN = Quantity(key="gain", name="gain", measure=continual("gain"), better="higher")
BWT = Quantity(key="bwt", name="BWT", measure=continual("bwt"), better="higher")
FWT = Quantity(key="fwt", name="FWT", measure=continual("fwt"), better="higher")


def _moved(key: str) -> Measure:
    def value(record: Record) -> float | None:
        row = record["shift"]["weight"][wording.last_row(record)] or {}
        found = row.get(key)
        return None if found is None else float(found)

    return value


UPDATE_NORM = Quantity(key="update_norm", name="‖ΔW‖", measure=_moved("absolute"))
UPDATE_RATIO = Quantity(key="update_ratio", name="‖ΔW‖ / ‖W‖", measure=_moved("overall"))


def learnt(record: Record, task: str) -> float | None:
    """Score on a task right after its own stage."""
    value: Any = record["scores"][wording.learnt_in(record)[task]][record["tasks"].index(task)]
    return None if value is None else float(value)


def learning_of(task: str) -> Quantity:
    """Score on one task right after its own stage."""
    return Quantity(
        key=f"learning/{task}", name=f"learning, {task}", measure=lambda record: learnt(record, task), better="higher"
    )


def constant_mean(record: Record) -> float | None:
    """Mean over tasks of what the best constant predictor gets; ``None`` where one is not known."""
    values = [record["baselines"][task]["constant"] for task in record["tasks"]]
    return None if None in values or record["continual"]["learning"] is None else sum(values) / len(values)


def above_constant(record: Record) -> float | None:
    """Learning minus the mean of the constant predictors."""
    constant, value = constant_mean(record), record["continual"]["learning"]
    return None if constant is None or value is None else float(value - constant)


def flags(code: str) -> Measure:
    """How many warnings of a kind a run carries, from each task's own stage on."""
    return lambda record: float(sum(warning["code"] == code for warning in record["warnings"]))


def _perplexity(probe: str) -> Measure:
    def value(record: Record) -> float | None:
        values = record["probes"]["perplexity"].get(probe) or [None]
        return values[-1]

    return value


def described(records: Iterable[Record]) -> list[Quantity]:
    """Everything that is estimated for each configuration, in the order of reading.

    Args:
        records: Records of one group.
    """
    records = list(records)
    tasks = dict.fromkeys(task for record in records for task in record["tasks"])
    probes = probes_of(records)
    return [
        AVERAGE, LEARNING, GAIN, FORGETTING, BWT, FWT,
        *map(learning_of, tasks),
        *map(drift_of, probes),
        *(Quantity(key=f"perplexity/{p}", name=f"perplexity after, {p}", measure=_perplexity(p), better="lower") for p in probes),
        UPDATE_NORM, UPDATE_RATIO,
        Quantity(key="parameters/adapter", name="adapter parameters", measure=lambda r: float(r["parameters"]["adapter"])),
        Quantity(key="parameters/trainable", name="trained parameters", measure=lambda r: float(r["parameters"]["trainable"])),
        Quantity(key="seconds", name="seconds", measure=lambda r: float(r["cost"]["seconds"])),
        Quantity(key="constant_predictions", name="constant predictions", measure=flags("constant_prediction"), better="lower"),
        Quantity(key="below_constant", name="scores below constant", measure=flags("below_constant"), better="lower"),
        Quantity(key="not_learnt", name="tasks not learnt", measure=flags("not_learnt"), better="lower"),
    ]  # fmt: skip


def measured_alike(records: Iterable[Record], quantity: Quantity) -> bool:
    """Whether a quantity was measured on the same thing in all records that have it, so that its means can be compared.

    Args:
        records: Records of one group.
        quantity: The quantity.
    """
    return len({quantity.measured_on(one) for one in records if quantity.measure(one) is not None}) <= 1


def costs(records: Iterable[Record]) -> list[Quantity]:
    """What is paid for what is learnt: forgetting, and drift on each probe."""
    return [FORGETTING, *map(drift_of, probes_of(records))]


def compared(records: Iterable[Record]) -> list[Quantity]:
    """What configurations are held against one another by.

    Where the tasks' metrics have no common scale, gain stands in for average and learning.
    """
    records = list(records)
    mixed = any(record["continual"]["average"] is None for record in records)
    return [*([GAIN] if mixed else [LEARNING, AVERAGE]), *costs(records)]
