"""``docs/reliability.md``: what was tried, how it ended, on which machine."""

import datetime
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.faults.tally import Tally

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "lightning", "transformers", "peft", "safetensors", "hydra-core", "datasets")


def load(path: Path | None) -> dict[str, Tally]:
    """Counts of earlier calls by kind."""
    found = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    return {kind: Tally(**{**fields, "ends": Counter(fields["ends"])}) for kind, fields in found.items()}


def save(tallies: Mapping[str, Tally], path: Path | None) -> None:
    """Keep the counts for a later call."""
    if path is not None:
        path.write_text(json.dumps({kind: vars(tally) for kind, tally in tallies.items()}, indent=1))


def page(tallies: Sequence[Tally]) -> str:
    """The page as Markdown.

    Args:
        tallies: What each kind of fault gave.
    """
    commands = dict.fromkeys(f"`{tally.command}`" for tally in tallies)
    lines = [
        "# Reliability, measured",
        "",
        "This page is written by the fault harness in `tests/faults/` (`make faults`); a short version of each kind runs in the "
        "default suite. Every fault is drawn from a seed, so that the same command tries the same ones (random times excepted: "
        "where in its work a process is at a given millisecond depends on the machine).",
        "",
        f"Command: {', '.join(commands)}; {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {_commit()}. "
        f"Machine: {_machine()}. {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}.",
        "",
        "| kind | what must hold | tried | ended wrongly | minutes |",
        "|---|---|---:|---:|---:|",
    ]
    for tally in tallies:
        lines.append(
            f"| {tally.kind} | {tally.law} | {tally.tried} | {len(tally.failures)} | {tally.seconds / 60:.1f} |"
        )
    for tally in tallies:
        lines += ["", f"## {tally.kind[0].upper()}{tally.kind[1:]}", "", f"{tally.law[0].upper()}{tally.law[1:]}.", ""]
        lines += ["| end | count |", "|---|---:|"]
        lines += [f"| {_cell(end)} | {count} |" for end, count in sorted(tally.ends.items())]
        lines += [f"| **wrong** | {len(tally.failures)} |"] if tally.failures else []
        lines += ["", *(f"- {note}" for note in tally.notes)] if tally.notes else []
        lines += (
            ["", *(f"- wrong: {_cell(failure[:300])}" for failure in tally.failures[:40])] if tally.failures else []
        )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _machine() -> str:
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{machine}, {platform.system()}, Python {platform.python_version()}"


def _commit() -> str:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else "outside of a repository"
