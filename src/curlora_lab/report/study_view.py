"""What the page of several runs shows, as plain values; the template only lays it out."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import yaml

from curlora_lab.report import wording
from curlora_lab.report.study import Configuration, Estimate
from curlora_lab.report.study_figures import MOST_LINES
from curlora_lab.report.view import CLASSES, mixed_metrics, provenance_of


def study_view(
    found: Sequence[Configuration],
    columns: Sequence[str],
    cells: Sequence[Sequence[Estimate | float | None]],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Everything that ``compare.html.jinja`` needs.

    Args:
        found: The configurations.
        columns: Names of the table's columns, the first for the configuration.
        cells: The values behind ``rows`` without its first column.
        rows: The table's texts.
        notes: What stands between the runs and a fair comparison.

    Returns:
        Plain values by name.
    """
    records = [record for one in found for record in one.records]
    numbers = [["", *(_sortable(cell) for cell in row)] for row in cells]
    return {
        "title": f"{len(found)} configuration{'s' if len(found) > 1 else ''}, {len(records)} runs",
        "facts": _facts(records),
        "notes": [note for note in notes if not note.startswith("±")],
        "remarks": [note for note in notes if note.startswith("±")],
        "unfinished": [(r["name"], *state) for r in records if (state := wording.status(r)) is not None],
        "findings": _findings(found),
        "complete": all(record["status"] == "finished" for record in records),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "labels": [one.label for one in found],
        "numbers": numbers,
        "left_out": max(0, len(found) - MOST_LINES),
        "mixed": mixed_metrics(found[0].first),
        "cost": _cost(found),
        "settings": _settings(found),
        "details": [_details(one) for one in found],
    }


def _sortable(cell: Estimate | float | None) -> str:
    value = cell.mean if isinstance(cell, Estimate) else cell
    return "" if value is None else f"{value:.10g}"


def _facts(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    seeds = sorted({str(record["config"].get("seed")) for record in records})
    models = dict.fromkeys(str(record["provenance"]["model"].get("name", "")) for record in records)
    tasks = dict.fromkeys(" → ".join(record["tasks"]) for record in records)
    found = [("models", ", ".join(models)), ("tasks", "; ".join(tasks)), ("seeds", ", ".join(seeds))]
    return [(name, value) for name, value in found if value]


def _findings(found: Sequence[Configuration]) -> list[dict[str, Any]]:
    """Warnings of all runs, those of one kind, task and configuration taken together; the grave ones first."""
    counted: dict[tuple[str, str, str | None], set[str]] = {}
    texts: dict[tuple[str, str, str | None], str] = {}
    for one in found:
        for record in one.records:
            for warning in record["warnings"]:
                key = (warning["code"], one.label, warning["task"])
                counted.setdefault(key, set()).add(record["name"])
                texts.setdefault(key, warning["message"])
    sizes = Counter({one.label: len(one.records) for one in found})
    entries = [
        {
            "code": code.replace("_", " "),
            "grave": CLASSES.get(code) == "grave",
            "text": f"{label}{f', {task}' if task else ''} ({len(names)} of {sizes[label]} runs): {texts[code, label, task]}",
        }
        for (code, label, task), names in counted.items()
    ]
    return sorted(entries, key=lambda entry: not entry["grave"])


def _cost(found: Sequence[Configuration]) -> dict[str, Any]:
    columns = [
        "configuration",
        "adapter",
        "heads",
        "trained",
        "total",
        "training and evaluation",
        "tokens/s",
        "peak memory",
    ]
    rows, numbers = [], []
    for one in found:
        counts = one.first["parameters"]
        seconds = fmean(record["cost"]["seconds"] for record in one.records)
        speeds = [stage["tokens_per_second"] for record in one.records for stage in record["cost"]["stages"]]
        speed = fmean(speeds) if speeds else None
        peak = max(record["cost"]["peak_memory_bytes"] for record in one.records)
        sizes = [counts[key] for key in ("adapter", "head", "trainable", "total")]
        texts = [*map(wording.count, sizes), wording.duration(seconds), wording.count(speed), wording.memory(peak)]
        rows.append([one.label, *texts])
        numbers.append(["", *(_sortable(value) for value in (*sizes, seconds, speed, peak))])
    return {"columns": columns, "rows": rows, "numbers": numbers}


def _settings(found: Sequence[Configuration]) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for one in found for key in one.settings))
    rows = [[one.name, *(_setting(one.settings.get(key)) for key in keys)] for one in found]
    return {"columns": ["run", *keys], "rows": rows}


def _setting(value: Any) -> str:
    return wording.MISSING if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _details(one: Configuration) -> dict[str, str]:
    first = one.first
    named = "\n".join(f"{record['name']}: {record['provenance'].get('identity', '')}" for record in one.records)
    return {
        "label": one.label,
        "command": shlex.join(["python", "train.py", *first["overrides"]]),
        "config": yaml.safe_dump(first["config"], sort_keys=False, allow_unicode=True),
        "provenance": "\n".join(f"{name}: {value}" for name, value in provenance_of(first)) + f"\nruns:\n{named}\n",
    }
