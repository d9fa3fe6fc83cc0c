"""Averaged gradient episodic memory: no step is taken that raises the loss on rows kept of earlier tasks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.gradients import in_precision, shared_parameters, warn_if_nothing_is_shared
from curlora_lab.continual.strategies.memory import Memory, Selection
from curlora_lab.probes.windows import evaluating
from curlora_lab.tasks import TaskModule

STEPS = "agem/steps"


class Agem(Strategy):
    """A-GEM over the shared parameters (the adapter's; heads are stored).

    Before each optimiser step, with g the gradient of the step (over all accumulated batches and, in distributed training, all
    devices) and m that of the mean loss of rows drawn from the memory, through their own heads, dropout off::

        g ← g − (g·m / m·m) m    where g·m < 0;    otherwise g stays

    m does not depend on the device, so that all devices project alike. What the optimiser makes of g (Adam's moments) may still
    point uphill.

    Args:
        rows_per_task: train rows kept of each task, or ``None``.
        total: train rows kept of all tasks together, or ``None``; exactly one of the two is given.
        selection: which rows are kept: ``reservoir`` or ``class_balanced``.
        memory_batch: rows drawn from the memory for each step.

    Attributes:
        steps: optimiser steps of this stage in which the memory was asked.
        projected: those in which the gradient was changed.

    Raises:
        ValueError: an argument is out of range.

    Reference:
        Chaudhry et al. 2019 (arXiv 1812.00420), equation 11.
    """

    def __init__(
        self,
        *,
        rows_per_task: int | None = 64,
        total: int | None = None,
        selection: Selection = "reservoir",
        memory_batch: int = 64,
    ) -> None:
        if memory_batch < 1:
            raise ValueError(f"strategy.memory_batch={memory_batch} must be at least 1.")
        self.memory = Memory(rows_per_task=rows_per_task, total=total, selection=selection)
        self.memory_batch = memory_batch
        self.steps = 0
        self.projected = 0

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """Nothing is kept yet."""
        warn_if_nothing_is_shared(self, backbone)
        self.memory.begin(tasks)
        self.steps = self.projected = 0

    def before_stage(self, task: TaskModule, *, stage: int) -> None:
        """Steps are counted anew."""
        self.steps = self.projected = 0

    def on_gradients(self, task: TaskModule) -> None:
        """Project the gradient of the shared parameters."""
        parameters = list(shared_parameters(task.backbone).values())
        if not len(self.memory) or not parameters:
            return
        drawn = self.memory.sample(self.memory_batch, "agem", task.stage, self.steps, without=task.name)
        self.steps += 1
        if not drawn:
            return
        with in_precision(task), evaluating(task.backbone), torch.enable_grad():
            loss = self.memory.mean_loss(drawn)
        reference = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        changed = project(gradients, reference)
        if changed is not None:
            self.projected += 1
            for parameter, gradient in zip(parameters, changed, strict=True):
                parameter.grad = gradient

    def after_stage(self, task: TaskModule, *, stage: int) -> None:
        """Offer the task's train rows to the memory."""
        self.memory.insert(task)

    def cost(self) -> dict[str, float]:
        """Rows and bytes of the memory, and the share of steps in which the gradient was changed."""
        return {**self.memory.cost(), "projected_steps": float(self.projected)}

    def state(self) -> dict[str, Tensor]:
        """The memory, and where in the stage its draws are."""
        return {**self.memory.state(), STEPS: torch.tensor([self.steps, self.projected])}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ValueError: it is of another strategy, or of rows that are not there.
        """
        if STEPS not in state:
            raise ValueError(f"the stage holds no state of A-GEM ({STEPS}); it was made by another strategy.")
        self.memory.load_state(state)
        self.steps, self.projected = state[STEPS].tolist()


def project(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor] | None:
    """``g − (g·m / m·m) m`` where ``g·m < 0``, over all tensors together.

    Args:
        gradients: g.
        reference: m, of the same shapes.

    Returns:
        The projected gradient, or ``None`` where g points the right way already (or m is zero).
    """
    product = _dot(gradients, reference)
    if product >= 0:
        return None
    factor = product / _dot(reference, reference)
    return [
        (g.double() - factor.to(g.device) * m.double()).to(g.dtype) for g, m in zip(gradients, reference, strict=True)
    ]


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Inner product in float64: float32 sums over millions of entries would leave a visible rest along m."""
    return torch.stack([(a.double() * b.double()).sum().cpu() for a, b in zip(one, other, strict=True)]).sum()
