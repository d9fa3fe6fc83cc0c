"""The composition root: build the parts that a configuration names, go through the stages, leave a run folder.

The same configuration again finds the finished run; an unfinished one goes on with the stage that was not finished; a
longer sequence reuses the stages it shares with a shorter one.
"""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from rich.console import Console
from transformers.utils import logging as transformers_logging

from curlora_lab import config as configuration
from curlora_lab.adapters.attach import Adapter, attach, find_adapter, save_adapter
from curlora_lab.backbone import Backbone
from curlora_lab.config import ConfigError, RunError
from curlora_lab.continual import files, identity, record
from curlora_lab.continual.lock import RunLockedError, lock
from curlora_lab.continual.loggers import JsonLinesLogger, write_csv
from curlora_lab.continual.store import Row, StageStore
from curlora_lab.continual.strategies import Strategy
from curlora_lab.continual.trainer import ContinualTrainer
from curlora_lab.probes import PerplexityProbe
from curlora_lab.report import read_record, render_table, stage_line, write_report
from curlora_lab.tasks import NonFiniteError, TaskModule
from curlora_lab.tasks.base import Training

__all__ = ["RunLockedError", "run"]

logger = logging.getLogger(__name__)

RUN_MANIFEST = "RUN_MANIFEST.json"


@runtime_checkable
class Publisher(Protocol):
    """A logger that also takes the finished run: tables, pictures, files."""

    def publish(self, record: Mapping[str, Any], folder: Path) -> None:
        """Send the record and what the folder holds."""
        ...


@dataclass
class Parts:
    """What a configuration names, built."""

    config: dict[str, Any]
    backbone: Backbone
    tasks: list[TaskModule]
    probes: dict[str, PerplexityProbe]
    strategy: Strategy
    common: dict[str, Any]
    task_identities: list[dict[str, Any]]

    @property
    def learnt_in(self) -> dict[str, int]:
        """The stage in which each task is learnt."""
        return {task.name: stage for stage, task in enumerate(self.tasks, start=1)}


def run(config: dict[str, Any], *, overrides: Sequence[str] = ()) -> float | None:
    """Do one run.

    Args:
        config: a validated configuration, see :func:`curlora_lab.config.validate`.
        overrides: what was given on the command line, for the record.

    Returns:
        The objective of a sweep: the final score averaged over tasks (the gain where metrics differ).

    Raises:
        ConfigError: the configuration does not fit the model or the data.
        RunLockedError: another process works on this run.
        RunError: training had to stop; what was finished is kept.
    """
    _quieten()
    try:
        parts = build(config)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    keys = identity.stage_keys(parts.common, parts.task_identities)
    folder = run_folder(parts, keys[-1])
    main = rank_zero_only.rank == 0
    locked = (
        lock(folder.parent.parent / ".locks" / f"{folder.parent.name}-{folder.name}", run=folder)
        if main
        else nullcontext()
    )
    with locked:
        if main and config["fresh"]:
            _move_aside(folder)
        found = finished(folder)
        if found is not None:
            logger.info("This run is finished already; fresh=true does it again. %s", folder)
        else:
            found = Run(parts, folder, keys, overrides).complete()
    if main:
        Console().print(render_table(found, folder))
    return objective(found)


def build(config: dict[str, Any]) -> Parts:
    """Load the backbone, prepare data and probes, attach the adapter."""
    L.seed_everything(config["seed"], verbose=False)
    backbone: Backbone = instantiate(config["model"], _convert_="all")
    cache = Path(config["output_dir"]).expanduser() / ".cache"
    training = Training(
        optimizer=instantiate(config["optimizer"], _convert_="all"),
        scheduler=instantiate(config["scheduler"], _convert_="all") if config["scheduler"] else None,
        **{key: config[key] for key in ("lr", "head_lr", "batch_size", "eval_batch_size", "num_workers", "seed")},
    )
    nodes = configuration.tasks_of(config)
    tasks: list[TaskModule] = []
    for node in nodes.values():
        task = instantiate(node, _convert_="all")(backbone=backbone, training=training)
        task.data.prepare(backbone.tokenizer, seed=config["seed"], cache_dir=cache)
        tasks.append(task)
    probes: dict[str, PerplexityProbe] = instantiate(config["probe"], _convert_="all").get("probes") or {}
    for probe in probes.values():
        probe.prepare(backbone)
    init_from = config["adapter"]["init_from"]
    common = identity.common_identity(
        config,
        model=backbone.fingerprint,
        init_from=_content(find_adapter(init_from)) if init_from else None,
        probes={name: probe.fingerprint or "" for name, probe in probes.items()},
    )
    attach(backbone, make_adapter(config["adapter"]), seed=config["seed"], init_from=init_from)
    identities = [
        identity.task_identity(node, rows=task.data.fingerprint)
        for node, task in zip(nodes.values(), tasks, strict=True)
    ]
    strategy: Strategy = instantiate(config["strategy"], _convert_="all")
    return Parts(config, backbone, tasks, probes, strategy, common, identities)


def make_adapter(node: Mapping[str, Any]) -> Adapter:
    """Build the adapter's configuration from its node, without the lab's own keys."""
    return instantiate({k: v for k, v in node.items() if k not in configuration.ADAPTER_KEYS}, _convert_="all")


def run_folder(parts: Parts, key: str) -> Path:
    """``<output_dir>/<sequence>/<model>-<adapter>-r16-a1-lr0.005-s0-<hash8>``, or the name that was given."""
    config = parts.config
    sequence = parts.tasks[0].name if config["task"] else config["sequence"].get("name", "sequence")
    numbers = f"r{config['rank']}-a{config['alpha']:g}-lr{config['lr']:g}-s{config['seed']}"
    name = config["name"] or f"{parts.backbone.name}-{config['adapter']['name']}-{numbers}-{key[:8]}"
    return Path(config["output_dir"]).expanduser() / str(sequence) / name


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run whose files are whole; else ``None``."""
    if not (folder / RUN_MANIFEST).is_file():
        return None
    return read_record(folder / "results.json")


def objective(found: Mapping[str, Any]) -> float | None:
    """What a sweep maximises."""
    average: float | None = found["continual"]["average"]
    return average if average is not None else found["continual"]["gain"]


class Run:
    """One run: its stages, done or found, and what is written of them.

    Args:
        parts: everything built.
        folder: the run folder.
        keys: identity of each row of the score matrix.
        overrides: what was given on the command line.
    """

    def __init__(self, parts: Parts, folder: Path, keys: Sequence[str], overrides: Sequence[str]) -> None:
        self.parts = parts
        self.folder = folder
        self.overrides = list(overrides)
        self.key = keys[-1]
        self.store = StageStore(folder, keys)
        self.rows: list[Row] = []
        self.reused: dict[int, str] = {}
        self.started = record.now()
        self.metrics = JsonLinesLogger(folder / "metrics.jsonl")
        self.loggers: list[Logger] = []
        self.parameters = record.count_parameters(parts.backbone, parts.tasks)
        self.baselines = {task.name: record.baseline(task) for task in parts.tasks}
        self.continual = ContinualTrainer(
            tasks=parts.tasks,
            backbone=parts.backbone,
            probes=parts.probes,
            strategy=parts.strategy,
            evaluator=lambda: self._trainer(logger=False, enable_progress_bar=False),
            learnt_in=parts.learnt_in,
        )

    @property
    def main(self) -> bool:
        """Whether this process writes files (the first of several that train together)."""
        return rank_zero_only.rank == 0

    def complete(self) -> dict[str, Any]:
        """Go through all stages and write the record; a failure is recorded before it goes up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handler = self._open_log()
        try:
            self._prepare_folder()
            self._go_through()
            return self._finish()
        except NonFiniteError as error:
            self._keep_stopped()
            self._write_record("failed", str(error))
            raise RunError(str(error)) from error
        except BaseException as error:
            self._write_record("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            for sink in self.loggers:
                sink.finalize("success" if (self.folder / RUN_MANIFEST).is_file() else "failed")
            logging.getLogger("curlora_lab").removeHandler(handler)
            handler.close()

    def _prepare_folder(self) -> None:
        """Write the configuration and open the loggers."""
        self._name_differing_runs()
        if self.main:
            text = OmegaConf.to_yaml(OmegaConf.create(self.parts.config))
            files.write_atomically(self.folder / "config.yaml", text)
        nodes = self.parts.config["logger"] or {}
        self.loggers = [
            self.metrics,
            *(instantiate(node, _convert_="all")(save_dir=str(self.folder)) for node in nodes.values()),
        ]
        for sink in self.loggers:
            sink.log_hyperparams({**self.parts.config, "parameters": self.parameters})
        for warning in self._warnings():
            logger.warning(warning["message"])

    def _go_through(self) -> None:
        """Each row of the matrix: found finished, reused from another run, or made."""
        output_dir = self.folder.parent.parent
        known: list[Row | None] = []
        for stage in range(len(self.parts.tasks) + 1):
            row = self.store.finished(stage)
            adoptable = row is None and self.main and not self.parts.config["fresh"]
            if adoptable and (origin := self.store.adopt(stage, output_dir)):
                row = self.store.finished(stage)
                self.reused[stage] = origin.name
                logger.info("Stage %d is reused from %s.", stage, origin)
            known.append(row)
        if None in known:
            self.continual.take_references()
        position = 0
        for stage, row in enumerate(known):
            if row is not None and not self._unscored(row):
                self._append(row)
                continue
            needed = stage if row is not None else stage - 1
            if position < needed:
                self._restore(needed)
            self._append(self._fill(row) if row is not None else self._make(stage))
            position = stage

    def _make(self, stage: int) -> Row:
        """Measure untrained, or train one stage."""
        self.metrics.start_stage(stage)
        if stage == 0:
            self.continual.measure(0)
            for sink in self.loggers:
                sink.log_metrics(self.continual.logged(), step=0)
        else:
            self._train(stage)
        row = self._measured()
        row.cost["peak_memory_bytes"] = record.peak_memory()
        if self.main:
            self.store.write(
                row,
                self.continual.predictions,
                backbone=self.parts.backbone,
                learnt=self.parts.tasks[:stage],
                strategy=self.parts.strategy,
            )
        return row

    def _train(self, stage: int) -> None:
        """One ``fit``; the ``ContinualTrainer`` callback measures when it ends."""
        task = self.parts.tasks[stage - 1]
        task.start_stage(stage, self.parts.strategy)
        self.parts.strategy.before_stage(task, stage=stage)
        callbacks = instantiate(self.parts.config["callbacks"] or {}, _convert_="all")
        trainer = self._trainer(
            logger=self.loggers,
            callbacks=[*callbacks.values(), self.continual],
            max_epochs=self.parts.config["epochs"],
            enable_progress_bar=self.parts.config["trainer"].get("enable_progress_bar", True) and sys.stderr.isatty(),
        )
        began = time.perf_counter()
        trainer.fit(task)
        row = self._measured()
        seconds = time.perf_counter() - began - row.cost["evaluation_seconds"]
        row.task = task.name
        row.choose = task.chosen_scores[-1] if task.chosen_scores else None
        row.cost |= {
            "seconds": seconds,
            "tokens": task.tokens,
            "tokens_per_second": task.tokens / max(seconds, 1e-9),
        }
        self.parts.strategy.after_stage(task, stage=stage)

    def _fill(self, row: Row) -> Row:
        """Score the tasks that a reused row does not know yet."""
        self.continual.predictions = {}
        self.continual.score(row, self._unscored(row))
        if self.main:
            self.store.extend(row, self.continual.predictions)
        return row

    def _append(self, row: Row) -> None:
        """Keep a row, show it and bring the record up to date."""
        self.rows.append(row)
        if row.stage == 0:
            self.continual.remember_before(row)
        self._write_record("running")
        if self.main:
            logger.info(stage_line(self._record("running"), row.stage))

    def _restore(self, stage: int) -> None:
        learnt = self.parts.tasks[:stage]
        self.store.restore(stage, backbone=self.parts.backbone, learnt=learnt, strategy=self.parts.strategy)

    def _unscored(self, row: Row) -> list[str]:
        return [task.name for task in self.parts.tasks if task.name not in row.metrics]

    def _measured(self) -> Row:
        row = self.continual.row
        if row is None:
            raise RuntimeError("Lightning ended a stage without calling on_fit_end, so nothing was measured.")
        return row

    def _trainer(self, **arguments: Any) -> L.Trainer:
        """A Lightning ``Trainer`` as configured; checkpoints are the store's, shards the data's."""
        make: Callable[..., L.Trainer] = instantiate(self.parts.config["trainer"], _convert_="all")
        fixed = {
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": str(self.folder),
        }
        return make(**{**fixed, **arguments})

    # -- what is written -----------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        """Record, report, table of numbers; the manifest last."""
        found = self._record("finished")
        if self.main:
            files.write_json(self.folder / "results.json", found)
            write_report(self.folder)
            write_csv(self.metrics.path, self.folder / "metrics.csv")
            for sink in self.loggers:
                if isinstance(sink, Publisher):
                    sink.publish(found, self.folder)
            hashes = {name: files.hash_file(self.folder / name) for name in ("results.json", "config.yaml")}
            manifest = {"key": self.key, "identity": self._without_source(), "files": hashes}
            files.write_json(self.folder / RUN_MANIFEST, manifest)
        return found

    def _record(self, status: str, message: str | None = None) -> dict[str, Any]:
        return record.build_record(
            self.rows,
            status=status,
            name=self.folder.name,
            config=self.parts.config,
            overrides=self.overrides,
            tasks=self.parts.tasks,
            learnt_in=self.parts.learnt_in,
            probes=self.parts.probes,
            baselines=self.baselines,
            parameters=self.parameters,
            warnings=self._warnings(),
            provenance=record.provenance(
                self.parts.backbone, self.parts.tasks, identity=self.key, reused=self.reused, started=self.started
            ),
            message=message,
        )

    def _write_record(self, status: str, message: str | None = None) -> None:
        if self.main:
            files.write_json(self.folder / "results.json", self._record(status, message))

    def _warnings(self) -> list[dict[str, Any]]:
        """What is to be said before any number: about the data, and a learning rate nobody tuned."""
        found = [
            {"code": "data", "task": task.name, "stage": None, "message": f"{task.name}: {note}"}
            for task in self.parts.tasks
            for note in task.data.notes
        ]
        adapter = self.parts.config["adapter"]
        given = any(override.lstrip("+").startswith("lr=") for override in self.overrides)
        if not given and self.parts.backbone.name not in adapter.get("tuned_on", []):
            message = (
                f"lr={self.parts.config['lr']:g} was not tuned for {adapter['name']} on {self.parts.backbone.name}; "
                "a comparison needs a learning rate found for each method"
            )
            found.append({"code": "untuned_learning_rate", "task": None, "stage": None, "message": message})
        return found

    def _keep_stopped(self) -> None:
        """The last finite weights, beside the stages, for whoever wants to look."""
        if not self.main:
            return
        folder = self.folder / "stopped"
        save_adapter(self.parts.backbone, folder / "adapter")
        files.write_manifest(folder, {"stage": len(self.rows), "key": self.key})

    def _without_source(self) -> str:
        return identity.without_source(self.parts.common, self.parts.task_identities)

    def _name_differing_runs(self) -> None:
        """Say which finished runs have this configuration but were made by other code: they are not reused."""
        if not self.main:
            return
        mine = self._without_source()
        for manifest in self.folder.parent.glob(f"*/{RUN_MANIFEST}"):
            if manifest.parent == self.folder or files.read_json(manifest).get("identity") != mine:
                continue
            made = read_record(manifest.parent / "results.json")["provenance"]
            logger.warning(
                "%s is the same run made by other code (version %s, source %s; here version %s, source %s); it is not reused.",
                manifest.parent.name,
                made["package_version"],
                made["source_hash"][:8],
                self.parts.common["package_version"],
                identity.source_hash()[:8],
            )

    def _open_log(self) -> logging.Handler:
        """``train.log`` takes what the lab says, in the order of time."""
        handler: logging.Handler = (
            logging.FileHandler(self.folder / "train.log") if self.main else logging.NullHandler()
        )
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger("curlora_lab").addHandler(handler)
        return handler


def _content(folder: Path) -> str:
    """Hash of the weights and configuration of an adapter folder."""
    parts = sorted(file for file in folder.iterdir() if file.suffix in {".safetensors", ".json"})
    return files.digest({file.name: files.hash_file(file) for file in parts})


def _move_aside(folder: Path) -> None:
    """Keep an earlier run under another name."""
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(aside)
    logger.info("The earlier run is kept as %s.", aside)


def _quieten() -> None:
    """Leave the screen to what the lab has to say; libraries still speak up when something is wrong."""
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")  # Lightning 2.6
    warnings.filterwarnings("ignore", message=".*`is_gradient_checkpointing` is deprecated.*")  # PEFT 0.21
    if rank_zero_only.rank:
        logging.getLogger("curlora_lab").setLevel(logging.ERROR)
