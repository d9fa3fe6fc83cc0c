"""Ask a task of a finished run about texts: labels, numbers, tags of words, answers to questions.

python scripts/predict.py runs/demo/RUN --task sentiment2 "the room was lovely" "the soup was cold"
python scripts/predict.py runs/demo/RUN --task paraphrase "the cat sees the dog || the dog is seen by the cat"
python scripts/predict.py runs/demo/RUN --task sentiment2 --file reviews.csv --columns sentence=review --json
cat lines.txt | python scripts/predict.py runs/demo/RUN --task sentiment2
python scripts/predict.py runs/words/RUN "the lad saved the hound on the beach"         words between blanks
python scripts/predict.py runs/questions/RUN "What was my aunt? || My uncle was busy. My aunt was very sad."

A text is one row. A task of several columns takes them in order, separated by ||, or a JSON object with the columns' names.
Files: .txt (one row a line), .jsonl[.gz], .csv, .tsv, .parquet. Texts are encoded exactly as in training.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curlora_lab.data import DataError, Row
from curlora_lab.data.readers import SUFFIXES, read_records, suffix_of
from curlora_lab.data.source import Split
from curlora_lab.reopen import OpenRun, RunFolderError
from curlora_lab.reopen_cli import guarded, open_named, printable, run_parser
from curlora_lab.tasks import TaskModule

SEPARATOR = "||"
SHOWN = 60  # characters of a text in the table


def main(arguments: Sequence[str] | None = None) -> int:
    """Label the texts and print them.

    Args:
        arguments: Command line without the program's name.

    Returns:
        0, or 2 when nothing could be labelled.
    """
    options = _parser().parse_intermixed_args(arguments)  # texts may stand after options
    return guarded(lambda: _predict(options))


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__)
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="texts to label (default: --file, else standard input)"
    )
    parser.add_argument(
        "--task", metavar="NAME", help="the task whose head is asked (needed where the run has several)"
    )
    parser.add_argument("--file", type=Path, metavar="FILE", help="read the texts from a file")
    parser.add_argument(
        "--columns",
        metavar="NAMES",
        help="columns of the file that hold the task's columns, in their order (a,b) or by name (sentence1=a,sentence2=b)",
    )
    parser.add_argument("--bad-rows", choices=("stop", "skip"), default="stop", help="rows without usable text")
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows in a batch (default: as in the run)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    return parser


def _predict(options: argparse.Namespace) -> int:
    if options.texts and options.file:
        raise ValueError("give texts or --file, not both.")
    run = open_named(options)
    task = _task(run, options.task)
    columns = task.data.columns
    examples, notes = task.data.read(_rows(options, columns), labelled=False, bad_rows=options.bad_rows)
    if not examples:
        raise DataError("there is no text to label.")
    task.data = task.data.only(run.backbone.tokenizer, examples)
    for note in [*notes, *task.data.notes]:
        print(printable(f"{note}, as in training" if note.startswith("truncated") else note), file=sys.stderr)
    records = run.records(task, batch_size=options.batch_size)
    found = [
        {**{column: example.values[column] for column in columns}, **task.answer(record)}
        for example, record in zip(examples, records, strict=True)
    ]
    if options.json:
        for line in found:
            print(json.dumps(line, ensure_ascii=False))
    else:
        Console().print(_table(task, found))
    return 0


def _task(run: OpenRun, name: str | None) -> TaskModule:
    """The task to ask; there must be no doubt which."""
    if name is None and len(run.tasks) > 1:
        raise RunFolderError(f"name the task with --task; {run.folder} has {', '.join(run.tasks)}.")
    task = run.task(name or next(iter(run.tasks)))
    if not task.can_answer:
        raise RunFolderError(
            f"task {task.name!r} is {type(task).__name__}: it has no labels to predict; scripts/evaluate.py scores it."
        )
    if task.name not in run.learnt and not task.zero_shot:
        raise RunFolderError(
            f"task {task.name!r} was not learnt by stage {run.stage}; it is learnt in stage "
            f"{run.record['learnt_in'][task.name]}."
        )
    return task


def _rows(options: argparse.Namespace, columns: Sequence[str]) -> Split:
    """The rows that were given, each with the place that a message names."""
    if options.file and suffix_of(options.file):
        if not options.file.is_file():
            raise DataError(f"--file {options.file} does not exist.")
        records, faults = read_records(options.file, options.file.name)
        names = _renamed(options.columns, columns)
        found = [
            (
                f"{options.file.name}:{line}",
                {ours: values[theirs] for ours, theirs in names.items() if theirs in values},
            )
            for line, values in records
        ]
        if records and not any(values for _, values in found):
            raise DataError(
                f"{options.file.name} has the columns {', '.join(records[0][1])}; the task needs {', '.join(columns)}. "
                "Say which is which with --columns."
            )
    else:
        faults = []
        found = [(where, _split(text, columns)) for where, text in _lines(options)]
    rows = (Row(where, str(index), values) for index, (where, values) in enumerate(found))
    return Split(tuple(rows), tuple(faults), None, 0)


def _lines(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Texts of the command line, of a text file or of standard input, with their places."""
    if options.columns:
        raise ValueError(f"--columns names columns of a file; write --file with one of {', '.join(SUFFIXES)}.")
    if options.texts:
        return [(f"text {number}", text) for number, text in enumerate(options.texts, start=1)]
    if options.file is None:
        return _numbered("standard input", sys.stdin.read())
    if options.file.suffix != ".txt":
        raise DataError(f"--file {options.file}: the format is not known; write .txt, {', '.join(SUFFIXES)}.")
    try:
        return _numbered(options.file.name, options.file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"--file {options.file} is not UTF-8 ({error}); save it as UTF-8.") from error


def _numbered(name: str, content: str) -> list[tuple[str, str]]:
    """Lines that are not empty, by number; only line feeds end a line."""
    lines = ((number, line.removesuffix("\r")) for number, line in enumerate(content.split("\n"), start=1))
    return [(f"{name}:{number}", line) for number, line in lines if line.strip()]


def _split(text: str, columns: Sequence[str]) -> dict[str, Any]:
    """One text to the task's columns: a JSON object that names them all, parts between ``||``, or the text as it is."""
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict) and set(columns) <= set(values):
            return values
    if len(columns) == 1:
        return {columns[0]: text}
    parts = [part.strip() for part in text.split(SEPARATOR)]
    if len(parts) != len(columns):
        raise DataError(
            f"{printable(text[:SHOWN])!r} has {len(parts)} parts; the task reads {len(columns)}: "
            f"{f' {SEPARATOR} '.join(columns)}. A JSON object with these names does too."
        )
    return dict(zip(columns, parts, strict=True))


def _renamed(names: str | None, columns: Sequence[str]) -> dict[str, str]:
    """The task's columns -> the file's."""
    if names is None:
        return {column: column for column in columns}
    given = [name.strip() for name in names.split(",")]
    if all("=" in name for name in given):
        pairs = dict(name.split("=", 1) for name in given)
    else:
        pairs = dict(zip(columns, given, strict=False)) if len(given) == len(columns) else {}
    if set(pairs) != set(columns):
        raise ValueError(
            f"--columns is {names!r}; it must name one column of the file for each of {', '.join(columns)}."
        )
    return pairs


def _table(task: TaskModule, found: Sequence[Mapping[str, Any]]) -> Table:
    """One row a text: its columns, then what the head says."""
    table = Table(title=Text(printable(task.name)), title_justify="left")
    cells = [dict(_cells(line)) for line in found]
    for number, heading in enumerate(cells[0]):
        answers = number >= len(task.data.columns)
        table.add_column(Text(printable(heading)), overflow="fold", style="bold" if answers else "")
    for line in cells:
        table.add_row(*(Text(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…") for text in line.values()))
    return table


def _cells(line: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Headings and texts of a row; what has parts with names takes a column for each."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _cells(value)
        else:
            yield name, printable(_shown(value))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list | tuple):
        return " ".join(_shown(item) for item in value)
    if isinstance(value, Mapping):
        return f"{'/'.join(_shown(item) for item in value.values())}"
    return "–" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
