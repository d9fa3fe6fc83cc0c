"""Finished stages on disk: what a stage leaves behind, and how it is found, reused and restored."""

import gzip
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from curlora_lab.adapters.attach import load_adapter, save_adapter
from curlora_lab.backbone import Backbone
from curlora_lab.continual.files import (
    MANIFEST,
    read_json,
    read_manifest,
    sync_folder,
    write_atomically,
    write_json,
    write_manifest,
)
from curlora_lab.continual.strategies import Strategy
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Record

logger = logging.getLogger(__name__)

Predictions = Mapping[str, Sequence[Record]]


@dataclass
class Row:
    """One row of the score matrix and all that was measured with it; ``scores.json`` of a stage.

    Args:
        stage: 0 before any training, then counted from 1.
        task: the task that was trained in this stage.
        metrics: every metric of every task.
        choose: metrics of the trained task on the rows set aside for choosing, last epoch.
        probes: what each probe measured of the language model.
        shift: how far weights and outputs moved from where they were before any training.
        findings: what a sceptic would object to.
        cost: seconds, tokens, memory.
        reasons: why a value is null, by dotted path.
    """

    stage: int
    task: str | None = None
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    choose: dict[str, float] | None = None
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    shift: dict[str, Any] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class StageStore:
    """The stages of one run folder.

    Args:
        folder: the run folder.
        keys: identity of each row, see :func:`curlora_lab.continual.identity.stage_keys`.
    """

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        self.folder = folder
        self.keys = list(keys)

    def path(self, stage: int) -> Path:
        """Folder of a stage."""
        return self.folder / f"stage_{stage:02d}"

    def finished(self, stage: int) -> Row | None:
        """The row of a stage that is finished, whole and of this run; else ``None``."""
        manifest = read_manifest(self.path(stage))
        if manifest is None or manifest.get("key") != self.keys[stage]:
            return None
        return Row(**json.loads((self.path(stage) / "scores.json").read_text()))

    def adopt(self, stage: int) -> Path | None:
        """Copy a finished stage with the same key from another run below the same output folder; returns that run."""
        for manifest in sorted(self.folder.parent.parent.glob(f"*/*/stage_{stage:02d}/{MANIFEST}")):
            source = manifest.parent
            if source.parent == self.folder or _key(manifest) != self.keys[stage] or read_manifest(source) is None:
                continue
            with self._replacing(stage) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
                copied = read_json(folder / MANIFEST)
                write_json(folder / MANIFEST, {"reused_from": source.parent.name, **copied})
            return source.parent
        return None

    def reused_from(self, stage: int) -> str | None:
        """Name of the run that a stage was copied from, also if that one was itself copied; ``None`` if made here."""
        origin = read_json(self.path(stage) / MANIFEST).get("reused_from")
        return None if origin is None else str(origin)

    def write(
        self,
        row: Row,
        predictions: Predictions,
        *,
        backbone: Backbone,
        learnt: Sequence[TaskModule],
        strategy: Strategy,
    ) -> None:
        """Save a stage: adapter, heads learnt so far, strategy, scores, predictions; the manifest comes last."""
        with self._replacing(row.stage) as folder:
            if row.stage > 0:
                save_adapter(backbone, folder / "adapter")
                _save_tensors(_heads(learnt), folder / "head.safetensors")
                _save_tensors(strategy.state(), folder / "strategy.safetensors")
            _write_measured(folder, row, predictions)
            write_manifest(folder, {"key": self.keys[row.stage], "stage": row.stage, "task": row.task})

    def extend(self, row: Row, predictions: Predictions) -> None:
        """Add scores and predictions of further tasks to a stage that was reused from a shorter run."""
        with self._replacing(row.stage) as folder:
            shutil.copytree(self.path(row.stage), folder, dirs_exist_ok=True)
            about = {key: value for key, value in read_json(folder / MANIFEST).items() if key != "files"}
            (folder / MANIFEST).unlink()
            _write_measured(folder, row, predictions)
            write_manifest(folder, about)

    def restore(self, stage: int, *, backbone: Backbone, learnt: Sequence[TaskModule], strategy: Strategy) -> None:
        """Bring backbone, heads and strategy to where they were at the end of a stage; stage 0 is where they are now."""
        if stage == 0:
            return
        folder = self.path(stage)
        load_adapter(backbone, folder / "adapter")
        heads = _load_tensors(folder / "head.safetensors")
        for task in learnt:
            if task.head is not None:
                prefix = f"{task.name}/"
                state = {name.removeprefix(prefix): value for name, value in heads.items() if name.startswith(prefix)}
                task.head.load_state_dict(state)
        strategy.load_state(_load_tensors(folder / "strategy.safetensors"))

    @contextmanager
    def _replacing(self, stage: int) -> Iterator[Path]:
        """An empty folder to fill, which then takes the stage's name; nothing half-written ever has that name."""
        final = self.path(stage)
        temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(self.folder)


def write_predictions(path: Path, records: Sequence[Record]) -> None:
    """Write one JSON object a line, compressed; equal records give equal bytes."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_atomically(path, gzip.compress(lines.encode(), mtime=0))


def read_predictions(path: Path) -> list[Record]:
    """Read what :func:`write_predictions` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _write_measured(folder: Path, row: Row, predictions: Predictions) -> None:
    for task, records in predictions.items():
        write_predictions(folder / "predictions" / f"{task}.jsonl.gz", records)
    write_json(folder / "scores.json", asdict(row))


def _key(manifest: Path) -> str | None:
    try:
        return str(json.loads(manifest.read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _heads(tasks: Sequence[TaskModule]) -> dict[str, Tensor]:
    return {
        f"{task.name}/{name}": value
        for task in tasks
        if task.head is not None
        for name, value in task.head.state_dict().items()
    }


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    if tensors:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.is_file() else {}
