"""All tasks in one stage: the upper bound that continual learning is held against.

Each batch is of one task and goes through that task's own head; batches of all tasks come mixed, in an order that follows
from (seed, stage, epoch). Everything else is an ordinary stage.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from curlora_lab.data.chance import generator_at
from curlora_lab.data.loading import Collate, EpochSampler, Item, PositionSampler, TokenRows
from curlora_lab.metrics import Finding
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch, Outcome, Record, StageHooks, Training

NAME = "joint"
METRIC = "mean_score"

Place = tuple[int, int, float]  # task, row, weight


class JointData:
    """The rows of several tasks, one after the other.

    Args:
        tasks: The tasks, their data prepared.

    Attributes:
        offsets: By role, how many rows the tasks before each have.
    """

    def __init__(self, tasks: Sequence[TaskModule]) -> None:
        self.tasks = list(tasks)
        roles = ("train", "choose", "test")
        self.counts = {role: sum(task.data.counts.get(role, 0) for task in tasks) for role in roles}
        self.fingerprint = "+".join(task.data.fingerprint for task in tasks)
        self.notes: list[str] = []
        self.best: float | None = None
        self.offsets = {
            role: [sum(task.data.counts.get(role, 0) for task in tasks[:index]) for index in range(len(tasks))]
            for role in roles
        }

    def row_ids(self, role: str) -> list[str]:
        """Names of the rows of all tasks, each with its task."""
        having = [task for task in self.tasks if task.data.counts.get(role)]
        return [f"{task.name}:{row}" for task in having for row in task.data.row_ids(role)]


class JointTask(TaskModule):
    """Trains several tasks at once; they are scored one by one, as ever.

    Args:
        tasks: The tasks.
        training: As for each of them.
    """

    def __init__(self, tasks: Sequence[TaskModule], *, training: Training) -> None:
        data: Any = JointData(tasks)
        super().__init__(
            name=NAME,
            data=data,
            backbone=tasks[0].backbone,
            training=training,
            metric=METRIC,
            metrics=[METRIC],
        )

    @property
    def parts(self) -> list[TaskModule]:
        """The tasks that are trained."""
        return cast(JointData, self.data).tasks

    def build_head(self) -> nn.Module | None:
        """The tasks' own heads, where they have one."""
        heads = {task.name: task.head for task in cast(JointData, self.data).tasks if task.head is not None}
        return nn.ModuleDict(heads) if heads else None

    def start_stage(self, stage: int, hooks: StageHooks) -> None:
        """Begin the stage, and let every task get ready to learn: a head of numbers takes the scale of its labels."""
        super().start_stage(stage, hooks)
        for task in self.parts:
            task.start_stage(stage, hooks)

    def batch_loss(self, batch: Batch) -> Tensor:
        """The loss of the task that the batch is of."""
        task, own = self._split(batch, "train")
        return task.batch_loss(own)

    def predict(self, batch: Batch) -> list[Record]:
        """The task's own records; ``task`` says which."""
        task, own = self._split(batch, "choose")
        index = int(batch["task"])
        return [{**record, "task": index} for record in task.predict(own)]

    def finish(self, records: Sequence[Record], role: str) -> list[Record]:
        """The records of each task, finished by it."""
        done: list[Record] = []
        for index, task in enumerate(self.parts):
            own = [{k: v for k, v in record.items() if k != "task"} for record in records if record["task"] == index]
            done += [{**record, "task": index} for record in (task.finish(own, role) if own else [])]
        return done

    def row_name(self, record: Record, role: str) -> str:
        """Id of the row with its task; a record has the row's place among those of its own task."""
        part = self.parts[record["task"]]
        return f"{part.name}:{part.row_name(record, role)}"

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Mean over tasks of each one's main metric."""
        scores = []
        for index, task in enumerate(self.parts):
            own = [{k: v for k, v in record.items() if k != "task"} for record in records if record["task"] == index]
            scores += [task.score(own)[task.metric]] if own else []
        return {METRIC: sum(scores) / len(scores)}

    def constant_baseline(self, role: str | None = None) -> tuple[float | None, str | None]:
        """None: each task has its own."""
        return None, None

    def findings(
        self, outcome: Outcome, *, stage: int, learnt_in: int, before: Mapping[str, float] | None
    ) -> list[Finding]:
        """None: each task has its own."""
        return []

    def _split(self, batch: Batch, role: str) -> tuple[TaskModule, Batch]:
        index = int(batch["task"])
        own = {key: value for key, value in batch.items() if key != "task"}
        own["row"] = batch["row"] - cast(JointData, self.data).offsets[role][index]
        return self.parts[index], own

    def _loader(self, role: str, *, batch_size: int, shuffle: bool) -> DataLoader[Batch]:
        plan, data = self.training_plan, cast(JointData, self.data)
        having = [index for index, task in enumerate(self.parts) if task.data.counts.get(role)]
        rows = {index: self.parts[index].data.rows(role) for index in having}
        own = {index: self.parts[index].training_plan.eval_batch_size for index in having}
        samplers = {
            index: PositionSampler(
                len(rows[index]),
                batch_size=batch_size if role == "train" else own[index] * self.trainer.world_size,
                seed=plan.seed,
                stage=index,
                shuffle=shuffle,
                rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
                equal_steps=role == "train",
            )
            for index in having
        }
        loader: DataLoader[Any] = DataLoader(
            JointRows(rows, data.offsets[role]),
            batch_sampler=JointSampler(samplers, seed=plan.seed, stage=self.stage, shuffle=shuffle),
            collate_fn=JointCollate(next(iter(rows.values())).pad_token_id),
            num_workers=plan.num_workers,
            generator=generator_at("workers", plan.seed, self.stage),
        )
        return loader


class JointSampler(EpochSampler[Place]):
    """Batches of all tasks, each of one task, mixed anew in each epoch.

    Args:
        samplers: Batches of each task, by its index.
        seed: The run's seed.
        stage: The stage.
        shuffle: Whether the tasks' batches are mixed; otherwise one task comes after the other.
    """

    def __init__(self, samplers: Mapping[int, PositionSampler], *, seed: int, stage: int, shuffle: bool) -> None:
        self.samplers = dict(samplers)
        self.seed = seed
        self.stage = stage
        self.shuffle = shuffle

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return sum(len(sampler) for sampler in self.samplers.values())

    def __iter__(self) -> Iterator[list[Place]]:
        turns = [index for index, sampler in self.samplers.items() for _ in range(len(sampler))]
        if self.shuffle:
            order = torch.randperm(len(turns), generator=generator_at("joint", self.seed, self.stage, self.epoch))
            turns = [turns[position] for position in order.tolist()]
        for sampler in self.samplers.values():
            sampler.set_epoch(self.epoch)
        batches = {index: iter(sampler) for index, sampler in self.samplers.items()}
        for position, index in enumerate(turns):
            batch = next(batches[index])
            if position >= self.start_batch:
                yield [(index, row, weight) for row, weight in batch]


class JointRows(Dataset[tuple[int, Item]]):
    """Rows of several tasks; ``row`` counts over all of them.

    Args:
        rows: Rows of each task, by its index.
        offsets: How many rows the tasks before each have.
    """

    def __init__(self, rows: Mapping[int, TokenRows], offsets: Sequence[int]) -> None:
        self.rows = dict(rows)
        self.offsets = list(offsets)

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows.values())

    def __getitem__(self, place: Place) -> tuple[int, Item]:
        index, row, weight = place
        item = self.rows[index][row, weight]
        return index, item._replace(row=row + self.offsets[index])


class JointCollate:
    """Rows of one task to a batch that says which task it is of.

    Args:
        pad_token_id: Token that fills ``input_ids``.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._collate = Collate(pad_token_id)

    def __call__(self, items: Sequence[tuple[int, Item]]) -> Batch:
        """See :class:`~curlora_lab.data.loading.Collate`; ``task`` is the index of the task, () int64."""
        batch = self._collate([item for _, item in items])
        return {**batch, "task": torch.tensor(items[0][0])}
