"""What finished runs support, from their folders alone: estimates, paired differences, fronts, matched views, a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from curlora_lab.report import wording
from curlora_lab.report.analysis import comparison_tables, tables
from curlora_lab.report.analysis.comparisons import against_reference, all_pairs, by_order, standings
from curlora_lab.report.analysis.matched import views
from curlora_lab.report.analysis.pictures import pictures
from curlora_lab.report.analysis.quantities import costs
from curlora_lab.report.analysis.references import missing_notes, referenced
from curlora_lab.report.analysis.rows import RowScores
from curlora_lab.report.analysis.samples import Group, Study, gather
from curlora_lab.report.analysis.sceptic import Answer, doubts, questions
from curlora_lab.report.analysis.tables import Table
from curlora_lab.report.analysis.verdict import Found, Part, verdict
from curlora_lab.report.figures import Figure
from curlora_lab.report.html import render, write_page
from curlora_lab.report.publication import write_figures
from curlora_lab.report.tables import markdown_table

HTML_NAME, MARKDOWN_NAME, FIGURES = "aggregate.html", "aggregate.md", "figures"
FORMATS = ("svg", "png")


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """The analysis of a set of runs.

    Attributes:
        verdict: What may be concluded, part by part.
        notes: What was left out, what stands between the runs and a fair comparison, and what is missing.
        tables: All tables; those without columns for people are files only.
        questions: A sceptic's questions with the answers of these runs, by group.
        figures: Pictures by section.
        html: The page.
        markdown: The same in Markdown, without pictures.
    """

    verdict: Sequence[Part]
    notes: Sequence[str]
    tables: Sequence[Table]
    questions: Sequence[tuple[str, Sequence[Answer]]]
    figures: Mapping[str, Sequence[Figure]]
    html: str
    markdown: str

    def text(self) -> str:
        """The verdict as plain lines."""
        return "\n\n".join(
            "\n".join([part.heading, *(f"  {line}" for line in part.sentences)]) for part in self.verdict
        )


def aggregate(run_folders: Iterable[Path | str], *, reference: str | None = None) -> Aggregate:
    """Analyse finished runs.

    Runs that differ in nothing but seed, draw of rows and order of tasks are of one configuration; configurations are compared
    by pairs with the same of these three, and each seed counts once, with its mean over draws and orders. The same folders
    give the same numbers to the last digit.

    Args:
        run_folders: Run folders, or folders that hold some at any depth.
        reference: What the others are compared with: label or method of a configuration; default head only, else the first.

    Returns:
        The analysis.

    Raises:
        RecordError: When no finished run is among them, or ``reference`` fits none or several.
    """
    study = gather(run_folders, reference=reference)
    reader = RowScores()
    found = [_found(group, reader) for group in study.groups]
    beside = [(group, referenced(study, group)) for group in study.groups]
    asked = [(one.group.name, questions(one.group, one.pairs, one.views)) for one in found]
    made = _tables(study, found)
    made[-1:-1] = [tables.references(beside)]
    missing = missing_notes(one for _, those in beside for one in those)
    notes = [*study.notes, *dict.fromkeys(reader.notes), *missing]
    parts, figures = verdict(study, found), pictures(found)
    page = render("aggregate.html.jinja", _view(study, parts, notes, made, asked), figures)
    return Aggregate(
        verdict=parts,
        notes=notes,
        tables=made,
        questions=asked,
        figures=figures,
        html=page,
        markdown=_markdown(study, parts, notes, made, asked),
    )


def write_aggregate(
    run_folders: Iterable[Path | str], folder: Path | str, *, reference: str | None = None
) -> list[Path]:
    """Write ``aggregate.html``, ``aggregate.md``, one CSV a table, and the pictures as SVG and PNG.

    Args:
        run_folders: Run folders, or folders that hold some at any depth.
        folder: Where the files go; made if need be.
        reference: See :func:`aggregate`.

    Returns:
        Paths of everything that was written.

    Raises:
        RecordError: When no finished run is among them, or ``reference`` fits none or several.
    """
    return write(aggregate(run_folders, reference=reference), folder)


def write(found: Aggregate, folder: Path | str) -> list[Path]:
    """Write the files of an analysis, see :func:`write_aggregate`."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    texts = {HTML_NAME: found.html, MARKDOWN_NAME: found.markdown}
    texts |= {f"{table.name}.csv": table.csv() for table in found.tables}
    for name, text in texts.items():
        write_page(target / name, text)
    drawn = [figure for section in found.figures.values() for figure in section]
    paths = write_figures(drawn, target / FIGURES, formats=FORMATS, width=5.0, titles=True) if drawn else []
    return [*(target / name for name in texts), *paths]


def _found(group: Group, reader: RowScores) -> Found:
    pairs = all_pairs(group, reader)
    return Found(
        group=group,
        against=against_reference(group, reader),
        pairs=pairs,
        standings=[one for cost in costs(run.record for run in group.runs) for one in standings(group, cost, pairs)],
        views=views(group),
        orders=by_order(group, reader),
    )


def _tables(study: Study, found: Sequence[Found]) -> list[Table]:
    return [
        tables.estimates(study.groups),
        *comparison_tables.against([(one.group, one.against) for one in found]),
        comparison_tables.fronts([(one.group, one.standings) for one in found]),
        comparison_tables.matched([(one.group, view) for one in found for view in one.views]),
        comparison_tables.parameters(study.groups),
        tables.by_task(study.groups),
        tables.sceptic([(one.group, doubts(one.group)) for one in found]),
        comparison_tables.pairs(
            [(one.group, one.pairs) for one in found],
            [(one.group, order, pair) for one in found for order, pair in one.orders],
        ),
        tables.runs(study),
    ]


def _title(study: Study) -> str:
    configurations = sum(len(group.samples) for group in study.groups)
    runs = sum(len(group.runs) for group in study.groups) + len(study.independent) + len(study.joint)
    return f"{configurations} configuration{'s' if configurations != 1 else ''}, {runs} runs"


def _view(
    study: Study,
    parts: Sequence[Part],
    notes: Sequence[str],
    made: Sequence[Table],
    asked: Sequence[tuple[str, Sequence[Answer]]],
) -> dict[str, object]:
    """What the template shows, as plain values."""
    return {
        "title": _title(study),
        "choosing": wording.CHOOSING_ROWS if study.choosing else None,
        "facts": [(group.name, f"{len(group.samples)} configurations, {len(group.runs)} runs") for group in study.groups],
        "verdict": [(part.heading, part.sentences) for part in parts],
        "notes": list(notes),
        "tables": [table for table in made if table.columns and table.rows],
        "questions": [(name if len(asked) > 1 else "", [(one.question, one.answers) for one in those]) for name, those in asked],
        "files": [f"{table.name}.csv" for table in made],
    }  # fmt: skip


def _markdown(
    study: Study,
    parts: Sequence[Part],
    notes: Sequence[str],
    made: Sequence[Table],
    asked: Sequence[tuple[str, Sequence[Answer]]],
) -> str:
    lines = [f"# {_title(study)}", ""]
    for part in parts:
        lines += [f"## {_plain(part.heading)}", "", *(f"- {_plain(line)}" for line in part.sentences), ""]
    lines += ["## A sceptic's questions", ""]
    for name, those in asked:
        for one in those:
            where = f" ({_plain(name)})" if len(asked) > 1 else ""
            lines += [f"**{one.question}**{where}", "", *(f"- {_plain(line)}" for line in one.answers), ""]
    for table in made:
        if table.columns and table.rows:
            lines += [
                f"## {_plain(table.title)}",
                "",
                _plain(table.note),
                "",
                _markdown_table(table),
            ]
    if notes:
        lines += ["## Notes", "", *(f"- {_plain(note)}" for note in notes), ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> str:
    return markdown_table([_plain(one) for one in table.columns], [[_plain(one) for one in row] for row in table.rows])


def _plain(text: str) -> str:
    """One line in which nothing is read as HTML."""
    return " ".join(text.split()).replace("<", "&lt;")
