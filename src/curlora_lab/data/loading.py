"""Batches by position: the order of rows depends on seed, stage and epoch, and on nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from curlora_lab.data.chance import generator_at
from curlora_lab.data.encoding import Encoded

IGNORED = -100  # label of a position without a target, as torch's cross entropy and transformers have it

Batch = dict[str, Tensor]
Place = TypeVar("Place")


class EpochSampler(Sampler[list[Place]]):
    """A batch sampler whose order is a function of the epoch, and which can begin inside one.

    Lightning finds ``sampler.set_epoch`` on a batch sampler and calls it before each epoch; its own distributed sampler
    must be off (``use_distributed_sampler=False``).
    """

    epoch = 0
    start_batch = 0

    @property
    def sampler(self) -> Self:
        """Itself: where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Go to a position.

        Args:
            epoch: The epoch within the stage.
            start_batch: Batches of this epoch that are already done, after a resume; counted again as 0 in the next epoch.
        """
        if epoch != self.epoch or start_batch:
            self.start_batch = start_batch
        self.epoch = epoch


class PositionSampler(EpochSampler[tuple[int, float]]):
    """Batches of (row, weight), in an order that is a function of (seed, stage, epoch).

    Rank k of w gets rows k, k + w, ... of each global batch. ``weight`` = local rows x w / global rows, so the mean over
    ranks of weight x (local mean loss) is the mean loss of the global batch, which is what DDP's gradient averaging needs.

    Args:
        rows: Number of rows.
        batch_size: Rows of a global batch; the last one may be smaller.
        seed: The run's seed.
        stage: The stage of the sequence.
        shuffle: Whether rows are shuffled, anew in each epoch.
        rank: Which share of each batch.
        world_size: Number of shares.
        equal_steps: For training: every rank has the same number of batches. A rank without a share of the last batch gets one
            of its rows with weight 0, so that its gradient counts nothing. Otherwise it has no batch there, and no row occurs
            twice over all ranks.

    Raises:
        ValueError: If there are no rows, the batch is empty, or the rank is not in the world.
    """

    def __init__(
        self,
        rows: int,
        *,
        batch_size: int,
        seed: int = 0,
        stage: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        equal_steps: bool = True,
    ) -> None:
        if rows < 1:
            raise ValueError(f"there are {rows} rows to load; at least one is needed.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least 1 is needed.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; with world_size {world_size} it is 0 to {world_size - 1}.")
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.stage = stage
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.equal_steps = equal_steps

    def order(self) -> list[int]:
        """Rows of the current epoch in order, over all ranks."""
        if not self.shuffle:
            return list(range(self.rows))
        generator = generator_at("order", self.seed, self.stage, self.epoch)
        return torch.randperm(self.rows, generator=generator).tolist()

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, those before ``start_batch`` included."""
        whole, last = divmod(self.rows, self.batch_size)
        reaches_last = last > 0 if self.equal_steps else last > self.rank
        if not self.equal_steps and self.rank >= self.batch_size:
            return 0
        return whole + int(reaches_last)

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        order = self.order()
        for start in range(self.start_batch * self.batch_size, self.rows, self.batch_size):
            batch = order[start : start + self.batch_size]
            share = batch[self.rank :: self.world_size]
            if share:
                weight = len(share) * self.world_size / len(batch)
                yield [(row, weight) for row in share]
            elif self.equal_steps:
                yield [(batch[0], 0.0)]


@dataclass(frozen=True)
class TokenRows(Dataset["Item"]):
    """Tokenised rows of one role, read by the (row, weight) pairs of ``PositionSampler``.

    Args:
        encoded: Token ids of all rows.
        role: ``train``, ``choose`` or ``test``.
        pad_token_id: Token that fills short rows of a batch.
        labels: Label of each row, an index or a number; None where the tokens have the labels.
        token_labels: Label of each token, laid out like ``encoded.ids``; -100 for one without a target. None, without
            ``labels`` either: the tokens themselves, as in language modelling.
        columns: Further numbers of each row that a batch carries, by name; each (rows,) or (rows, width).

    Raises:
        ValueError: If something has not as many entries as there are rows, or tokens.
    """

    encoded: Encoded
    role: str
    pad_token_id: int
    labels: Sequence[int] | Sequence[float] | None = None
    token_labels: NDArray[np.int64] | None = None
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {name: len(column) for name, column in self.columns.items()}
        if self.labels is not None:
            sizes["labels"] = len(self.labels)
        wrong = {name: size for name, size in sizes.items() if size != len(self.encoded)}
        if wrong:
            raise ValueError(f"there are {len(self.encoded)} rows, but {wrong} entries.")
        if self.token_labels is not None and len(self.token_labels) != len(self.encoded.ids):
            raise ValueError(f"{len(self.token_labels)} token labels for {len(self.encoded.ids)} tokens.")

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, place: tuple[int, float]) -> "Item":
        row, weight = place
        ids = torch.from_numpy(self.encoded.row(row).astype(np.int64))
        label: Tensor
        if self.labels is not None:
            label = torch.tensor(self.labels[row])
        elif self.token_labels is not None:
            start, end = self.encoded.offsets[row : row + 2]
            label = torch.from_numpy(self.token_labels[start:end])
        else:
            label = ids
        extra = {name: torch.as_tensor(column[row]) for name, column in self.columns.items()}
        return Item(row, weight, ids, label, extra)


class Item(NamedTuple):
    """One row before it is put into a batch."""

    row: int
    weight: float
    ids: Tensor
    label: Tensor
    columns: dict[str, Tensor]


class Collate:
    """Rows to one batch, padded on the right to its longest row.

    Args:
        pad_token_id: Token that fills ``input_ids``.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Build a batch.

        Args:
            items: The rows; their weights are equal.

        Returns:
            ``input_ids`` and ``attention_mask`` (batch, seq) int64, ``labels`` (batch,) or, of tokens, (batch, seq) with -100 on
            padding, ``row`` (batch,) int64, ``weight`` () float32, and the rows' further columns.
        """
        labels = [item.label for item in items]
        per_token = labels[0].ndim == 1
        return {
            "input_ids": _pad([item.ids for item in items], self.pad_token_id),
            "attention_mask": _pad([torch.ones_like(item.ids) for item in items], 0),
            "labels": _pad(labels, IGNORED) if per_token else torch.stack(labels),
            "row": torch.tensor([item.row for item in items]),
            "weight": torch.tensor(items[0].weight, dtype=torch.float32),
            **{name: torch.stack([item.columns[name] for item in items]) for name in items[0].columns},
        }


def make_loader(
    rows: TokenRows,
    *,
    batch_size: int,
    seed: int = 0,
    stage: int = 0,
    shuffle: bool = False,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Batches of a role; see ``PositionSampler`` for their order and ``Collate`` for their content.

    Args:
        rows: The rows.
        batch_size: Rows of a global batch, over all ranks.
        seed: The run's seed.
        stage: The stage of the sequence.
        shuffle: Whether rows are shuffled, anew in each epoch.
        num_workers: Worker processes; the batches are the same for any number.
        rank: Which share of each batch.
        world_size: Number of shares.

    Returns:
        A loader whose ``batch_sampler`` has ``set_epoch``; it takes nothing from torch's global generator.

    Raises:
        ValueError: If there are no rows or a number is out of range.
    """
    sampler = PositionSampler(
        len(rows),
        batch_size=batch_size,
        seed=seed,
        stage=stage,
        shuffle=shuffle,
        rank=rank,
        world_size=world_size,
        equal_steps=rows.role == "train",
    )
    return DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=Collate(rows.pad_token_id),
        num_workers=num_workers,
        # Without one, starting an iterator draws the workers' base seed from the global generator and shifts every later draw.
        generator=generator_at("workers", seed, stage),
    )


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value)
