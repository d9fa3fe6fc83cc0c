"""Open a finished run: backbone, adapter and heads as they were at the end of a stage, from its folder alone.

Files are verified against the run's manifests first, and the model against the fingerprint in the record. The record's
configuration is data: see :mod:`curlora_lab.rebuild` for what is read of it.
"""

import gzip
import logging
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from curlora_lab import rebuild
from curlora_lab.adapters.attach import FULL_WEIGHTS, FullFineTuning, attach, load_adapter, stored_adapters
from curlora_lab.adapters.foreign import AdapterFolderError, check_adapter_folder, check_weights
from curlora_lab.adapters.several import activate
from curlora_lab.adapters.start import CHANGES_BASE, start_adapter
from curlora_lab.backbone import Backbone
from curlora_lab.continual import files, strategies
from curlora_lab.continual.strategies import Strategy, per_task
from curlora_lab.data.loading import make_loader
from curlora_lab.rebuild import RunFolderError
from curlora_lab.report import read_record
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch, Record

__all__ = ["OpenRun", "RunFolderError", "open_run"]


RUN_MANIFEST = "RUN_MANIFEST.json"

#: Predictions of a task may unpack to so many bytes; a file smaller than the second can't exceed it (deflate gives at most 1032).
LARGEST_PREDICTIONS, SURELY_SMALL = 1 << 28, 1 << 18

#: Adapter kinds of the lab that are no PEFT adapters, by the ``_target_`` in the record.
_FULL = "curlora_lab.adapters.attach.FullFineTuning"
_NONE = "curlora_lab.adapters.attach.HeadOnly"


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run at the end of one of its stages, ready to be asked.

    Args:
        folder: The run folder.
        stage: The stage whose weights these are.
        record: The run's record, checked against its schema.
        backbone: Backbone with the adapter of that stage.
        tasks: All tasks of the run, by name; rows are not read yet.
        learnt: Names of those that were learnt by then; the heads of the others are as before any training.
        device: Where it is computed: ``auto``, ``cpu``, ``cuda``.
        adapters: Which of several adapters each task is scored with; empty where there is only one.
    """

    folder: Path
    stage: int
    record: Mapping[str, Any]
    backbone: Backbone
    tasks: Mapping[str, TaskModule]
    learnt: tuple[str, ...]
    device: str = "auto"
    adapters: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def stage_folder(self) -> Path:
        """What the stage left behind: ``adapter/``, ``head.safetensors``, ``predictions/``, ``scores.json``."""
        return self.folder / f"stage_{self.stage:02d}"

    @property
    def config(self) -> Mapping[str, Any]:
        """The recorded configuration: data, never to be instantiated."""
        return self.record["config"]

    def task(self, name: str) -> TaskModule:
        """A task by name.

        Raises:
            RunFolderError: The run has no such task.
        """
        if name not in self.tasks:
            raise RunFolderError(f"{self.folder} has no task {name!r}; it has {', '.join(self.tasks)}.")
        return self.tasks[name]

    def switch_to(self, task: TaskModule) -> None:
        """Let the backbone be what the task is scored with, where tasks have adapters of their own."""
        if task.name in self.adapters:
            activate(self.backbone, self.adapters[task.name], train=None)

    def records(self, task: TaskModule, role: str | None = None, *, batch_size: int | None = None) -> list[Record]:
        """What a task's head says of each row, computed as in the run (precision, evaluation mode).

        Args:
            task: One of :attr:`tasks`, its rows prepared (or given, see ``TaskData.only``).
            role: Which of them: ``train``, ``choose`` or ``test``; ``None`` for those that the run scored.
            batch_size: Rows of a batch; ``None`` for as many as in the run.

        Returns:
            One record a row, in order, as a run stores them.
        """
        self.switch_to(task)
        role = role or task.data.evaluated
        batches = make_loader(task.data.rows(role), batch_size=batch_size or task.training_plan.eval_batch_size)
        precision = str(_mapping(self.config.get("trainer")).get("precision", "32-true"))
        with warnings.catch_warnings(), _quiet("lightning.pytorch"):
            warnings.simplefilter("ignore")  # Lightning's advice on devices is meant for training
            trainer = L.Trainer(
                accelerator=self.device,
                devices=1,
                precision=precision,  # type: ignore[arg-type]
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        plugin, device = trainer.precision_plugin, trainer.strategy.root_device
        if not getattr(self.backbone.transformers_model, "is_quantized", False):
            plugin.convert_module(task).to(device)
        task.eval()
        found: list[Record] = []
        with torch.inference_mode(), plugin.forward_context():
            for batch in batches:
                found += self._predicted(task, {name: tensor.to(device) for name, tensor in batch.items()})
        return task.checked(found, role)

    def _predicted(self, task: TaskModule, batch: Batch) -> list[Record]:
        """Predictions of a batch; a record whose parts do not fit each other shows here at the latest."""
        try:
            return task.predict(batch)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, LookupError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise RunFolderError(
                f"{self.folder}: task {task.name!r} can't be computed as the record says ({type(error).__name__}: {first})."
            ) from error


def open_run(
    folder: str | Path,
    *,
    stage: int | None = None,
    model_path: str | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
) -> OpenRun:
    """Open a run folder.

    Args:
        folder: The run folder.
        stage: Stage from 1; ``None`` for the last. An unfinished run can be opened at a stage that is finished.
        model_path: Where the backbone lies now, if not where it lay in the run.
        trust_remote_code: Run code from the model's repository; off unless asked in so many words.
        device: Where to compute: ``auto``, ``cpu``, ``cuda``.

    Raises:
        RunFolderError: The folder is no run, is not finished, was changed since, names what is not allowed, or the model is
            another one.
        RecordError: ``results.json`` is not what a record must be.
        ValueError: The model or the adapter can't be loaded.
    """
    folder = Path(folder).expanduser()
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, and torch finds no GPU here; use auto or cpu.")
    record = _verified_record(folder, finished=stage is None)
    stage = _verified_stage(folder, record, stage)
    config = record["config"]
    nodes = rebuild.task_nodes(config)
    if list(nodes) != list(record["tasks"]):
        raise RunFolderError(
            f"{folder / 'results.json'}: tasks are {', '.join(record['tasks'])}, but config has {', '.join(nodes)}."
        )
    try:
        backbone = rebuild.build_backbone(config, path=model_path, trust_remote_code=trust_remote_code)
    except RunFolderError:
        raise
    except Exception as error:  # a model folder may be anything, and each library has errors of its own
        kind = "" if isinstance(error, ValueError | OSError) else f"The model can't be built: {type(error).__name__}: "
        said = " ".join(str(error).split())[:500]
        raise RunFolderError(f"{kind}{said} If the model lies elsewhere now, say where with --model-path.") from error
    _same_model(backbone, record, folder)
    plan = rebuild.evaluation_plan(config)
    tasks = {name: rebuild.build_task(node, backbone=backbone, training=plan) for name, node in nodes.items()}
    place = folder / f"stage_{stage:02d}"
    adapters = _adapters(config, place, tasks)
    _load_adapter(backbone, place / "adapter", _mapping(config.get("adapter")))
    learnt = tuple(name for name, at in record["learnt_in"].items() if at <= stage)
    _load_heads([tasks[name] for name in learnt], place / "head.safetensors")
    if adapters and learnt:
        activate(backbone, adapters[learnt[-1]], train=None)
    for task in tasks.values():
        task.seen = [tasks[name] for name in learnt]
    return OpenRun(
        folder=folder,
        stage=stage,
        record=record,
        backbone=backbone,
        tasks=tasks,
        learnt=learnt,
        device=device,
        adapters=adapters,
    )


def _verified_record(folder: Path, *, finished: bool) -> dict[str, Any]:
    """The record, if it is what the run wrote last."""
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder; name a run folder, which holds results.json.")
    for name in ("results.json", RUN_MANIFEST):
        _refuse_no_file(folder / name)
    record = read_record(folder)
    manifest = files.read_json(folder / RUN_MANIFEST)
    if not manifest:
        if finished:
            raise RunFolderError(
                f"{folder} is not finished (status {record['status']!r}). Give the command that made it again to finish "
                "it, or name a stage that is finished with --stage."
            )
        return record
    expected, found = _mapping(manifest.get("files")).get("results.json"), files.hash_file(folder / "results.json")
    if expected != found:
        raise RunFolderError(
            f"{folder / 'results.json'} is not what the run wrote: sha256 {found}, expected {expected} ({RUN_MANIFEST})."
        )
    return record


def _verified_stage(folder: Path, record: Mapping[str, Any], stage: int | None) -> int:
    """The stage's number, if its files are whole, all its own and inside the folder."""
    last = len(record["scores"]) - 1
    stage = last if stage is None else stage
    if not 1 <= stage <= last:
        hint = " Stage 0 is the model before any training, and its scores are in results.json." if stage == 0 else ""
        raise RunFolderError(f"stage is {stage}; {folder.name} has stages 1 to {last}.{hint}")
    place = folder / f"stage_{stage:02d}"
    for path in [place, *place.rglob("*")]:
        _refuse_no_file(path)
    manifest = files.read_manifest(place)
    if manifest is None or manifest.get("stage") != stage:
        raise RunFolderError(f"{place} is not a finished stage, or is damaged: its {files.MANIFEST} does not hold.")
    unknown = [path for path in (place / "adapter").rglob("*") if path.is_file() and not _listed(path, place, manifest)]
    if unknown:
        raise RunFolderError(f"{unknown[0]} was not written by the run ({files.MANIFEST} does not know it); remove it.")
    _refuse_bombs(place)
    return stage


def _refuse_no_file(path: Path) -> None:
    """Links lead elsewhere, devices and pipes never end; a run folder holds files and folders."""
    if path.is_symlink():
        raise RunFolderError(
            f"{path} is a link; a run folder holds files only. Copy what it points to, if you trust it."
        )
    if path.exists() and not path.is_file() and not path.is_dir():
        raise RunFolderError(f"{path} is a device or a pipe; a run folder holds files only.")


def _refuse_bombs(place: Path) -> None:
    """Predictions that unpack to far more than they could be."""
    for path in place.glob("predictions/*.gz"):
        if path.stat().st_size <= SURELY_SMALL:
            continue
        unpacked = 0
        try:
            with gzip.open(path) as stream:
                while (block := stream.read(1 << 20)) and unpacked <= LARGEST_PREDICTIONS:
                    unpacked += len(block)
        except (OSError, EOFError, zlib.error) as error:
            raise RunFolderError(f"{path} is no whole archive ({error}).") from error
        if unpacked > LARGEST_PREDICTIONS:
            raise RunFolderError(f"{path} unpacks to more than {LARGEST_PREDICTIONS} bytes; it is not read.")


def _listed(path: Path, place: Path, manifest: Mapping[str, Any]) -> bool:
    return str(path.relative_to(place)) in manifest["files"]


def _same_model(backbone: Backbone, record: Mapping[str, Any], folder: Path) -> None:
    recorded = record["provenance"]["model"]
    expected = recorded.get("fingerprint")
    if backbone.fingerprint != expected:
        raise RunFolderError(
            f"{backbone.source['path']!r} is another model than {folder.name} was trained on ({recorded.get('path')!r}): "
            f"fingerprint of weights and tokenizer {backbone.fingerprint}, recorded {expected}. Name the right one with "
            "--model-path."
        )


def _adapters(config: Mapping[str, Any], place: Path, tasks: Iterable[str]) -> dict[str, list[str]]:
    """Which of a stage's adapters each task is scored with, as the run's strategy has it; empty where there is only one."""
    node = _mapping(config.get("strategy"))
    package, _, name = str(node.get("_target_")).rpartition(".")
    kind = getattr(strategies, name, None) if package == strategies.__name__ else None
    there = list(stored_adapters(place / "adapter"))
    if kind in (strategies.OLora, strategies.NLora):
        return dict.fromkeys(tasks, there)
    if kind is strategies.PerTaskAdapters:
        found = _guarded(per_task.adapters_from, tasks, str(node.get("start")), place / "strategy.safetensors")
        missing = {adapter for adapters in found.values() for adapter in adapters} - set(there)
        if missing:
            raise RunFolderError(f"{place / 'adapter'} lacks the adapters {', '.join(sorted(missing))}.")
        return found
    known = kind if isinstance(kind, type) and issubclass(kind, Strategy) else Strategy
    if known.before_evaluation is not Strategy.before_evaluation:
        raise RunFolderError(
            f"the run's strategy {known.__name__} prepares the model for each task before it is scored; such a run can only "
            "be scored by the run itself."
        )
    return {}


def _load_adapter(backbone: Backbone, folder: Path, node: Mapping[str, Any]) -> None:
    """Put the stage's adapter on the backbone: full weights, nothing, or a PEFT folder by PEFT's own loading."""
    target = str(node.get("_target_"))
    if target == _NONE:
        return
    if target == _FULL:
        if not (folder / FULL_WEIGHTS).is_file():
            raise RunFolderError(f"{folder} has no {FULL_WEIGHTS}, but the run trained all weights.")
        attach(backbone, FullFineTuning(), seed=0)
        _guarded(check_weights, folder / FULL_WEIGHTS)
        _guarded(load_adapter, backbone, folder)
        backbone.requires_grad_(False)
        return
    for place in stored_adapters(folder).values():
        _guarded(check_adapter_folder, place)
    backbone.model = _guarded(PeftModel.from_pretrained, backbone.model, str(folder), torch_device="cpu")
    if node.get("start") in CHANGES_BASE:  # what the adapter took out of the base weight is no part of its folder
        _guarded(start_adapter, backbone.model, node["start"], seed=0)
    _guarded(load_adapter, backbone, folder)  # PEFT only warns of tensors that are missing; this refuses them
    backbone.requires_grad_(False)


def _guarded(load: Any, *arguments: Any, **options: Any) -> Any:
    """Call a library with files that may be anything, and name the file's fault in one line."""
    try:
        return load(*arguments, **options)
    except AdapterFolderError as error:
        raise RunFolderError(str(error)) from error
    except (
        SafetensorError,
        RuntimeError,
        MemoryError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        first = (str(error).splitlines() or [""])[0]
        raise RunFolderError(f"{arguments[-1]} cannot be loaded ({type(error).__name__}: {first}).") from error


def _load_heads(tasks: Sequence[TaskModule], path: Path) -> None:
    """Give each task its head; keys are ``<task>/<parameter>``."""
    heads: dict[str, Tensor] = _guarded(load_file, path) if path.is_file() else {}
    for task in tasks:
        if task.head is None:
            continue
        prefix = f"{task.name}/"
        state = {name.removeprefix(prefix): value for name, value in heads.items() if name.startswith(prefix)}
        expected = {name: tuple(value.shape) for name, value in task.head.state_dict().items()}
        stored = {name: tuple(value.shape) for name, value in state.items()}
        if expected != stored:
            raise RunFolderError(
                f"{path} does not hold the head of task {task.name!r}: needed {expected}, found {stored or 'nothing'}."
            )
        task.head.load_state_dict(state)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


class _quiet:  # noqa: N801  a context manager, read as a verb
    """Raise a logger's level for a while."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)
        self.level = self.logger.level

    def __enter__(self) -> None:
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)
