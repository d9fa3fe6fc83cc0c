"""What a run left behind, as far as two equal runs must have it equal: bit for bit, but for times, places and names."""

import hashlib
import json
from pathlib import Path
from typing import Any

from curlora_lab.integrity import SEAL

#: Keys of a record that say what a run cost and where it ran.
OWN = ("cost", "provenance", "overrides")

#: Files whose content says when it was written, and logs for people.
NOT_COMPARED = ("train.log", "report.html", "results.json", "RUN_MANIFEST.json")


def outcome(folder: Path) -> dict[str, str]:
    """Every file of a run folder with a hash of what must be equal.

    Args:
        folder: A run folder.

    Returns:
        Relative path -> sha256. Records and scores are taken without their cost.
    """
    found = {"results.json": _digest(_record(folder / "results.json"))}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name in NOT_COMPARED or name.startswith(("checkpoints/", "export/")):
            continue
        if path.name == "MANIFEST.json":
            found[name] = _digest(_manifest(path))
        elif path.name == "scores.json":
            found[name] = _digest({key: value for key, value in _json(path).items() if key != "cost"})
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Files that are missing, additional or different."""
    names = sorted({*expected, *found})
    return [
        f"{name} is {'missing' if name not in found else 'additional' if name not in expected else 'different'}"
        for name in names
        if expected.get(name) != found.get(name)
    ]


def leftovers(folder: Path) -> list[Path]:
    """Files that only a process which did not end well leaves behind."""
    return [
        path for path in folder.rglob("*") if path.is_file() and (".tmp" in path.name or ".tmp" in str(path.parent))
    ]


def _record(path: Path) -> dict[str, Any]:
    return {key: value for key, value in _json(path).items() if key not in OWN}


def _manifest(path: Path) -> dict[str, Any]:
    manifest = _json(path)
    files = {name: value for name, value in manifest["files"].items() if Path(name).name != "scores.json"}
    return {key: value for key, value in {**manifest, "files": files}.items() if key != SEAL}  # over all files


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
