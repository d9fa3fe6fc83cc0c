"""Long contexts in overlapping windows, and where in a window an answer stands."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from curlora_lab.data.alignment import Aligned
from curlora_lab.data.faults import Fault


@dataclass(frozen=True)
class Window:
    """One window: everything but the context, and a part of the context.

    Args:
        ids: Token ids, int32, shape ``(tokens,)``.
        context: Positions of the part of the context.
        spans: Characters in the context of each of that part's tokens, shape ``(part, 2)``.
        start: Position of the answer's first token, counted from 1; 0: the window does not hold the whole answer.
        end: The same of its last token.
    """

    ids: NDArray[np.int32]
    context: slice
    spans: NDArray[np.int32]
    start: int = 0
    end: int = 0

    def with_answer(self, answer: tuple[int, int] | None) -> "Window":
        """The window with the positions of an answer, where it holds all of it.

        Args:
            answer: First character in the context, and the one after the last; None for no answer.
        """
        if answer is None or answer[0] < self.spans[0, 0] or answer[1] > self.spans[-1, 1]:
            return self
        inside = np.flatnonzero((self.spans[:, 0] < answer[1]) & (self.spans[:, 1] > answer[0]))
        if not len(inside):
            return self
        first = self.context.start + 1
        return replace(self, start=first + int(inside[0]), end=first + int(inside[-1]))

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """First character in the context of the token at one position, and the one after the last of another's.

        Args:
            start: Position of the first token, from 0.
            end: Position of the last.
        """
        first = self.context.start
        return int(self.spans[start - first, 0]), int(self.spans[end - first, 1])


def cut_windows(
    tokens: Aligned, *, context: int, max_length: int, stride: int | None, where: str
) -> list[Window] | Fault:
    """Cut a row into windows that each hold everything but the context, and together the whole context.

    Args:
        tokens: The row, uncut.
        context: Which column is cut.
        max_length: Tokens a window may have.
        stride: Tokens of the context that neighbouring windows share; None: a third of ``max_length``, but no more than half
            of what the question leaves.
        where: The row's place, for messages.

    Returns:
        At least one window; or a fault, if the context gives no token, or the question leaves too little room for it.
    """
    own = tokens.of(context)
    total, around = own.stop - own.start, len(tokens.ids) - (own.stop - own.start)
    if not total:
        return Fault(where, "context without a token", "the context gives no token at all")
    room = max_length - around
    shared = min(max_length // 3, room // 2) if stride is None else stride
    if room < 1 or (room <= shared and total > room):
        reason = (
            f"of {max_length} tokens (max_length) the question takes {around}, which leaves {max(room, 0)} for the context "
            f"({total} tokens), of which neighbouring windows share {max(shared, 0)} (stride); raise max_length or lower stride"
        )
        return Fault(where, "question too long", reason)
    spans = _filled(tokens.spans[own], tokens.owners[own] == context)
    starts = range(0, total - shared if total > room else 1, room - shared if total > room else 1)
    windows = []
    for start in starts:
        stop = min(start + room, total)
        ids = np.concatenate(
            [tokens.ids[: own.start], tokens.ids[own.start + start : own.start + stop], tokens.ids[own.stop :]]
        )
        windows.append(Window(ids, slice(own.start, own.start + stop - start), spans[start:stop]))
    return windows


def _filled(spans: NDArray[np.int32], owned: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Tokens of white space stand for the empty text behind the token before them."""
    if owned.all():
        return spans
    filled = spans.copy()
    for position in np.flatnonzero(~owned):
        filled[position] = filled[position - 1, 1]
    return filled
