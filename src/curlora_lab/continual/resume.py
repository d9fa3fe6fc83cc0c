"""Step-exact resume inside a stage: what a moment of training is, how it is taken, and how training goes on from it.

Every draw of a stage follows from its position (seed, stage, epoch, batch), and checkpoints are taken between two optimiser
steps, before the next batch is touched. So no generator's state and no gradient is part of a checkpoint, and a resumed run
ends with the same bits as one that was never interrupted.

Lightning's own way (``fit(ckpt_path=...)``) restores neither the order of rows nor what its loops count exactly when a
checkpoint is taken inside an epoch; here its counters are set, which is all they need.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from curlora_lab.backbone import Backbone
from curlora_lab.continual.checkpoint import Checkpoint, CheckpointFolder, CheckpointPlan
from curlora_lab.continual.environment import Environment
from curlora_lab.continual.loggers import JsonLinesLogger
from curlora_lab.continual.processes import is_main
from curlora_lab.continual.record import peak_memory
from curlora_lab.continual.signals import Interruption
from curlora_lab.continual.strategies.timed import Timed
from curlora_lab.continual.tensors import pack, unpack
from curlora_lab.tasks import NonFiniteError, TaskModule
from curlora_lab.tasks.base import Progress

logger = logging.getLogger(__name__)

PARAMETERS, HEADS, STRATEGY = "parameters/", "heads/", "strategy/"


@dataclass(frozen=True, kw_only=True)
class StageParts:
    """Everything that changes while a stage trains.

    Args:
        task: the task that is trained.
        learnt: the tasks up to it; a strategy may train the heads of earlier ones on.
        backbone: the shared backbone.
        strategy: what is done against forgetting, with its clock.
        log: the run folder's log of numbers; its lines are counted.
    """

    task: TaskModule
    learnt: Sequence[TaskModule]
    backbone: Backbone
    strategy: Timed
    log: JsonLinesLogger

    def weights(self) -> dict[str, Tensor]:
        """Trained parameters of the backbone (tied ones once) and all heads: references, by name in a checkpoint."""
        found = {PARAMETERS + name: p.data for name, p in self.backbone.named_parameters() if p.requires_grad}
        for task in self.learnt:
            state = task.head.state_dict() if task.head is not None else {}
            found |= {f"{HEADS}{task.name}/{name}": value for name, value in state.items()}
        return found

    def fits(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint holds exactly these weights."""
        stored = {k: v.shape for k, v in checkpoint.tensors.items() if k.startswith((PARAMETERS, HEADS))}
        return stored == {name: value.shape for name, value in self.weights().items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take weights and strategy back to a checkpoint."""
        with torch.no_grad():
            for name, value in self.weights().items():
                value.copy_(checkpoint.tensors[name])
        stored = {k.removeprefix(STRATEGY): v for k, v in checkpoint.tensors.items() if k.startswith(STRATEGY)}
        self.strategy.load_state(stored)
        self.strategy.go_on_from(checkpoint.state.get("strategy", {}))


def progress_of(checkpoint: Checkpoint) -> Progress:
    """Where in the stage a checkpoint was taken, and what the task had counted."""
    return Progress(**unpack(checkpoint.state["progress"], checkpoint.tensors))


class StageCheckpoints(L.Callback):
    """Writes checkpoints while a stage trains, and the last one when training has ended. Must come first of all callbacks.

    A checkpoint is taken at the start of a batch that begins an optimiser step: then everything of the step before has
    happened, log lines included, and nothing of the next.

    Args:
        parts: what is kept.
        folder: takes the checkpoints.
        plan: when they are written.
        key: identity of the stage.
        interruption: signals; asked at the same moments.
        environments: versions and devices with which the stage was trained so far.
        start: whether one is written before the first step, for a stage that may have to go back to it, or has gone back and
            should remember why.
        resumed: the checkpoint that training goes on from, if any.
    """

    def __init__(
        self,
        parts: StageParts,
        folder: CheckpointFolder,
        *,
        plan: CheckpointPlan,
        key: str,
        interruption: Interruption,
        environments: Sequence[Environment] = (),
        start: bool = False,
        resumed: Checkpoint | None = None,
    ) -> None:
        self.parts = parts
        self.folder = folder
        self.plan = plan
        self.key = key
        self.interruption = interruption
        self.environments = list(environments)
        self._start = start
        self._resumed = resumed
        self._spent = float(resumed.state["seconds"]) if resumed is not None else 0.0
        self._began = self._saved = time.perf_counter()
        self._written: tuple[int, int] | None = None  # the position of the last checkpoint
        if resumed is not None and not start:
            progress = progress_of(resumed)
            self._written = (progress.epoch, progress.batch)

    @property
    def seconds(self) -> float:
        """How long the stage has trained, in all processes that worked on it."""
        return self._spent + time.perf_counter() - self._began

    def on_train_start(self, trainer: L.Trainer, task: Any) -> None:
        """From here on a signal waits for the next optimiser step."""
        self.interruption.install()
        self.interruption.deferring = True

    def on_train_batch_start(self, trainer: L.Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        """Between two optimiser steps: write what is due, and leave if a signal came."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        here = (trainer.current_epoch, batch_idx)
        asked = self.interruption.received is not None
        agree = trainer.strategy.reduce_boolean_decision  # any device's clock or signal counts for all
        if not agree(asked or self._due(here, trainer.global_step), all=False):
            return
        asked = agree(asked, all=False)
        if here != self._written:
            self._write(trainer, here)
        if asked:
            self.leave(trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, task: Any) -> None:
        """Scoring does not wait for signals."""
        self.interruption.deferring = False

    def on_exception(self, trainer: L.Trainer, task: Any, exception: BaseException) -> None:
        """Nor does what comes after a failure."""
        self.interruption.deferring = False

    def on_fit_end(self, trainer: L.Trainer, task: Any) -> None:
        """Training has ended and scoring, which may take long, begins."""
        if self.plan.every_seconds or self.plan.every_steps or self.plan.every_epochs:
            self._write(trainer, (trainer.current_epoch, 0), trained=True)
        if self.interruption.received is not None:
            self.leave(trainer.global_step)

    def leave(self, step: int) -> None:
        """Say how to go on, and end the run; a process that works with the one that was asked ends with it."""
        logger.warning(
            "Stopped in stage %d (task %s) after optimiser step %d, which is kept. The same command goes on from there.",
            self.parts.task.stage,
            self.parts.task.name,
            step,
        )
        self.interruption.leave()

    def _due(self, here: tuple[int, int], step: int) -> bool:
        plan, (epoch, batch) = self.plan, here
        if here == self._written:
            return False
        if self._start:
            self._start = False
            return True
        return here != (0, 0) and (
            (plan.every_steps is not None and step % plan.every_steps == 0)
            or (plan.every_epochs is not None and batch == 0 and epoch % plan.every_epochs == 0)
            or (plan.every_seconds is not None and time.perf_counter() - self._saved >= plan.every_seconds)
        )

    def _write(self, trainer: L.Trainer, here: tuple[int, int], *, trained: bool = False) -> None:
        """Take this moment and write it."""
        began = time.perf_counter()
        checkpoint = self.take(trainer, here, trained=trained)
        try:
            if is_main():
                self.folder.write(checkpoint)
        except ValueError as error:
            raise NonFiniteError(f"Stage {checkpoint.stage}, step {checkpoint.step}: {error}", place=here) from error
        self._written, self._saved = here, time.perf_counter()
        logger.debug("Checkpoint at step %d took %.1f ms.", checkpoint.step, 1e3 * (self._saved - began))

    def take(self, trainer: L.Trainer, here: tuple[int, int], *, trained: bool = False) -> Checkpoint:
        """This moment as a checkpoint."""
        task = self.parts.task
        tensors = self.parts.weights()
        tensors |= {STRATEGY + name: value for name, value in self.parts.strategy.state().items()}
        tokens = task.tokens
        if not trained:  # at the end they are summed already
            tokens = int(trainer.strategy.reduce(torch.tensor(tokens, device=task.device), reduce_op="sum"))
        progress = Progress(
            epoch=here[0],
            batch=here[1],
            tokens=tokens,
            chosen_scores=list(task.chosen_scores),
            left_out=list(task.guard.left_out),
        )
        state: dict[str, Any] = {
            "progress": pack(asdict(progress), "progress", tensors),
            "seconds": self.seconds,
            "strategy": self.parts.strategy.clock(),
            "peak_memory_bytes": peak_memory(),
            "log_lines": self.parts.log.lines,
            "environments": self.environments,
        }
        if not trained:
            state |= trainer_state(trainer, tensors)
        return Checkpoint(self.key, task.stage, trainer.global_step, trained, state, tensors)


class ResumeStage(L.Callback):
    """Sets optimiser, schedule, callbacks and Lightning's counters to a checkpoint. Must come last of all callbacks.

    So callbacks that look at where the stage starts (``on_fit_start``) still see that.

    Args:
        parts: what the checkpoint holds beside the trainer's state.
        checkpoint: where training goes on.
    """

    def __init__(self, parts: StageParts, checkpoint: Checkpoint) -> None:
        self.parts = parts
        self.checkpoint = checkpoint

    def on_fit_start(self, trainer: L.Trainer, task: Any) -> None:
        """The optimiser is there and nothing has been trained."""
        self.parts.restore(self.checkpoint)
        if trainer.global_rank > 0:  # the first device goes on counting for all
            self.parts.task.tokens = 0
        load_trainer_state(trainer, self.checkpoint.state, self.checkpoint.tensors)
        progress = progress_of(self.checkpoint)
        set_counters(trainer, epoch=progress.epoch, batch=progress.batch, **self.checkpoint.state["counters"])


def trainer_state(trainer: L.Trainer, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Optimiser, schedule, precision, callbacks and counters as JSON; their tensors are put aside."""
    loop = trainer.fit_loop.epoch_loop
    callbacks = {callback.state_key: callback.state_dict() for callback in _callbacks(trainer)}
    return {
        "optimizer": pack(trainer.strategy.optimizer_state(trainer.optimizers[0]), "optimizer", tensors),
        "schedulers": [
            pack(config.scheduler.state_dict(), f"schedulers/{index}", tensors)
            for index, config in enumerate(trainer.lr_scheduler_configs)
        ],
        "precision": pack(trainer.precision_plugin.state_dict(), "precision", tensors),
        "callbacks": pack({key: state for key, state in callbacks.items() if state}, "callbacks", tensors),
        "counters": {
            "step": trainer.global_step,
            "stepped": loop._batches_that_stepped,
            "batches": loop.batch_progress.total.completed,
        },
    }


def load_trainer_state(trainer: L.Trainer, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`trainer_state`, but for the counters."""
    trainer.optimizers[0].load_state_dict(unpack(state["optimizer"], tensors))
    for config, stored in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
        config.scheduler.load_state_dict(unpack(stored, tensors))
    if precision := unpack(state["precision"], tensors):
        trainer.precision_plugin.load_state_dict(precision)
    stored = unpack(state["callbacks"], tensors)
    for callback in _callbacks(trainer):
        if callback.state_key in stored:
            callback.load_state_dict(stored[callback.state_key])


def set_counters(trainer: L.Trainer, *, epoch: int, batch: int, step: int, stepped: int, batches: int) -> None:
    """Let Lightning's loops go on with a batch.

    Args:
        trainer: about to start its loops.
        epoch: the epoch of that batch.
        batch: its position in the epoch; the loader's rows begin with it.
        step: optimiser steps done.
        stepped: what Lightning counts for loggers.
        batches: batches done in all epochs.
    """
    outer = trainer.fit_loop
    inner = outer.epoch_loop
    for counter in (outer.epoch_progress.total, outer.epoch_progress.current):
        counter.ready = counter.started = counter.processed = counter.completed = epoch  # type: ignore[attr-defined]
    done = inner.automatic_optimization.optim_progress.optimizer.step.total
    done.ready = done.completed = step
    inner._batches_that_stepped = stepped
    for counter, value in ((inner.batch_progress.total, batches), (inner.batch_progress.current, batch)):
        counter.ready = counter.started = counter.processed = counter.completed = value  # type: ignore[attr-defined]
    if batch > 0:
        inner.restarting = True  # otherwise the loop counts the epoch's batches from 0


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    """Those that may have a state: not this module's own."""
    return [one for one in trainer.callbacks if not isinstance(one, StageCheckpoints | ResumeStage)]  # type: ignore[attr-defined]
