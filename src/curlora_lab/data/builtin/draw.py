"""Seeded choices and the split of the meaning space, on which every built-in generator rests."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

BUCKETS = {"train": range(0, 6), "validation": range(6, 8), "test": range(8, 10)}
"""Tenths of the meaning space that belong to each split."""


class Draw:
    """Choices from one stream, named by what they are for.

    Only ``random.Random.random`` is used: the standard library promises its sequence across Python versions, which it
    does not for ``choice`` and ``shuffle``, nor NumPy for its generators.

    Args:
        *name: What the stream is for, such as ``("sentiment2", "train", seed, block)``. Equal names give equal streams.
    """

    def __init__(self, *name: object) -> None:
        self._random = random.Random("|".join(map(str, name)))

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1, all equally likely."""
        return int(self._random.random() * n)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.below(len(options))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random.random() < probability

    def weighted(self, options: Sequence[tuple[T, float]]) -> T:
        """One of the (value, weight) options, in proportion to its weight."""
        at = self._random.random() * sum(weight for _, weight in options)
        for value, weight in options:
            at -= weight
            if at < 0:
                return value
        return options[-1][0]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out


def check_split(split: str) -> None:
    """Refuse a split that the built-in world does not have.

    Raises:
        ValueError: The split is not one of train, validation, test.
    """
    if split not in BUCKETS:
        raise ValueError(f"split '{split}' is unknown to the built-in generators; allowed: {', '.join(BUCKETS)}.")


def belongs(meaning: object, split: str) -> bool:
    """Whether a meaning (a nest of tuples of strings) belongs to a split.

    Every meaning belongs to exactly one split, by a hash that knows neither label nor seed; so no meaning, and hence no
    text, can stand in two splits, whatever the seeds.
    """
    digest = hashlib.sha256(repr(meaning).encode()).digest()
    return digest[0] * 256 + digest[1] in _SPLIT_HASHES[split]


_SPLIT_HASHES = {name: range(b.start * 6554, min(b.stop * 6554, 65536)) for name, b in BUCKETS.items()}
