"""All continual metrics of a run at once, with a reason for every one that is missing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from curlora_lab.metrics.continual import (
    ScoreMatrix,
    Value,
    average,
    average_incremental,
    average_micro,
    bwt,
    bwt_gem,
    forgetting,
    forgetting_avalanche,
    fwt,
    gain,
    learning,
)

UNBOUNDED_METRICS = frozenset({"nll", "negative_nll", "loss", "negative_loss", "perplexity", "mse", "negative_mse"})
"""Metrics without a common range: their mean with other metrics would say nothing."""

UNIT_METRICS = frozenset({"mse", "negative_mse"})
"""Metrics in a unit of the task's own: two tasks need not even share that."""

VARIANTS: dict[str, Callable[[ScoreMatrix, Sequence[str], Sequence[int] | None], Value]] = {
    "bwt_gem": bwt_gem,
    "forgetting_avalanche": forgetting_avalanche,
    "average_incremental": average_incremental,
}


@dataclass(frozen=True)
class ContinualSummary:
    """What `results.json` holds under ``continual``, ``variants`` and ``reasons``.

    Attributes:
        continual: The six metrics of this project by name; ``None`` where undefined.
        variants: The same ideas as other codes compute them, by name.
        reasons: Why a value is ``None``, by dotted path (``continual.fwt``).
    """

    continual: dict[str, float | None]
    variants: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)


def summarise(
    scores: ScoreMatrix,
    tasks: Sequence[str],
    *,
    baselines: Mapping[str, Mapping[str, float | str | int | None]],
    fwt_defined: Sequence[bool],
    trained_at: Sequence[int] | None = None,
    metrics: Sequence[str] | None = None,
) -> ContinualSummary:
    """Compute all continual metrics of a finished run.

    Args:
        scores: Score matrix, shape (stages+1, tasks), row 0 untrained, higher is better.
        tasks: Names of the columns.
        baselines: By task, a mapping with ``constant`` and ``best`` scores and the number of reported ``rows``, each possibly
            ``None`` or absent.
        fwt_defined: Whether a score before the task's own stage means something, one a task.
        trained_at: Stage in which each task is learnt; default 1, 2, ... (sequential).
        metrics: Name of each column's metric. A mean over different metrics is taken only when all are bounded.

    Returns:
        Values, variants and reasons, ready for the record.

    Raises:
        ValueError: When the arguments do not fit together.
    """
    constant = [_number(baselines.get(task, {}).get("constant")) for task in tasks]
    best = [_number(baselines.get(task, {}).get("best")) for task in tasks]
    values: dict[str, Value] = {
        "continual.average": average(scores, tasks, trained_at),
        "continual.gain": gain(scores, tasks, constant, best),
        "continual.bwt": bwt(scores, tasks, trained_at),
        "continual.fwt": fwt(scores, tasks, trained_at, defined=fwt_defined),
        "continual.forgetting": forgetting(scores, tasks, trained_at),
        "continual.learning": learning(scores, tasks, trained_at),
    }
    values |= {f"variants.{name}": function(scores, tasks, trained_at) for name, function in VARIANTS.items()}
    rows = [_number(baselines.get(task, {}).get("rows")) for task in tasks]
    values["variants.average_micro"] = average_micro(scores, tasks, rows)
    mixed = _mixed_metrics(metrics, tasks)
    if mixed:
        values = {path: value if path == "continual.gain" else (None, mixed) for path, value in values.items()}
    chosen = {path: value for path, (value, _) in values.items()}
    return ContinualSummary(
        continual={path.partition(".")[2]: v for path, v in chosen.items() if path.startswith("continual.")},
        variants={path.partition(".")[2]: v for path, v in chosen.items() if path.startswith("variants.")},
        reasons={path: reason for path, (_, reason) in values.items() if reason is not None},
    )


def _mixed_metrics(metrics: Sequence[str] | None, tasks: Sequence[str]) -> str | None:
    if metrics is not None and len(metrics) != len(tasks):
        raise ValueError(f"metrics has {len(metrics)} entries for {len(tasks)} tasks")
    different = sorted(set(metrics or ()))
    if len(tasks) > 1 and (in_units := sorted(UNIT_METRICS.intersection(different))):
        return f"tasks are scored by {', '.join(different)}; {in_units[0]} is in a task's own unit; see continual.gain"
    if len(different) > 1 and UNBOUNDED_METRICS.intersection(different):
        return f"tasks are scored by {', '.join(different)}, which have no common scale; see continual.gain"
    return None


def _number(value: float | str | int | None) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)
