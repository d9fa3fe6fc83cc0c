"""Finished stages on disk: what a stage leaves behind, and how it is found, reused and restored."""

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from curlora_lab.adapters.attach import load_adapter, save_adapter, trainable_state
from curlora_lab.backbone import Backbone
from curlora_lab.continual.environment import Environment, merged
from curlora_lab.continual.files import (
    MANIFEST,
    read_json,
    read_manifest,
    replacing,
    size_below,
    write_atomically,
    write_json,
    write_manifest,
)
from curlora_lab.continual.strategies import Strategy
from curlora_lab.continual.tensors import load_tensors, save_tensors, size_of
from curlora_lab.integrity import sealed
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Record

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
        cost: seconds, tokens, memory; under ``strategy`` what the strategy spent and holds.
        reasons: why a value is null, by dotted path.
    """

    stage: int
    task: str | None = None
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    choose: dict[str, float] | None = None
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    shift: dict[str, Any] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class StageStore:
    """The stages of one run folder.

    Args:
        folder: the run folder.
        keys: identity of each row, see :func:`curlora_lab.continual.identity.stage_keys`.
        equal: identities under which another run's rows are the same as this one's.
    """

    def __init__(self, folder: Path, keys: Sequence[str], *, equal: Sequence[str] = ()) -> None:
        self.folder = folder
        self.keys = list(keys)
        self.equal = set(equal)

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
        """Copy a finished stage with an equal key from another run below the same output folder; returns that run."""
        wanted = {self.keys[stage], *self.equal}
        for manifest in sorted(self.folder.parent.parent.glob(f"*/*/stage_{stage:02d}/{MANIFEST}")):
            source = manifest.parent
            if source.parent == self.folder or _key(manifest) not in wanted or read_manifest(source) is None:
                continue
            with replacing(self.path(stage), size=size_below(source)) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
                copied = {"reused_from": source.parent.name, **read_json(folder / MANIFEST), "key": self.keys[stage]}
                write_json(folder / MANIFEST, sealed(copied))
            return source.parent
        return None

    def reused_from(self, stage: int) -> str | None:
        """Name of the run that a stage was copied from, also if that one was itself copied; ``None`` if made here."""
        origin = read_json(self.path(stage) / MANIFEST).get("reused_from")
        return None if origin is None else str(origin)

    def environments(self, stage: int) -> list[Environment]:
        """Versions and devices with which a finished stage was trained and scored, see ``continual.environment``."""
        return merged(read_json(self.path(stage) / MANIFEST).get("environments", []))

    def write(
        self,
        row: Row,
        predictions: Predictions,
        *,
        backbone: Backbone,
        learnt: Sequence[TaskModule],
        strategy: Strategy,
        diagnostics: Mapping[str, Any] | None = None,
        environments: Sequence[Environment] = (),
    ) -> None:
        """Save a stage: adapter, heads learnt so far, strategy, scores, predictions, diagnostics; the manifest comes last."""
        heads = _heads(learnt)
        size = size_of(trainable_state(backbone)) + size_of(heads) + size_of(strategy.state())
        with replacing(self.path(row.stage), size=size) as folder:
            if row.stage > 0:
                save_adapter(backbone, folder / "adapter")
                save_tensors(heads, folder / "head.safetensors")
                save_tensors(strategy.state(), folder / "strategy.safetensors")
            if diagnostics is not None:
                write_json(folder / "diagnostics.json", diagnostics)
            _write_measured(folder, row, predictions)
            about = {"key": self.keys[row.stage], "stage": row.stage, "task": row.task}
            write_manifest(folder, {**about, "environments": list(environments)})

    def extend(self, row: Row, predictions: Predictions, *, environments: Sequence[Environment] = ()) -> None:
        """Add scores and predictions of further tasks to a stage that was reused from a shorter run."""
        known = merged(self.environments(row.stage), environments)
        with replacing(self.path(row.stage), size=size_below(self.path(row.stage))) as folder:
            shutil.copytree(self.path(row.stage), folder, dirs_exist_ok=True)
            about = {key: value for key, value in read_json(folder / MANIFEST).items() if key != "files"}
            (folder / MANIFEST).unlink()
            _write_measured(folder, row, predictions)
            write_manifest(folder, {**about, "environments": known})

    def restore(self, stage: int, *, backbone: Backbone, learnt: Sequence[TaskModule], strategy: Strategy) -> None:
        """Bring backbone, heads and strategy to where they were at the end of a stage; stage 0 is where they are now."""
        if stage == 0:
            return
        folder = self.path(stage)
        load_adapter(backbone, folder / "adapter")
        heads = load_tensors(folder / "head.safetensors")
        for task in learnt:
            if task.head is not None:
                prefix = f"{task.name}/"
                state = {name.removeprefix(prefix): value for name, value in heads.items() if name.startswith(prefix)}
                task.head.load_state_dict(state)
        strategy.load_state(load_tensors(folder / "strategy.safetensors"))


def write_predictions(path: Path, records: Sequence[Record]) -> None:
    """Write one JSON object a line, compressed; equal records give equal bytes."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_atomically(path, gzip.compress(lines.encode(), mtime=0))


def read_predictions(path: Path) -> list[Record]:
    """Read what :func:`write_predictions` wrote.

    Raises:
        ValueError: the file is cut off, or a line is no prediction.
        OSError: it can't be opened, or is not compressed.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            records = [json.loads(line) for line in stream]
    except (EOFError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as predictions ({type(error).__name__}).") from error
    if not all(isinstance(record, dict) and "row" in record for record in records):
        raise ValueError(
            f"{path} holds lines that are no predictions: each is an object with the row's name under 'row'."
        )
    return records


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
