"""The page of a run: ``report.html`` from its run folder alone, one file that needs no network.

Charts are drawn in the browser by plotly.js, which lies packed inside the page. The page's security policy lets nothing run
but the two scripts whose hashes it names, so that no text of a record can.
"""

import base64
import functools
import gzip
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from curlora_lab.report import palette
from curlora_lab.report.extras import Extras, read_extras
from curlora_lab.report.figures import Figure, as_table, unique
from curlora_lab.report.interactive import plotly_spec
from curlora_lab.report.record import read_record
from curlora_lab.report.run_figures import run_figures
from curlora_lab.report.view import run_view

REPORT_NAME = "report.html"
AS_TABLES = frozenset({"scores", "matrices"})
"""Sections whose figures the page shows as tables that are their own heatmaps: they read aloud and print."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart's place on the page.

    Attributes:
        id: Id of its element.
        figure: What it shows.
        columns: Names of the columns of the table behind it.
        rows: Rows of that table.
    """

    id: str
    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(run_folder: Path | str) -> Path:
    """Write ``report.html`` into a run folder, whatever state the run is in.

    Args:
        run_folder: A folder that holds a valid ``results.json``.

    Returns:
        Path of the page.

    Raises:
        RecordError: When the record is missing or broken.
    """
    folder = Path(run_folder)
    page = render_report(read_record(folder), read_extras(folder))
    path = folder / REPORT_NAME
    write_page(path, page)
    return path


def render_report(record: Mapping[str, Any], extras: Extras | None = None) -> str:
    """The page of a run.

    Args:
        record: A valid record.
        extras: What lies beside it in the run folder.

    Returns:
        HTML in which everything that comes from the record is escaped.
    """
    return render("run.html.jinja", run_view(record), run_figures(record, extras or Extras()))


def render(template: str, values: Mapping[str, Any], sections: Mapping[str, Sequence[Figure]]) -> str:
    """Fill a template of this package.

    Args:
        template: Its file name.
        values: What it shows.
        sections: Its figures by section; the template finds them as ``charts``.

    Returns:
        HTML, escaped.
    """
    charts = _charts(sections)
    every = [chart for name, section in charts.items() if name not in AS_TABLES for chart in section]
    script, packed, policy = _scripts()
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            charts=charts,
            figures=_json({chart.id: plotly_spec(chart.figure) for chart in every}),
            script=Markup(script),
            packed=Markup(packed if every else ""),
            policy=policy,
            palette=palette,
        )
    )


def write_page(path: Path, page: str) -> None:
    """Write a page so that a reader sees the old one or the new one, never half of it.

    Args:
        path: Where it goes.
        page: Its text.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _charts(sections: Mapping[str, Sequence[Figure]]) -> dict[str, list[Chart]]:
    """Places for all figures, with ids that are unique on the page."""
    names = iter(unique([figure for figures in sections.values() for figure in figures]))
    found: dict[str, list[Chart]] = {}
    for section, figures in sections.items():
        found[section] = []
        for figure in figures:
            columns, rows = as_table(figure)
            found[section].append(Chart(id=f"chart-{next(names)}", figure=figure, columns=columns, rows=rows))
    return found


def _json(value: Any) -> Markup:
    """JSON that can stand inside a ``script`` element: no text in it can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False)  # ASCII, so that U+2028 is escaped too
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@functools.cache
def _environment() -> jinja2.Environment:
    """Compiles each template once."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("curlora_lab.report", "templates"),
        autoescape=True,  # for every template, whatever its name ends in
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def _scripts() -> tuple[str, str, str]:
    """The page's own script, plotly.js packed as base64 of gzip, and the policy that lets only these two run."""
    own = importlib.resources.files("curlora_lab.report").joinpath("templates/report.js").read_text(encoding="utf-8")
    library = get_plotlyjs()
    packed = base64.b64encode(gzip.compress(library.encode(), 9, mtime=0)).decode()
    allowed = " ".join(f"'sha256-{_hash(text)}'" for text in (own, library))
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return own, packed, policy


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
