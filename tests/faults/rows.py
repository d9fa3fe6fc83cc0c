"""Bad data files: each is read right, or refused with one clear error that names file and row."""

# ruff: noqa: E501  (one data file a line)

import gzip
import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tests.faults.tally import Tally
from transformers import AutoTokenizer

from curlora_lab.backbone import BUILTIN_FOLDER
from curlora_lab.data import ClassificationData, DataError, DataSource

LAW = "read right (every row, text and label), or one error with file, row, reason and remedy"

ROWS = [(f"a film number {n}, {'good' if n % 2 else 'bad'}", n % 2) for n in range(8)]
JSONL = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
CSV = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS)
TSV = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)


@dataclass(frozen=True)
class Bad:
    """One data file.

    Args:
        name: What is special about it.
        suffix: Its suffix.
        content: Its bytes.
        says: Pattern of the error; ``None`` where the file is to be read.
        rows: What is read, where it is; ``None`` for :data:`ROWS`.
        note: Pattern of a note that must be there.
        arguments: Arguments of the data class that differ.
    """

    name: str
    suffix: str
    content: bytes
    says: str | None = None
    rows: Sequence[tuple[str, int]] | None = None
    note: str | None = None
    arguments: tuple[tuple[str, Any], ...] = ()


def _line(**values: Any) -> str:
    return json.dumps(values) + "\n"


def _packed(text: str | bytes) -> bytes:
    return gzip.compress(text.encode() if isinstance(text, str) else text, mtime=0)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("train.jsonl", JSONL)
    return stream.getvalue()


def _with(text: Any, label: Any = 1) -> bytes:
    return (JSONL + _line(text=text, label=label)).encode()


PARQUET = _parquet([{"text": text, "label": label} for text, label in ROWS])
STOP = "toy/train"


def _readable() -> list[Bad]:
    """Unusual and right."""
    long = "word " * 5000
    return [
        Bad("JSON lines", "jsonl", JSONL.encode()),
        Bad("byte-order mark", "jsonl", b"\xef\xbb\xbf" + JSONL.encode()),
        Bad("CRLF", "jsonl", JSONL.replace("\n", "\r\n").encode()),
        Bad("CSV with CRLF and byte-order mark", "csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()),
        Bad("no newline at the end", "csv", CSV.rstrip("\n").encode()),
        Bad("blank lines between", "jsonl", JSONL.replace("\n", "\n\n  \n").encode()),
        Bad("several gzip members", "jsonl.gz", b"".join(_packed(line + "\n") for line in JSONL.splitlines())),
        Bad("TSV", "tsv", TSV.encode()),
        Bad("Parquet", "parquet", PARQUET),
        Bad("additional columns", "jsonl", "".join(_line(text=t, label=n, x=[1, {}]) for t, n in ROWS).encode()),
        Bad("label as text", "jsonl", "".join(_line(text=t, label=str(n)) for t, n in ROWS).encode()),
        Bad("label as name", "jsonl", "".join(_line(text=t, label=["bad", "good"][n]) for t, n in ROWS).encode()),
        Bad("non-ASCII", "jsonl", _with("schön 好 🙂 \u2028 \x0b end"), rows=[*ROWS, ("schön 好 🙂 \u2028 \x0b end", 1)]),
        Bad("two lines in one field", "csv", (CSV + '"two\nlines",1\n').encode(), rows=[*ROWS, ("two\nlines", 1)]),
        Bad("long text is cut and counted", "jsonl", _with(long), rows=[*ROWS, (long, 1)], note="truncated: 1 of 9"),
        Bad("fewer rows than a batch", "jsonl", JSONL.encode()),
        Bad("label count of the data below the head", "jsonl", JSONL.encode(),
            note="labels: no train row is labelled 'mixed'", arguments=(("labels", ["bad", "good", "mixed"]),)),
        Bad("the same row in train and test", "jsonl", (JSONL + _line(text="kept for the test", label=1)).encode(),
            rows=[*ROWS, ("kept for the test", 1)], note="leak: 1 of 2 test rows have the text of a train row"),
        Bad("the same id in train and test", "jsonl",
            "".join(_line(text=t, label=n, idx=f"row-{i}") for i, (t, n) in enumerate(ROWS)).encode(),
            note="leak: 2 of 2 test rows have the id of a train row"),
        Bad("an id twice", "jsonl", "".join(_line(text=t, label=n, idx=min(i, 6)) for i, (t, n) in enumerate(ROWS)).encode(),
            note="ids: 1 train rows repeat the id"),
        Bad("broken rows skipped", "jsonl", (JSONL + "{\n" + _line(text="", label=1)).encode(),
            note="skipped: train rows that cannot be used, of 10: 2", arguments=(("bad_rows", "skip"),)),
        Bad("upper-case suffix", "JSONL", JSONL.encode()),
    ]  # fmt: skip


def _whole_file() -> list[Bad]:
    """Nothing can be read."""
    return [
        Bad("empty", "jsonl", b"", f"{STOP}.jsonl: the file is empty"),
        Bad("only blanks", "csv", b"\n \n", f"{STOP}.csv: the file is empty"),
        Bad("empty archive", "jsonl.gz", _packed(""), "the file is empty"),
        Bad("only a header", "tsv", b"text\tlabel\n", "holds no rows"),
        Bad("no archive", "jsonl.gz", JSONL.encode(), "cut off or damaged"),
        Bad("archive cut off", "jsonl.gz", _packed(JSONL * 400)[:-60], r"cut off or damaged after line \d+"),
        Bad("archive with a wrong checksum", "jsonl.gz", _packed(JSONL)[:-8] + bytes(8), "cut off or damaged"),
        Bad("archive with rubbish behind", "jsonl.gz", _packed(JSONL) + b"rubbish", "cut off or damaged"),
        Bad("zip called gz", "jsonl.gz", _zip(), "cut off or damaged"),
        Bad("UTF-16", "jsonl", JSONL.encode("utf-16"), "UTF-16; save it as UTF-8"),
        Bad("UTF-16 without a mark", "jsonl", JSONL.encode("utf-16-le"), "NUL|not JSON|not UTF-8"),
        Bad("UTF-32", "csv", CSV.encode("utf-32"), "UTF-16|UTF-32"),
        Bad("binary", "csv", bytes(range(256)) * 4, "not UTF-8|quoting is broken"),
        Bad("Latin-1 header", "csv", "tëxt,label\na,1\n".encode("latin-1"), "the header is not UTF-8"),
        Bad("column twice", "csv", b"text,text,label\na,b,1\n", "names 'text' twice"),
        Bad("column without a name", "csv", b"text,,label\na,b,1\n", "a column without a name"),
        Bad("wrong column", "jsonl", JSONL.replace("text", "sentence").encode(), "no row has the column 'text'"),
        Bad("no label column", "jsonl", _line(text="a").encode() * 3, "no row has the column 'label'"),
        Bad("one JSON array", "jsonl", json.dumps([{"text": t, "label": n} for t, n in ROWS], indent=1).encode(), "not JSON|not an object"),
        Bad("no Parquet", "parquet", b"PAR1 nothing PAR1", "cannot be read as Parquet"),
        Bad("Parquet cut off", "parquet", PARQUET[:-20], "cannot be read as Parquet"),
        Bad("Parquet with a hole", "parquet", PARQUET[:40] + bytes(60) + PARQUET[100:], "cannot be read as Parquet|text|label|not UTF-8|surrogate|NUL"),
        Bad("empty Parquet", "parquet", _parquet([]), "holds no rows"),
        Bad("unknown suffix", "xlsx", b"PK\x03\x04", "format of train.xlsx is not known"),
        Bad("one class", "jsonl", "".join(_line(text=t, label=1) for t, _ in ROWS).encode(), "all 8 train rows are labelled 'good'"),
        Bad("one row", "jsonl", _line(text="a", label=1).encode(), "1 usable rows to train on"),
        Bad("nothing usable", "jsonl", b"{\n[\n", "usable rows to train on", arguments=(("bad_rows", "skip"),)),
        Bad("head smaller than the labels", "csv", (CSV + "x,2\n").encode(), r"train.csv:10: the label '2' is not known; allowed: 0 \(bad\), 1 \(good\)"),
    ]  # fmt: skip


def _one_row() -> list[Bad]:
    """One row is wrong, and named."""
    at = r"train\.jsonl:9: "
    return [
        Bad("cut line", "jsonl", JSONL.encode() + b'{"text": "cut', at + "the line is not JSON"),
        Bad("list for a row", "jsonl", JSONL.encode() + b'["a", 1]\n', at + "the line is a JSON list"),
        Bad("deep JSON", "jsonl", JSONL.encode() + b'{"text": ' + b"[" * 50_000 + b"\n", at + "the line is not JSON"),
        Bad("a number of 5000 digits", "jsonl", JSONL.encode() + b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n", at),
        Bad("Latin-1 row", "jsonl", JSONL.encode() + '{"text": "é"}\n'.encode("latin-1"), at + "byte 0xe9 is not UTF-8"),
        Bad("NaN for a label", "jsonl", JSONL.encode() + b'{"text": "a", "label": NaN}\n', at + "the label 'label' is a float"),
        Bad("a float for a label", "jsonl", _with("a", 1.0), at + "the label 'label' is a float"),
        Bad("null label", "jsonl", _with("a", None), at + "the label 'label' is null"),
        Bad("a boolean for a label", "jsonl", _with("a", True), at + "the label True is not known"),
        Bad("unknown label", "jsonl", _with("a", 7), at + "the label 7 is not known"),
        Bad("huge label", "jsonl", _with("a", 10**30), at + "the label .* is not known"),
        Bad("negative label", "jsonl", _with("a", -1), at + "the label -1 is not known"),
        Bad("unknown name", "jsonl", _with("a", "Good"), at + "the label 'Good' is not known"),
        Bad("a digit that is not ASCII", "jsonl", _with("a", "١"), at + "the label '١' is not known"),
        Bad("empty text", "jsonl", _with(""), at + "the text 'text' is empty"),
        Bad("blank text", "jsonl", _with("\u3000\u00a0 "), at + "the text 'text' is empty"),
        Bad("null text", "jsonl", _with(None), at + "the text 'text' is null"),
        Bad("a number for a text", "jsonl", _with(5), at + "'text' is a int"),
        Bad("an object for a text", "jsonl", _with({"a": 1}), at + "'text' is a dict"),
        Bad("half a surrogate pair", "jsonl", JSONL.encode() + b'{"text": "a\\ud83d", "label": 1}\n', at + ".*half of a surrogate"),
        Bad("NUL", "jsonl", _with("a\0b"), at + ".*NUL"),
        Bad("a row without the column", "jsonl", JSONL.encode() + _line(label=1).encode(), at + ".*has no column 'text'"),
        Bad("too many fields", "csv", (CSV + "a,b,1\n").encode(), r"train.csv:10: the row has 3 fields, the header 2"),
        Bad("too few fields", "csv", (CSV + "a\n").encode(), r"train.csv:10: the row has 1 fields"),
        Bad("open quote", "csv", (CSV + '"a,1\nb,0\n').encode(), r"train.csv:10: a quotation mark is opened"),
        Bad("broken quoting", "csv", (CSV + '"a"b,1\n').encode(), r"train.csv:10: the quoting is broken"),
        Bad("ragged TSV", "tsv", (TSV + "a\tb\t1\n").encode(), r"train.tsv:10: the row has 3 fields"),
        Bad("null in Parquet", "parquet", _parquet([{"text": "a", "label": 1}, {"text": None, "label": 0}]), "train.parquet:2: the text 'text' is null"),
        Bad("bytes in Parquet", "parquet", _parquet([{"text": b"a", "label": 1}]), "train.parquet:1: 'text' is a bytes"),
    ]  # fmt: skip


def corpus() -> list[Bad]:
    """All files."""
    return [*_readable(), *_whole_file(), *_one_row()]


def bad_files(tally: Tally, workplace: Path) -> Tally:
    """Read every file of the corpus as training rows of a task whose test rows are right."""
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_FOLDER)
    with tally.timed():
        for number, bad in enumerate(corpus()):
            folder = workplace / f"data{number}" / "toy"
            folder.mkdir(parents=True)
            test = "".join(_line(text=f"kept for the test{' still' * n}", label=n, idx=f"row-{n}") for n in range(2))
            (folder / "test.jsonl").write_text(test)
            (folder / f"train.{bad.suffix}").write_bytes(bad.content)
            wrong = _wrong(bad, folder.parent, tokenizer)
            if wrong:
                tally.failed(f"{bad.name} ({bad.suffix}): {wrong}")
            else:
                tally.ended("read right" if bad.says is None else "one clear error")
    return tally


def _wrong(bad: Bad, data_dir: Path, tokenizer: Any) -> str | None:
    """What is wrong with how a file was taken; ``None`` if nothing is."""
    source = DataSource(name="toy", splits={"train": "train", "test": "test"}, data_dir=data_dir)
    arguments: dict[str, Any] = {
        "labels": ["bad", "good"],
        "choose_fraction": 0.0,
        "max_length": 64,
        **dict(bad.arguments),
    }
    data = ClassificationData(name="toy", source=source, columns=["text"], **arguments)
    try:
        data.prepare(tokenizer, seed=0, cache_dir=None)
    except DataError as error:
        if bad.says is None:
            return f"refused: {error}"
        return None if re.search(bad.says, str(error)) else f"says {str(error)!r}, not {bad.says!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if bad.says is not None:
        return f"was taken without a word ({data.counts})"
    expected = [((text,), label) for text, label in (bad.rows if bad.rows is not None else ROWS)]
    found = [(example.texts, example.label) for example in data.examples("train")]
    if found != expected:
        return f"rows are {found}, not {expected}"
    return (
        None if bad.note is None or any(re.search(bad.note, note) for note in data.notes) else f"notes are {data.notes}"
    )
