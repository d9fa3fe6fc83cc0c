"""The run folder's own log of numbers: one JSON object a line, appended as training goes on."""

import csv
import io
import json
import logging
import math
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from curlora_lab.continual.files import naming_what_is_full, write_atomically
from curlora_lab.integrity import SEAL, is_whole, sealed

logger = logging.getLogger(__name__)


class JsonLinesLogger(Logger):
    """``metrics.jsonl``: every logged metric with its stage and step.

    Args:
        path: the file; what it holds of other stages is kept.

    Attributes:
        stage: the stage that is being trained.
        lines: how many lines the file has of it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.stage = 0
        self.lines = 0

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """There is one version: the run folder's."""
        return ""

    @rank_zero_only
    def start_stage(self, stage: int, keep: int = 0) -> None:
        """Cut the file back: this stage begins anew, or goes on from a checkpoint.

        Args:
            stage: the stage.
            keep: how many lines of it were written when the checkpoint was.
        """
        self.stage, self.lines = stage, keep
        if self.path.is_file():
            lines = read_metrics(self.path)
            others = [line for line in lines if line["stage"] != stage]
            self._rewrite(others + [line for line in lines if line["stage"] == stage][:keep])

    def has(self, stage: int) -> bool:
        """Whether the file has a line of a stage.

        Args:
            stage: the stage.
        """
        return self.path.is_file() and any(line["stage"] == stage for line in read_metrics(self.path))

    @rank_zero_only
    def sort(self) -> None:
        """Put the stages in order; they are not where one in the middle was damaged and done again."""
        lines = read_metrics(self.path) if self.path.is_file() else []
        ordered = sorted(lines, key=lambda line: line["stage"])
        if ordered != lines:
            self._rewrite(ordered)

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration stands in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items() if name != "stage"}
        line = json.dumps(sealed({"stage": self.stage, "step": step, **values})) + "\n"
        with naming_what_is_full(self.path, len(line)), self.path.open("a") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self.lines += 1


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a ``metrics.jsonl``; what a killed process left unfinished is dropped, a changed line too, and said."""
    lines, changed = [], 0
    texts = path.read_text(errors="replace").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            changed += number < len(texts)  # the last one may be what a killed process left
            continue
        if not isinstance(line, dict) or not is_whole(line) or not isinstance(line.get("stage"), int | float):
            changed += 1
            continue
        lines.append(line)
    if changed:
        logger.warning("%s: %d lines are not what was written and are left out.", path, changed)
    return lines


def write_csv(source: Path, target: Path) -> None:
    """The same numbers as a table, one column a metric, for spreadsheets."""
    lines = read_metrics(source) if source.is_file() else []
    columns = list(dict.fromkeys(key for line in lines for key in line if key != SEAL))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)
    write_atomically(target, table.getvalue())
