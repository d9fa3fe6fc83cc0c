"""Several runs side by side: one row for all seeds of a configuration, from the ``results.json`` files alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from curlora_lab.report import wording
from curlora_lab.report.html import render, write_page
from curlora_lab.report.record import RECORD_NAME, Record, RecordError, read_record
from curlora_lab.report.study import Configuration, Estimate, configurations, continual, drift, estimate, probes_of
from curlora_lab.report.study_figures import study_figures
from curlora_lab.report.study_view import study_view
from curlora_lab.report.tables import markdown_table

HTML_NAME, MARKDOWN_NAME = "comparison.html", "comparison.md"
LEARNING, DRIFT = "learning", "log perplexity ratio"


@dataclass(frozen=True)
class Comparison:
    """Several runs as a table.

    Attributes:
        columns: Names of the columns, the first for the configuration.
        rows: One list of texts a configuration, its seeds taken together: mean ± half of the 95 % interval (Student).
        labels: What tells each row from the others, in a few words.
        notes: What stands between the runs and a fair comparison, and which could not be read.
        html: The page.
        markdown: The same table as Markdown.
    """

    columns: list[str]
    rows: list[list[str]]
    labels: list[str]
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
    records, notes = read_runs(run_folders)
    found = configurations(records)
    probes = probes_of(records)
    columns = ["run", "seeds", "average", LEARNING, "forgetting", *(f"{DRIFT}, {probe}" for probe in probes)]
    columns += ["adapter parameters", "trained parameters", "seconds", "warnings"]
    cells = [_cells(one, probes) for one in found]
    rows = [[one.name, *_texts(row, len(probes))] for one, row in zip(found, cells, strict=True)]
    notes += _unfair(records, found)
    page = render("compare.html.jinja", study_view(found, columns, cells, rows, notes), study_figures(found))
    return Comparison(columns, rows, [one.label for one in found], notes, page, markdown_table(columns, rows, notes))


def read_runs(run_folders: Sequence[Path | str]) -> tuple[list[Record], list[str]]:
    """Read the records of several runs.

    Args:
        run_folders: Folders that each hold a ``results.json``.

    Returns:
        The records that could be read, and a note for each that could not.

    Raises:
        RecordError: When none can be read.
    """
    records: list[Record] = []
    notes = []
    for folder in run_folders:
        try:
            records.append(read_record(folder))
        except RecordError as error:
            notes.append(f"left out: {error}")
    if not records:
        raise RecordError("\n".join(["none of the runs can be compared", *notes]))
    return records, notes


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


def _cells(one: Configuration, probes: Sequence[str]) -> list[Estimate | float | None]:
    """The table's values for one configuration, seeds first."""
    records, parameters = one.records, one.first["parameters"]
    return [
        float(len(records)),
        *(estimate(records, continual(key)) for key in ("average", "learning", "forgetting")),
        *(estimate(records, drift(probe)) for probe in probes),
        float(parameters["adapter"]),
        float(parameters["trainable"]),
        fmean(record["cost"]["seconds"] for record in records),
        float(sum(len(record["warnings"]) for record in records)),
    ]


def _texts(cells: Sequence[Estimate | float | None], probes: int) -> list[str]:
    """The same as a reader sees them."""
    signed = range(4, 4 + probes)
    last = len(cells) - 2  # seconds
    return [
        wording.MISSING
        if cell is None
        else cell.text(signed=k in signed)
        if isinstance(cell, Estimate)
        else f"{cell:.1f}"
        if k == last
        else wording.count(cell)
        for k, cell in enumerate(cells)
    ]


def _unfair(records: Sequence[Record], found: Sequence[Configuration]) -> list[str]:
    """Differences that make a column mean different things in different rows."""
    aspects = {
        "the rows that are scored (for testing and for choosing: never hold one against the other)": [
            wording.on_choosing_rows(record) for record in records
        ],
        "tasks or their order": [record["tasks"] for record in records],
        "metrics": [record["metric"] for record in records],
        "test rows": [{task: b["rows"] for task, b in record["baselines"].items()} for record in records],
        "models": [record["provenance"]["model"].get("fingerprint") for record in records],
        "versions of this package": [record["provenance"]["package_version"] for record in records],
        "the package's source": [record["provenance"].get("source_hash") for record in records],
    }
    notes = [f"the runs differ in {name}" for name, values in aspects.items() if any(v != values[0] for v in values)]
    notes += [wording.CHOOSING_ROWS] if all(map(wording.on_choosing_rows, records)) else []
    seeds = {str(record["config"].get("seed")) for record in records}
    if len(seeds) == 1:
        notes.append("one seed only: differences between runs may be chance")
    elif len(records) > len(found):
        if len({len(one.records) for one in found}) > 1:
            notes.append("the configurations have different numbers of seeds; one seed alone has no interval")
        notes.append("± is half of the 95 % interval of the mean over seeds (Student's t)")
    return notes
