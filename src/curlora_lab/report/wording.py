"""Numbers as a reader sees them; a missing value is a dash everywhere."""

import math
from collections.abc import Mapping
from typing import Any

MISSING = "–"
MINUS = "−"

#: What is smaller is what a sum of floats leaves of zero.
ROUNDING = 1e-12

CONTINUAL = {
    "average": ("average", "mean final score over tasks"),
    "learning": ("learning", "mean score right after each task was learnt"),
    "forgetting": ("forgetting", "mean drop from the best earlier score; lower is better"),
    "bwt": ("BWT", "backward transfer: final score minus the score right after learning"),
    "fwt": ("FWT", "forward transfer: score just before learning minus the untrained score"),
    "gain": ("gain", "share of the way from a constant predictor to the best achievable score"),
}
"""Continual metrics in the order of reading: what they are called and what they say."""


CHOOSING_ROWS = "scores of choosing rows: for choosing settings, never to be reported"
"""What is said wherever a run with ``evaluate_on=choose`` is shown."""


def on_choosing_rows(record: Mapping[str, Any]) -> bool:
    """Whether a record's scores are of rows set aside for choosing.

    Args:
        record: A valid record.
    """
    return bool(record["config"].get("evaluate_on") == "choose")


def score(value: float | None, *, signed: bool = False) -> str:
    """A score with three decimals.

    Args:
        value: The score.
        signed: Whether a plus sign stands in front of a gain.

    Returns:
        Such as ``0.871``, ``+0.012``, ``−0.250``.
    """
    if value is None:
        return MISSING
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", MINUS)


def perplexity(value: float | None) -> str:
    """A perplexity with four significant digits, such as ``4.704`` or ``65,055``."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def small(value: float | None) -> str:
    """A shift or divergence with three significant digits, such as ``0.0102``."""
    if value is None:
        return MISSING
    return "0" if value == 0 else f"{value:.3g}".replace("-", MINUS)


def number(value: float | None) -> str:
    """Any value with up to four significant digits, such as ``0.8073``, ``5.218``, ``65,055`` or ``1.2e−05``."""
    if value is None:
        return MISSING
    if abs(value) < ROUNDING:
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return text.replace("-", MINUS)


def count(value: float | None) -> str:
    """A whole number with separators, such as ``24,576``."""
    return MISSING if value is None else f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """A share in per cent, such as ``0.146 %``."""
    return MISSING if whole == 0 else f"{100 * part / whole:.3g} %"


def duration(seconds: float | None) -> str:
    """A time, such as ``8.1 s``, ``3 min 32 s`` or ``2 h 05 min``."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: float | None) -> str:
    """A size in bytes with a binary unit, such as ``774 MiB``."""
    if not size:
        return MISSING
    power = min(4, int(math.log(size, 1024)))
    amount = size / 1024**power
    return f"{amount:{',.0f' if amount >= 100 else '.3g'}} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def status(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is to be said first about a run that is not finished.

    Args:
        record: A valid record.

    Returns:
        A heading and what it means; ``None`` for a finished run.
    """
    done = (
        f"{last_row(record)} of {len(record['scores']) - 1} stages are measured; missing values are shown as {MISSING}"
    )
    message = record.get("message")
    if record["status"] == "failed":
        return "This run failed", f"{message or 'no message was recorded'}\n{done}."
    if record["status"] == "interrupted":
        reason = f"{message}; {done}" if message else done
        return "This run was interrupted", f"{reason}. The same command again goes on where it stopped."
    if record["status"] == "running":
        return (
            "This run was not finished when this page was written",
            f"{done}. Either it still works, or it was killed: the same command again then goes on where it stopped.",
        )
    return None


def stage_name(record: Mapping[str, Any], stage: int) -> str:
    """A row of the score matrix in words, such as ``untrained`` or ``after 2 · sst2``."""
    if stage == 0:
        return "untrained"
    learnt = [task for task in record["tasks"] if learnt_in(record)[task] == stage]
    return f"after {stage}" + (f" · {', '.join(learnt)}" if learnt else "")


def learnt_in(record: Mapping[str, Any]) -> dict[str, int]:
    """The stage in which each task is learnt; one task a stage where the record does not say."""
    return record.get("learnt_in") or {task: stage for stage, task in enumerate(record["tasks"], start=1)}


def last_row(record: Mapping[str, Any]) -> int:
    """Index of the last row of the score matrix that holds a number; 0 when none does."""
    filled = [i for i, row in enumerate(record["scores"]) if any(value is not None for value in row)]
    return filled[-1] if filled else 0


def finite_log_ratio(values: list[float | None]) -> float | None:
    """``ln(last / first)`` of a perplexity over the rows, None when either is missing.

    The last entry alone counts: a destroyed model has no perplexity, and that of an earlier stage would flatter it.

    Args:
        values: One a row of the score matrix, up to the row that is meant.
    """
    if len(values) < 2 or values[0] is None or values[-1] is None:
        return None
    return math.log(values[-1] / values[0])
