"""The composition root: build the parts that a configuration names, go through the stages, leave a run folder.

The same configuration again finds the finished run; an unfinished one goes on with the stage that was not finished; a
longer sequence reuses the stages it shares with a shorter one.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from rich.console import Console

from curlora_lab.adapters.attach import save_adapter, trainable_state
from curlora_lab.build import Parts, build
from curlora_lab.config import ConfigError, RunError
from curlora_lab.continual import files, identity, record
from curlora_lab.continual.checkpoint import CheckpointPlan
from curlora_lab.continual.environment import Environment, mixed
from curlora_lab.continual.inputs import name_changed_runs
from curlora_lab.continual.lock import RunLockedError, lock, lock_file
from curlora_lab.continual.loggers import JsonLinesLogger, write_csv
from curlora_lab.continual.processes import is_main
from curlora_lab.continual.progress import ProgressReporter
from curlora_lab.continual.shortage import OutOfMemoryError
from curlora_lab.continual.signals import Interrupted, Interruption
from curlora_lab.continual.stages import Stages
from curlora_lab.continual.store import Row, StageStore
from curlora_lab.continual.tensors import size_of
from curlora_lab.guards import refuse_another, said_before, said_without_a_traceback, while_it_is_built
from curlora_lab.integrity import sealed
from curlora_lab.publishing import Publisher, note, publish_missing
from curlora_lab.report import read_record, render_table, write_report
from curlora_lab.report.display import Display, hushed
from curlora_lab.sweeps import objectives
from curlora_lab.sweeps.jobs import Entered, Value, returned
from curlora_lab.tasks import NonFiniteError
from curlora_lab.terminal import in_sweep, quieten, shown

__all__ = ["RunLockedError", "carry_out", "run"]

logger = logging.getLogger(__name__)

RUN_MANIFEST = "RUN_MANIFEST.json"
METRICS = "metrics.jsonl"
RECORD = "results.json"

#: Size of a run's page, about; most of it is what draws its charts.
REPORT_BYTES = 2_000_000


def run(config: dict[str, Any], *, overrides: Sequence[str] = ()) -> Value:
    """Do one run; see :func:`carry_out`.

    Returns:
        The objective of a sweep: by default the final score averaged over tasks (the gain where metrics differ); a tuple
        where ``objectives`` names several; ``None`` where the record lacks one.
    """
    return returned(objectives.values(carry_out(config, overrides=overrides), config["objectives"]))


def carry_out(
    config: dict[str, Any], *, overrides: Sequence[str] = (), entered: Entered | None = None
) -> dict[str, Any]:
    """Do one run, or find it done.

    Args:
        config: a validated configuration, see :func:`curlora_lab.config.validate`.
        overrides: what was given on the command line, for the record.
        entered: told the run folder, and whether the run was finished before.

    Returns:
        The record of the finished run.

    Raises:
        ConfigError: the configuration does not fit the model or the data.
        RunLockedError: another process works on this run.
        RunError: training had to stop; what was finished is kept.
        Interrupted: a signal ended the run; what was done is kept.
    """
    quieten()
    objectives.check(config)
    with Interruption() as interruption:
        with while_it_is_built(config):
            parts = build(config)
        folder, found = _found_or_done(parts, overrides, entered, interruption)
    if is_main():
        Console().print(render_table(found, folder))
    return found


def _found_or_done(
    parts: Parts, overrides: Sequence[str], entered: Entered | None, interruption: Interruption
) -> tuple[Path, dict[str, Any]]:
    """The run folder and its record, with the run's lock held while it is made."""
    config = parts.config
    keys = identity.stage_keys(parts.common, parts.task_identities, **parts.layout)
    folder = run_folder(parts, keys[-1])
    with (
        said_without_a_traceback(),
        hushed(quiet=config["display"] == "quiet"),
        lock(lock_file(folder), run=folder) if is_main() else nullcontext(),
    ):
        if is_main() and config["fresh"]:
            _move_aside(folder)
        refuse_another(folder, keys[-1], parts)
        found = finished(folder)
        if entered is not None:
            entered(folder, found is not None)
        if found is not None:
            logger.info("This run is finished already; fresh=true does it again. %s", folder)
            if is_main():
                about = {**config, "parameters": found["parameters"], "key": keys[-1], "sweep": in_sweep()}
                publish_missing(found, folder, nodes=config["logger"] or {}, about=about)
        else:
            found = Run(parts, folder, keys, overrides, interruption).complete()
    return folder, found


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
    return read_record(folder / RECORD)


class Run:
    """One run: goes through its stages and writes what they find.

    Args:
        parts: everything built.
        folder: the run folder.
        keys: identity of each row of the score matrix.
        overrides: what was given on the command line.
        interruption: signals that ask the run to stop.
    """

    def __init__(
        self, parts: Parts, folder: Path, keys: Sequence[str], overrides: Sequence[str], interruption: Interruption
    ) -> None:
        self.parts = parts
        self.folder = folder
        self.overrides = list(overrides)
        self.interruption = interruption
        self.key = keys[-1]
        equal = identity.stage_keys(identity.uneventful(parts.common), parts.task_identities, **parts.layout)
        self.store = StageStore(folder, keys, equal=equal)
        self.log = JsonLinesLogger(folder / METRICS)
        self.rows: list[Row] = []
        self.reused: dict[int, str] = {}
        self.environments: list[Environment] = []
        self.started = record.now()
        self.parameters = record.count_parameters(parts.backbone, parts.tasks)
        self.baselines = {task.name: record.baseline(task) for task in parts.tasks}

    def complete(self) -> dict[str, Any]:
        """Go through all stages and write the record; a failure is recorded before it goes up.

        Raises:
            RunError: a number was not finite, memory ran out, or the disk is full.
            Interrupted: a signal asked the run to stop.
        """
        with files.naming_what_is_full(self.folder, files.BLOCK):
            files.make_folder(self.folder)
        if is_main():
            files.remove_leftovers(self.folder)
        handler = self._open_log()
        loggers: list[Logger] = []
        try:
            self._write_config()
            self._say_warnings()
            self._mark_running()
            loggers += self._open_loggers()
            with shown(self.parts.config, self.parts.plans) as screen:
                self._go_through(loggers, screen)
            return self._finish(loggers)
        except Interrupted as error:
            logger.warning("The run was %s; what it had done is kept, and the same command goes on from there.", error)
            self._end("interrupted", f"the run was {error}")
            raise
        except (NonFiniteError, OutOfMemoryError, files.StorageError) as error:
            self._end("failed", str(error), keep=isinstance(error, NonFiniteError) and not error.weights_spoilt)
            raise RunError(str(error)) from error
        except BaseException as error:
            self._end("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            for sink in loggers:
                sink.finalize("success" if (self.folder / RUN_MANIFEST).is_file() else "failed")
            logging.getLogger("curlora_lab").removeHandler(handler)
            with suppress(OSError):  # what a full disk has no room for
                handler.close()

    def _go_through(self, loggers: Sequence[Logger], screen: Display) -> None:
        """Take each row of the score matrix as it comes, show it and bring the record up to date."""
        config = self.parts.config
        try:
            stages = Stages(
                tasks=self.parts.tasks,
                plans=self.parts.plans,
                learnt_in=self.parts.learnt_in,
                backbone=self.parts.backbone,
                probes=self.parts.probes,
                strategy=self.parts.strategy,
                store=self.store,
                log=self.log,
                loggers=[sink for sink in loggers if sink is not self.log],
                make_trainer=instantiate(config["trainer"], _convert_="all"),
                make_callbacks=lambda: list(instantiate(config["callbacks"] or {}, _convert_="all").values()),
                reporters=[ProgressReporter(screen)],
                adopt=not config["fresh"],
                plan=CheckpointPlan(**config["checkpoint"]),
                gradient_batches=config["gradient_batches"],
                interruption=self.interruption,
            )
        except ValueError as error:  # what a strategy says of a model or task that it can't have
            raise ConfigError(str(error)) from error
        self.reused, self.environments = stages.reused, stages.environments
        for row in stages.rows():
            self.rows.append(row)
            found = self._record("running")
            if is_main():
                files.write_json(self.folder / RECORD, found)
                screen.row(found, row.stage)
                self._write_report()

    def _open_loggers(self) -> list[Logger]:
        """The run folder's own log of numbers, and those that were asked for."""
        nodes = self.parts.config["logger"] or {}
        others = [instantiate(node, _convert_="all")(save_dir=str(self.folder)) for node in nodes.values()]
        loggers: list[Logger] = [self.log, *others]
        for sink in loggers:
            about = {"parameters": self.parameters, "key": self.key, "sweep": in_sweep()}
            sink.log_hyperparams({**self.parts.config, **about})
        return loggers

    def _write_config(self) -> None:
        if is_main():
            text = OmegaConf.to_yaml(OmegaConf.create(self.parts.config))
            files.write_atomically(self.folder / "config.yaml", text)

    def _say_warnings(self) -> None:
        """What is to be said before any number."""
        self._name_differing_runs()
        name_changed_runs(self.folder, self.parts.config, **self.parts.inputs)
        for warning in self._warnings():
            logger.warning(warning["message"])

    # -- what is written -----------------------------------------------------------------------------------------------

    def _finish(self, loggers: Sequence[Logger]) -> dict[str, Any]:
        """Record, report, table of numbers; the manifest last."""
        found = self._record("finished")
        if is_main():
            files.write_json(self.folder / RECORD, found)
            self._write_report()
            self.log.sort()
            write_csv(self.folder / METRICS, self.folder / "metrics.csv")
            for sink in loggers:
                if isinstance(sink, Publisher):
                    sink.publish(found, self.folder)
            note(self.folder, self.parts.config["logger"] or {})
            hashes = {name: files.hash_file(self.folder / name) for name in (RECORD, "config.yaml")}
            manifest = {"key": self.key, "identity": self._without_source(), "files": hashes}
            files.write_json(self.folder / RUN_MANIFEST, sealed(manifest))
        return found

    def _write_report(self) -> None:
        """The page of the run as it stands; it says so while the run is not finished."""
        with files.naming_what_is_full(self.folder / "report.html", REPORT_BYTES):
            write_report(self.folder)

    def _record(self, status: str, message: str | None = None) -> dict[str, Any]:
        return record.build_record(
            self.rows,
            status=status,
            name=self.folder.name,
            config=self.parts.config,
            overrides=self.overrides,
            tasks=self.parts.tasks,
            learnt_in=self.parts.learnt_in,
            stages=len(self.parts.plans),
            probes=self.parts.probes,
            baselines=self.baselines,
            parameters=self.parameters,
            warnings=self._warnings(),
            provenance=record.provenance(
                self.parts.backbone,
                self.parts.tasks,
                identity=self.key,
                reused=self.reused,
                started=self.started,
                tuned=self.parts.tuned,
            ),
            message=message,
        )

    def _mark_running(self) -> None:
        """From here on a record that says ``running``, with nobody holding the lock, is that of a killed run."""
        if not is_main():
            return
        found = files.read_json(self.folder / RECORD)
        if found.get("provenance", {}).get("identity") == self.key:
            found |= {"status": "running", "message": None}
        else:
            found = self._record("running")
        files.write_json(self.folder / RECORD, found)

    def _end(self, status: str, message: str, *, keep: bool = False) -> None:
        """Record how a run ended before its end, as far as there is room for that."""
        if not is_main():
            return
        try:
            if keep:
                self._keep_stopped()
            files.write_json(self.folder / RECORD, self._record(status, message))
            self._write_report()
        except (OSError, ValueError) as error:
            logger.error("How the run ended could not be recorded: %s", error)

    def _warnings(self) -> list[dict[str, Any]]:
        found = said_before(self.parts, parameters=self.parameters, overrides=self.overrides)
        if message := mixed(self.environments):
            found.append({"code": "environment_changed", "task": None, "stage": None, "message": message})
        return found

    def _keep_stopped(self) -> None:
        """The last finite weights, beside the stages, for whoever wants to look."""
        size = size_of(trainable_state(self.parts.backbone))
        with files.replacing(self.folder / "stopped", size=size) as folder:
            save_adapter(self.parts.backbone, folder / "adapter")
            files.write_manifest(folder, {"stage": len(self.rows), "key": self.key})

    def _without_source(self) -> str:
        return identity.without_source(self.parts.common, self.parts.task_identities, **self.parts.layout)

    def _name_differing_runs(self) -> None:
        """Say which finished runs have this configuration but were made by other code: they are not reused."""
        if not is_main():
            return
        mine = self._without_source()
        for manifest in self.folder.parent.glob(f"*/{RUN_MANIFEST}"):
            if manifest.parent == self.folder or files.read_json(manifest).get("identity") != mine:
                continue
            made = read_record(manifest.parent / RECORD)["provenance"]
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
        with files.naming_what_is_full(self.folder / "train.log", files.BLOCK):
            handler: logging.Handler = (
                logging.FileHandler(self.folder / "train.log") if is_main() else logging.NullHandler()
            )
        handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is said once, elsewhere
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger("curlora_lab").addHandler(handler)
        return handler


def _move_aside(folder: Path) -> None:
    """Keep an earlier run under another name."""
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(aside)
    logger.info("The earlier run is kept as %s.", aside)
