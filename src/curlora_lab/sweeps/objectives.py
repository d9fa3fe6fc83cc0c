"""What a sweep looks at: numbers of the finished run, by the names under which dashboards have them too."""

from collections.abc import Mapping, Sequence
from typing import Any

from curlora_lab.config import ConfigError
from curlora_lab.config.signatures import meant
from curlora_lab.loggers import content

#: Of these less is better; of all others more.
LOWER_IS_BETTER = ("continual/forgetting", "probe/", "cost/", "parameters/", "adapter/", "head/", "warnings/")

FIXED = (
    *(f"continual/{name}" for name in ("average", "gain", "bwt", "fwt", "forgetting", "learning")),
    "choose/learning",
    *(f"cost/{name}" for name in ("seconds", "tokens", "peak_memory_bytes")),
    *("adapter/trainable_parameters", "head/trainable_parameters", "parameters/trainable", "parameters/total"),
    "warnings/count",
)

AVERAGE, GAIN = "continual/average", "continual/gain"


def check(config: Mapping[str, Any]) -> None:
    """Refuse names of which no run has a value.

    Args:
        config: a validated configuration; its ``objectives`` are the names.

    Raises:
        ConfigError: names the first one, with what is close and what there is.
    """
    probes = ((config["probe"] or {}).get("probes") or {}).values()
    allowed = [*FIXED, *(f"probe/{node['name']}/perplexity_ratio" for node in probes if "name" in node)]
    names = config["objectives"]
    if not names:
        raise ConfigError("objectives is empty; name at least one, for example objectives=[continual/average].")
    for name in names:
        if name not in allowed:
            raise ConfigError(
                f"objectives: no run has a value {name!r}.{meant(str(name), allowed)} Choose from {', '.join(allowed)}."
            )


def values(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, float | None]:
    """The objectives of a finished run.

    Args:
        record: its record.
        names: names of :func:`curlora_lab.loggers.content.summary`. Where tasks have different metrics there is no
            average; the gain, which has one scale, stands in for it.

    Returns:
        A value for each name, ``None`` where the record has none.
    """
    known = content.summary(record)
    if GAIN in known:
        known.setdefault(AVERAGE, known[GAIN])
    return {name: float(known[name]) if name in known else None for name in names}


def lower_is_better(name: str) -> bool:
    """Whether of this objective less is better."""
    return name.startswith(LOWER_IS_BETTER)


def pareto(rows: Sequence[Mapping[str, float | None]]) -> list[bool]:
    """Which rows no other beats: one that is at least as good in everything and better in something.

    Args:
        rows: objectives by name, one mapping a job.

    Returns:
        One truth value a row; rows with a missing value are never on the front.
    """
    points = [
        None
        if not row or None in row.values()
        else [-value if lower_is_better(name) else value for name, value in row.items() if value is not None]
        for row in rows
    ]
    whole = [point for point in points if point is not None]
    return [point is not None and not any(_beats(other, point) for other in whole) for point in points]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(a >= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)
