"""Figures and tables for papers, from run folders alone: the same that the report shows.

python scripts/figures.py runs/demo --out figures                                  # PDF, SVG and PNG, tables
python scripts/figures.py runs/demo/<run> --out figures --format pdf               # one run
python scripts/figures.py runs/a runs/b --out figures --width 6.9 --titles         # over both columns, with titles
python scripts/figures.py runs/demo --out figures --only learning                  # whose name begins so
"""

import argparse
import sys
from pathlib import Path

from curlora_lab.report import find_runs, read_record
from curlora_lab.report.compare import compare, read_runs
from curlora_lab.report.extras import read_extras
from curlora_lab.report.figures import Figure, as_table
from curlora_lab.report.publication import FORMATS, write_figures
from curlora_lab.report.run_figures import run_figures
from curlora_lab.report.study import configurations
from curlora_lab.report.study_figures import study_figures
from curlora_lab.report.tables import latex_table, markdown_table


def main(arguments: list[str] | None = None) -> int:
    """Draw the figures and write the tables.

    Args:
        arguments: Command line without the program's name.

    Returns:
        0, or 1 when nothing could be drawn.
    """
    options = _parser().parse_args(arguments)
    try:
        runs = find_runs(options.folders)
        drawn = _figures(runs)
        figures = [one for one in drawn if one.name.startswith(options.only or "")]
        if not figures:
            names = ", ".join(one.name for one in drawn) or "none"
            raise ValueError(f"no figure's name begins with {options.only!r}; there are: {names}.")
        formats = [name.strip().lower() for name in options.format.split(",") if name.strip()]
        paths = write_figures(figures, options.out, formats=formats, width=options.width, titles=options.titles)
        paths += _write_tables(runs, figures, options.out)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold run folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and tables")
    parser.add_argument("--format", default="pdf,svg,png", help=f"some of {','.join(FORMATS)} (default: all)")
    parser.add_argument("--width", type=float, default=3.4, help="inches (default: 3.4, one column)")
    parser.add_argument("--titles", action="store_true", help="write each figure's title above it")
    parser.add_argument("--only", help="only figures whose name begins so")
    return parser


def _figures(runs: list[Path]) -> list[Figure]:
    """Of one run its own figures, of several those that compare them."""
    if len(runs) == 1:
        sections = run_figures(read_record(runs[0]), read_extras(runs[0]))
    else:
        records, notes = read_runs(runs)
        print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
        sections = study_figures(configurations(records))
    return [figure for figures in sections.values() for figure in figures]


def _write_tables(runs: list[Path], figures: list[Figure], out: Path) -> list[Path]:
    """The comparison, or the score matrix of a single run, as LaTeX (booktabs) and Markdown."""
    if len(runs) > 1:
        found = compare(runs)
        name, columns, caption = "comparison", found.columns, "; ".join(found.notes)
        rows = [[label, *row[1:]] for label, row in zip(found.labels, found.rows, strict=True)]
    else:
        matrix = next((figure for figure in figures if figure.name == "score-matrix"), None)
        if matrix is None:
            return []
        columns, rows = as_table(matrix)
        name, caption = "score-matrix", matrix.description
    texts = {
        ".tex": latex_table(columns, rows, caption=caption or "Comparison of runs.", label=f"tab:{name}"),
        ".md": markdown_table(columns, rows),
    }
    paths = []
    for ending, text in texts.items():
        paths.append(out / f"{name}{ending}")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


if __name__ == "__main__":
    sys.exit(main())
