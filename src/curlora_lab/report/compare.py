"""Several runs side by side: one row a run, from their ``results.json`` files alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curlora_lab.report import wording
from curlora_lab.report.charts import scatter_chart
from curlora_lab.report.html import render, write_page
from curlora_lab.report.record import RECORD_NAME, RecordError, read_record

HTML_NAME, MARKDOWN_NAME = "comparison.html", "comparison.md"
LEARNING, DRIFT = "learning", "log perplexity ratio"


@dataclass(frozen=True)
class Comparison:
    """Several runs as a table.

    Attributes:
        columns: Names of the columns, the first for the run.
        rows: One list of texts a run.
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
    columns = ["run", "average", LEARNING, "forgetting", *(f"{DRIFT}, {probe}" for probe in probes)]
    columns += ["adapter parameters", "trained parameters", "seconds", "warnings"]
    rows = [_row(record, probes) for record in records]
    notes += _unfair(records)
    page = render(
        "compare.html.jinja",
        {"columns": columns, "rows": rows, "notes": notes, "pictures": [_picture(records, probe) for probe in probes]},
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


def _row(record: Mapping[str, Any], probes: Sequence[str]) -> list[str]:
    continual, parameters = record["continual"], record["parameters"]
    name = record["name"] if record["status"] == "finished" else f"{record['name']} ({record['status']})"
    drift = [wording.finite_log_ratio(record["probes"]["perplexity"].get(probe, [])) for probe in probes]
    return [
        name,
        *(wording.score(continual[key]) for key in ("average", "learning", "forgetting")),
        *(wording.score(value, signed=True) for value in drift),
        wording.count(parameters["adapter"]),
        wording.count(parameters["trainable"]),
        f"{record['cost']['seconds']:.1f}",
        str(len(record["warnings"])),
    ]


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
    return notes


def _picture(records: Sequence[Mapping[str, Any]], probe: str) -> dict[str, Any]:
    """Learning against drift of the language model: the trade that every method makes."""
    points = []
    for number, record in enumerate(records, start=1):
        learning, drift = record["continual"]["learning"], record["probes"]["perplexity"].get(probe, [])
        ratio = wording.finite_log_ratio(drift)
        if learning is not None and ratio is not None:
            points.append((str(number), ratio, learning))
    return {"probe": probe, "chart": scatter_chart(points)}


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "| --- |" + " ---: |" * (len(columns) - 1)
    table = "\n".join([line(columns), rule, *(line(row) for row in rows)])
    remarks = "".join(f"\n- {note.splitlines()[0]}" for note in notes)
    return f"{table}\n{remarks}\n" if remarks else f"{table}\n"
