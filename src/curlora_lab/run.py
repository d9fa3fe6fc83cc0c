"""The composition root: build the parts that a configuration names, go through the stages, leave a run folder.

The same configuration again finds the finished run; an unfinished one goes on with the stage that was not finished; a
longer sequence reuses the stages it shares with a shorter one.
"""

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from rich.console import Console
from transformers.utils import logging as transformers_logging

from curlora_lab.adapters.attach import save_adapter
from curlora_lab.build import Parts, build
from curlora_lab.config import ConfigError, RunError
from curlora_lab.continual import files, identity, record
from curlora_lab.continual.lock import RunLockedError, lock
from curlora_lab.continual.loggers import JsonLinesLogger, write_csv
from curlora_lab.continual.processes import is_main
from curlora_lab.continual.stages import Stages
from curlora_lab.continual.store import Row, StageStore
from curlora_lab.report import read_record, render_table, stage_line, write_report
from curlora_lab.tasks import NonFiniteError

__all__ = ["RunLockedError", "run"]

logger = logging.getLogger(__name__)

RUN_MANIFEST = "RUN_MANIFEST.json"
METRICS = "metrics.jsonl"


@runtime_checkable
class Publisher(Protocol):
    """A logger that also takes the finished run: tables, pictures, files."""

    def publish(self, record: Mapping[str, Any], folder: Path) -> None:
        """Send the record and what the folder holds."""
        ...


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
    lock_file = folder.parent.parent / ".locks" / f"{folder.parent.name}-{folder.name}"
    with lock(lock_file, run=folder) if is_main() else nullcontext():
        if is_main() and config["fresh"]:
            _move_aside(folder)
        _refuse_another(folder, keys[-1], config)
        found = finished(folder)
        if found is not None:
            logger.info("This run is finished already; fresh=true does it again. %s", folder)
        else:
            found = Run(parts, folder, keys, overrides).complete()
    if is_main():
        Console().print(render_table(found, folder))
    return objective(found)


def run_folder(parts: Parts, key: str) -> Path:
    """``<output_dir>/<sequence>/<model>-<adapter>-r16-a1-lr0.005-s0-<hash8>``, or the name that was given."""
    config = parts.config
    sequence = parts.tasks[0].name if config["task"] else config["sequence"].get("name", "sequence")
    rank = config["adapter"].get("r", config["rank"])
    numbers = f"r{rank}-a{config['alpha']:g}-lr{config['lr']:g}-s{config['seed']}"
    name = config["name"] or f"{parts.backbone.name}-{config['adapter']['name']}-{numbers}-{key[:8]}"
    return Path(config["output_dir"]).expanduser() / str(sequence) / name


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run whose files are whole; else ``None``."""
    if files.read_manifest(folder, RUN_MANIFEST) is None:
        return None
    return read_record(folder / "results.json")


def objective(found: Mapping[str, Any]) -> float | None:
    """What a sweep maximises."""
    average: float | None = found["continual"]["average"]
    return average if average is not None else found["continual"]["gain"]


class Run:
    """One run: goes through its stages and writes what they find.

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
        self.parameters = record.count_parameters(parts.backbone, parts.tasks)
        self.baselines = {task.name: record.baseline(task) for task in parts.tasks}

    def complete(self) -> dict[str, Any]:
        """Go through all stages and write the record; a failure is recorded before it goes up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handler = self._open_log()
        loggers: list[Logger] = []
        try:
            self._write_config()
            self._say_warnings()
            loggers = self._open_loggers()
            self._go_through(loggers)
            return self._finish(loggers)
        except NonFiniteError as error:
            self._keep_stopped()
            self._write_record("failed", str(error))
            raise RunError(str(error)) from error
        except BaseException as error:
            self._write_record("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            for sink in loggers:
                sink.finalize("success" if (self.folder / RUN_MANIFEST).is_file() else "failed")
            logging.getLogger("curlora_lab").removeHandler(handler)
            handler.close()

    def _go_through(self, loggers: Sequence[Logger]) -> None:
        """Take each row of the score matrix as it comes, show it and bring the record up to date."""
        config = self.parts.config
        stages = Stages(
            tasks=self.parts.tasks,
            backbone=self.parts.backbone,
            probes=self.parts.probes,
            strategy=self.parts.strategy,
            store=self.store,
            loggers=loggers,
            make_trainer=instantiate(config["trainer"], _convert_="all"),
            make_callbacks=lambda: list(instantiate(config["callbacks"] or {}, _convert_="all").values()),
            epochs=config["epochs"],
            progress=config["trainer"].get("enable_progress_bar", True) and sys.stderr.isatty(),
            adopt=not config["fresh"],
        )
        self.reused = stages.reused
        for row in stages.rows():
            self.rows.append(row)
            self._write_record("running")
            if is_main():
                logger.info(stage_line(self._record("running"), row.stage))

    def _open_loggers(self) -> list[Logger]:
        """The run folder's own log of numbers, and those that were asked for."""
        nodes = self.parts.config["logger"] or {}
        others = [instantiate(node, _convert_="all")(save_dir=str(self.folder)) for node in nodes.values()]
        loggers: list[Logger] = [JsonLinesLogger(self.folder / METRICS), *others]
        for sink in loggers:
            about = {"parameters": self.parameters, "key": self.key, "sweep": _in_sweep()}
            sink.log_hyperparams({**self.parts.config, **about})
        return loggers

    def _write_config(self) -> None:
        if is_main():
            text = OmegaConf.to_yaml(OmegaConf.create(self.parts.config))
            files.write_atomically(self.folder / "config.yaml", text)

    def _say_warnings(self) -> None:
        """What is to be said before any number."""
        self._name_differing_runs()
        for warning in self._warnings():
            logger.warning(warning["message"])

    # -- what is written -----------------------------------------------------------------------------------------------

    def _finish(self, loggers: Sequence[Logger]) -> dict[str, Any]:
        """Record, report, table of numbers; the manifest last."""
        found = self._record("finished")
        if is_main():
            files.write_json(self.folder / "results.json", found)
            write_report(self.folder)
            write_csv(self.folder / METRICS, self.folder / "metrics.csv")
            for sink in loggers:
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
        if is_main():
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
        tuned = self.parts.backbone.name in adapter.get("tuned_on", [])
        if self.parameters["adapter"] and not given and not tuned:
            message = (
                f"lr={self.parts.config['lr']:g} was not tuned for {adapter['name']} on {self.parts.backbone.name}; "
                "a comparison needs a learning rate found for each method"
            )
            found.append({"code": "untuned_learning_rate", "task": None, "stage": None, "message": message})
        return found

    def _keep_stopped(self) -> None:
        """The last finite weights, beside the stages, for whoever wants to look."""
        if not is_main():
            return
        folder = self.folder / "stopped"
        save_adapter(self.parts.backbone, folder / "adapter")
        files.write_manifest(folder, {"stage": len(self.rows), "key": self.key})

    def _without_source(self) -> str:
        return identity.without_source(self.parts.common, self.parts.task_identities)

    def _name_differing_runs(self) -> None:
        """Say which finished runs have this configuration but were made by other code: they are not reused."""
        if not is_main():
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
            logging.FileHandler(self.folder / "train.log") if is_main() else logging.NullHandler()
        )
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger("curlora_lab").addHandler(handler)
        return handler


def _in_sweep() -> bool:
    """Whether this run is a job of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _refuse_another(folder: Path, key: str, config: Mapping[str, Any]) -> None:
    """A folder that was named by hand may hold another run; that one is neither continued nor overwritten."""
    found = files.read_json(folder / "results.json")
    if not found.get("provenance") or found["provenance"].get("identity") == key:
        return
    lines = identity.differences(found.get("config", {}), config)
    if found["provenance"].get("source_hash") != identity.source_hash():
        lines.append("the code of this package has changed since")
    lines = lines or ["the content of model, data or adapter.init_from has changed since"]
    raise ConfigError(
        f"{folder} holds another run. What differs:\n"
        + "\n".join(f"  - {line}" for line in lines[:20])
        + "\nChoose another name=..., or move that run aside with fresh=true."
    )


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
    if not is_main():
        logging.getLogger("curlora_lab").setLevel(logging.ERROR)
