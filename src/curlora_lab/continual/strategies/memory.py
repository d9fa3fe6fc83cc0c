"""An episodic memory: which train rows of earlier tasks a strategy keeps, and batches and losses of them.

A memory holds places (task, index into its train rows), never rows that are chosen on or reported. Which rows it keeps follows
from the run's seed and the task's name: each train row draws a priority, and the rows with the smallest ones stay. That is
reservoir sampling without a state that runs along (every row seen so far is kept with the same probability), and what was
once dropped never comes back.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curlora_lab.continual.strategies.gradients import row_batch
from curlora_lab.data.chance import generator_at
from curlora_lab.data.loading import TokenRows
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch

Selection = Literal["reservoir", "class_balanced"]
Drawn = dict[str, list[int]]
Group = tuple[str, int | None]

PREFIX = "memory/"


class Memory:
    """Rows of earlier tasks.

    ``rows_per_task`` keeps so many of each task; ``total`` shares so many among all tasks seen so far, so that the share of each
    shrinks as tasks come. ``selection``:

    - ``reservoir``: a uniform sample of the rows seen, of one task or of the whole stream (Vitter 1985);
    - ``class_balanced``: as many of each class as of any other, as far as there are so many (Chrysakis & Moens 2020). The
      classes of different tasks are different classes. Rows without a class index (language modelling, token labels, numbers,
      questions on a text) are one class a task.

    Use: :meth:`begin` once a run, :meth:`insert` when a task has been learnt, :meth:`sample` and :meth:`mean_loss` while later
    ones are.

    Args:
        rows_per_task: rows to keep of each task, or ``None``.
        total: rows to keep of all tasks together, or ``None``.
        selection: which rows are kept.

    Raises:
        ValueError: not exactly one of the two sizes is given, one is not positive, or the selection is unknown.
    """

    def __init__(
        self, *, rows_per_task: int | None = None, total: int | None = None, selection: Selection = "reservoir"
    ) -> None:
        if (rows_per_task is None) == (total is None):
            raise ValueError(
                f"strategy: rows_per_task={rows_per_task} and total={total}; give exactly one of them, the other null."
            )
        size = rows_per_task if total is None else total
        if size is None or size < 1:
            raise ValueError(f"strategy: a memory of {size} rows keeps nothing; give at least 1, or strategy=none.")
        if selection not in get_args(Selection):
            raise ValueError(
                f"strategy.selection={selection!r} is unknown; choose one of {', '.join(get_args(Selection))}."
            )
        self.rows_per_task = rows_per_task
        self.total = total
        self.selection = selection
        self._seed = 0
        self._tasks: dict[str, TaskModule] = {}
        self._rows: dict[str, Tensor] = {}  # int64, by rising priority
        self._priorities: dict[str, Tensor] = {}  # float64, beside them

    def begin(self, tasks: Sequence[TaskModule]) -> None:
        """The run begins with these tasks; nothing is kept yet."""
        self._tasks = {task.name: task for task in tasks}
        self._seed = tasks[0].training_plan.seed
        self._rows, self._priorities = {}, {}

    def insert(self, task: TaskModule) -> None:
        """Offer all train rows of a task that was learnt; a task that is learnt again is offered anew."""
        generator = generator_at("memory", self._seed, task.name)
        priorities = torch.rand(len(task.data.rows("train")), generator=generator, dtype=torch.float64)
        order = torch.argsort(priorities, stable=True)
        self._rows[task.name], self._priorities[task.name] = order, priorities[order]
        if self.rows_per_task is not None:
            self._keep(task.name, self._kept([task.name], self.rows_per_task)[task.name])
        elif self.total is not None:
            for name, kept in self._kept(list(self._rows), self.total).items():
                self._keep(name, kept)

    def __len__(self) -> int:
        """Rows kept of all tasks together."""
        return sum(len(rows) for rows in self._rows.values())

    @property
    def rows(self) -> dict[str, list[int]]:
        """Indices into the train rows, by task, in order of their priority."""
        return {name: rows.tolist() for name, rows in self._rows.items()}

    def task(self, name: str) -> TaskModule:
        """A task by name."""
        return self._tasks[name]

    def heads(self, *, but: TaskModule) -> list[nn.Module | None]:
        """Heads of the tasks of which there are rows, without that of one task."""
        return [self._tasks[name].head for name in self._rows if name != but.name]

    def sample(self, n: int, *position: int | str, without: str | None = None) -> Drawn:
        """Draw rows uniformly from all that are kept, without repeating one.

        Args:
            n: rows to draw; all that are kept if they are fewer.
            position: where in the run this is, such as (stage, epoch, batch); the same position draws the same rows.
            without: name of a task whose rows are left out.

        Returns:
            Indices into the train rows, by task; no task without rows.
        """
        places = [(name, row) for name, rows in self.rows.items() if name != without for row in rows]
        generator = generator_at("memory sample", self._seed, *position)
        drawn: Drawn = {}
        for index in torch.randperm(len(places), generator=generator)[:n].tolist():
            name, row = places[index]
            drawn.setdefault(name, []).append(row)
        return drawn

    def batch(self, name: str, rows: Sequence[int]) -> Batch:
        """A batch of a task's train rows, on the backbone's device.

        Args:
            name: the task.
            rows: indices into its train rows.
        """
        return row_batch(self._tasks[name], rows)

    def mean_loss(
        self, drawn: Mapping[str, Sequence[int]], loss: Callable[[TaskModule, Batch], Tensor] | None = None
    ) -> Tensor:
        """Mean loss over the drawn rows, each through its own task's head: ``Σ_t (n_t / n) loss_t``.

        Args:
            drawn: what :meth:`sample` returned, not empty.
            loss: mean loss of a batch of a task; default: the task's own.

        Returns:
            A scalar.

        Raises:
            ValueError: nothing was drawn.
        """
        count = sum(len(rows) for rows in drawn.values())
        if not count:
            raise ValueError("the memory gave no rows to take a loss of; ask only once a task has been inserted.")
        parts = []
        for name, rows in drawn.items():
            task, batch = self._tasks[name], self.batch(name, rows)
            parts.append((loss(task, batch) if loss else task.batch_loss(batch)) * (len(rows) / count))
        return torch.stack(parts).sum()

    def cost(self) -> dict[str, float]:
        """``stored_rows`` and ``stored_bytes``: tokens and labels, which must be kept where the old data are gone."""
        size = sum(
            _bytes_of(self._tasks[name].data.rows("train"), row) for name, rows in self.rows.items() for row in rows
        )
        return {"stored_rows": float(len(self)), "stored_bytes": float(size)}

    def state(self) -> dict[str, Tensor]:
        """What is kept, as tensors: ``memory/<task>/rows`` and ``memory/<task>/priorities``."""
        found = {}
        for name, rows in self._rows.items():
            found[f"{PREFIX}{name}/rows"] = rows.clone()
            found[f"{PREFIX}{name}/priorities"] = self._priorities[name].clone()
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned; entries of other names are left to others.

        Raises:
            ValueError: rows of a task that this run does not have, or an index that its train rows do not have.
        """
        rows = {_task(key): value for key, value in state.items() if key.startswith(PREFIX) and key.endswith("/rows")}
        for name, indices in rows.items():
            known = len(self._tasks[name].data.rows("train")) if name in self._tasks else None
            if known is None or (len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < known):
                raise ValueError(
                    f"the stage's memory holds rows {indices.tolist()[:5]} … of task {name!r}, but this run "
                    f"{'has no such task' if known is None else f'has only {known} train rows of it'}."
                )
        self._rows = {name: indices.clone() for name, indices in rows.items()}
        self._priorities = {name: state[f"{PREFIX}{name}/priorities"].clone() for name in rows}

    def _kept(self, names: Sequence[str], capacity: int) -> dict[str, list[int]]:
        """Positions to keep of each task's rows, at most ``capacity`` over all of them."""
        groups: dict[Group, list[tuple[float, str, int]]] = {}
        for name in names:
            priorities = self._priorities[name].tolist()
            for place, (group, priority) in enumerate(zip(self._groups(name), priorities, strict=True)):
                groups.setdefault(group, []).append((priority, name, place))
        quotas = even_quotas({group: len(offered) for group, offered in groups.items()}, capacity)
        kept: dict[str, list[int]] = {name: [] for name in names}
        for group, offered in groups.items():
            for _, name, place in sorted(offered)[: quotas[group]]:
                kept[name].append(place)
        return {name: sorted(places) for name, places in kept.items()}

    def _keep(self, name: str, places: Sequence[int]) -> None:
        index = torch.tensor(places, dtype=torch.int64)
        self._rows[name], self._priorities[name] = self._rows[name][index], self._priorities[name][index]

    def _groups(self, name: str) -> list[Group]:
        """Among which rows each kept row of a task competes for a place."""
        rows = self._rows[name].tolist()
        if self.selection == "reservoir":
            return [("", None)] * len(rows)
        classes = _classes(self._tasks[name].data.rows("train"))
        return [(name, None if classes is None else int(classes[row])) for row in rows]


def even_quotas(sizes: Mapping[Group, int], capacity: int) -> dict[Group, int]:
    """Share a capacity as evenly as the sizes of the groups allow; what one can't use goes to the others.

    Args:
        sizes: rows that each group offers.
        capacity: rows to be kept.

    Returns:
        Rows that each group keeps. Where it does not come out even, the groups that came first have one more.
    """
    quotas = dict.fromkeys(sizes, 0)
    left = min(capacity, sum(sizes.values()))
    while left:
        open_groups = [group for group, size in sizes.items() if quotas[group] < size]
        share = max(1, left // len(open_groups))
        for group in open_groups:
            taken = min(share, sizes[group] - quotas[group], left)
            quotas[group] += taken
            left -= taken
    return quotas


def batch_position(task: TaskModule, batch: Batch) -> tuple[int, ...]:
    """Where in a run a training batch is: stage, epoch and its rows, which no other batch of the epoch has."""
    return (task.stage, task.current_epoch, *batch["row"].tolist())


def share_of(n: int) -> tuple[int, float]:
    """How many of n rows this process draws where several train together, and the weight of their mean.

    The mean over processes of weight x (local mean) is the mean over all n rows, as DDP's averaging of gradients needs it.
    """
    rank, world = place_among_processes()
    own = n * (rank + 1) // world - n * rank // world
    return own, own * world / n


def place_among_processes() -> tuple[int, int]:
    """Rank of this process and how many train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _classes(rows: TokenRows) -> Sequence[int] | Sequence[float] | NDArray[Any] | None:
    """Class of each row, where rows have one: beside the tokens that answer with its words, else the label itself."""
    if "label" in rows.columns:
        return rows.columns["label"]
    is_place = "end" in rows.columns  # labels are then where a span begins
    return None if rows.labels is None or is_place or not isinstance(rows.labels[0], Integral) else rows.labels


def _bytes_of(rows: TokenRows, row: int) -> int:
    labels = rows.encoded.row(row).nbytes if rows.token_labels is not None else 8
    return rows.encoded.row(row).nbytes + labels


def _task(key: str) -> str:
    return key.removeprefix(PREFIX).rpartition("/")[0]
