"""Several runs as configurations: which runs are seeds of one another, what varies between the others, means over seeds."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from curlora_lab.report import wording
from curlora_lab.report.figures import with_half

Record = Mapping[str, Any]
Measure = Callable[[Record], float | None]

#: What seeds of one configuration differ in, and what changes no number.
NOT_SETTINGS = frozenset(
    {
        "seed",
        "name",
        "output_dir",
        "data_dir",
        "fresh",
        "logger",
        "num_workers",
        "gradient_batches",
        "display",
        "checkpoint",
        "objectives",
        "isolate",
        "tuned",
        "tune_tolerance",
    }
)
#: What replicates of one configuration may differ in beside the seed: the order of the tasks and which rows were drawn.
OF_REPLICATES = frozenset({"order", "draw"})
NOT_OF_ADAPTER = frozenset({"seed", "projection_prng_key", "tuned_on", "laws"})
#: Settings in the order in which they name a configuration: what it is before how it is set.
FIRST = ("adapter.name", "adapter._target_", "strategy.name", "strategy._target_", "model.name", "tasks")
THEN = ("adapter.basis", "rank", "alpha", "lr", "head_lr", "epochs", "batch_size", "train_rows")
LONGEST_VALUE = 28


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Runs that differ in nothing but the seed and where they lie.

    Attributes:
        records: Their records.
        name: Name of the run folders without seed and hash.
        label: What tells it from the other configurations, in a few words.
        method: The part of the label that is no number: which adapter, which strategy.
        settings: The settings that tell the configurations apart, by dotted key.
    """

    records: Sequence[Record]
    name: str
    label: str
    method: str
    settings: Mapping[str, Any]

    @property
    def first(self) -> Record:
        """One record, for what all seeds share."""
        return self.records[0]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        half: Half of its 95 % interval (Student's t); ``None`` for a single seed.
    """

    mean: float
    half: float | None

    def text(self, *, signed: bool = False) -> str:
        """As a reader sees it, such as ``0.813 ± 0.075``."""
        mean = wording.score(self.mean, signed=signed)
        return mean if self.half is None else f"{mean} ± {self.half:.3f}"

    def short(self) -> str:
        """With four significant digits."""
        return with_half(self.mean, self.half)


def continual(key: str) -> Measure:
    """One of the continual metrics of a record."""
    return lambda record: record["continual"][key]


def drift(probe: str) -> Measure:
    """Log ratio of a probe's perplexity after the last measured stage and before the run, in nats a token."""
    return lambda record: wording.finite_log_ratio(
        record["probes"]["perplexity"].get(probe, [])[: wording.last_row(record) + 1]
    )


def estimate(records: Sequence[Record], measure: Measure) -> Estimate | None:
    """Mean over seeds with half of its 95 % interval: ``t(0.975, n - 1) · s / √n``.

    Args:
        records: The seeds.
        measure: What is averaged.

    Returns:
        The estimate; ``None`` where a seed has no value, since a mean over the others would flatter.
    """
    values = [measure(record) for record in records]
    there = [value for value in values if value is not None]
    if len(there) < len(values) or not there:
        return None
    return mean_of(there)


def mean_of(values: Sequence[float]) -> Estimate:
    """Mean of replicates with half of its 95 % interval: ``t(0.975, n - 1) · s / √n``.

    Args:
        values: One a replicate, at least one.

    Returns:
        The estimate; a single value has no interval.
    """
    if len(values) == 1:
        return Estimate(values[0], None)
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Estimate(fmean(values), half)


def configurations(records: Sequence[Record], *, any_order: bool = False) -> list[Configuration]:
    """Take seeds together and find out what the rest differs in.

    Args:
        records: Valid records.
        any_order: Whether runs with another order of the tasks or another draw of rows are replicates too.

    Returns:
        One configuration for all its seeds; methods in the order of their first runs, their settings ascending.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        found = settings_of(record, any_order=any_order)
        groups.setdefault(json.dumps(found, sort_keys=True, default=str), []).append(record)
    facts = [settings_of(group[0], any_order=any_order) for group in groups.values()]
    keys = telling(facts)
    made = [
        _configuration(group, {key: found[key] for key in keys if key in found})
        for group, found in zip(groups.values(), facts, strict=True)
    ]
    methods = list(dict.fromkeys(one.method for one in made))
    return sorted(
        made, key=lambda one: (methods.index(one.method), [float(v) for v in one.settings.values() if is_number(v)])
    )


def telling(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fewest settings, taken in the order of reading, that tell all configurations apart.

    A setting that follows from those before it (the default learning rate of an adapter from the adapter, ``adapter.r``
    from ``rank``) is left out.

    Args:
        facts: Settings of each configuration by dotted key.

    Returns:
        Keys.
    """
    order = {key: k for k, key in enumerate((*FIRST, *THEN))}
    keys = dict.fromkeys(key for one in facts for key in one)
    chosen: list[str] = []
    for key in sorted(keys, key=lambda key: (order.get(key, len(order)), key.count("."), key)):
        known: dict[str, str] = {}
        follows = True
        for one in facts:
            before = json.dumps([one.get(k) for k in chosen], default=str)
            value = json.dumps(one.get(key), default=str)
            follows = follows and known.setdefault(before, value) == value
        if not follows:
            chosen.append(key)
    return chosen


def is_number(value: Any) -> bool:
    """Whether a setting has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _configuration(records: Sequence[Record], settings: Mapping[str, Any]) -> Configuration:
    first = records[0]
    name = first["name"] if len(records) == 1 else re.sub(r"-s\d+-[0-9a-f]{8}$", "", first["name"])
    words = [_word(key, value) for key, value in settings.items()]
    kinds = [_word(key, value) for key, value in settings.items() if not is_number(value)]
    adapter = first["config"].get("adapter")
    plain = str(adapter.get("name", "")) if isinstance(adapter, dict) else ""
    return Configuration(
        records=records,
        name=name if first["status"] == "finished" else f"{name} ({first['status']})",
        label=" · ".join(words) or plain or name,
        method=" · ".join(kinds) or plain or "runs",
        settings=settings,
    )


def _word(key: str, value: Any) -> str:
    """A setting in a word or two: what it is called where the value alone would not say."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text.rpartition(".")[2] if key.endswith("_target_") else text
    text = text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
    return text if key in FIRST else f"{key.rpartition('.')[2]} {text}"


def settings_of(record: Record, *, any_order: bool = False) -> dict[str, Any]:
    """Everything that makes a run another configuration, by dotted key.

    Args:
        record: A valid record.
        any_order: Whether the order of the tasks and the draw of rows are left out.
    """
    left_out = NOT_SETTINGS | OF_REPLICATES if any_order else NOT_SETTINGS
    config = {key: value for key, value in record["config"].items() if key not in left_out}
    adapter = config.get("adapter")
    if isinstance(adapter, dict):  # the seed once more: of the choice of columns, of VeRA's projections
        config["adapter"] = {key: value for key, value in adapter.items() if key not in NOT_OF_ADAPTER}
    found = {key: value for key, value in flat(config).items() if key != "trainer.enable_progress_bar"}
    if any_order:  # each task's data repeats the draw; two orders of the same tasks may have names of their own
        found = {key: value for key, value in found.items() if not key.endswith(".draw") and key != "sequence.name"}
    return {
        **found,
        "tasks": ", ".join(sorted(record["tasks"])) if any_order else " → ".join(record["tasks"]),
        "status": record["status"],
        "source": str(record["provenance"].get("source_hash", ""))[:8],
    }


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key; an empty mapping is a value."""
    return dict(_flat(settings, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def probes_of(records: Iterable[Record]) -> list[str]:
    """Names of all probes, in the order in which they are met."""
    return list(dict.fromkeys(probe for record in records for probe in record["probes"]["perplexity"]))
