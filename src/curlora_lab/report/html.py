"""The page of a run: ``report.html`` from ``results.json`` alone, one file that needs no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from curlora_lab.report.record import read_record
from curlora_lab.report.view import run_view

REPORT_NAME = "report.html"


def write_report(run_folder: Path | str) -> Path:
    """Write ``report.html`` into a run folder.

    Args:
        run_folder: A folder that holds a valid ``results.json``.

    Returns:
        Path of the page.

    Raises:
        RecordError: When the record is missing or broken.
    """
    folder = Path(run_folder)
    page = render_report(read_record(folder))
    path = folder / REPORT_NAME
    write_page(path, page)
    return path


def render_report(record: Mapping[str, Any]) -> str:
    """The page of a run.

    Args:
        record: A valid record.

    Returns:
        HTML in which everything that comes from the record is escaped.
    """
    return render("run.html.jinja", run_view(record))


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill a template of this package.

    Args:
        template: Its file name.
        values: What it shows.

    Returns:
        HTML, escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("curlora_lab.report", "templates"),
        autoescape=True,  # for every template, whatever its name ends in
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def write_page(path: Path, page: str) -> None:
    """Write a page so that a reader sees the old one or the new one, never half of it.

    Args:
        path: Where it goes.
        page: Its text.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
