"""What a task is given and what it gives: its data, its training, its outcome, the hooks of a strategy."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from torch import Tensor
from torch.optim import Optimizer

from curlora_lab.data.checks import BadRows, Example
from curlora_lab.data.loading import TokenRows
from curlora_lab.data.preparation import Read
from curlora_lab.data.source import Split
from curlora_lab.tasks.finite import Place, Policy

if TYPE_CHECKING:
    from curlora_lab.tasks.base import TaskModule

Batch = dict[str, Tensor]
Record = dict[str, Any]


class TaskData(Protocol):
    """What a task needs of its data; :mod:`curlora_lab.data` has the classes."""

    best: float | None

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row without its label has, by the names that the data use."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256 of the rows used."""
        ...

    @property
    def counts(self) -> dict[str, int]:
        """Rows used of each role."""
        ...

    @property
    def evaluated(self) -> str:
        """The role whose rows are scored and reported: ``test``, or ``choose`` where ``evaluate_on`` says so."""
        ...

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores should know, each ``<code>: <what>``."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names by index; empty where there are none."""
        ...

    def prepare(self, tokenizer: Any, *, seed: int, cache_dir: Path | None) -> None:
        """Load, check, split and tokenise."""
        ...

    def rows(self, role: str) -> TokenRows:
        """Tokenised rows of one role (``train``, ``choose`` or ``test``)."""
        ...

    def row_ids(self, role: str) -> Sequence[str]:
        """Row ids of one role, in the order that ``batch["row"]`` counts."""
        ...

    def examples(self, role: str) -> list[Example]:
        """The rows of one role as they were found and checked."""
        ...

    def read(self, split: Split, *, labelled: bool = True, bad_rows: BadRows | None = None) -> Read:
        """Check rows from anywhere; without labels only :attr:`columns` are needed."""
        ...

    def only(self, tokenizer: Any, examples: Sequence[Example]) -> Self:
        """The same task with these rows, as ``test``, and no others."""
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
    """How a task is trained; the same for all tasks of a run, but for what a task's own keys say otherwise.

    Args:
        optimizer: makes an optimiser from parameter groups.
        scheduler: makes a schedule from an optimiser, ``steps=`` and ``examples=``, or ``None`` for a constant rate.
        lr: learning rate of the adapter.
        head_lr: learning rate of the head.
        batch_size: rows in one global batch (over all devices).
        eval_batch_size: rows in one batch of evaluation, on each device.
        num_workers: processes that prepare batches.
        seed: seed of the run.
        epochs: passes over the training rows.
        shuffle: whether training rows come in a new order each epoch.
        head_seed: seed of every head's initial weights; ``None``: from the run's seed and the task's name.
        on_nonfinite: what happens when a loss, a gradient or a weight is not finite; see
            :class:`~curlora_lab.tasks.finite.StepGuard`.
        nonfinite_limit: how many steps of a stage may be left out for that.
    """

    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., Any] | None
    lr: float
    head_lr: float
    batch_size: int
    eval_batch_size: int
    num_workers: int
    seed: int
    epochs: int = 1
    shuffle: bool = True
    head_seed: int | None = None
    on_nonfinite: Policy = "stop"
    nonfinite_limit: int = 10


@dataclass
class Progress:
    """How far a stage has come: what a task counts while it trains.

    Args:
        epoch: the epoch of the next batch.
        batch: the next batch in it.
        tokens: real tokens seen in this stage, on this device.
        chosen_scores: on the choosing rows, one entry an epoch.
        left_out: optimiser steps that were left out because their numbers were not finite.
    """

    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    chosen_scores: list[dict[str, float]] = field(default_factory=list)
    left_out: list[Place] = field(default_factory=list)


def position_seed(*position: int | str) -> int:
    """A seed that depends on the position in a run and on nothing else: 63 bits of a sha256."""
    text = "/".join(str(part) for part in position)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
