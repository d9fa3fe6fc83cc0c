"""The end of a tuning sweep: every trial in a table, the values taken marked, and ``tuned.json``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import curlora_lab
from curlora_lab.continual.files import write_json
from curlora_lab.integrity import sealed
from curlora_lab.report import wording
from curlora_lab.sweeps.jobs import Job
from curlora_lab.sweeps.tuning import RULE, Method, attempts_of, tune

NAME = "tuned.json"
SCHEMA_VERSION = "1"

#: Score: on choosing rows. Drift: log ratio of perplexity after and before, by probe.
COLUMNS = ("method", "lr", "head_lr", "seeds", "score", "forgetting", "drift", "")


def conclude(folder: Path, jobs: Sequence[Job], *, tolerance: float, command: Sequence[str]) -> None:
    """Choose for each method of a sweep, keep that beside its jobs, and print it.

    Args:
        folder: the sweep's folder.
        jobs: all its jobs.
        tolerance: see :func:`curlora_lab.sweeps.tuning.tune`.
        command: arguments that started it.
    """
    found = tune(attempts_of(jobs), tolerance=tolerance)
    path = folder / NAME
    write(path, found, tolerance=tolerance, command=command)
    show(found, title=f"Learning rates from {folder.name}, by scores on choosing rows (drift: log perplexity ratio)")
    console = Console()
    for line in [*remarks(found), RULE.format(tolerance=tolerance), f"Kept in {path}: sweep=compare tuned={path}"]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def write(path: Path, methods: Sequence[Method], *, tolerance: float, command: Sequence[str] = ()) -> None:
    """Write what was found.

    Args:
        path: the file.
        methods: see :func:`curlora_lab.sweeps.tuning.tune`.
        tolerance: how far below the best score counted as equal.
        command: arguments of the sweep.
    """
    about = {
        "schema_version": SCHEMA_VERSION,
        "rule": RULE.format(tolerance=tolerance),
        "tolerance": tolerance,
        "package_version": curlora_lab.__version__,
        "command": list(command),
        "methods": list(methods),
    }
    write_json(path, sealed(about))


def rows(methods: Sequence[Method]) -> list[list[str]]:
    """A row of texts for each trial, as :data:`COLUMNS` names them.

    Args:
        methods: see :func:`curlora_lab.sweeps.tuning.tune`.
    """
    return [_row(method, trial) for method in methods for trial in method["trials"]]


def remarks(methods: Sequence[Method]) -> list[str]:
    """What is to be said of the choice: values at the edge of what was tried, methods without one, trials that failed.

    Args:
        methods: see :func:`curlora_lab.sweeps.tuning.tune`.
    """
    lines = []
    for method in methods:
        name = method["name"]
        if method["edge"]:
            lines.append(f"{name}: at the edge of what was tried ({'; '.join(method['edges'])}); try values beyond it.")
        if method["status"] == "failed":
            lines.append(f"{name}: no value; at every learning rate a run failed.")
        if method["status"] == "unfinished":
            missing = sum(trial["missing"] for trial in method["trials"])
            lines.append(f"{name}: no value yet; {missing} runs are missing, and the same command again goes on.")
        for trial in method["trials"]:
            lines += [f"{name} at lr {_rate(trial['lr'])}: {problem}" for problem in trial["failed"]]
    return lines


def show(methods: Sequence[Method], *, title: str) -> None:
    """Print all trials.

    Args:
        methods: see :func:`curlora_lab.sweeps.tuning.tune`.
        title: what stands above.
    """
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("method", "") else "right", overflow="fold")
    for method in methods:
        for trial in method["trials"]:
            style = "bold green" if trial["taken"] else "red" if trial["failed"] else None
            table.add_row(*map(escape, _row(method, trial)), style=style)
    Console().print(table)


def _row(method: Method, trial: Mapping[str, Any]) -> list[str]:
    drift = ", ".join(f"{probe} {wording.score(value, signed=True)}" for probe, value in trial["drift"].items())
    edge = " (edge)" if method["edge"] else ""
    state = f"taken{edge}" if trial["taken"] else "failed" if trial["failed"] else "missing" if trial["missing"] else ""
    return [
        method["name"],
        _rate(trial["lr"]),
        _rate(trial["head_lr"]),
        str(len(trial["seeds"])),
        wording.score(trial["score"]),
        wording.score(trial["forgetting"], signed=True),
        drift or wording.MISSING,
        state,
    ]


def _rate(value: float | None) -> str:
    return wording.MISSING if value is None else f"{value:.4g}"
