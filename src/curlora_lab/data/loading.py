"""Batches by position: the order of rows depends on seed, stage and epoch, and on nothing else."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from curlora_lab.data.chance import generator_at
from curlora_lab.data.encoding import Encoded

IGNORED = -100  # label of a position without a target, as torch's cross entropy and transformers have it

Batch = dict[str, Tensor]


class PositionSampler(Sampler[list[tuple[int, float]]]):
    """Batches of (row, weight), in an order that is a function of (seed, stage, epoch).

    Rank k of w gets rows k, k + w, ... of each global batch. ``weight`` = local rows x w / global rows, so the mean over
    ranks of weight x (local mean loss) is the mean loss of the global batch, which is what DDP's gradient averaging needs.

    Lightning finds ``sampler.set_epoch`` on a batch sampler and calls it before each epoch; its own distributed sampler
    must be off (``use_distributed_sampler=False``).

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
        self.epoch = 0
        self.start_batch = 0

    @property
    def sampler(self) -> "PositionSampler":
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


class TokenRows(Dataset[tuple[int, float, NDArray[np.int32], int]]):
    """Tokenised rows of one role, read by the (row, weight) pairs of ``PositionSampler``.

    Args:
        encoded: Token ids of all rows.
        labels: Index of the label of each row; None in language modelling, where the tokens are the labels.
    """

    def __init__(self, encoded: Encoded, labels: Sequence[int] | None) -> None:
        self.encoded = encoded
        self.labels = labels

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, place: tuple[int, float]) -> tuple[int, float, NDArray[np.int32], int]:
        row, weight = place
        return row, weight, self.encoded.row(row), IGNORED if self.labels is None else self.labels[row]


class Collate:
    """Rows to one batch, padded on the right to its longest row.

    Args:
        pad_token_id: Token that fills ``input_ids``.
        language: Labels are the tokens themselves, -100 on padding.
    """

    def __init__(self, pad_token_id: int, *, language: bool) -> None:
        self.pad_token_id = pad_token_id
        self.language = language

    def __call__(self, items: Sequence[tuple[int, float, NDArray[np.int32], int]]) -> Batch:
        """Build a batch.

        Args:
            items: (row, weight, token ids, label) of each row; the weights are equal.

        Returns:
            ``input_ids`` and ``attention_mask`` (batch, seq) int64, ``labels`` (batch,) or (batch, seq) int64, ``row`` (batch,)
            int64, ``weight`` () float32.
        """
        longest = max(len(ids) for _, _, ids, _ in items)
        input_ids = torch.full((len(items), longest), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros((len(items), longest), dtype=torch.int64)
        for position, (_, _, ids, _) in enumerate(items):
            input_ids[position, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            mask[position, : len(ids)] = 1
        labels = (
            input_ids.masked_fill(mask == 0, IGNORED) if self.language else torch.tensor([item[3] for item in items])
        )
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "labels": labels,
            "row": torch.tensor([item[0] for item in items]),
            "weight": torch.tensor(items[0][1], dtype=torch.float32),
        }


def make_loader(
    dataset: TokenRows, *, pad_token_id: int, sampler: PositionSampler, num_workers: int = 0
) -> DataLoader[Any]:
    """A loader whose ``batch_sampler`` is ``sampler``.

    Args:
        dataset: The rows.
        pad_token_id: Token that fills short rows.
        sampler: Which rows come when.
        num_workers: Worker processes; the batches are the same for any number.

    Returns:
        A ``DataLoader`` that takes nothing from torch's global generator.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=Collate(pad_token_id, language=dataset.labels is None),
        num_workers=num_workers,
        # Without one, starting an iterator draws the workers' base seed from the global generator and shifts every later draw.
        generator=generator_at("workers", sampler.seed, sampler.stage),
    )
