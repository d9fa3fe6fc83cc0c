"""A Weights & Biases run for a whole sequence of stages.

Lightning's ``WandbLogger`` knows one ``fit`` at a time, lets every fault of the service into training and has one x-axis.
This one spans all stages of a run, gives each kind of metric its axis, publishes the finished run, and never stops or
delays training for the service: what can't be sent stays on disk, where ``wandb sync`` finds it.
"""

import functools
import logging
import os
import re
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from wandb.sdk.artifacts.exceptions import WaitTimeoutError

from curlora_lab.loggers import content
from curlora_lab.loggers.connection import OFFLINE_MODES, server_fault, why_offline
from curlora_lab.loggers.heatmap import score_heatmap

logger = logging.getLogger(__name__)

PROJECT = "curlora_lab"
STAGE, STEP = "stage", "trainer/global_step"

#: Metrics by their axis, with what the summary keeps of them (W&B's default: the last value, which is what is reported).
AXES: dict[str, tuple[str, str | None]] = {
    "train/*": (STEP, "min"),
    "choose/*": (STEP, "max"),
    "eval/*": (STAGE, None),
    "probe/*": (STAGE, None),
    "shift/*": (STAGE, None),
    "continual/*": (STAGE, None),
}

#: Seconds that a run may take to end once everything large is sent.
FINISH_TIMEOUT = 8.0

#: Seconds that artifacts may take as long as the server answers: an adapter of gigabytes is worth the wait, a stuck one is not.
UPLOAD_LIMIT = 1800.0


def never_raising(method: Callable[..., None]) -> Callable[..., None]:
    """Turn any fault of the service into one warning a method: logging must not end a run."""

    @functools.wraps(method)
    def guarded(self: "WandbRunLogger", *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever the service or its client does wrong, training goes on
            self._warn_once(method.__name__.lstrip("_"), error)

    return guarded


class WandbRunLogger(WandbLogger):
    """One W&B run for one run folder.

    The run has the folder's name, the run's hash as id (the same run again, or resumed on another machine, continues the
    same W&B run; after ``fresh=true`` a new one begins) and everything of the configuration. When the service can't be
    reached it is written offline, into ``<run folder>/wandb``, and a warning says how to send it later.

    Args:
        save_dir: the run folder, ``<output_dir>/<sequence>/<run>``.
        project: W&B project; ``None``: what ``WANDB_PROJECT`` says, else ``curlora_lab``.
        entity: user or team; ``None`` for the account's default.
        group: ``None``: the sequence, in a sweep ``<sequence>-<model>``; ``WANDB_RUN_GROUP`` goes before these.
        tags: in addition to adapter, model and sequence.
        job_type: what kind of job the run is.
        notes: a remark.
        offline: write to disk only.
        init_timeout: seconds that starting online may take before the run goes offline.
        log_adapter: whether the trained adapter and heads are sent as an artifact.
        prediction_rows: predictions of each task in the table of samples.
    """

    def __init__(
        self,
        save_dir: str,
        *,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str = "train",
        notes: str | None = None,
        offline: bool = False,
        init_timeout: float = 10.0,
        log_adapter: bool = True,
        prediction_rows: int = 50,
    ) -> None:
        if not 0 < init_timeout <= 15:
            raise ValueError(
                f"init_timeout={init_timeout} must be above 0 and at most 15 seconds: training waits for it."
            )
        super().__init__(project=project or os.environ.get("WANDB_PROJECT") or PROJECT, save_dir=save_dir)
        self.folder = Path(save_dir)
        self.prediction_rows = prediction_rows
        self._log_adapter = log_adapter
        self._mode: Literal["offline"] | None = "offline" if offline else None
        self._extra_tags = list(tags)
        self._init_timeout = init_timeout
        self._hyperparameters: dict[str, Any] = {}
        self._chosen = {"entity": entity, "group": group, "job_type": job_type, "notes": notes}
        self._published = False
        self._stages: set[int] = set()
        self._sent: list[wandb.Artifact] = []
        self._warned: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``, started on first use; something that ignores all calls if it can't even be written to disk."""
        if self._experiment is None and getattr(self, "_attach_id", None) is None:
            self._experiment = self._open()
        return super().experiment

    @rank_zero_only
    @never_raising
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Take the resolved configuration; the first call starts the run with it."""
        new = vars(params) if isinstance(params, Namespace) else dict(params)
        self._hyperparameters |= new
        if self._experiment is None:
            _ = self.experiment
        else:
            super().log_hyperparams(new)

    @rank_zero_only
    @never_raising
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what belongs to a step of a stage, or (with a ``stage`` in it) to a row of the score matrix."""
        if STAGE in metrics:
            self._stages.add(int(metrics[STAGE]))
            self.experiment.log({**metrics, STAGE: int(metrics[STAGE])})
        else:
            self.experiment.log(dict(metrics) if step is None else {**metrics, STEP: step})

    @rank_zero_only
    def publish(self, record: Mapping[str, Any], folder: Path) -> None:
        """Send the finished run: numbers for its summary, score matrix, warnings, sample predictions, report, files.

        Args:
            record: the content of ``results.json``.
            folder: the run folder.
        """
        self._published = True
        if isinstance(self.experiment, _DummyExperiment):
            return
        self._publish_numbers(record)
        self._publish_tables(record, folder)
        self._publish_files(record, folder)

    @rank_zero_only
    @never_raising
    def finalize(self, status: str) -> None:
        """End the W&B run when the run ends.

        Lightning says ``success`` after each stage's ``fit``; before :meth:`publish` that ends only a stage. After a
        failure, whatever is logged next continues the same run.
        """
        if self._experiment is None or (status == "success" and not self._published):
            return
        run, self._experiment = self._experiment, None
        if isinstance(run, _DummyExperiment):
            return
        self._await_artifacts(run)
        try:
            run.finish(exit_code=0 if status == "success" else 1)
        except TimeoutError:
            folder = run.settings.sync_dir
            logger.warning("W&B did not take everything in time; it is kept on disk: wandb sync %s", folder)

    # -- starting ------------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        """Start online if told so and possible, else offline, else not at all."""
        # W&B's reports about itself go to the network even from offline runs, and delay the exit by 10 s where there is none.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        reason: str | None = None
        if self._mode is None:
            run, reason = self._open_online()
            if run is not None:
                return run
        try:
            run = self._start("offline", timeout=self._init_timeout)
        except Exception as error:  # noqa: BLE001 - not even on disk: training goes on without W&B
            self._warn_once("wandb.init", error)
            return _DummyExperiment()
        if reason:
            logger.warning(
                "W&B is not reached: %s. Training goes on, and the W&B run is kept on disk; send it later with: "
                "wandb sync %s",
                reason,
                run.settings.sync_dir,
            )
        return run

    def _open_online(self) -> tuple[Any, str | None]:
        """A run that is sent as it goes, or ``None`` and why there is none."""
        began = time.monotonic()
        try:
            if reason := why_offline():
                return None, reason
            return self._start(None, timeout=max(1.0, self._init_timeout - (time.monotonic() - began))), None
        except Exception as error:  # noqa: BLE001 - any reason not to be online leads offline
            _forget_failed_start()
            return None, f"{type(error).__name__}: {error}"

    def _start(self, mode: Literal["offline"] | None, *, timeout: float) -> Any:
        """``wandb.init`` with everything that is known of the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=None if os.environ.get("WANDB_SWEEP_ID") else self._project,  # a sweep has its own
            dir=str(self.folder),
            id=None if os.environ.get("WANDB_RUN_ID") else self._run_id(),  # a sweep's agent chooses the id itself
            name=os.environ.get("WANDB_NAME") or self.folder.name,
            config=self._hyperparameters,
            tags=self._tags(),
            resume="allow",
            reinit="finish_previous",
            mode=mode,
            settings=wandb.Settings(init_timeout=timeout, finish_timeout=FINISH_TIMEOUT, finish_timeout_raises=True),
            entity=self._chosen["entity"],
            group=self._group(),
            job_type=self._chosen["job_type"],
            notes=self._chosen["notes"],
        )
        run.define_metric(STAGE, hidden=True)
        run.define_metric(STEP, hidden=True)
        for pattern, (axis, kept) in AXES.items():
            run.define_metric(pattern, step_metric=axis, summary=kept)
        return run

    def _run_id(self) -> str | None:
        """The run's hash, and how many earlier runs of it were moved aside; ``None`` lets W&B choose."""
        key = self._hyperparameters.get("key")
        if key is None:
            return None
        earlier = sum(1 for _ in self.folder.parent.glob(f"{self.folder.name}.old*"))
        return f"{key[:16]}-{earlier}" if earlier else str(key[:16])

    @property
    def _sequence(self) -> str:
        return self.folder.parent.name

    def _group(self) -> str:
        if given := self._chosen["group"] or os.environ.get("WANDB_RUN_GROUP"):
            return given
        sweep = self._hyperparameters.get("sweep") or os.environ.get("WANDB_SWEEP_ID")
        return "-".join([self._sequence, *([self._part("model")] if sweep and self._part("model") else [])])

    def _tags(self) -> list[str]:
        """Adapter, model, sequence, and what was asked for; W&B takes at most 64 characters."""
        asked = [*self._extra_tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(","))]
        found = [self._part("adapter"), self._part("model"), self._sequence, *asked]
        return list(dict.fromkeys(tag[:64] for tag in found if tag))

    def _part(self, group: str) -> str:
        """Name of what was chosen of a group."""
        node = self._hyperparameters.get(group)
        return str(node.get("name") or "") if isinstance(node, Mapping) else ""

    # -- publishing ----------------------------------------------------------------------------------------------------

    @never_raising
    def _publish_numbers(self, record: Mapping[str, Any]) -> None:
        """The curve over the sequence, rows of the matrix that were reused from another run, the summary."""
        run, last = self.experiment, len(record["scores"]) - 1
        for stage in sorted({*range(last + 1)} - self._stages):
            run.log(content.measured(record, stage))
        for row in content.stage_rows(record):
            run.log(row)
        run.summary.update({**content.measured(record, last), **content.summary(record)})

    @never_raising
    def _publish_tables(self, record: Mapping[str, Any], folder: Path) -> None:
        """Tables, the heatmap, the page."""
        shown = {
            "score_matrix": content.score_matrix(record),
            "scores": content.scores(record),
            "warnings": content.warnings(record),
            "predictions": content.predictions(record, folder, rows_per_task=self.prediction_rows),
        }
        media: dict[str, Any] = {
            name: wandb.Table(columns=t.columns, data=t.rows) for name, t in shown.items() if t.rows
        }
        if curves := content.trajectories(record):
            media["score_trajectories"] = wandb.plot.line_series(
                xs=[*range(len(record["scores"]))],
                ys=list(curves.values()),
                keys=list(curves),
                title="Score of each task after each stage",
                xname="stage",
            )
        media["score_heatmap"] = wandb.Image(score_heatmap(record), caption=record["name"])
        if (folder / "report.html").is_file():
            media["report"] = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
        self.experiment.log(media)

    @never_raising
    def _publish_files(self, record: Mapping[str, Any], folder: Path) -> None:
        """The run folder's files that are worth keeping elsewhere."""
        for artifact in self._artifacts(record, folder):
            self._sent.append(self.experiment.log_artifact(artifact))

    def _artifacts(self, record: Mapping[str, Any], folder: Path) -> list[wandb.Artifact]:
        """The record with its numbers, the report, and what was trained."""
        about = {
            "run": record["name"],
            "sequence": self._sequence,
            "tasks": record["tasks"],
            "identity": record["provenance"].get("identity"),
            "model": record["provenance"].get("model"),
            "continual": record["continual"],
            **{key: record["config"].get(key) for key in ("rank", "alpha", "lr", "seed")},
        }
        wanted = {
            "result": _files(folder, "results.json", "config.yaml", "metrics.csv"),
            "report": _files(folder, "report.html"),
            "adapter": _files(_last_stage(record, folder), "adapter", "head.safetensors") if self._log_adapter else {},
        }
        name = re.sub(r"[^\w.-]", "-", record["name"], flags=re.ASCII)[-100:]
        artifacts = []
        for kind, files in wanted.items():
            artifact = wandb.Artifact(f"{kind}-{name}", type=kind, metadata=about)
            for inside, file in files.items():
                # In place: a run folder does not change, and W&B's staging area would copy every adapter into the home.
                artifact.add_file(str(file), name=inside, policy="immutable")
            if files:
                artifacts.append(artifact)
        return artifacts

    # -- ending --------------------------------------------------------------------------------------------------------

    def _await_artifacts(self, run: Any) -> None:
        """Give large files the time they need while the server answers; without it they stay on disk."""
        if run.settings.mode in OFFLINE_MODES:
            return
        until = time.monotonic() + UPLOAD_LIMIT
        while self._sent and time.monotonic() < until and server_fault(run.settings) is None:
            try:
                self._sent[0].wait(timeout=10)
                self._sent.pop(0)
            except WaitTimeoutError:
                logger.info("W&B is still receiving %s.", self._sent[0].name)

    def _warn_once(self, where: str, error: Exception) -> None:
        if where not in self._warned:
            self._warned.add(where)
            logger.warning("W&B: %s failed (%s: %s); training goes on.", where, type(error).__name__, error)


def _forget_failed_start() -> None:
    """Free the run's id, which a failed ``wandb.init`` keeps occupied in W&B's service process."""
    try:
        wandb.teardown()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it passes its service's exit code on
        logger.debug("wandb.teardown: %s", error)


def _last_stage(record: Mapping[str, Any], folder: Path) -> Path:
    return folder / f"stage_{len(record['scores']) - 1:02d}"


def _files(folder: Path, *names: str) -> dict[str, Path]:
    """The files that exist under the given names, folders with all they hold, by their path inside ``folder``."""
    found: dict[str, Path] = {}
    for name in names:
        path = folder / name
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found |= {file.relative_to(folder).as_posix(): file for file in inside if file.is_file()}
    return found
