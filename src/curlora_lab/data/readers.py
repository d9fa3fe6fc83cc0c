"""Files to records: JSON lines, CSV, TSV and Parquet, with the line number that an editor shows."""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curlora_lab.data.faults import DataError, Fault

SUFFIXES = (".jsonl.gz", ".jsonl", ".csv", ".tsv", ".parquet")

Record = tuple[int, dict[str, Any]]


def suffix_of(path: Path) -> str | None:
    """The suffix of ``path`` if it is one of ``SUFFIXES``, else None."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def read_records(path: Path, where: str) -> tuple[list[Record], list[Fault]]:
    """Read one data file.

    JSON lines hold one object a line. CSV is quoted as RFC 4180 says and starts with a header; TSV has a header and no
    quoting at all (a ``"`` is a character). Text is UTF-8 with or without a byte-order mark, lines end in LF or CRLF, empty
    lines are skipped.

    Args:
        path: The file.
        where: How the file is named in messages.

    Returns:
        The records as (line number, column -> value), in file order, and the rows that could not be read. In Parquet the
        number is that of the row, from 1.

    Raises:
        DataError: If the file as a whole cannot be read: missing, empty, damaged, not UTF-8 text, of an unknown format.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"{where}: the format is not known; write {', '.join(SUFFIXES)}.")
    faults: list[Fault] = []
    if suffix == ".parquet":
        records = _read_parquet(path, where)
    else:
        lines = _lines(_read_bytes(path, where, packed=suffix == ".jsonl.gz"), where)
        if suffix in (".jsonl.gz", ".jsonl"):
            records, faults = _read_jsonl(lines, where)
        else:
            records, faults = _read_delimited(lines, where, "," if suffix == ".csv" else "\t")
    if not records and not faults:
        raise DataError(f"{where}: the file holds no rows.")
    return records, faults


def _read_bytes(path: Path, where: str, *, packed: bool) -> bytes:
    """The file's content, unpacked; a cut-off archive is named with the last whole line."""
    content = bytearray()
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            while chunk := file.read(1 << 20):
                content += chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        line = content.count(b"\n")
        raise DataError(
            f"{where}: the archive is cut off or damaged after line {line} ({error}); copy it again."
        ) from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}).") from error
    if not content.strip():
        raise DataError(f"{where}: the file is empty.")
    return bytes(content)


def _lines(content: bytes, where: str) -> list[str]:
    """Split into lines; bytes that are not UTF-8 become lone surrogates, which ``_undecodable`` finds in their row."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{where}: the text is UTF-16; save it as UTF-8.")
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")
    return text.split("\n")  # not splitlines: U+2028 and form feeds belong to a row's text


def _undecodable(text: str) -> int | None:
    """The first byte that was not UTF-8, if any."""
    return next((ord(char) - 0xDC00 for char in text if 0xDC80 <= ord(char) <= 0xDCFF), None)


def _encoding_fault(where: str, byte: int) -> Fault:
    return Fault(where, "not UTF-8", f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8")


def _read_jsonl(lines: list[str], where: str) -> tuple[list[Record], list[Fault]]:
    records: list[Record] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        at = f"{where}:{number}"
        byte = None if line.isascii() else _undecodable(line)
        if byte is not None:
            faults.append(_encoding_fault(at, byte))
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError also: an integer of more than 4300 digits
            reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            faults.append(Fault(at, "broken JSON", f"the line is not JSON ({reason})"))
            continue
        if isinstance(values, dict):
            records.append((number, values))
        else:
            faults.append(
                Fault(at, "no JSON object", f"the line is a JSON {type(values).__name__}, not an object {{...}}")
            )
    return records, faults


def _read_delimited(lines: list[str], where: str, delimiter: str) -> tuple[list[Record], list[Fault]]:
    # TSV is read without quoting: the GLUE files hold single quotation marks that open no field.
    options: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {"strict": True}
    limit = csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is shorter than some documents
    try:
        reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, **options)
        records: list[Record] = []
        faults: list[Fault] = []
        header: list[str] | None = None
        for number, fields in _delimited_rows(reader, where, faults):
            if header is None:
                header = _checked_header(fields, where, number)
            else:
                _take_fields(header, fields, where, number, records, faults)
    finally:
        csv.field_size_limit(limit)
    if header is None:
        reason = faults[0].reason if faults else "it is blank"
        raise DataError(f"{where}: the first line must name the columns, and cannot be read ({reason}).")
    return records, faults


def _delimited_rows(reader: Any, where: str, faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the first line, fields); a row that breaks the quoting becomes a fault."""
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                faults.append(
                    Fault(f"{where}:{number}", "open quote", "a quotation mark is opened here and never closed")
                )
                return
            faults.append(Fault(f"{where}:{number}", "broken quoting", f"the quoting is broken ({error})"))
            continue
        if len(fields) > 1 or any(field.strip() for field in fields):
            yield number, fields


def _checked_header(fields: list[str], where: str, number: int) -> list[str]:
    header = [field.strip() for field in fields]
    if any(_undecodable(name) is not None for name in header):
        raise DataError(f"{where}:{number}: the header is not UTF-8; save the file as UTF-8.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated or "" in header:
        what = (
            f"names {', '.join(map(repr, repeated))} twice"
            if repeated and repeated != [""]
            else "has a column without a name"
        )
        raise DataError(f"{where}:{number}: the header {what}; name each column once.")
    return header


def _take_fields(
    header: list[str], fields: list[str], where: str, number: int, records: list[Record], faults: list[Fault]
) -> None:
    at = f"{where}:{number}"
    byte = next((byte for byte in map(_undecodable, fields) if byte is not None), None)
    if byte is not None:
        faults.append(_encoding_fault(at, byte))
    elif len(fields) != len(header):
        reason = f"the row has {len(fields)} fields, the header {len(header)} ({', '.join(header)})"
        faults.append(Fault(at, "ragged row", reason))
    else:
        records.append((number, dict(zip(header, fields, strict=True))))


def _read_parquet(path: Path, where: str) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path, partitioning=None).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{where}: cannot be read as Parquet ({first}).") from error
    return list(enumerate(rows, start=1))
