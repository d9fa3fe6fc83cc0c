"""Which characters of which column each token stands for: what labels of words and answers in a text need."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curlora_lab.data.encoding import Encoded, Encoder

NOBODY = -1


@dataclass(frozen=True)
class Aligned:
    """The tokens of one row, uncut.

    Args:
        ids: int32, shape ``(tokens,)``.
        owners: int16, shape ``(tokens,)``; the column that a token has characters of, -1 for special tokens and the
            template's own text.
        spans: int32, shape ``(tokens, 2)``; first character and the one after the last in the owner's text, without white
            space at the front.
    """

    ids: NDArray[np.int32]
    owners: NDArray[np.int16]
    spans: NDArray[np.int32]

    def of(self, column: int) -> slice:
        """The tokens of a column; they lie together."""
        found = np.flatnonzero(self.owners == column)
        return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def aligned(encoder: Encoder, rows: Sequence[Sequence[str]]) -> Iterator[Aligned]:
    """Tokenise rows and say what each token stands for.

    A token belongs to the column that it has a character of that is no white space: byte-level tokenizers put the blank
    before a word into its first token, and ``offset_mapping`` counts it or not, as the tokenizer was set up.

    Args:
        encoder: How rows are put together; its ``max_length`` is not applied.
        rows: One text a column for each row.

    Yields:
        The tokens of each row.
    """
    order = [column for _, column in encoder.parts if column is not None]
    for row, (encoding, places) in zip(rows, encoder.encodings(rows), strict=True):
        if encoder.as_pair:
            found = [_within(row, *about) for about in zip(encoding.sequence_ids, encoding.offsets, strict=True)]
        else:
            named = list(zip(order, places, strict=True))
            special = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            found = [(NOBODY, 0, 0) if mask else _located(row, offset, named) for offset, mask in special]
        table = np.array(found, dtype=np.int32).reshape(-1, 3)
        yield Aligned(np.asarray(encoding.ids, dtype=np.int32), table[:, 0].astype(np.int16), table[:, 1:])


def flat(rows: Sequence[Sequence[int] | NDArray[np.int32]], truncated: Sequence[bool]) -> Encoded:
    """Token ids of many rows, end to end.

    Args:
        rows: Token ids of each row.
        truncated: Whether tokens of the row were cut off.
    """
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]) if rows else np.zeros(0, dtype=np.int32)
    return Encoded(ids, offsets, np.asarray(truncated, dtype=np.bool_))


def _within(row: Sequence[str], column: int | None, offset: tuple[int, int]) -> tuple[int, int, int]:
    """Column and characters of a token whose offset counts within the column's own text."""
    if column is None:
        return NOBODY, 0, 0
    start, end = offset
    text = row[column][start:end]
    start += len(text) - len(text.lstrip())
    return (column, start, end) if end > start else (NOBODY, 0, 0)


def _located(row: Sequence[str], offset: tuple[int, int], places: Sequence[Any]) -> tuple[int, int, int]:
    """Column and characters of a token whose offset counts within the whole text."""
    for column, (first, last) in places:
        start, end = max(offset[0], first), min(offset[1], last)
        if end > start:
            found = _within(row, column, (start - first, end - first))
            if found[0] != NOBODY:
                return found
    return NOBODY, 0, 0
