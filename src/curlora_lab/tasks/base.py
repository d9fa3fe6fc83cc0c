"""What every task has in common: a shared backbone, its own head, its own rows, one way to train and to be scored.

A head is a subclass that says how it is built, what its loss is, what it predicts, how that is scored and doubted: the
abstract methods of :class:`TaskModule`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from curlora_lab.backbone import Backbone
from curlora_lab.metrics import Finding
from curlora_lab.optim import parameter_groups, stage_optimizer

Batch = dict[str, Tensor]
Record = dict[str, Any]


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite; raised before the step that would have spoilt the weights."""


class TaskData(Protocol):
    """What a task needs of its data; :mod:`curlora_lab.data` has the classes."""

    fingerprint: str
    counts: dict[str, int]
    notes: list[str]
    best: float | None

    def prepare(self, tokenizer: Any, *, seed: int, cache_dir: Path | None) -> None:
        """Load, check, split and tokenise."""
        ...

    def loader(
        self,
        role: str,
        *,
        batch_size: int,
        seed: int = 0,
        stage: int = 0,
        shuffle: bool = False,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> DataLoader[Any]:
        """Batches of one role (``train``, ``choose`` or ``test``); ``batch_size`` is over all devices."""
        ...

    def row_ids(self, role: str) -> Sequence[str]:
        """Row ids of one role, in the order that ``batch["row"]`` counts."""
        ...


class StageHooks(Protocol):
    """The two things that a task needs of a continual-learning strategy while it trains."""

    def penalty(self, task: "TaskModule", batch: Batch) -> Tensor | None:
        """An addition to the loss of this batch, or ``None``."""
        ...

    def on_gradients(self, task: "TaskModule") -> None:
        """Read or change the gradients, after accumulation and before clipping and the step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one evaluation found.

    Args:
        scores: value of each of the task's metrics, higher is better.
        records: one dict a row: row id, label, prediction, log-probabilities (as the head has them).
    """

    scores: dict[str, float]
    records: list[Record] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a task is trained; the same for all tasks of a run.

    Args:
        optimizer: makes an optimiser from parameter groups.
        scheduler: makes a schedule from an optimiser and ``steps=``, or ``None`` for a constant rate.
        lr: learning rate of the adapter.
        head_lr: learning rate of the head.
        batch_size: rows in one global batch (over all devices).
        eval_batch_size: rows in one batch of evaluation, on each device.
        num_workers: processes that prepare batches.
        seed: seed of the run.
        shuffle: whether training rows come in a new order each epoch.
    """

    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., Any] | None
    lr: float
    head_lr: float
    batch_size: int
    eval_batch_size: int
    num_workers: int
    seed: int
    shuffle: bool = True


def position_seed(*position: int | str) -> int:
    """A seed that depends on the position in a run and on nothing else: 63 bits of a sha256."""
    text = "/".join(str(part) for part in position)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class TaskModule(L.LightningModule, ABC):
    """A task: its rows, its head on the shared backbone, its training step and its score.

    Args:
        name: name of the task, used in metric keys and files.
        data: its rows, prepared.
        backbone: the shared backbone.
        training: how it is trained.
        metric: the metric that stands in the score matrix.
        metrics: all metrics that are computed.

    Attributes:
        stage: position of the stage that is being trained; part of every seed.
        outcome: what the last evaluation found.
        tokens: real tokens seen in training since :meth:`start_stage`; over all devices once training has ended.
    """

    #: Whether the score before training means something (a stored, untrained random head does not).
    zero_shot: bool = False

    def __init__(
        self,
        *,
        name: str,
        data: TaskData,
        backbone: Backbone,
        training: Training,
        metric: str,
        metrics: Sequence[str],
    ) -> None:
        super().__init__()
        if metric not in metrics:
            raise ValueError(f"task.{name}.metric={metric!r} is not among its metrics {list(metrics)}.")
        self.name = name
        self.data = data
        self.backbone = backbone
        self.training_plan = training
        self.metric = metric
        self.metrics = tuple(metrics)
        self.stage = 0
        self.tokens = 0
        self.outcome: Outcome | None = None
        self.chosen_scores: list[dict[str, float]] = []  # on the choosing rows, one entry an epoch
        self._hooks: StageHooks | None = None
        self._records: list[Record] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(position_seed(training.seed, "head", name))
            self.head = self.build_head()

    @abstractmethod
    def build_head(self) -> nn.Module | None:
        """The task's own layers, freshly initialised, or ``None`` where the LM head serves."""

    @abstractmethod
    def batch_loss(self, batch: Batch) -> Tensor:
        """Mean loss over the rows of a batch, a scalar in nats."""

    @abstractmethod
    def predict(self, batch: Batch) -> list[Record]:
        """One record a row; ``row`` is the index that :meth:`TaskData.row_ids` names."""

    @abstractmethod
    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """All metrics from the records of every row."""

    @abstractmethod
    def constant_baseline(self) -> tuple[float | None, str | None]:
        """Best score that a constant predictor gets on the reported rows, and what it predicts."""

    @abstractmethod
    def findings(
        self, outcome: Outcome, *, stage: int, learnt_in: int, before: Mapping[str, float] | None
    ) -> list[Finding]:
        """What a sceptic would object to an outcome.

        Args:
            outcome: what was found after ``stage``.
            stage: the stage that was just trained, 0 for untrained.
            learnt_in: the stage in which this task is learnt.
            before: its scores before any training.
        """

    # -- training ------------------------------------------------------------------------------------------------------

    def start_stage(self, stage: int, hooks: StageHooks) -> None:
        """Say which stage begins and which strategy is asked for penalties and gradients."""
        self.stage = stage
        self.tokens = 0
        self.chosen_scores = []
        self._hooks = hooks

    def on_fit_start(self) -> None:
        """Dropout and the like on; Lightning keeps the modes it finds, and models are loaded in eval mode."""
        self.train()

    def on_train_epoch_start(self) -> None:
        """Sample order follows from (seed, stage, epoch)."""
        loader: Any = self.trainer.train_dataloader
        loader.batch_sampler.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Every other draw follows from (seed, stage, epoch, batch), so that a resumed run draws the same."""
        plan = self.training_plan
        torch.manual_seed(position_seed(plan.seed, self.stage, self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, with the strategy's penalty.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        loss = self.batch_loss(batch) * batch["weight"]
        self.log(f"train/{self.name}/loss", loss.detach(), prog_bar=True)
        penalty = self._hooks.penalty(self, batch) if self._hooks else None
        if penalty is not None:
            self.log(f"train/{self.name}/penalty", penalty.detach())
            loss = loss + penalty
        if not torch.isfinite(loss):
            raise NonFiniteError(self._describe(f"loss is {loss.item()}", batch, batch_idx))
        if batch["weight"] > 0:  # a device without a share of the last batch gets one row that does not count
            self.tokens += int(batch["attention_mask"].sum())
        self._last_batch = (batch, batch_idx)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the strategy act on the gradients and stop before a step that is not finite."""
        if self._hooks:
            self._hooks.on_gradients(self)
        for name, parameter in self.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise NonFiniteError(self._describe(f"gradient of {name!r} is not finite", *self._last_batch))

    def on_train_end(self) -> None:
        """Count the tokens of all devices."""
        total = self.trainer.strategy.reduce(torch.tensor(self.tokens, device=self.device), reduce_op="sum")
        self.tokens = int(total)

    def configure_optimizers(self) -> Any:
        """A new optimiser, and schedule if there is one, for this stage."""
        plan = self.training_plan
        head = self.head.parameters() if self.head is not None else ()
        groups = parameter_groups(self.backbone.parameters(), head, lr=plan.lr, head_lr=plan.head_lr)
        optimizer = stage_optimizer(plan.optimizer, groups)
        if plan.scheduler is None:
            return optimizer
        scheduler = plan.scheduler(optimizer, steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _describe(self, what: str, batch: Batch, batch_idx: int) -> str:
        """Where in the run something is not finite: task, stage, epoch, batch and its rows."""
        ids = self.data.row_ids("train")
        rows = ", ".join(ids[index] for index in batch["row"].tolist()[:8])
        return (
            f"Task {self.name!r}, stage {self.stage}, epoch {self.current_epoch}, batch {batch_idx}: {what}. Rows: {rows}"
            f"{', …' if len(batch['row']) > 8 else ''}. The weights are still those of the step before. "
            "Lower lr or head_lr, or clip gradients with trainer.gradient_clip_val=1."
        )

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect records on the choosing rows."""
        self._records += self.predict(batch)

    def on_validation_epoch_end(self) -> None:
        """Score the choosing rows; ``choose/score`` is what callbacks monitor."""
        outcome = self._finish("choose")
        if self.trainer.sanity_checking:
            return
        self.chosen_scores.append(outcome.scores)
        scores = {"choose/score": outcome.scores[self.metric]}
        scores |= {f"choose/{self.name}/{metric}": value for metric, value in outcome.scores.items()}
        self.log_dict(scores, sync_dist=True)  # equal on all devices: the records were gathered

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect records on the reported rows."""
        self._records += self.predict(batch)

    def on_test_epoch_end(self) -> None:
        """Score the reported rows into :attr:`outcome`."""
        self.outcome = self._finish("test")

    def _finish(self, role: str) -> Outcome:
        """Gather the records of all devices, put them in row order and score them."""
        records, self._records = self._records, []
        world = self.trainer.world_size
        if world > 1:
            gathered: list[Any] = [None] * world
            torch.distributed.all_gather_object(gathered, records)
            records = [record for part in gathered for record in part]
        ids = self.data.row_ids(role)
        records = sorted(records, key=lambda record: record["row"])
        records = [{**record, "row": ids[record["row"]]} for record in records]
        return Outcome(scores=self.score(records), records=records)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training rows of this device."""
        plan = self.training_plan
        return self._loader("train", batch_size=plan.batch_size, shuffle=plan.shuffle)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Rows set aside for choosing, if any."""
        if not self.data.counts.get("choose"):
            return []
        return self._loader("choose", batch_size=self._global_eval_batch, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Rows that are reported."""
        return self._loader("test", batch_size=self._global_eval_batch, shuffle=False)

    @property
    def _global_eval_batch(self) -> int:
        return self.training_plan.eval_batch_size * self.trainer.world_size

    def _loader(self, role: str, *, batch_size: int, shuffle: bool) -> DataLoader[Batch]:
        plan = self.training_plan
        return self.data.loader(
            role,
            batch_size=batch_size,
            seed=plan.seed,
            stage=self.stage,
            shuffle=shuffle,
            num_workers=plan.num_workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
