"""What is read from each record of a study, with its name and which way is better."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from curlora_lab.report import wording
from curlora_lab.report.study import Measure, Record, continual, drift, probes_of

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number of a run.

    Attributes:
        key: Name in tables for programs, such as ``drift/builtin``.
        name: Name for readers.
        measure: Reads it from a record; ``None`` where it has none.
        better: Which way is better.
    """

    key: str
    name: str
    measure: Measure
    better: Better = "neither"


def drift_of(probe: str) -> Quantity:
    """Drift of the language model on a probe: ``ln(perplexity after / before)``, nats a token."""
    return Quantity(key=f"drift/{probe}", name=f"drift, {probe}", measure=drift(probe), better="lower")


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
