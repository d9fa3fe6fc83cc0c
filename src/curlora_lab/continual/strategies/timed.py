"""What a strategy costs: the seconds spent in its hooks, and in the backward pass through its penalty."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch


class Timed(Strategy):
    """A strategy with a clock around its hooks; it does the same in every respect.

    Args:
        strategy: the strategy.

    Attributes:
        seconds: spent in hooks, and in the backward pass through penalties, since the last :meth:`spent`; by all processes that
            worked on the stage.
        outside: those of them that neither training nor evaluation counts: in ``begin``, ``before_stage`` and ``after_stage``.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.seconds = 0.0
        self.outside = 0.0
        self._whole = False  # whether what earlier processes spent on this stage is in, if there were any

    def spent(self) -> dict[str, float]:
        """Seconds since this was last asked, and what the strategy holds now; for the record of a stage."""
        found = {"seconds": self.seconds, "outside_seconds": self.outside, **self.cost()}
        self.seconds = self.outside = 0.0
        self._whole = False
        return found

    def clock(self) -> dict[str, float]:
        """Seconds since :meth:`spent` was last asked, for a checkpoint."""
        self._whole = True  # a checkpoint that is read from now on knows of nothing that this process does not
        return {"seconds": self.seconds, "outside_seconds": self.outside}

    def go_on_from(self, clock: Mapping[str, float]) -> None:
        """Add what an earlier process had spent on the stage; once, however often this one goes back to a checkpoint.

        Args:
            clock: what :meth:`clock` said in that process; empty where it said nothing.
        """
        if not self._whole:
            self.seconds += clock.get("seconds", 0.0)
            self.outside += clock.get("outside_seconds", 0.0)
        self._whole = True

    def prepare(self, backbone: Backbone, probes: Mapping[str, PerplexityProbe]) -> str:
        """The strategy's own."""
        with self._running():
            return self.strategy.prepare(backbone, probes)

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """The strategy's own."""
        with self._running(outside=True):
            self.strategy.begin(tasks, backbone)

    def before_stage(self, task: TaskModule, *, stage: int) -> None:
        """The strategy's own."""
        with self._running(outside=True):
            self.strategy.before_stage(task, stage=stage)

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """The strategy's own."""
        with self._running():
            behind = _behind(batch)
            found = self.strategy.penalty(task, batch)
        return found if found is None or not found.requires_grad else self._with_backward(found, behind)

    def on_gradients(self, task: TaskModule) -> None:
        """The strategy's own."""
        with self._running():
            self.strategy.on_gradients(task)

    def before_evaluation(self, task: TaskModule) -> None:
        """The strategy's own."""
        with self._running():
            self.strategy.before_evaluation(task)

    def before_probes(self) -> None:
        """The strategy's own."""
        with self._running():
            self.strategy.before_probes()

    def after_stage(self, task: TaskModule, *, stage: int) -> None:
        """The strategy's own."""
        with self._running(outside=True):
            self.strategy.after_stage(task, stage=stage)

    def cost(self) -> dict[str, float]:
        """The strategy's own, with ``stored_rows`` and ``stored_bytes`` in any case."""
        held = float(sum(tensor.nbytes for tensor in self.strategy.state().values()))
        return {"stored_rows": 0.0, "stored_bytes": held, **self.strategy.cost()}

    def state(self) -> dict[str, Tensor]:
        """The strategy's own."""
        return self.strategy.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The strategy's own."""
        self.strategy.load_state(state)

    def _with_backward(self, penalty: Tensor, behind: Tensor) -> Tensor:
        """The penalty plus 0, its backward pass timed.

        Autograd goes backward through what was made last first, so the turn of ``behind``, made after the task's loss and
        before the penalty, is when all of the penalty is done and nothing of the loss is begun.
        """
        began: list[float] = []

        def begin(_: Tensor) -> None:
            began.append(_now())

        def end(_: Tensor) -> None:
            self.seconds += _now() - began.pop() if began else 0.0

        penalty.register_hook(begin)
        behind.register_hook(end)
        return penalty + behind.to(penalty.dtype)

    @contextmanager
    def _running(self, *, outside: bool = False) -> Iterator[None]:
        began = _now()
        try:
            yield
        finally:
            took = _now() - began
            self.seconds += took
            self.outside += took if outside else 0.0


def _behind(batch: Batch) -> Tensor:
    """A zero in the graph, where the batch is: each device works through its own part of a graph."""
    device = next((value.device for value in batch.values()), None)
    return torch.zeros((), device=device, requires_grad=True).clone()


def _now() -> float:
    """The time once the device has done what it was given; otherwise a kernel's time goes to whoever waits for it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
