"""Several runs side by side: one row for all seeds of a configuration, from the ``results.json`` files alone."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from curlora_lab.report import wording
from curlora_lab.report.charts import scatter_chart
from curlora_lab.report.html import render, write_page
from curlora_lab.report.record import RECORD_NAME, RecordError, read_record

HTML_NAME, MARKDOWN_NAME = "comparison.html", "comparison.md"
LEARNING, DRIFT = "learning", "log perplexity ratio"

Record = Mapping[str, Any]
Value = Callable[[Record], float | None]


@dataclass(frozen=True)
class Comparison:
    """Several runs as a table.

    Attributes:
        columns: Names of the columns, the first for the configuration.
        rows: One list of texts a configuration, its seeds taken together: mean ± half of the 95 % interval (Student).
        notes: What stands between the runs and a fair comparison, and which could not be read.
        html: The page.
        markdown: The same table as Markdown.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    html: str
    markdown: str


def find_runs(folders: Sequence[Path | str]) -> list[Path]:
    """Run folders at or below the folders given.

    Args:
        folders: Run folders, or folders that hold some at any depth.

    Returns:
        Each folder with a ``results.json`` once, sorted below each folder given.

    Raises:
        RecordError: When a folder holds none.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        below = [folder] if (folder / RECORD_NAME).is_file() else sorted(p.parent for p in folder.rglob(RECORD_NAME))
        if not below:
            raise RecordError(f"{folder} holds no {RECORD_NAME}; name a run folder, or a folder of run folders")
        found |= dict.fromkeys(below)
    return list(found)


def compare(run_folders: Sequence[Path | str]) -> Comparison:
    """Set runs side by side. A run whose record is broken is named in the notes, the others are shown.

    Args:
        run_folders: Folders that each hold a ``results.json``.

    Returns:
        The comparison.

    Raises:
        RecordError: When no record can be read.
    """
    records, notes = [], []
    for folder in run_folders:
        try:
            records.append(read_record(folder))
        except RecordError as error:
            notes.append(f"left out: {error}")
    if not records:
        raise RecordError("\n".join(["none of the runs can be compared", *notes]))
    probes = list(dict.fromkeys(probe for record in records for probe in record["probes"]["perplexity"]))
    columns = ["run", "seeds", "average", LEARNING, "forgetting", *(f"{DRIFT}, {probe}" for probe in probes)]
    columns += ["adapter parameters", "trained parameters", "seconds", "warnings"]
    groups = _by_configuration(records)
    rows = [_row(group, probes) for group in groups]
    notes += _unfair(records)
    page = render(
        "compare.html.jinja",
        {"columns": columns, "rows": rows, "notes": notes, "pictures": [_picture(groups, probe) for probe in probes]},
    )
    return Comparison(columns, rows, notes, page, _markdown(columns, rows, notes))


def write_comparison(run_folders: Sequence[Path | str], folder: Path | str) -> tuple[Path, Path]:
    """Write ``comparison.html`` and ``comparison.md``.

    Args:
        run_folders: Folders that each hold a ``results.json``.
        folder: Where the files go; made if need be.

    Returns:
        Paths of the page and of the Markdown file.

    Raises:
        RecordError: When no record can be read.
    """
    comparison = compare(run_folders)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_page(target / HTML_NAME, comparison.html)
    write_page(target / MARKDOWN_NAME, comparison.markdown)
    return target / HTML_NAME, target / MARKDOWN_NAME


def _by_configuration(records: Sequence[Record]) -> list[list[Record]]:
    """Runs that differ in nothing but the seed and where they lie, in the order of their first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        varied = {"seed", "name", "output_dir", "data_dir", "fresh", "logger", "num_workers"}
        config = {key: value for key, value in record["config"].items() if key not in varied}
        adapter = config.get("adapter")
        if isinstance(adapter, dict):  # the seed once more: of the choice of columns, of VeRA's projections
            config["adapter"] = {k: v for k, v in adapter.items() if k not in ("seed", "projection_prng_key")}
        unlike = [config, record["tasks"], record["status"], record["provenance"].get("source_hash")]
        groups.setdefault(json.dumps(unlike, sort_keys=True, default=str), []).append(record)
    return list(groups.values())


def _row(group: Sequence[Record], probes: Sequence[str]) -> list[str]:
    first = group[0]
    name = first["name"] if len(group) == 1 else re.sub(r"-s\d+-[0-9a-f]{8}$", "", first["name"])
    return [
        name if first["status"] == "finished" else f"{name} ({first['status']})",
        str(len(group)),
        *(_over_seeds(group, _continual(key)) for key in ("average", "learning", "forgetting")),
        *(_over_seeds(group, _drift(probe), signed=True) for probe in probes),
        wording.count(first["parameters"]["adapter"]),
        wording.count(first["parameters"]["trainable"]),
        f"{fmean(record['cost']['seconds'] for record in group):.1f}",
        str(sum(len(record["warnings"]) for record in group)),
    ]


def _continual(key: str) -> Value:
    return lambda record: record["continual"][key]


def _drift(probe: str) -> Value:
    return lambda record: wording.finite_log_ratio(record["probes"]["perplexity"].get(probe, []))


def _over_seeds(group: Sequence[Record], value: Value, *, signed: bool = False) -> str:
    """Mean and half of its 95 % interval; the value alone for one seed, a dash where a seed has none."""
    values = [value(record) for record in group]
    there = [number for number in values if number is not None]
    if len(there) < len(values):
        return wording.score(None)
    mean = wording.score(fmean(there), signed=signed)
    if len(there) == 1:
        return mean
    half = float(student.ppf(0.975, len(there) - 1)) * stdev(there) / math.sqrt(len(there))
    return f"{mean} ± {half:.3f}"


def _unfair(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences that make a column mean different things in different rows."""
    aspects = {
        "tasks or their order": [record["tasks"] for record in records],
        "metrics": [record["metric"] for record in records],
        "test rows": [{task: b["rows"] for task, b in record["baselines"].items()} for record in records],
        "models": [record["provenance"]["model"].get("fingerprint") for record in records],
        "versions of this package": [record["provenance"]["package_version"] for record in records],
    }
    notes = [f"the runs differ in {name}" for name, values in aspects.items() if any(v != values[0] for v in values)]
    seeds = {str(record["config"].get("seed")) for record in records}
    if len(seeds) == 1:
        notes.append("one seed only: differences between runs may be chance")
    elif len(records) > len(_by_configuration(records)):
        notes.append("± is half of the 95 % interval of the mean over seeds (Student's t)")
    return notes


def _picture(groups: Sequence[Sequence[Record]], probe: str) -> dict[str, Any]:
    """Learning against drift of the language model: the trade that every method makes."""
    points = []
    for number, group in enumerate(groups, start=1):
        pairs = [(_drift(probe)(record), record["continual"]["learning"]) for record in group]
        there = [(ratio, learning) for ratio, learning in pairs if ratio is not None and learning is not None]
        if there:
            points.append((str(number), fmean(ratio for ratio, _ in there), fmean(learning for _, learning in there)))
    return {"probe": probe, "chart": scatter_chart(points)}


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "| --- |" + " ---: |" * (len(columns) - 1)
    table = "\n".join([line(columns), rule, *(line(row) for row in rows)])
    remarks = "".join(f"\n- {note.splitlines()[0]}" for note in notes)
    return f"{table}\n{remarks}\n" if remarks else f"{table}\n"
