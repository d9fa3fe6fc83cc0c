"""Stop a stage where two methods become comparable: at equal size of the update, or at equal score on the new task."""

import logging
from typing import Any

import lightning as L

from curlora_lab.probes import WeightReference
from curlora_lab.tasks import TaskModule

logger = logging.getLogger(__name__)


class StopAtUpdateNorm(L.Callback):
    """End a stage as soon as the weights have moved so far: ‖ΔW‖_F / ‖W‖_F ≥ ``target``, counted from the stage's start.

    Compares methods at equal update: what one of them forgets less at the same distance is its own merit and not that of a
    smaller step.

    Args:
        target: The distance, relative to the adapted weights.
        every_steps: Optimiser steps between two measurements.

    Raises:
        ValueError: A number is not positive.
    """

    def __init__(self, target: float, *, every_steps: int = 5) -> None:
        if target <= 0 or every_steps < 1:
            raise ValueError(f"target={target} and every_steps={every_steps} must be positive.")
        self.target = target
        self.every_steps = every_steps
        self.reached = 0.0
        self._reference: WeightReference | None = None

    def setup(self, trainer: L.Trainer, task: Any, stage: str) -> None:
        """Remember where the stage starts; a resumed one takes its checkpoint only after this."""
        self._reference = WeightReference(_task(task).backbone.model)

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure after every few optimiser steps."""
        if trainer.global_step == 0 or trainer.global_step % self.every_steps or self._reference is None:
            return
        found = self._reference.shift(_task(task).backbone.model).overall
        if found is None:
            raise ValueError(
                "callbacks.stop_at_update_norm cannot measure how far this adapter has moved the weights; use another "
                "adapter or matched/parameters."
            )
        self.reached = found
        for sink in trainer.loggers:
            sink.log_metrics({f"train/{task.name}/update_norm": found}, step=trainer.global_step)
        trainer.should_stop = trainer.should_stop or found >= self.target

    def state_dict(self) -> dict[str, Any]:
        """How far the stage has come, for a checkpoint."""
        return {"reached": self.reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.reached = state_dict["reached"]

    def on_train_end(self, trainer: L.Trainer, task: Any) -> None:
        """Say so where the target was not reached."""
        self._reference = None
        if self.reached < self.target and not trainer.should_stop:
            _warn(
                task,
                f"its update reached {self.reached:.3g} of the {self.target:.3g} asked for; more epochs or a higher lr",
            )


class StopAtScore(L.Callback):
    """End a stage after the first epoch whose score on the rows set aside for choosing is at least ``target``.

    Compares methods at equal plasticity: what each forgets when it has learnt the new task equally well.

    Everything is taken from the rows set aside for choosing, the constant predictor's score too: none that is reported decides
    when training stops.

    Args:
        target: A share of the way from the constant predictor's score to ``best`` (the best known score, or 1).

    Raises:
        ValueError: The share is not between 0 and 1.
    """

    def __init__(self, target: float) -> None:
        if not 0 < target <= 1:
            raise ValueError(
                f"target={target} is a share of the way from the constant predictor to the best score: 0 to 1."
            )
        self.target = target
        self.reached = False

    def on_validation_end(self, trainer: L.Trainer, task: Any) -> None:
        """Compare the epoch's score."""
        task = _task(task)
        if trainer.sanity_checking or not task.chosen_scores:
            return
        constant, _ = task.constant_baseline("choose")
        if constant is None:
            raise ValueError(f"callbacks.stop_at_score: task {task.name!r} has no constant predictor to count from.")
        best = task.data.best or 1.0
        share = (task.chosen_scores[-1][task.metric] - constant) / (best - constant)
        self.reached = self.reached or share >= self.target
        trainer.should_stop = trainer.should_stop or self.reached

    def state_dict(self) -> dict[str, Any]:
        """How far the stage has come, for a checkpoint."""
        return {"reached": self.reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.reached = state_dict["reached"]

    def on_train_end(self, trainer: L.Trainer, task: Any) -> None:
        """Say so where the target was not reached."""
        if not self.reached:
            _warn(task, f"it did not come {self.target:.0%} of the way from a constant predictor to the best score")


def _task(task: Any) -> TaskModule:
    if not isinstance(task, TaskModule):
        raise TypeError(f"{type(task).__name__} is no TaskModule")
    return task


def _warn(task: TaskModule, what: str) -> None:
    logger.warning("Task %s, stage %d: %s. This run is not at the level of the others.", task.name, task.stage, what)
