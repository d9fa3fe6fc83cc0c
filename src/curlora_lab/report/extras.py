"""What a run folder holds beside its record: the losses of training and the diagnostics of each stage, where they are.

Nothing here is needed: a file that is missing or damaged only leaves its picture out.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curlora_lab.integrity import is_whole

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
DIAGNOSTICS = "stage_*/diagnostics.json"


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is shown beside the record.

    Attributes:
        losses: By stage, task and (step, loss) pairs.
        energy: By stage and module, ``captured`` and ``ceiling``: the share of the gradient's energy that the basis lets
            through, and the share that the best basis of that rank would.
    """

    losses: Mapping[int, tuple[str, list[tuple[int, float]]]] = field(default_factory=dict)
    energy: Mapping[int, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


def read_extras(folder: Path | str) -> Extras:
    """Read what a run folder holds beside its record.

    Args:
        folder: The run folder.

    Returns:
        Whatever is there and whole.
    """
    return Extras(losses=_losses(Path(folder) / METRICS), energy=_energy(Path(folder)))


def _losses(path: Path) -> dict[int, tuple[str, list[tuple[int, float]]]]:
    """``train/{task}/loss`` of every line, by stage."""
    lines = _text(path).splitlines()
    found: dict[int, tuple[str, list[tuple[int, float]]]] = {}
    for text in lines:
        line = _object(text)
        if not is_whole(line):
            continue  # the last line of a killed process, or a damaged one
        key = next((k for k in line if k.startswith("train/") and k.endswith("/loss")), None)
        if key is None or not _is_number(line[key]) or not _is_number(line.get("step")):
            continue  # a line about something else
        task = key.removeprefix("train/").removesuffix("/loss")
        found.setdefault(int(line.get("stage") or 0), (task, []))[1].append((int(line["step"]), float(line[key])))
    return found


def _energy(folder: Path) -> dict[int, dict[str, dict[str, float]]]:
    found = {}
    for path in sorted(folder.glob(DIAGNOSTICS)):
        stage = path.parent.name.removeprefix("stage_")
        modules = _object(_text(path)).get("gradient_energy")
        if not stage.isdigit() or not isinstance(modules, dict):
            logger.warning("%s holds no 'gradient_energy' by module; it is left out of the report", path)
            continue
        kept = {
            str(name): {key: float(one[key]) for key in ("captured", "ceiling") if _is_number(one.get(key))}
            for name, one in modules.items()
            if isinstance(one, dict) and _is_number(one.get("captured"))
        }
        if kept:
            found[int(stage)] = kept
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""  # a pipe would never end
    except (OSError, UnicodeDecodeError):
        return ""


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
    )
