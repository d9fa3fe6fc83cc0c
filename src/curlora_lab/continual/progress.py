"""Tell whoever shows a run how far it is: which stage trains, which task is scored."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import lightning as L

from curlora_lab.continual.scenarios import StagePlan


class Watcher(Protocol):
    """Is told how far a run is."""

    def training(self, stage: int, step: int, steps: int, loss: float | None) -> None:
        """A stage has made ``step`` of its ``steps`` optimiser steps."""
        ...

    def scoring(self, task: str, share: float) -> None:
        """A share of a task's rows has been scored, from 0 to 1."""
        ...


class ProgressReporter(L.Callback):
    """Passes on what happens inside a Lightning ``Trainer``, at most every so many seconds.

    Reading a loss waits for the GPU, so that it is not done at every step.

    Args:
        watcher: who is told.
        every: seconds between two reports.
        clock: the time in seconds.
    """

    def __init__(self, watcher: Watcher, *, every: float = 0.25, clock: Callable[[], float] = time.monotonic) -> None:
        self._watcher = watcher
        self._every = every
        self._clock = clock
        self._last = float("-inf")

    def on_train_start(self, trainer: L.Trainer, task: Any) -> None:
        """A stage begins or goes on."""
        self._report(trainer, task, loss=None)

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, *args: Any) -> None:
        """A batch was trained on."""
        if self._due():
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            self._report(trainer, task, loss=None if loss is None else float(loss) * trainer.accumulate_grad_batches)

    def on_train_end(self, trainer: L.Trainer, task: Any) -> None:
        """A stage has trained."""
        self._report(trainer, task, loss=None)

    def on_test_batch_end(
        self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """A batch was scored."""
        total = sum(int(number) for number in trainer.num_test_batches)
        if self._due():
            self._watcher.scoring(task.name, (batch_idx + 1) / max(total, 1))

    def _report(self, trainer: L.Trainer, task: Any, *, loss: float | None) -> None:
        steps = trainer.estimated_stepping_batches
        self._watcher.training(task.stage, trainer.global_step, int(steps) if steps < float("inf") else 0, loss)

    def _due(self) -> bool:
        now = self._clock()
        if now - self._last < self._every:
            return False
        self._last = now
        return True


def expected(plans: Sequence[StagePlan]) -> dict[str, Any]:
    """What a run is going to do, as far as it can be known before; for an estimate of the time.

    Args:
        plans: the stages.

    Returns:
        ``names``: what is learnt, by stage; ``steps``: optimiser steps by stage, gradient accumulation and other limits of
        the ``Trainer`` left aside.
    """
    names: dict[int, str] = {}
    steps: dict[int, int] = {}
    for stage, plan in enumerate(plans, start=1):
        training = plan.task.training_plan
        names[stage] = plan.task.name
        steps[stage] = -(-plan.task.data.counts["train"] // training.batch_size) * training.epochs
    return {"names": names, "steps": steps}
