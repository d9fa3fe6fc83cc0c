"""Plain text to anchor the language model on: read, held apart from what the probes report on, cut into windows of tokens."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from curlora_lab.data.chance import generator_at
from curlora_lab.probes import PerplexityProbe
from curlora_lab.probes.text import Documents, RowSource, encode, fingerprint, join_texts, read_texts

logger = logging.getLogger(__name__)

WORDS_TO_COMPARE = 8
"""Lines of fewer words are not compared: headings and the like stand in any text."""


class GenericText:
    """Text that no task and no probe uses, as windows of tokens.

    Never what a probe reports on: a document is left out when one of its lines of at least 8 words (lower case, single blanks)
    is also a line of a probe's text, by hash.

    Args:
        source: where the rows come from.
        role: role of the split that is read.
        column: name of the text column.
        documents: ``each`` row is a document of its own, or all are ``joined`` with newlines between them.
        max_documents: at most so many rows, the first ones; ``None`` for all.
        max_length: tokens of a window; longer documents give several.
        add_bos: put the bos token in front of each document; ``auto`` where the tokenizer itself would.

    Attributes:
        fingerprint: identifies the text that is used; empty before :meth:`prepare`.
        windows: token ids, each (seq,), of at least 2 tokens.
        left_out: documents left out because a probe reads them.

    Raises:
        ValueError: an argument is out of range or unknown.
    """

    def __init__(
        self,
        source: RowSource,
        *,
        role: str = "train",
        column: str = "text",
        documents: Documents = "each",
        max_documents: int | None = None,
        max_length: int = 64,
        add_bos: bool | Literal["auto"] = "auto",
    ) -> None:
        if documents not in ("each", "joined"):
            raise ValueError(f"strategy.text.documents={documents!r} is unknown; choose one of each, joined.")
        if max_documents is not None and max_documents < 1:
            raise ValueError(f"strategy.text.max_documents={max_documents} must be at least 1, or null for all.")
        if max_length < 2:
            raise ValueError(
                f"strategy.text.max_length={max_length}: a window needs 2 tokens, one to read, one to predict."
            )
        self.source = source
        self.role = role
        self.column = column
        self.documents: Documents = documents
        self.max_documents = max_documents
        self.max_length = max_length
        self.add_bos: bool | Literal["auto"] = add_bos
        self.fingerprint = ""
        self.windows: list[Tensor] = []
        self.left_out = 0

    def prepare(self, tokenizer: Any, *, context: int, probes: Mapping[str, PerplexityProbe]) -> None:
        """Read, hold apart, tokenise and cut.

        Args:
            tokenizer: the backbone's.
            context: longest input of the backbone in tokens.
            probes: what is reported on.

        Raises:
            ValueError: nothing is left, a row is no text, or a window is longer than the model reads.
        """
        if self.max_length > context:
            raise ValueError(
                f"strategy.text.max_length={self.max_length} is longer than the {context} tokens the model reads."
            )
        found = read_texts(self.source, self.role, self.column, limit=self.max_documents)
        texts = held_apart(found, probes)
        self.left_out = len(found) - len(texts)
        if self.left_out:
            logger.warning(
                "anchoring text: %d of %d documents are left out, because a probe (%s) reports on them.",
                self.left_out,
                len(found),
                ", ".join(probes),
            )
        if texts and self.documents == "joined":
            texts = [join_texts(texts, separator="\n", strip_newline=True, drop_empty=False)]
        self.windows = [window for text in texts for window in self._cut(text, tokenizer)]
        if not self.windows:
            why = "every document is part of a probe's text" if self.left_out else "no document has two tokens"
            raise ValueError(
                f"strategy.text has no text to anchor on: {why} ({len(found)} rows read); name another source."
            )
        self.fingerprint = fingerprint(texts)

    def batch(self, rows: int, *position: int | str) -> tuple[list[int], Tensor, Tensor]:
        """Draw windows without repetition; the same position draws the same ones.

        Args:
            rows: windows to draw; all if there are fewer.
            position: where in the run this is.

        Returns:
            Indices of the windows, token ids (rows, seq) padded on the right with 0, and their mask (rows, seq).
        """
        drawn = torch.randperm(len(self.windows), generator=generator_at("text", *position))[:rows].tolist()
        return drawn, *padded([self.windows[index] for index in drawn])

    def _cut(self, text: str, tokenizer: Any) -> list[Tensor]:
        ids = encode(text, tokenizer, add_bos=self.add_bos, max_tokens=None).ids
        return [window for window in ids.split(self.max_length) if len(window) > 1]


def padded(windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Token ids and mask of windows, padded on the right; a causal model can't see the padding from the scored positions."""
    ids = pad_sequence(list(windows), batch_first=True)
    return ids, pad_sequence([torch.ones_like(window) for window in windows], batch_first=True)


def held_apart(texts: Sequence[str], probes: Mapping[str, PerplexityProbe]) -> list[str]:
    """The texts of which no line is also a line of what a probe reports on."""
    reported: set[bytes] = set()
    for probe in probes.values():
        if probe.fingerprint is not None:  # otherwise it measures nothing here
            for text in read_texts(probe.source, probe.role, probe.column, limit=probe.max_documents):
                reported |= _line_hashes(text)
    return [text for text in texts if not reported & _line_hashes(text)]


def _line_hashes(text: str) -> set[bytes]:
    lines = (line.lower().split() for line in text.splitlines())
    return {hashlib.sha256(" ".join(words).encode()).digest() for words in lines if len(words) >= WORDS_TO_COMPARE}
