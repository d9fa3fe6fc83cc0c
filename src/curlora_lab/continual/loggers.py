"""The run folder's own log of numbers: one JSON object a line, appended as training goes on."""

import csv
import json
import math
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class JsonLinesLogger(Logger):
    """``metrics.jsonl``: every logged metric with its stage and step.

    Args:
        path: the file; what it holds of stages before :attr:`stage` is kept.

    Attributes:
        stage: the stage that is being trained.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.stage = 0

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """There is one version: the run folder's."""
        return ""

    @rank_zero_only
    def start_stage(self, stage: int) -> None:
        """Cut the file back to what earlier stages wrote: this stage begins anew."""
        self.stage = stage
        if self.path.is_file():
            kept = [line for line in read_metrics(self.path) if line["stage"] < stage]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(self.path)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration stands in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"stage": self.stage, "step": step, **values})
        with self.path.open("a") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a ``metrics.jsonl``; a line that a killed process left unfinished is dropped."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def write_csv(source: Path, target: Path) -> None:
    """The same numbers as a table, one column a metric, for spreadsheets."""
    lines = read_metrics(source) if source.is_file() else []
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with target.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns)
        writer.writeheader()
        writer.writerows(lines)
