"""Every way in which a data file can be broken gives one message with file, row and reason."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from curlora_lab.data import ClassificationData, DataError, DataSource

GOOD = '{"text": "a good film", "label": 1}\n{"text": "a bad film", "label": 0}\n'
CSV = "text,label\na good film,1\na bad film,0\n"
TSV = CSV.replace(",", "\t")


PACKED = gzip.compress(GOOD.encode(), mtime=0)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def row(**values: Any) -> str:
    return json.dumps(values) + "\n"


# (name, suffix, content of train, expected message)
BAD: list[tuple[str, str, bytes | str, str]] = [
    ("empty file", "jsonl", "", "toy/train.jsonl: the file is empty"),
    ("blank file", "csv", "\n \n\n", "toy/train.csv: the file is empty"),
    ("empty archive", "jsonl.gz", gzip.compress(b""), "toy/train.jsonl.gz: the file is empty"),
    ("header only", "csv", "text,label\n", "toy/train.csv: the file holds no rows"),
    ("no archive", "jsonl.gz", GOOD.encode(), "toy/train.jsonl.gz: .*Not a gzipped file"),
    (
        "cut archive",
        "jsonl.gz",
        gzip.compress(GOOD.encode() * 500)[:-12],
        "toy/train.jsonl.gz: the archive is cut off or damaged",
    ),
    (
        "flipped archive",
        "jsonl.gz",
        PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:],
        "toy/train.jsonl.gz: the archive is cut off or damaged.*CRC",
    ),
    ("UTF-16", "jsonl", GOOD.encode("utf-16"), "toy/train.jsonl: the text is UTF-16; save it as UTF-8"),
    (
        "Latin-1",
        "jsonl",
        GOOD.encode() + 'é{"text": "x"}'.encode("latin-1"),
        "toy/train.jsonl:3: byte 0xe9 is not UTF-8",
    ),
    ("Latin-1 CSV", "csv", CSV.encode() + "très bien,1\n".encode("latin-1"), "toy/train.csv:4: byte 0xe8 is not UTF-8"),
    ("Latin-1 header", "csv", "tèxt,label\nx,1\n".encode("latin-1"), "toy/train.csv:1: the header is not UTF-8"),
    ("broken JSON", "jsonl", GOOD + '{"text": "cut\n', r"toy/train.jsonl:3: the line is not JSON \(.*column"),
    ("JSON list", "jsonl", GOOD + '["x", 1]\n', r"toy/train.jsonl:3: the line is a JSON list, not an object"),
    ("JSON array file", "jsonl", "[\n" + GOOD + "]\n", "toy/train.jsonl:1: the line is not JSON"),
    ("deep JSON", "jsonl", GOOD + "[" * 100_000 + "\n", "toy/train.jsonl:3: the line is not JSON"),
    ("ragged CSV", "csv", CSV + "one, two,1\n", r"toy/train.csv:4: the row has 3 fields, the header 2 \(text, label\)"),
    ("short CSV", "csv", CSV + "only text\n", "toy/train.csv:4: the row has 1 fields, the header 2"),
    ("ragged TSV", "tsv", TSV + "a\tb\t1\n", "toy/train.tsv:4: the row has 3 fields, the header 2"),
    ("after a two-line field", "csv", 'text,label\n"two\nlines",1\na,b,c\n', "toy/train.csv:4: the row has 3 fields"),
    (
        "open quote",
        "csv",
        CSV + '"never closed,1\nx,0\n',
        "toy/train.csv:4: a quotation mark is opened here and never closed",
    ),
    ("broken quoting", "csv", CSV + '"a"b,1\n', "toy/train.csv:4: the quoting is broken"),
    ("header twice", "csv", "text,text,label\na,b,1\n", "toy/train.csv:1: the header names 'text' twice"),
    ("nameless column", "csv", "text,,label\na,b,1\n", "toy/train.csv:1: the header has a column without a name"),
    ("no Parquet", "parquet", b"PAR1 is what this is not", "toy/train.parquet: cannot be read as Parquet"),
    (
        "cut Parquet",
        "parquet",
        parquet([{"text": "x", "label": 1}])[:-9],
        "toy/train.parquet: cannot be read as Parquet",
    ),
    ("empty Parquet", "parquet", parquet([]), "toy/train.parquet: the file holds no rows"),
    (
        "null in Parquet",
        "parquet",
        parquet([{"text": "x", "label": 1}, {"text": None, "label": 0}]),
        "toy/train.parquet:2: the text 'text' is null",
    ),
    ("unknown format", "txt", GOOD, r"toy has no split 'train': the format of train.txt is not known.*\.jsonl\.gz"),
    (
        "missing column in a row",
        "jsonl",
        GOOD + row(label=1),
        "toy/train.jsonl:3: the row has no column 'text'; it has label",
    ),
    (
        "missing column",
        "csv",
        CSV.replace("text", "sentence"),
        "toy/train.csv: no row has the column 'text'; the columns there: sentence, label",
    ),
    (
        "missing label",
        "jsonl",
        row(text="x") * 2,
        "toy/train.jsonl: no row has the column 'label'; the columns there: text",
    ),
    ("empty text", "jsonl", GOOD + "\n" + row(text=" \t", label=1), "toy/train.jsonl:4: the text 'text' is empty"),
    ("empty CSV text", "csv", CSV + ",1\n", "toy/train.csv:4: the text 'text' is empty"),
    ("null text", "jsonl", GOOD + row(text=None, label=1), "toy/train.jsonl:3: the text 'text' is null"),
    ("number as text", "jsonl", GOOD + row(text=5, label=1), r"toy/train.jsonl:3: 'text' is a int \(5\), not text"),
    (
        "list as text",
        "jsonl",
        GOOD + row(text=["a"], label=1),
        r"toy/train.jsonl:3: 'text' is a list \(\['a'\]\), not text",
    ),
    (
        "half a surrogate",
        "jsonl",
        GOOD + '{"text": "x\\ud83d", "label": 1}\n',
        "toy/train.jsonl:3: the text 'text' holds half of a surrogate",
    ),
    ("NUL", "jsonl", GOOD + row(text="a\0b", label=1), "toy/train.jsonl:3: the text 'text' holds a NUL"),
    (
        "unknown label",
        "jsonl",
        GOOD + row(text="x", label=2),
        r"toy/train.jsonl:3: the label 2 is not known; allowed: 0 \(bad\), 1 \(good\)",
    ),
    ("unknown name", "csv", CSV + "x,great\n", "toy/train.csv:4: the label 'great' is not known"),
    (
        "hub's unlabelled",
        "jsonl",
        GOOD + row(text="x", label=-1),
        "toy/train.jsonl:3: the label -1 is not known.*without a label on the hub",
    ),
    ("null label", "jsonl", GOOD + row(text="x", label=None), "toy/train.jsonl:3: the label 'label' is null"),
    (
        "fraction label",
        "jsonl",
        GOOD + row(text="x", label=0.5),
        r"toy/train.jsonl:3: the label 'label' is a float \(0.5\)",
    ),
    ("list label", "jsonl", GOOD + row(text="x", label=[1]), r"toy/train.jsonl:3: the label 'label' is a list"),
    ("boolean label", "jsonl", GOOD + row(text="x", label=True), "toy/train.jsonl:3: the label True is not known"),
    ("one class", "jsonl", row(text="x", label=1) * 3, "task 'toy': all 3 train rows are labelled 'good'"),
    ("one row", "jsonl", row(text="x", label=1), "task 'toy' has 1 usable rows to train on; at least 2"),
]


def load(data_dir: Path, tokenizer: Any, **arguments: Any) -> ClassificationData:
    source = DataSource(name="toy", splits={"train": "train", "test": "test"}, data_dir=data_dir)
    arguments = {"choose_fraction": 0.0, **arguments}
    data = ClassificationData(
        name="toy", source=source, columns=["text"], labels=["bad", "good"], max_length=16, **arguments
    )
    data.prepare(tokenizer, seed=0, cache_dir=None)
    return data


def test_there_are_at_least_twenty() -> None:
    assert len(BAD) >= 40


@pytest.mark.parametrize(("suffix", "content", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_file(suffix: str, content: bytes | str, message: str, write_split: Any, tokenizer: Any) -> None:
    data_dir = write_split("toy", "test", GOOD, "jsonl")
    (data_dir / "toy" / f"train.{suffix}").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        load(data_dir, tokenizer)


GOOD_FILES: list[tuple[str, str, bytes | str]] = [
    ("jsonl", "jsonl", GOOD),
    ("no newline at the end", "jsonl", GOOD.strip()),
    ("byte-order mark", "jsonl", b"\xef\xbb\xbf" + GOOD.encode()),
    ("CRLF", "jsonl", GOOD.replace("\n", "\r\n")),
    ("empty lines", "jsonl", GOOD.replace("\n", "\n\n")),
    ("gz", "jsonl.gz", gzip.compress(GOOD.encode())),
    ("several gz members", "jsonl.gz", b"".join(gzip.compress(line.encode() + b"\n") for line in GOOD.split("\n"))),
    ("csv", "csv", CSV),
    ("csv with BOM and CRLF", "csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()),
    ("quoted csv", "csv", 'label,text\n1,"a good film"\n"0",a bad film\n'),
    ("named labels", "csv", "text,label\na good film,good\na bad film,bad\n"),
    ("tsv", "tsv", TSV),
    ("parquet", "parquet", parquet([{"text": "a good film", "label": 1}, {"text": "a bad film", "label": 0}])),
]


@pytest.mark.parametrize(("suffix", "content"), [case[1:] for case in GOOD_FILES], ids=[case[0] for case in GOOD_FILES])
def test_good_file(suffix: str, content: bytes | str, write_split: Any, tokenizer: Any) -> None:
    data_dir = write_split("toy", "test", GOOD, "jsonl")
    (data_dir / "toy" / f"train.{suffix}").write_bytes(content if isinstance(content, bytes) else content.encode())
    data = load(data_dir, tokenizer)
    assert [(example.texts, example.label) for example in data.examples("train")] == [
        (("a good film",), 1),
        (("a bad film",), 0),
    ]


def test_texts_keep_what_is_inside_them(write_split: Any, tokenizer: Any) -> None:
    # U+2028 ends a line for str.splitlines but not for an editor or JSON; TSV has no quoting; CSV fields may have newlines.
    lines = json.dumps({"text": "a\u2028b", "label": 0}, ensure_ascii=False) + "\n" + row(text="é", label=1)
    data_dir = write_split("toy", "train", lines, "jsonl")
    write_split("toy", "test", 'text\tlabel\nhe said "no\t0\n"yes" it is\t1\n', "tsv")
    data = load(data_dir, tokenizer)
    assert [example.texts[0] for example in data.examples("train")] == ["a\u2028b", "é"]
    assert [example.texts[0] for example in data.examples("test")] == ['he said "no', '"yes" it is']


def test_long_csv_fields_are_read_and_the_limit_is_put_back(write_split: Any, tokenizer: Any) -> None:
    import csv

    before = csv.field_size_limit()
    data_dir = write_split("toy", "train", CSV + "x" * 200_000 + ",1\n", "csv")
    write_split("toy", "test", GOOD, "jsonl")
    assert load(data_dir, tokenizer).counts["train"] == 3
    assert csv.field_size_limit() == before


def test_several_faults_are_listed_and_the_rest_counted(write_split: Any, tokenizer: Any) -> None:
    data_dir = write_split(
        "toy", "train", GOOD + row(text="", label=1) * 4 + "{\n" + row(text="x", label=7) * 3, "jsonl"
    )
    write_split("toy", "test", GOOD, "jsonl")
    with pytest.raises(DataError) as caught:
        load(data_dir, tokenizer)
    message = str(caught.value)
    assert message.startswith("8 of 10 rows cannot be used:\n")
    assert len(re.findall(r"^  toy/train\.jsonl:\d+: ", message, re.M)) == 5
    assert "and 3 more" in message
    assert "bad_rows=skip" in message


def test_skip_counts_what_it_leaves_out(write_split: Any, tokenizer: Any) -> None:
    data_dir = write_split("toy", "train", GOOD + row(text="", label=1) * 2 + "{\n" + row(text="x", label=7), "jsonl")
    write_split("toy", "test", GOOD, "jsonl")
    data = load(data_dir, tokenizer, bad_rows="skip")
    assert data.counts == {"train": 2, "test": 2}
    (note,) = [note for note in data.notes if note.startswith("skipped: ")]
    assert "train" in note
    assert "of 6: 4 (2 empty text, 1 broken JSON, 1 unknown label), the first at toy/train.jsonl:5" in note


def test_skip_of_everything_stops(write_split: Any, tokenizer: Any) -> None:
    data_dir = write_split("toy", "train", GOOD, "jsonl")
    write_split("toy", "test", row(text="", label=1), "jsonl")
    with pytest.raises(DataError, match="'toy' has no usable row to test on"):
        load(data_dir, tokenizer, bad_rows="skip")


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda d: None, r"data_dir .* has no folder 'toy'; it has other, toi \(did you mean 'toi'\?\)"),
        (lambda d: (d / "toy").mkdir(), "toy has no split 'train': the folder holds nothing"),
        (
            lambda d: [(d / "toy").mkdir(), (d / "toy/dev.csv").write_text(CSV)],
            "has no split 'train': the folder holds dev.csv",
        ),
        (
            lambda d: [
                (d / "toy").mkdir(),
                (d / "toy/train.csv").write_text(CSV),
                (d / "toy/train.tsv").write_text(TSV),
            ],
            r"the split 'train' more than once \(train.csv, train.tsv\); keep one",
        ),
    ],
)
def test_missing_files_say_what_exists(
    arrange: Callable[[Path], Any], message: str, tmp_path: Path, tokenizer: Any
) -> None:
    for name in ("other", "toi"):
        (tmp_path / name).mkdir()
    arrange(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path, tokenizer)


def test_a_missing_data_dir_is_named(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"nowhere' is not a folder; it must hold toy/train.jsonl.gz"):
        load(tmp_path / "nowhere", tokenizer)
