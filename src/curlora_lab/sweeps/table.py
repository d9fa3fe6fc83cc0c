"""The end of a sweep: all its jobs in one table, on the screen, as JSON and as Markdown."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curlora_lab.continual.files import write_atomically, write_json
from curlora_lab.sweeps.jobs import DONE, STATUSES, Job, defining
from curlora_lab.sweeps.objectives import lower_is_better, pareto

JSON_NAME, MARKDOWN_NAME = "sweep.json", "sweep.md"

COLOURS = {"finished": "green", "reused": "green", "waiting": "yellow", "running": "yellow"}


def write_summary(folder: Path, jobs: Sequence[Job], *, command: Sequence[str]) -> None:
    """Write ``sweep.json`` and ``sweep.md``.

    Args:
        folder: the sweep's folder.
        jobs: all its jobs.
        command: arguments that started it.
    """
    front = _front(jobs)
    entries = [{**dataclasses.asdict(job), "pareto": on_front} for job, on_front in zip(jobs, front, strict=True)]
    about = {"command": list(command), "counts": counts(jobs), "jobs": entries}
    write_json(folder / JSON_NAME, about)
    columns, rows = cells(jobs)
    lines = [_line(columns), "|" + " --- |" * len(columns), *(_line(row) for row in rows)]
    write_atomically(folder / MARKDOWN_NAME, "\n".join([*lines, "", summary(jobs), ""]))


def show(folder: Path, jobs: Sequence[Job]) -> None:
    """Print the table and where it is kept.

    Args:
        folder: the sweep's folder.
        jobs: all its jobs.
    """
    columns, rows = cells(jobs, reasons=False)
    table = Table(title=f"Sweep {folder.name}", title_justify="left")
    for column in columns:
        numbers = column.endswith(("↑", "↓"))
        table.add_column(
            escape(column.removeprefix("continual/").removeprefix("probe/")),
            overflow="fold",
            justify="right" if numbers else "left",
        )
    for job, row in zip(jobs, rows, strict=True):
        table.add_row(*map(escape, row), style=COLOURS.get(job.status, "red"))
    console = Console()
    console.print(table)
    reasons = [f"job {job.number} {job.status}: {' '.join(job.reason.split())}" for job in jobs if job.reason]
    for line in [*reasons, f"{summary(jobs)} Kept in {folder / JSON_NAME}"]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def counts(jobs: Sequence[Job]) -> dict[str, int]:
    """How many jobs there are of each status."""
    found = Counter(job.status for job in jobs)
    return {status: found[status] for status in STATUSES if found[status]}


def summary(jobs: Sequence[Job]) -> str:
    """All jobs in a sentence, and what to do when some are missing."""
    words = ", ".join(
        f"{number} {'not started' if status == 'waiting' else status}" for status, number in counts(jobs).items()
    )
    again = "" if all(job.status in DONE for job in jobs) else " The same command again runs only what is missing."
    return f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}: {words}.{again}"


def cells(jobs: Sequence[Job], *, reasons: bool = True) -> tuple[list[str], list[list[str]]]:
    """The table as texts.

    Args:
        jobs: all jobs of a sweep.
        reasons: whether the reason stands beside the status.

    Returns:
        Column names, and one list a job: number, the overrides that vary, objectives, status with its reason, run folder.
        With several objectives ``*`` marks what no other job beats.
    """
    settings = [_settings(job) for job in jobs]
    varying = _varying(settings)
    names = list(dict.fromkeys(name for job in jobs for name in job.objectives))
    arrows = [f"{name} {'↓' if lower_is_better(name) else '↑'}" for name in names]
    pareto_column = ["front"] if len(names) > 1 else []
    columns = ["job", *varying, *arrows, *pareto_column, "status", "run"]
    rows = []
    for job, setting, on_front in zip(jobs, settings, _front(jobs), strict=True):
        values = [_number(job.objectives.get(name)) for name in names]
        mark = ["*" if on_front else ""] if pareto_column else []
        named = [_short(setting.get(key, "")) for key in varying]
        rows.append(
            [
                str(job.number),
                *named,
                *values,
                *mark,
                _status(job, reasons=reasons),
                Path(job.run).name if job.run else "",
            ]
        )
    return columns, rows


def _front(jobs: Sequence[Job]) -> list[bool]:
    """Which jobs are on the Pareto front; with a single objective, nothing is said."""
    if max((len(job.objectives) for job in jobs), default=0) < 2:
        return [False] * len(jobs)
    return pareto([job.objectives if job.status in DONE else {} for job in jobs])


def _settings(job: Job) -> dict[str, str]:
    """Overrides by key."""
    return {key: value for key, _, value in (text.partition("=") for text in defining(job.overrides))}


def _varying(settings: Sequence[Mapping[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for setting in settings for key in setting)
    return [key for key in keys if len({setting.get(key) for setting in settings}) > 1]


def _status(job: Job, *, reasons: bool) -> str:
    reason = " ".join((job.reason or "").split()) if reasons else ""
    status = "not started" if job.status == "waiting" else job.status
    return f"{status}: {reason}" if reason else status


def _short(value: str) -> str:
    """A setting as a search drew it has more digits than anybody reads; all of them are in the JSON file."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _line(row: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
