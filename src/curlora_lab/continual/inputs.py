"""What a run was given from outside, base weights and rows: known by content, so that a change is never taken for a resume."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curlora_lab.continual import files, identity
from curlora_lab.integrity import SEAL, record_seal

logger = logging.getLogger(__name__)

RECORD = "results.json"


def changed_inputs(record: Mapping[str, Any], *, model: str, rows: Mapping[str, str]) -> list[str]:
    """Name the inputs whose content is not what a record says.

    Args:
        record: A record as it was read; may be damaged.
        model: Fingerprint of the base model and its tokenizer as they are now.
        rows: Fingerprint of each task's rows as they are now.

    Returns:
        One line an input.
    """
    provenance = _mapping(record.get("provenance"))
    lines = []
    if provenance and provenance.get(SEAL) is not None and provenance[SEAL] != record_seal(record):
        lines.append(f"{RECORD} itself was damaged or edited since it was written; remove it if the run is this one")
    there = _mapping(provenance.get("model"))
    if there.get("fingerprint") not in (None, model):
        found = f"fingerprint {_short(there['fingerprint'])} there, {_short(model)} here"
        lines.append(f"the content of the model {there.get('name')!r}: {found}")
    recorded = _mapping(provenance.get("data"))
    for task, found in rows.items():
        expected = _mapping(recorded.get(task)).get("fingerprint")
        if expected not in (None, found):
            lines.append(f"the rows of task {task!r}: fingerprint {_short(expected)} there, {_short(found)} here")
    return lines


def what_differs(
    record: Mapping[str, Any], config: Mapping[str, Any], *, model: str, rows: Mapping[str, str]
) -> list[str]:
    """In what a recorded run is another one than this: configuration, code, inputs; one line each.

    Args:
        record: Its record as it was read.
        config: The resolved configuration here.
        model: As for :func:`changed_inputs`.
        rows: As for :func:`changed_inputs`.
    """
    lines = identity.differences(_mapping(record.get("config")), config)
    if _mapping(record.get("provenance")).get("source_hash") != identity.source_hash():
        lines.append("the code of this package has changed since")
    lines += changed_inputs(record, model=model, rows=rows)
    return lines or ["the content of adapter.init_from, of a probe or of a strategy's text has changed since"]


def name_changed_runs(folder: Path, config: Mapping[str, Any], *, model: str, rows: Mapping[str, str]) -> None:
    """Say which runs beside this one have its configuration but were given other content: they are not continued.

    Args:
        folder: This run's folder, named by what determines its numbers.
        config: Its resolved configuration.
        model: As for :func:`changed_inputs`.
        rows: As for :func:`changed_inputs`.
    """
    stem = folder.name.rpartition("-")[0]
    for path in sorted(folder.parent.glob(f"{stem}-*/{RECORD}")) if stem else ():
        if path.parent == folder:
            continue
        record = files.read_json(path)
        if identity.differences(_mapping(record.get("config")), config):
            continue
        lines = changed_inputs(record, model=model, rows=rows)
        if lines:
            logger.warning(
                "%s has this configuration and is not continued; what has changed: %s.",
                path.parent.name,
                "; ".join(lines),
            )


def _short(fingerprint: Any) -> str:
    return str(fingerprint)[:12]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
