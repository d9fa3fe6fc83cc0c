"""Open a finished run: backbone, adapter and heads as they were at the end of a stage, from its folder alone.

Files are verified against the run's manifests first, and the model against the fingerprint in the record. The record's
configuration is data: see :mod:`curlora_lab.rebuild` for what is read of it.
"""

import json
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from curlora_lab import rebuild
from curlora_lab.adapters.attach import FULL_WEIGHTS, FullFineTuning, attach, load_adapter
from curlora_lab.backbone import Backbone
from curlora_lab.continual import files, strategies
from curlora_lab.continual.strategies import Strategy
from curlora_lab.data import ClassificationData, Example, PositionSampler
from curlora_lab.data.encoding import Encoded, Encoder
from curlora_lab.data.loading import TokenRows, make_loader
from curlora_lab.rebuild import RunFolderError
from curlora_lab.report import read_record
from curlora_lab.tasks import SequenceClassification, TaskModule
from curlora_lab.tasks.base import Batch, Record

__all__ = ["OpenRun", "RunFolderError", "open_run"]

logger = logging.getLogger(__name__)

RUN_MANIFEST = "RUN_MANIFEST.json"
ADAPTER_CONFIG = "adapter_config.json"

#: Fields of a PEFT configuration that make PEFT import a module or read a file of its own choosing.
REACHING_OUT = (
    "auto_mapping",
    "megatron_config",
    "corda_config",
    "lora_ga_config",
    "prompt_tuning_init_state_dict_path",
    "tokenizer_name_or_path",
    "adapters",  # X-LoRA: paths of other adapters
)

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
    """

    folder: Path
    stage: int
    record: Mapping[str, Any]
    backbone: Backbone
    tasks: Mapping[str, TaskModule]
    learnt: tuple[str, ...]
    device: str = "auto"

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

    def records(self, task: TaskModule, batches: Iterable[Batch]) -> list[Record]:
        """What a task's head says of each row, computed as in the run (precision, evaluation mode).

        Args:
            task: One of :attr:`tasks`.
            batches: Its rows, from a loader.

        Returns:
            One record a row, in order; ``row`` is the index in the loader's rows.
        """
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
                found += task.predict({name: tensor.to(device) for name, tensor in batch.items()})
        return found

    def encode(self, task: SequenceClassification, texts: Sequence[Sequence[str]]) -> Encoded:
        """Texts to tokens exactly as in training: columns, template, separator and length of the task.

        Args:
            task: The task.
            texts: One text a column for each row.
        """
        data = classification_data(task)
        encoder = Encoder(
            self.backbone.tokenizer,
            columns=data.columns,
            template=data.template,
            pairs=data.pairs,
            max_length=data.max_length,
        )
        return encoder.encode(texts)

    def loader(self, task: SequenceClassification, examples: Sequence[Example], *, batch_size: int) -> DataLoader[Any]:
        """Batches of rows from anywhere, encoded as in training; ``row`` is the index in ``examples``.

        Args:
            task: The task.
            examples: At least one row; a label of -1 stands for none.
            batch_size: Rows of a batch.
        """
        rows = TokenRows(self.encode(task, [row.texts for row in examples]), [row.label for row in examples])
        return make_loader(
            rows,
            pad_token_id=self.backbone.tokenizer.pad_token_id,
            sampler=PositionSampler(len(examples), batch_size=batch_size, equal_steps=False),
        )


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
    _refuse_switching(config)
    nodes = rebuild.task_nodes(config)
    if list(nodes) != list(record["tasks"]):
        raise RunFolderError(
            f"{folder / 'results.json'}: tasks are {', '.join(record['tasks'])}, but config has {', '.join(nodes)}."
        )
    try:
        backbone = rebuild.build_backbone(config, path=model_path, trust_remote_code=trust_remote_code)
    except RunFolderError:
        raise
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{error} If the model lies elsewhere now, say where with --model-path.") from error
    _same_model(backbone, record, folder)
    plan = rebuild.evaluation_plan(config)
    tasks = {name: rebuild.build_task(node, backbone=backbone, training=plan) for name, node in nodes.items()}
    place = folder / f"stage_{stage:02d}"
    _load_adapter(backbone, place / "adapter", str(_mapping(config.get("adapter")).get("_target_")))
    learnt = tuple(name for name, at in record["learnt_in"].items() if at <= stage)
    _load_heads([tasks[name] for name in learnt], place / "head.safetensors")
    return OpenRun(
        folder=folder, stage=stage, record=record, backbone=backbone, tasks=tasks, learnt=learnt, device=device
    )


def classification_data(task: TaskModule) -> ClassificationData:
    """The data of a classification task.

    Raises:
        ValueError: The task has no labels.
    """
    if not isinstance(task.data, ClassificationData):
        raise ValueError(f"task {task.name!r} is {type(task).__name__}: it has no labels to predict.")
    return task.data


def _verified_record(folder: Path, *, finished: bool) -> dict[str, Any]:
    """The record, if it is what the run wrote last."""
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder; name a run folder, which holds results.json.")
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
    link = next((path for path in [place, *place.rglob("*")] if path.is_symlink()), None)
    if link is not None:
        raise RunFolderError(
            f"{link} is a link; a run folder holds files only. Copy what it points to, if you trust it."
        )
    manifest = files.read_manifest(place)
    if manifest is None or manifest.get("stage") != stage:
        raise RunFolderError(f"{place} is not a finished stage, or is damaged: its {files.MANIFEST} does not hold.")
    unknown = [path for path in (place / "adapter").rglob("*") if path.is_file() and not _listed(path, place, manifest)]
    if unknown:
        raise RunFolderError(f"{unknown[0]} was not written by the run ({files.MANIFEST} does not know it); remove it.")
    return stage


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


def _refuse_switching(config: Mapping[str, Any]) -> None:
    """A strategy that prepares the model for each task would have to be rebuilt with all its state."""
    target = str(_mapping(config.get("strategy")).get("_target_"))
    kind = (
        getattr(strategies, target.rpartition(".")[2], None) if target.startswith(f"{strategies.__name__}.") else None
    )
    if (
        isinstance(kind, type)
        and issubclass(kind, Strategy)
        and kind.before_evaluation is not Strategy.before_evaluation
    ):
        raise RunFolderError(
            f"the run's strategy {kind.__name__} prepares the model for each task before it is scored; such a run can only "
            "be scored by the run itself."
        )


def _load_adapter(backbone: Backbone, folder: Path, target: str) -> None:
    """Put the stage's adapter on the backbone: full weights, nothing, or a PEFT folder by PEFT's own loading."""
    if target == _NONE:
        return
    if target == _FULL:
        if not (folder / FULL_WEIGHTS).is_file():
            raise RunFolderError(f"{folder} has no {FULL_WEIGHTS}, but the run trained all weights.")
        attach(backbone, FullFineTuning(), seed=0)
        _guarded(load_adapter, backbone, folder)
        backbone.requires_grad_(False)
        return
    for name in (ADAPTER_CONFIG, SAFETENSORS_WEIGHTS_NAME):  # without the second, PEFT would look for a pickle
        if not (folder / name).is_file():
            raise RunFolderError(f"{folder} has no {name}, but the run's adapter is a PEFT adapter ({target}).")
    _refuse_reaching_out(folder / ADAPTER_CONFIG)
    backbone.model = _guarded(PeftModel.from_pretrained, backbone.model, str(folder), torch_device="cpu")
    _guarded(load_adapter, backbone, folder)  # PEFT only warns of tensors that are missing; this refuses them
    backbone.requires_grad_(False)


def _refuse_reaching_out(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is no JSON: {error}") from error
    set_ = [name for name in REACHING_OUT if _mapping(found).get(name)]
    if set_:
        raise RunFolderError(
            f"{path}: {set_[0]} is set, which makes PEFT import or read something outside the folder; it is not loaded."
        )


def _guarded(load: Any, *arguments: Any, **options: Any) -> Any:
    """Call a library with files that may be anything, and name the file's fault in one line."""
    try:
        return load(*arguments, **options)
    except (SafetensorError, RuntimeError, KeyError, TypeError, AttributeError) as error:
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
