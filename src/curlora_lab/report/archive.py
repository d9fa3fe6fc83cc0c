"""Records of many runs in one small file for a repository: what was measured and how, no weights, no predictions, no places."""

import gzip
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curlora_lab.integrity import is_whole, record_seal, sealed, sealed_record
from curlora_lab.report.record import RECORD_NAME, Record, RecordError, read_record, validate_record

DIAGNOSTICS = "diagnostics.json"
DIGITS = 6
HIDDEN = "hidden"

#: An absolute path: a slash that nothing stands before, and at least two names.
_PLACE = re.compile(r"(?<![\w<>.:/\\-])/(?:[\w.@+-]+/)+[\w.@+-]+")


class ArchiveError(ValueError):
    """Runs that cannot be kept together, or a file that is not what was kept."""


def write_archive(run_folders: Sequence[Path | str], path: Path, *, places: Mapping[str, str]) -> list[Record]:
    """Keep the records of finished runs, with what their stages say of the adapter, in one compressed file.

    A line a run: ``record`` (sealed anew, since places are taken out of it; ``original_seal`` is that of the run's own file)
    and ``diagnostics`` by stage, to six digits. Equal runs give equal bytes.

    Args:
        run_folders: folders of finished runs.
        path: the file, ``<name>.jsonl.gz``.
        places: what stands for folders of this machine, such as ``{"/home/me/data": "<data>"}``; they and the machine's name
            are taken out of everything.

    Returns:
        The records as they are kept.

    Raises:
        ArchiveError: a run is not finished, the runs were made by different code, or a place is left that ``places`` does not
            name.
        RecordError: a record is missing, damaged or not valid.
    """
    entries = [_entry(Path(folder), places) for folder in run_folders]
    refuse_mixed([entry["record"] for entry in entries])
    lines = "".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n" for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))
    return [entry["record"] for entry in entries]


def read_archive(path: Path) -> Iterator[dict[str, Any]]:
    """The runs of an archive: ``record``, ``diagnostics`` by stage, ``original_seal``.

    Args:
        path: as :func:`write_archive` wrote it.

    Raises:
        ArchiveError: the file is damaged.
        RecordError: a record is not valid.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            entries = [json.loads(line) for line in stream]
    except (OSError, EOFError, ValueError) as error:
        raise ArchiveError(f"{path} can't be read as an archive of runs: {error}") from error
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not is_whole(entry):
            raise ArchiveError(f"{path}, line {number} is not what was written: damaged or edited.")
        validate_record(entry["record"], where=f"{path}, line {number}")
        yield entry


def unpack_archive(path: Path, folder: Path) -> list[Path]:
    """Lay the runs of an archive out as run folders, which the reports read: records and diagnostics, nothing else.

    Args:
        path: as :func:`write_archive` wrote it.
        folder: where the run folders go.

    Returns:
        The run folders.

    Raises:
        ArchiveError: the file is damaged, or a name in it is none of a run folder.
        RecordError: a record is not valid.
    """
    made = []
    for entry in read_archive(path):
        record = entry["record"]
        target = folder / Path(record["name"]).name
        if target.name != record["name"] or target.exists():
            raise ArchiveError(
                f"{path}: the run {record['name']!r} can't be laid out as {target}; give an empty folder."
            )
        target.mkdir(parents=True)
        _write(target / RECORD_NAME, record)
        for stage, found in entry["diagnostics"].items():
            (target / f"stage_{int(stage):02d}").mkdir()
            _write(target / f"stage_{int(stage):02d}" / DIAGNOSTICS, found)
        made.append(target)
    return made


def refuse_mixed(records: Sequence[Record]) -> None:
    """Runs that are published together were made by the same code.

    Args:
        records: valid records.

    Raises:
        ArchiveError: names the sources, each with one of its runs.
    """
    sources = {record["provenance"]["source_hash"]: record["name"] for record in records}
    if len(sources) > 1:
        named = ", ".join(f"{source[:8]} ({name})" for source, name in sorted(sources.items()))
        raise ArchiveError(
            f"the runs were made by {len(sources)} different sources of this package: {named}; publish only runs of one, and do "
            "the others again."
        )


def without_places(value: Any, places: Mapping[str, str]) -> Any:
    """A JSON value in which the names of folders are replaced.

    Args:
        value: any JSON value.
        places: folder -> what stands for it; the longest that fits is taken.

    Raises:
        ArchiveError: an absolute path is left.
    """
    if isinstance(value, dict):
        return {key: without_places(item, places) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item, places) for item in value]
    if not isinstance(value, str):
        return value
    for folder in sorted(places, key=len, reverse=True):
        word = places[folder].replace("\\", r"\\")
        value = re.sub(rf"{re.escape(folder.rstrip('/'))}(?![\w.-])", word, value)
    if left := _PLACE.search(value):
        raise ArchiveError(f"{left[0]!r} is a place on this machine; say what stands for it, or for a folder above it.")
    return value


def _entry(folder: Path, places: Mapping[str, str]) -> dict[str, Any]:
    found = read_record(folder)
    if found["status"] != "finished":
        raise ArchiveError(f"{folder} is {found['status']}; only finished runs are kept.")
    about = {**found["provenance"], "host": HIDDEN}
    kept = sealed_record(without_places({**found, "provenance": about}, places))
    diagnostics = {
        str(int(file.parent.name.removeprefix("stage_"))): _rounded(json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(folder.glob(f"stage_*/{DIAGNOSTICS}"))
    }
    return sealed(
        {
            "record": kept,
            "original_seal": record_seal(found),
            "diagnostics": without_places(diagnostics, places),
        }
    )


def _rounded(value: Any) -> Any:
    """Floats with six significant digits: what is measured of an adapter is not known better."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) and math.isfinite(value) else value


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = [
    "ArchiveError",
    "RecordError",
    "read_archive",
    "refuse_mixed",
    "unpack_archive",
    "without_places",
    "write_archive",
]
