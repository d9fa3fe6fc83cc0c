"""Reading and checking a record (``results.json``) as plain data; nothing in it is ever instantiated or run."""

import functools
import importlib.resources
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jsonschema

from curlora_lab.integrity import SEAL, record_seal

RECORD_NAME = "results.json"
MOST_FAULTS = 10

Record = dict[str, Any]


class RecordError(ValueError):
    """A record that is missing, unreadable or not what the schema says; the message names every fault."""


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``results.json``.

    Returns:
        The schema as a dictionary; do not change it.
    """
    text = importlib.resources.files("curlora_lab.report").joinpath("results.schema.json").read_text(encoding="utf-8")
    return json.loads(text)


def validate_record(record: Mapping[str, Any], *, where: str = "record") -> None:
    """Check a record against the schema, then that its parts fit together.

    Args:
        record: What ``results.json`` holds.
        where: Name of the record in the message.

    Raises:
        RecordError: With the first faults, each with its place.
    """
    validator = jsonschema.Draft202012Validator(schema())
    found = sorted(validator.iter_errors(dict(record)), key=lambda error: [str(part) for part in error.absolute_path])
    faults = [f"{_place(error)}: {_message(error)}" for error in found]
    faults = faults or list(_inconsistencies(record))
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:MOST_FAULTS])
        more = f"\n  and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise RecordError(f"{where} does not hold what a record must:{shown}{more}")


def read_record(path: Path | str) -> Record:
    """Read and check a record.

    Args:
        path: ``results.json`` or the run folder that holds it.

    Returns:
        The record.

    Raises:
        RecordError: When there is none, it is no JSON, or it is not valid.
    """
    file = Path(path)
    file = file / RECORD_NAME if file.is_dir() else file
    if file.exists() and not file.is_file():
        raise RecordError(f"{file} is no ordinary file (a device or a pipe); a record is a JSON file")
    try:
        record = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise RecordError(f"{file} does not exist; name a run folder that holds {RECORD_NAME}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{file} cannot be read: {error}") from error
    except ValueError as error:
        raise RecordError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise RecordError(f"{file} holds a {type(record).__name__}; a record is an object")
    validate_record(record, where=str(file))
    _refuse_changed(record, where=str(file))
    return record


def _refuse_changed(record: Mapping[str, Any], *, where: str) -> None:
    """A record that carries a seal is what was sealed; records put together by hand have none."""
    expected = record["provenance"].get(SEAL)
    found = record_seal(record)
    if expected is not None and expected != found:
        raise RecordError(
            f"{where} is not what the run wrote: its content hashes to {found}, sealed was {expected}; it was damaged or edited. "
            "Give the command that made it again, and it is written anew from the stages."
        )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number; a missing value is null with a reason")


def _place(error: jsonschema.ValidationError) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    return path.lstrip(".") or "top level"


def _message(error: jsonschema.ValidationError) -> str:
    # The instance itself may be pages long; its beginning is enough to recognise it.
    return error.message if len(error.message) <= 200 else f"{error.message[:120]} ... {error.message[-60:]}"


def _inconsistencies(record: Mapping[str, Any]) -> Iterator[str]:
    """Faults that a schema cannot express: sizes that differ, tasks that are not there, nulls without a reason."""
    tasks, rows = record["tasks"], len(record["scores"])
    for i, row in enumerate(record["scores"]):
        if len(row) != len(tasks):
            yield f"scores[{i}]: {len(row)} entries for {len(tasks)} tasks"
    for key in ("metric", "metrics", "baselines", "learnt_in"):
        named = record.get(key)
        if named is not None and set(named) != set(tasks):
            yield f"{key}: names {', '.join(sorted(named)) or 'no task'}; tasks are {', '.join(tasks)}"
    for path, values in _rowwise(record):
        if len(values) != rows:
            yield f"{path}: {len(values)} entries for {rows} rows of the score matrix"
    for task, stage in record.get("learnt_in", {}).items():
        if stage >= rows:
            yield f"learnt_in.{task}: stage {stage} of {rows - 1}"
    for name, value in record["continual"].items():
        if value is None and f"continual.{name}" not in record["reasons"]:
            yield f"continual.{name}: null without a reason in reasons"


def _rowwise(record: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Everything that has one entry a row of the score matrix, with its path."""
    for task, values in record["metrics"].items():
        yield f"metrics.{task}", values
    for key in ("perplexity", "bits_per_character"):
        for probe, values in record["probes"][key].items():
            yield f"probes.{key}.{probe}", values
    yield "shift.weight", record["shift"]["weight"]
    for probe, values in record["shift"]["output"].items():
        yield f"shift.output.{probe}", values
