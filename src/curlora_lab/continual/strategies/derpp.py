"""Dark Experience Replay++: earlier rows are repeated with their labels and with what the model once said of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.gradients import frozen, row_batch, warn_if_nothing_is_shared
from curlora_lab.continual.strategies.memory import PREFIX as MEMORY
from curlora_lab.continual.strategies.memory import Drawn, Memory, Selection, batch_position, share_of
from curlora_lab.continual.strategies.replay import check_drawn
from curlora_lab.probes.windows import evaluating
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch
from curlora_lab.tasks.outputs import Outputs, outputs_of

PREFIX = "derpp/"

Logits = dict[int, Tensor]  # by train row: (things predicted of it, classes)


class DarkReplay(Strategy):
    """Adds ``alpha · MSE(logits now, logits stored) + beta · CE`` over two draws from the memory to the loss of each batch.

    The squared differences are averaged over rows, over what the head predicts of a row, and over classes, as in the
    authors' code. Logits are stored when rows are put in, at the end of their task's stage (the paper collects them along the
    way, in one pass over the stream; with several epochs a stage the last ones are those worth keeping), in evaluation mode.
    Earlier heads stay as stored.

    Restriction: a head over the whole vocabulary (language modelling) would need rows x tokens x vocabulary numbers and is
    refused; use replay, lwf or anchor there.

    Args:
        rows_per_task: rows kept of each task; ``None`` where ``total`` is given.
        total: rows kept of all tasks together; ``None`` where ``rows_per_task`` is given.
        selection: which rows are kept, ``reservoir`` or ``class_balanced``.
        replay_rows: rows in each of the two draws for each batch, over all devices.
        alpha: weight of the distance to the stored logits.
        beta: weight of the loss against the labels.

    Raises:
        ValueError: a number is out of range, or a choice unknown.

    Reference:
        Buzzega et al. (2020), "Dark Experience for General Continual Learning", arXiv 2004.07211, eq. 6; code aimagelab/mammoth.
    """

    def __init__(
        self,
        *,
        rows_per_task: int | None = 100,
        total: int | None = None,
        selection: Selection = "reservoir",
        replay_rows: int = 32,
        alpha: float = 0.5,
        beta: float = 0.5,
    ) -> None:
        self.memory = Memory(rows_per_task=rows_per_task, total=total, selection=selection)
        check_drawn(replay_rows, alpha=alpha, beta=beta)
        self.replay_rows = replay_rows
        self.alpha = alpha
        self.beta = beta
        self._logits: dict[str, Logits] = {}

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """Nothing is kept yet.

        Raises:
            ValueError: a task has a head over the whole vocabulary, or one that does not give its logits.
        """
        warn_if_nothing_is_shared(self, backbone)
        self.memory.begin(tasks)
        self._logits = {}
        for task in tasks:
            with torch.no_grad(), evaluating(task):
                classes = outputs_of(task, row_batch(task, [0])).values.shape[1]
            if classes >= backbone.vocab_size:
                raise ValueError(
                    f"strategy=derpp stores the logits of each row, and task {task.name!r} has {classes} for each token; choose "
                    "replay, lwf or anchor for language modelling."
                )

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """Both terms over their own draws; ``None`` as long as nothing is kept."""
        count, share = share_of(self.replay_rows)
        position = batch_position(task, batch)
        terms = []
        with frozen(self.memory.heads(but=task)):
            if self.alpha and (drawn := self.memory.sample(count, "logits", *position, without=task.name)):
                terms.append(self.alpha * self.distance(drawn))
            if self.beta and (drawn := self.memory.sample(count, "labels", *position, without=task.name)):
                terms.append(self.beta * self.memory.mean_loss(drawn))
        return share * torch.stack(terms).sum() if terms else None

    def distance(self, drawn: Drawn) -> Tensor:
        """Mean squared difference of the logits of drawn rows to those stored, a scalar."""
        count = sum(len(rows) for rows in drawn.values())
        parts = []
        for name, rows in drawn.items():
            now = _by_row(outputs_of(self.memory.task(name), self.memory.batch(name, rows)))
            values, stored = _of_one_width([now.values, *(self._logits[name][row].to(now.values) for row in rows)])
            known = torch.isfinite(stored)  # a class that is ruled out has minus infinity, then and now
            squares = torch.where(known, values - torch.where(known, stored, 0.0), 0.0).square()
            each = squares.sum(dim=1) / known.sum(dim=1).clamp(min=1)
            parts.append(now.row_means(each, batch=len(rows)).sum() / count)
        return torch.stack(parts).sum()

    def after_stage(self, task: TaskModule, *, stage: int) -> None:
        """Take rows of the task into the memory, with their logits as they are now."""
        self.memory.insert(task)
        self._logits[task.name] = {}
        kept = self.memory.rows
        for name, logits in self._logits.items():
            self._logits[name] = {row: logits[row] for row in kept[name] if row in logits}
        self._logits[task.name] = _logits_of(task, kept[task.name])

    def cost(self) -> dict[str, float]:
        """Stored rows and bytes, those of the logits included."""
        found = self.memory.cost()
        size = sum(value.nbytes for logits in self._logits.values() for value in logits.values())
        return {**found, "stored_bytes": found["stored_bytes"] + size}

    def state(self) -> dict[str, Tensor]:
        """The memory, and by task the logits of its rows, one below the other, with the number of each row's."""
        found = self.memory.state()
        for name, rows in self.memory.rows.items():
            values = [self._logits[name][row] for row in rows]
            if values:
                found[f"{PREFIX}{name}/values"] = torch.cat(values)
                found[f"{PREFIX}{name}/counts"] = torch.tensor([len(value) for value in values])
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ValueError: the stage was made by another strategy, or holds rows that the run does not have.
        """
        unknown = [key for key in state if not key.startswith((MEMORY, PREFIX))]
        if unknown:
            raise ValueError(
                f"strategy=derpp: the stage holds {', '.join(sorted(unknown)[:5])}, which is not its state."
            )
        self.memory.load_state(state)
        self._logits = {}
        for name, rows in self.memory.rows.items():
            if rows and f"{PREFIX}{name}/values" not in state:
                raise ValueError(f"strategy=derpp: the stage holds rows of task {name!r} without their logits.")
            counts = state[f"{PREFIX}{name}/counts"].tolist() if rows else []
            values = state[f"{PREFIX}{name}/values"].split(counts) if rows else ()
            self._logits[name] = {row: value.clone() for row, value in zip(rows, values, strict=True)}


@torch.no_grad()
def _logits_of(task: TaskModule, rows: Sequence[int]) -> Logits:
    """What a task's head says of its train rows now, dropout off."""
    found: list[Tensor] = []
    size = task.training_plan.eval_batch_size
    with evaluating(task):
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            outputs = outputs_of(task, row_batch(task, part))
            values, owner = outputs.values.detach().float().cpu(), outputs.rows.cpu()
            found += [values[owner == place] for place in range(len(part))]
    width = max((values.shape[1] for values in found), default=0)
    return {row: _widened(values, width).clone() for row, values in zip(rows, found, strict=True)}


def _by_row(outputs: Outputs) -> Outputs:
    """The same, those of one row behind those of the one before: a head may give all starts before all ends."""
    order = torch.argsort(outputs.rows, stable=True)
    return Outputs(values=outputs.values[order], rows=outputs.rows[order])


def _widened(values: Tensor, width: int) -> Tensor:
    """With so many classes; those that a shorter batch did not have are ruled out."""
    return F.pad(values, (0, width - values.shape[1]), value=-torch.inf)


def _of_one_width(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The first of some logits and all others below each other, with as many classes as the widest has.

    Where the classes are places in a text, there are as many as the longest row of a batch has.
    """
    width = max(part.shape[1] for part in parts)
    first, *others = (_widened(part, width) for part in parts)
    return first, torch.cat(others)
