"""A finished run, sent to loggers that were not there when it was trained: everything it logged, then what it found.

Idempotent: what was published is noted in the run folder, so that the same command again sends nothing twice.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger

from curlora_lab.continual.files import read_json, write_json
from curlora_lab.continual.loggers import read_metrics
from curlora_lab.integrity import SEAL

logger = logging.getLogger(__name__)

#: In the run folder: what was published where.
NOTE = "published.json"

#: Keys that belong to a row of the score matrix, and not to a step of training.
OF_STAGE = ("eval/", "probe/", "shift/", "continual/")


@runtime_checkable
class Publisher(Protocol):
    """A logger that also takes the finished run: tables, pictures, files."""

    def publish(self, record: Mapping[str, Any], folder: Path) -> None:
        """Send the record and what the folder holds."""
        ...


def note(folder: Path, nodes: Mapping[str, Any]) -> None:
    """Write down that the run is in these loggers.

    Args:
        folder: the run folder.
        nodes: the configuration's ``logger``.
    """
    if nodes:
        write_json(folder / NOTE, {**read_json(folder / NOTE), **dict.fromkeys(map(_place, nodes), True)})


def publish_missing(
    record: Mapping[str, Any], folder: Path, *, nodes: Mapping[str, Any], about: Mapping[str, Any]
) -> list[str]:
    """Send a finished run to the loggers that do not have it yet.

    Args:
        record: its record.
        folder: its run folder.
        nodes: the configuration's ``logger``.
        about: what loggers are told of the run: its configuration and key.

    Returns:
        The loggers that got it, by their key in ``nodes``.
    """
    noted = read_json(folder / NOTE)
    missing = {key: node for key, node in nodes.items() if _place(key) not in noted}
    for key, node in missing.items():
        sink: Logger = instantiate(node, _convert_="all")(save_dir=str(folder))
        sink.log_hyperparams(dict(about))
        for line in read_metrics(folder / "metrics.jsonl"):
            _log(sink, line)
        if isinstance(sink, Publisher):
            sink.publish(record, folder)
        sink.finalize("success")
        logger.info("The finished run was sent to %s.", key)
    note(folder, missing)
    return list(missing)


def _log(sink: Logger, line: Mapping[str, Any]) -> None:
    """Log a line of ``metrics.jsonl`` as training did."""
    values = {name: value for name, value in line.items() if name not in ("stage", "step", SEAL) and value is not None}
    if any(name.startswith(OF_STAGE) for name in values):
        sink.log_metrics({"stage": int(line["stage"]), **values}, step=int(line["stage"]))
    else:
        sink.log_metrics(values, step=line.get("step"))


def _place(key: str) -> str:
    """A logger; in a W&B sweep each trial is a W&B run of its own, whose id the sweep's agent chose."""
    trial = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return f"{key}:{trial}" if trial else key
