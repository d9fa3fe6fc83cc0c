"""What every task has in common: a shared backbone, its own head, its own rows, one way to train and to be scored.

A head is a subclass that says how it is built, what its loss is, what it predicts, how that is scored and doubted: the
abstract methods of :class:`TaskModule`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from curlora_lab.backbone import Backbone
from curlora_lab.data.loading import PositionSampler, make_loader
from curlora_lab.metrics import Finding
from curlora_lab.optim import parameter_groups, stage_optimizer
from curlora_lab.tasks.finite import (
    NonFiniteError,
    Place,
    StepGuard,
    first_nonfinite,
    nonfinite_in,
    refuse_nonfinite,
)
from curlora_lab.tasks.parts import (
    Batch,
    Outcome,
    Progress,
    Record,
    StageHooks,
    TaskData,
    Training,
    position_seed,
)

__all__ = [
    "Batch",
    "NonFiniteError",
    "Outcome",
    "Progress",
    "Record",
    "StageHooks",
    "TaskData",
    "TaskModule",
    "Training",
    "position_seed",
]


class TaskModule(L.LightningModule, ABC):
    """A task: its rows, its head on the shared backbone, its training step and its score.

    Args:
        name: name of the task, used in metric keys and files.
        data: its rows, prepared.
        backbone: the shared backbone.
        training: how it is trained.
        metric: the metric that stands in the score matrix.
        metrics: all metrics that are computed.
        epochs, batch_size, eval_batch_size: this task's own, where it has them.
        scheduled: whether the learning rate follows the schedule; otherwise it is constant in this task.

    Attributes:
        stage: position of the stage that is being trained; part of every seed.
        outcome: what the last evaluation found.
        guard: what happens to a step that is not finite, and which ones were left out.
        busy_with: what a batch is being used for now, and its rows and tokens.
        seen: the tasks learnt so far, this one among them from its own stage on; set before it is scored.
        tokens: real tokens seen in training since :meth:`start_stage`; over all devices once training has ended.
        also_trained: further parameters that this stage trains at ``head_lr``; a strategy that wants some says so before it.
    """

    #: Whether the score before training means something (a stored, untrained random head does not).
    zero_shot: bool = False
    #: Whether it says something of a row that has no label (language modelling does not).
    can_answer: bool = True

    def __init__(
        self,
        *,
        name: str,
        data: TaskData,
        backbone: Backbone,
        training: Training,
        metric: str,
        metrics: Sequence[str],
        epochs: int | None = None,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        scheduled: bool = True,
    ) -> None:
        super().__init__()
        if metric not in metrics:
            raise ValueError(f"task.{name}.metric={metric!r} is not among its metrics {list(metrics)}.")
        self.name = name
        self.data = data
        self.backbone = backbone
        own = {"epochs": epochs, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        given: dict[str, Any] = {key: value for key, value in own.items() if value is not None}
        wrong = [f"task.{name}.{key}={value}" for key, value in given.items() if value < 1]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: at least 1, or null for what all tasks have.")
        scheduler = training.scheduler if scheduled else None
        self.training_plan = replace(training, **given, scheduler=scheduler)
        self.metric = metric
        self.metrics = tuple(metrics)
        self.stage = 0
        self.seen: Sequence[TaskModule] = ()
        self.tokens = 0
        self.outcome: Outcome | None = None
        self.also_trained: list[nn.Parameter] = []
        self.chosen_scores: list[dict[str, float]] = []  # on the choosing rows, one entry an epoch
        self.guard = StepGuard(training.on_nonfinite, training.nonfinite_limit)
        self.busy_with: tuple[str, tuple[int, ...]] | None = None
        self._start: Place = (0, 0)
        self._trained: dict[str, nn.Parameter] = {}
        self._hooks: StageHooks | None = None
        self._records: list[Record] = []
        with torch.random.fork_rng(devices=[]):
            own_seed = position_seed(training.seed, "head", name)
            torch.manual_seed(own_seed if training.head_seed is None else training.head_seed)
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
    def constant_baseline(self, role: str | None = None) -> tuple[float | None, str | None]:
        """Best score that a constant predictor gets on the rows of a role (None: those reported), and what it predicts."""

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

    def finish(self, records: Sequence[Record], role: str) -> list[Record]:
        """Records of a whole role as they are stored: in order and with row ids.

        A head that reads a row in pieces puts them together here.

        Args:
            records: what :meth:`predict` said of every batch; ``row`` is an index.
            role: ``train``, ``choose`` or ``test``.

        Returns:
            One record a row of the data; ``row`` is its id.
        """
        ids = self.data.row_ids(role)
        return [{**record, "row": ids[record["row"]]} for record in sorted(records, key=lambda record: record["row"])]

    def answer(self, record: Record) -> dict[str, Any]:
        """What a stored record says of its row, in words and without the right answer; for people and for JSON."""
        return {key: value for key, value in record.items() if key not in ("row", "label")}

    def about(self) -> dict[str, Any]:
        """What it takes to use the head without this package, as JSON.

        ``output`` is Python with ``head`` (its tensors), ``hidden`` (last hidden states) and ``pooled`` (of these, one a text).
        ``boundary`` says in words where a prompt ends, if the LM head answers one.
        """
        return {}

    # -- training ------------------------------------------------------------------------------------------------------

    def start_stage(self, stage: int, hooks: StageHooks) -> None:
        """Say which stage begins and which strategy is asked for penalties and gradients."""
        self.stage = stage
        self.also_trained = []
        self._hooks = hooks
        self.go_to(Progress())

    def go_to(self, progress: Progress) -> None:
        """Go to where a stage was before; its rows then begin with the batch that comes next."""
        self._start = (progress.epoch, progress.batch)
        self.tokens = progress.tokens
        self.chosen_scores = list(progress.chosen_scores)
        self.guard.expect(progress.left_out)

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
            NonFiniteError: the loss is not finite, and the step is not left out for that.
        """
        self._last_batch = (batch, batch_idx)
        self.busy_with = ("training", tuple(batch["input_ids"].shape))
        loss = self.batch_loss(batch) * batch["weight"]
        self.log(f"train/{self.name}/loss", loss.detach(), prog_bar=True)
        penalty = self._hooks.penalty(self, batch) if self._hooks else None
        if penalty is not None:
            self.log(f"train/{self.name}/penalty", penalty.detach())
            loss = loss + penalty
        # With several devices this one must not stop alone; the gradients are not finite then, on all of them.
        if not torch.isfinite(loss) and (self.trainer.world_size == 1 or self.guard.policy == "skip"):
            self.guard.report(self._place, self._describe(f"loss is {loss.item()}"))
        if batch["weight"] > 0:  # a device without a share of the last batch gets one row that does not count
            self.tokens += int(batch["attention_mask"].sum())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the strategy act on the gradients; stop before a step that is not finite, or leave it out."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._trained = {names.get(id(p), f"parameter {index}"): p for index, p in enumerate(trained)}
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # leaves out what overflows itself
        if scaled or not self._is_left_out():
            if self._hooks:
                self._hooks.on_gradients(self)
            if scaled or not self._is_left_out():
                return
        for (
            parameter
        ) in trained:  # optimisers pass over parameters without a gradient: their state does not change either
            parameter.grad = None

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Weights can overflow though the gradient was finite."""
        self.guard.check_weights(self._trained, self._place, self._describe("weights"))
        self._trained = {}

    @property
    def _place(self) -> Place:
        """The optimiser step that the last batch belongs to."""
        batch_idx = self._last_batch[1]
        return self.current_epoch, batch_idx - batch_idx % self.trainer.accumulate_grad_batches

    def _is_left_out(self) -> bool:
        """Whether this step is to be left out, on all devices alike."""
        bad = first_nonfinite({name: p.grad for name, p in self._trained.items() if p.grad is not None})
        if bad is not None:
            self.guard.report(self._place, self._describe(f"gradient of {bad!r} is not finite"))
        if self.guard.policy == "stop":
            return False
        here = self._place in self.guard.left_out
        anywhere = self.trainer.strategy.reduce_boolean_decision(here, all=False)
        if anywhere and not here:
            self.guard.leave_out(self._place, self._describe("not finite on another device"))
        return anywhere

    def on_train_end(self) -> None:
        """Count the tokens of all devices."""
        self.busy_with = None
        total = self.trainer.strategy.reduce(torch.tensor(self.tokens, device=self.device), reduce_op="sum")
        self.tokens = int(total)

    def configure_optimizers(self) -> Any:
        """A new optimiser, and schedule if there is one, for this stage."""
        plan = self.training_plan
        head = [*(self.head.parameters() if self.head is not None else ()), *self.also_trained]
        groups = parameter_groups(self.backbone.parameters(), head, lr=plan.lr, head_lr=plan.head_lr)
        optimizer = stage_optimizer(plan.optimizer, groups)
        if plan.scheduler is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = plan.scheduler(optimizer, steps=steps, examples=plan.epochs * self.data.counts["train"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _describe(self, what: str) -> str:
        """Where in the run something is not finite: task, stage, epoch, batch and its rows."""
        batch, batch_idx = self._last_batch
        ids = self.data.row_ids("train")
        rows = ", ".join(ids[index] for index in batch["row"].tolist()[:8])
        return (
            f"Task {self.name!r}, stage {self.stage}, epoch {self.current_epoch}, batch {batch_idx}: {what}. Rows: {rows}"
            f"{', …' if len(batch['row']) > 8 else ''}."
        )

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect records on the choosing rows."""
        self.busy_with = ("evaluation", tuple(batch["input_ids"].shape))
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
        self.busy_with = ("evaluation", tuple(batch["input_ids"].shape))
        self._records += self.predict(batch)

    def on_test_epoch_end(self) -> None:
        """Score the reported rows into :attr:`outcome`."""
        self.outcome = self._finish(self.data.evaluated)

    def _finish(self, role: str) -> Outcome:
        """Gather the records of all devices, put them in row order and score them."""
        records, self._records = self._records, []
        self.busy_with = None
        world = self.trainer.world_size
        if world > 1:
            gathered: list[Any] = [None] * world
            torch.distributed.all_gather_object(gathered, records)
            records = [record for part in gathered for record in part]
        records = self.checked(records, role)
        scores = self.score(records)
        if (bad := nonfinite_in(scores)) is not None:
            raise NonFiniteError(
                f"Task {self.name!r}, stage {self.stage}, {role} rows: the score {bad[0]} is {bad[1]}."
            )
        return Outcome(scores=scores, records=records)

    def checked(self, records: Sequence[Record], role: str) -> list[Record]:
        """Records of a whole role as they are stored, see :meth:`finish`, if all of them are numbers.

        Raises:
            NonFiniteError: what was predicted of a row is none; names it.
        """
        where = f"Task {self.name!r}, stage {self.stage}, {role} rows"
        refuse_nonfinite(records, where=where, row_name=lambda record: self.row_name(record, role))
        return self.finish(records, role)

    def row_name(self, record: Record, role: str) -> str:
        """Id of the row that a record of :meth:`predict` is about."""
        return self.data.row_ids(role)[record["row"]]

    # -- rows ----------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training rows of this device."""
        plan = self.training_plan
        loader = self._loader("train", batch_size=plan.batch_size, shuffle=plan.shuffle)
        cast(PositionSampler, loader.batch_sampler).set_epoch(*self._start)
        return loader

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Rows set aside for choosing, if any."""
        if not self.data.counts.get("choose"):
            return []
        return self._loader("choose", batch_size=self._global_eval_batch, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Rows that are reported: those for testing, or with ``evaluate_on=choose`` those for choosing."""
        return self._loader(self.data.evaluated, batch_size=self._global_eval_batch, shuffle=False)

    @property
    def _global_eval_batch(self) -> int:
        return self.training_plan.eval_batch_size * self.trainer.world_size

    def _loader(self, role: str, *, batch_size: int, shuffle: bool) -> DataLoader[Batch]:
        plan = self.training_plan
        return make_loader(
            self.data.rows(role),
            batch_size=batch_size,
            seed=plan.seed,
            stage=self.stage,
            shuffle=shuffle,
            num_workers=plan.num_workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
