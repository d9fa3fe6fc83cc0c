"""Stop a stage where two methods become comparable: at equal size of the update, or at equal score on the new task.

A stage that did not come there says so in the record: finding ``target_not_met``.
"""

import logging
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from curlora_lab.metrics import Finding
from curlora_lab.probes import WeightReference
from curlora_lab.tasks import TaskModule

logger = logging.getLogger(__name__)

#: How far from the target still counts as equal, as for a budget of parameters.
TOLERANCE = 0.1
#: How far above the target the shortened last step may end.
OVERSHOOT = 0.01
#: Most halvings of the last step: enough for a first step that leads 10,000 times too far.
HALVINGS = 20


class StopAtUpdateNorm(L.Callback):
    """End a stage where the weights have moved so far: ‖ΔW‖_F / ‖W‖_F = ``target``, counted from the stage's start.

    Compares methods at equal update: what one of them forgets less at the same distance is its own merit and not that of a
    smaller step.

    The step that goes past the target is shortened, heads and all, until it ends at most 1 % above. With one step between two
    measurements that is the same step at a smaller learning rate; with more, the end lies on the straight line between the
    last two measured points.

    Args:
        target: The distance, relative to the adapted weights.
        every_steps: Optimiser steps between two measurements.

    Attributes:
        finding: Once the stage has trained: that it ended more than 10 % away from the target, if so.

    Raises:
        ValueError: A number is not positive.
    """

    def __init__(self, target: float, *, every_steps: int = 1) -> None:
        if target <= 0 or every_steps < 1:
            raise ValueError(f"target={target} and every_steps={every_steps} must be positive.")
        self.target = target
        self.every_steps = every_steps
        self.finding: Finding | None = None
        self._measured = 0  # the optimiser step that was measured last
        self._before: list[Tensor] = []  # what is trained, as it was then; empty until the next step begins
        self._reference: WeightReference | None = None

    def check(self, task: TaskModule) -> None:
        """Every task can be trained up to a distance."""

    def start(self, task: TaskModule) -> None:
        """Remember where the stage starts."""
        self._reference = WeightReference(task.backbone.model)

    def setup(self, trainer: L.Trainer, task: Any, stage: str) -> None:
        """Remember where the stage starts; a resumed one takes its checkpoint only after this."""
        self.start(_task(task))

    def on_train_batch_start(self, trainer: L.Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        """Keep what the next steps change."""
        if not self._before:
            self._before = [parameter.detach().clone() for parameter in _trained(trainer)]

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure after so many optimiser steps; go back to the target if they led past it."""
        step = trainer.global_step
        if step == self._measured or step % self.every_steps:
            return
        found = self._distance(_task(task))
        if found >= self.target:
            found = self._shorten(_task(task), _trained(trainer), found)
            trainer.should_stop = True
        self._measured, self._before = step, []
        for sink in trainer.loggers:
            sink.log_metrics({f"train/{task.name}/update_norm": found}, step=step)

    def on_fit_end(self, trainer: L.Trainer, task: Any) -> None:
        """Hold the weights that the stage ends with against the target."""
        self.judge(_task(task))
        self._reference = None

    def judge(self, task: TaskModule) -> None:
        """Measure, and say so if that is not the target."""
        found = self._distance(task)
        if abs(found / self.target - 1) > TOLERANCE:
            advice = "more epochs or a higher lr" if found < self.target else "a lower lr"
            share = f"{found / self.target:.2g} x the {self.target:.3g} asked for"
            self.finding = _not_met(task, f"the update of {task.name} is {found:.3g}, {share}; {advice}")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint inside the stage keeps; after a measured step its weights are the checkpoint's own."""
        return {"measured": self._measured, "before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._measured, self._before = state_dict["measured"], state_dict["before"]

    def _distance(self, task: TaskModule) -> float:
        """‖ΔW‖_F / ‖W‖_F since the stage's start."""
        assert self._reference is not None
        found = self._reference.shift(task.backbone.model, ranks=False).overall
        if found is None:
            raise ValueError(
                "callbacks.stop_at_update_norm cannot measure how far this adapter has moved the weights; use another "
                "adapter or matched/parameters."
            )
        return found

    def _shorten(self, task: TaskModule, parameters: list[torch.nn.Parameter], found: float) -> float:
        """Go back towards the last measured point, as far as the target lies; returns the distance there."""
        after = [parameter.detach().clone() for parameter in parameters]
        short, long = 0.0, 1.0
        for _ in range(HALVINGS):
            if found <= (1 + OVERSHOOT) * self.target:
                break
            middle = (short + long) / 2
            self._place(parameters, after, middle)
            reached = self._distance(task)
            if reached >= self.target:
                long, found = middle, reached
            else:
                short = middle
        self._place(parameters, after, long)
        return found

    @torch.no_grad()
    def _place(self, parameters: list[torch.nn.Parameter], after: list[Tensor], share: float) -> None:
        """Put the weights on the straight line from the last measured point (0) to the present one (1)."""
        for parameter, old, new in zip(parameters, self._before, after, strict=True):
            parameter.copy_(torch.lerp(old.to(new), new, share) if share < 1 else new)


class StopAtScore(L.Callback):
    """End a stage after the first epoch whose score on the rows set aside for choosing is at least ``target``.

    Compares methods at equal plasticity: what each forgets when it has learnt the new task equally well.

    Everything is taken from the rows set aside for choosing, the constant predictor's score too: none that is reported decides
    when training stops.

    Args:
        target: A share of the way from the constant predictor's score to ``best`` (the best known score, or 1).

    Attributes:
        finding: Once the stage has trained: that it did not come so far, if so.

    Raises:
        ValueError: The share is not between 0 and 1.
    """

    def __init__(self, target: float) -> None:
        if not 0 < target <= 1:
            raise ValueError(
                f"target={target} is a share of the way from the constant predictor to the best score: 0 to 1."
            )
        self.target = target
        self.finding: Finding | None = None

    def check(self, task: TaskModule) -> None:
        """Refuse a task on which the share is not defined.

        Raises:
            ValueError: It has no choosing rows, no constant predictor, or one that cannot be beaten.
        """
        if not task.data.counts.get("choose"):
            raise ValueError(
                f"callbacks.stop_at_score reads scores on rows set aside for choosing, and task {task.name!r} has none; raise "
                "its data.choose_fraction, name a split for them (source.splits.choose), or use callbacks=none."
            )
        constant, best = self._ends(task)
        if constant == best:
            raise ValueError(
                f"callbacks.stop_at_score: always giving one answer is perfect on the choosing rows of task {task.name!r}, so "
                "there is no way to go; raise its data.choose_fraction, or use callbacks=none."
            )

    def start(self, task: TaskModule) -> None:
        """Nothing has to be remembered: the task keeps the scores of its epochs."""

    def on_validation_end(self, trainer: L.Trainer, task: Any) -> None:
        """Compare the epoch's score."""
        if not trainer.sanity_checking:
            trainer.should_stop = trainer.should_stop or self._share(_task(task)) >= self.target

    def on_fit_end(self, trainer: L.Trainer, task: Any) -> None:
        """Hold the scores of the stage against the target."""
        self.judge(_task(task))

    def judge(self, task: TaskModule) -> None:
        """Say so if no epoch was good enough."""
        share = self._share(task)
        if share < self.target:
            self.finding = _not_met(
                task,
                f"{task.name} came {max(share, 0):.0%} of the way from a constant predictor to the best score, of the "
                f"{self.target:.0%} asked for; more epochs or another lr",
            )

    def _share(self, task: TaskModule) -> float:
        """How far the stage's best epoch came."""
        constant, best = self._ends(task)
        return max(((scores[task.metric] - constant) / (best - constant) for scores in task.chosen_scores), default=0.0)

    @staticmethod
    def _ends(task: TaskModule) -> tuple[float, float]:
        """The constant predictor's score on the choosing rows, and the best score."""
        constant, _ = task.constant_baseline("choose")
        if constant is None:
            raise ValueError(
                f"callbacks.stop_at_score: task {task.name!r} has no constant predictor to count from; use callbacks=none."
            )
        return constant, task.data.best or 1.0


Target = StopAtUpdateNorm | StopAtScore


def targets(callbacks: Iterable[L.Callback]) -> list[Target]:
    """Those that end a stage where methods become comparable."""
    return [callback for callback in callbacks if isinstance(callback, Target)]


def unmet(callbacks: Iterable[L.Callback]) -> list[Finding]:
    """What they found of a stage that has trained."""
    return [target.finding for target in targets(callbacks) if target.finding is not None]


def _task(task: Any) -> TaskModule:
    if not isinstance(task, TaskModule):
        raise TypeError(f"{type(task).__name__} is no TaskModule")
    return task


def _trained(trainer: L.Trainer) -> list[torch.nn.Parameter]:
    """Everything that an optimiser step changes, in the optimiser's order."""
    return [parameter for group in trainer.optimizers[0].param_groups for parameter in group["params"]]


def _not_met(task: TaskModule, what: str) -> Finding:
    logger.warning("Stage %d: %s. This run is not at the level of the others.", task.stage, what)
    return Finding("target_not_met", task.name, task.stage, what)
