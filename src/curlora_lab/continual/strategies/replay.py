"""Experience replay: rows of earlier tasks are trained on along with those of the new one."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.gradients import frozen, warn_if_nothing_is_shared
from curlora_lab.continual.strategies.memory import PREFIX as MEMORY
from curlora_lab.continual.strategies.memory import (
    Memory,
    Selection,
    batch_position,
    place_among_processes,
    share_of,
)
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch

Heads = Literal["stored", "trained"]


class Replay(Strategy):
    """Adds ``weight`` times the mean loss of some rows of earlier tasks, each through its own head, to the loss of each batch.

    With all earlier rows kept and ``weight`` 1 the expected gradient is that of the mean loss over new rows plus that over
    earlier ones.
    Rows of a task go into the memory when its stage has ended, so the first stage has nothing to repeat.

    Args:
        rows_per_task: rows kept of each task; ``None`` where ``total`` is given.
        total: rows kept of all tasks together; ``None`` where ``rows_per_task`` is given.
        selection: which rows are kept, ``reservoir`` or ``class_balanced``; see
            :class:`~curlora_lab.continual.strategies.memory.Memory`.
        replay_rows: earlier rows drawn for each batch, over all devices.
        weight: weight of their mean loss.
        heads: ``stored``: earlier heads stay as their stage left them, and only what tasks share is trained on earlier rows;
            ``trained``: earlier heads are trained on, at ``head_lr``.

    Raises:
        ValueError: a number is out of range, or a choice unknown.

    Reference:
        Chaudhry et al. (2019), "On Tiny Episodic Memories in Continual Learning", arXiv 1902.10486.
    """

    def __init__(
        self,
        *,
        rows_per_task: int | None = 100,
        total: int | None = None,
        selection: Selection = "reservoir",
        replay_rows: int = 32,
        weight: float = 1.0,
        heads: Heads = "stored",
    ) -> None:
        self.memory = Memory(rows_per_task=rows_per_task, total=total, selection=selection)
        check_drawn(replay_rows, weight=weight)
        if heads not in get_args(Heads):
            raise ValueError(f"strategy.heads={heads!r} is unknown; choose one of {', '.join(get_args(Heads))}.")
        self.replay_rows = replay_rows
        self.weight = weight
        self.heads: Heads = heads

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """Nothing is kept yet."""
        if self.heads == "stored":
            warn_if_nothing_is_shared(self, backbone)
        self.memory.begin(tasks)

    def before_stage(self, task: TaskModule, *, stage: int) -> None:
        """Say which heads are trained on beside the task's own."""
        if self.heads == "trained":
            earlier = [head for head in self.memory.heads(but=task) if head is not None]
            task.also_trained = [parameter for head in earlier for parameter in head.parameters()]

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """Weighted mean loss of the drawn rows; ``None`` as long as there are none."""
        count, share = share_of(self.replay_rows)
        drawn = self.memory.sample(count, "replay", *batch_position(task, batch), without=task.name)
        if not drawn:
            return None
        with frozen(self.memory.heads(but=task)) if self.heads == "stored" else nullcontext():
            return self.weight * share * self.memory.mean_loss(drawn)

    def on_gradients(self, task: TaskModule) -> None:
        """Average the gradients of earlier heads over processes: DDP knows the task's own parameters only."""
        _, world = place_among_processes()
        if world == 1 or self.heads == "stored":
            return
        for parameter in task.also_trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= world

    def after_stage(self, task: TaskModule, *, stage: int) -> None:
        """Take rows of the task into the memory."""
        self.memory.insert(task)

    def cost(self) -> dict[str, float]:
        """Stored rows and bytes."""
        return self.memory.cost()

    def state(self) -> dict[str, Tensor]:
        """The memory; heads are saved with every stage and checkpoint as it is."""
        return self.memory.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ValueError: the stage was made by another strategy, or holds rows that the run does not have.
        """
        unknown = [key for key in state if not key.startswith(MEMORY)]
        if unknown:
            raise ValueError(
                f"strategy=replay: the stage holds {', '.join(sorted(unknown)[:5])}, which is not its state."
            )
        self.memory.load_state(state)


def check_drawn(rows: int, **weights: float) -> None:
    """Refuse to draw no rows, and negative weights.

    Raises:
        ValueError: a number is out of range.
    """
    if rows < 1:
        raise ValueError(f"strategy.replay_rows={rows}: draw at least one row for each batch, or use strategy=none.")
    negative = [f"strategy.{name}={value}" for name, value in weights.items() if not value >= 0]
    if negative:
        raise ValueError(f"{', '.join(negative)}: a weight is at least 0.")
