"""The data of a language modelling task: documents, one a row or joined into blocks."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from curlora_lab.data.cache import encode_cached
from curlora_lab.data.checks import BadRows, Example, apply_policy, check_split
from curlora_lab.data.classification import pad_token_id
from curlora_lab.data.encoding import Encoded, Encoder, check_length
from curlora_lab.data.faults import DataError, Fault
from curlora_lab.data.held import Held, HoldsRows
from curlora_lab.data.loading import TokenRows
from curlora_lab.data.preparation import Read, Selection, check_policy, gather, read_split
from curlora_lab.data.source import DataSource, Split
from curlora_lab.data.splitting import EvaluateOn, Subset

Documents = Literal["each", "joined"]


class LanguageModelData(HoldsRows):
    """Documents of a language modelling task: checked, divided into roles, tokenised. Nothing is read before ``prepare``.

    With ``documents=each`` a row is a document, cut to ``max_length`` tokens and counted as truncated. With ``joined`` the
    documents of a role are laid end to end, each with the special tokens that the tokenizer gives it (or its end token
    where it gives none), and cut into blocks of ``max_length``; nothing is lost but a last block of one token. A row always
    has a next token to predict: a document of one token is a broken row.

    Args:
        name: Name of the task.
        source: Where rows come from.
        column: The text column.
        documents: ``each`` or ``joined``.
        sort_by: Role -> column by which its rows are sorted before anything is taken.
        subset: ``random`` or ``first``.
        bad_rows: ``stop`` or ``skip``.
        choose_fraction: Part of the training documents set aside for choosing.
        test_fraction: Part of them set aside for testing where the source has no test split.
        evaluate_on: ``test``; ``choose``: the part for choosing is evaluated, and the reported split not even read.
        train_rows: Documents to train on; None for all.
        eval_rows: At most so many documents to test on; None for all.
        max_length: Tokens a row may have.
        best: Best achievable score of the main metric, where it is known.

    Attributes:
        fingerprint: sha256 of the documents used: ids and texts of each role; empty before ``prepare``.
        counts: Rows of each role: documents, or blocks where they are joined.
        notes: What a reader of the scores should know, each ``<code>: <what>``, as in ``ClassificationData``.

    Raises:
        ValueError: If an argument cannot be right, whatever the data are.
    """

    def __init__(
        self,
        *,
        name: str,
        source: DataSource,
        column: str = "text",
        documents: Documents = "each",
        sort_by: Mapping[str, str] | None = None,
        subset: Subset = "random",
        bad_rows: BadRows = "stop",
        choose_fraction: float = 0.1,
        test_fraction: float = 0.2,
        evaluate_on: EvaluateOn = "test",
        train_rows: int | None = None,
        eval_rows: int | None = None,
        max_length: int = 128,
        best: float | None = None,
    ) -> None:
        check_policy(bad_rows)
        if documents not in ("each", "joined"):
            raise ValueError(f"documents is {documents!r}; allowed: each, joined.")
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}; a row needs 2 tokens, one to read and one to predict.")
        self.name = name
        self.source = source
        self.column = column
        self.documents = documents
        self.bad_rows = bad_rows
        self.max_length = max_length
        self.best = best
        self.notes: list[str] = []
        self._selection = Selection(
            train_rows=train_rows,
            eval_rows=eval_rows,
            subset=subset,
            sort_by=sort_by or {},
            choose_fraction=choose_fraction,
            test_fraction=test_fraction,
            evaluate_on=evaluate_on,
        )
        self._held = Held(name=name)

    def prepare(self, tokenizer: Any, *, seed: int, cache_dir: Path | None = None) -> None:
        """Load, check, divide and tokenise; a second call does it anew.

        Args:
            tokenizer: A fast Hugging Face tokenizer with a pad token.
            seed: The run's seed: which documents are trained on and set aside for choosing.
            cache_dir: Folder of the tokenised cache; None for no cache.

        Raises:
            DataError: If the data cannot be used as they are.
            ValueError: If tokenizer and ``max_length`` do not fit.
        """
        check_length(tokenizer, self.max_length)
        used, notes = gather(self.source, self._selection, columns=(self.column,), bad_rows=self.bad_rows, seed=seed)
        self._take(tokenizer, used, cache_dir, notes)

    def _take(
        self, tokenizer: Any, used: Mapping[str, list[Example]], cache_dir: Path | None, notes: list[str]
    ) -> None:
        """Tokenise the rows of each role and hold them."""
        pad = pad_token_id(tokenizer)
        taken, rows, blocks = {}, {}, {}
        for role, examples in used.items():
            if self.documents == "each":
                encoded, taken[role] = self._each(tokenizer, role, examples, cache_dir, notes)
            else:
                encoded, taken[role] = self._joined(tokenizer, role, examples, cache_dir, notes), examples
                blocks[role] = tuple(f"{role}-block-{index}" for index in range(len(encoded)))
            rows[role] = TokenRows(encoded, role, pad)
        self._held = Held(name=self.name, examples=taken, rows=rows, names=blocks)
        self.notes = notes

    @property
    def columns(self) -> tuple[str, ...]:
        """The text column."""
        return (self.column,)

    def read(self, split: Split, *, labelled: bool = True, bad_rows: BadRows | None = None) -> Read:
        """Check documents from anywhere.

        Args:
            split: The rows.
            labelled: Without effect: a document is its own label.
            bad_rows: Policy for broken rows; None: that of the task.

        Raises:
            DataError: If a row is broken under ``stop``.
        """
        check = partial(check_split, columns=self.columns)
        return read_split(split, check, bad_rows=bad_rows or self.bad_rows, role="given")

    def only(self, tokenizer: Any, examples: Sequence[Example]) -> Self:
        """The same task with these documents, as ``test``, and no others.

        Args:
            tokenizer: As in ``prepare``.
            examples: The documents, at least one.

        Raises:
            DataError: If a document is too short.
        """
        other = copy.copy(self)
        other._take(tokenizer, {"test": list(examples)}, None, [])
        return other

    @property
    def labels(self) -> tuple[str, ...]:
        """Empty: the tokens are the labels."""
        return ()

    def _each(
        self, tokenizer: Any, role: str, examples: list[Example], cache_dir: Path | None, notes: list[str]
    ) -> tuple[Encoded, list[Example]]:
        encoder = Encoder(tokenizer, columns=(self.column,), max_length=self.max_length)
        encoded = encode_cached(encoder, [example.texts for example in examples], cache_dir)
        lengths = np.diff(encoded.offsets)
        faults = [
            Fault(
                examples[index].where,
                "document of one token",
                f"the text gives {lengths[index]} tokens; 2 are needed, one to predict",
            )
            for index in np.flatnonzero(lengths < 2)
        ]
        note = apply_policy(faults, rows=len(examples), policy=self.bad_rows, role=role)
        if note is not None:
            notes.append(note)
            examples = [example for example, length in zip(examples, lengths, strict=True) if length >= 2]
            if not examples:
                raise DataError(f"task {self.name!r} has no usable {role} document.")
            encoded = encode_cached(encoder, [example.texts for example in examples], cache_dir)
        if encoded.truncated.any():
            notes.append(
                f"truncated: {int(encoded.truncated.sum())} of {len(encoded)} {role} documents to {self.max_length} tokens"
            )
        return encoded, examples

    def _joined(
        self, tokenizer: Any, role: str, examples: list[Example], cache_dir: Path | None, notes: list[str]
    ) -> Encoded:
        encoder = Encoder(tokenizer, columns=(self.column,), max_length=None)
        encoded = encode_cached(encoder, [example.texts for example in examples], cache_dir)
        stream = encoded.ids
        if not adds_special_tokens(tokenizer):
            if tokenizer.eos_token_id is None:
                raise ValueError("the tokenizer marks no document edges and has no eos token; use documents=each.")
            stream = np.insert(stream, encoded.offsets[1:], tokenizer.eos_token_id)
        last = len(stream) % self.max_length
        if last == 1:
            stream = stream[:-1]
            notes.append(f"dropped: the last token of the {role} documents, alone in its block")
        if len(stream) < 2:
            raise DataError(f"task {self.name!r}: the {role} documents give fewer than 2 tokens.")
        offsets = np.append(np.arange(0, len(stream), self.max_length, dtype=np.int64), np.int64(len(stream)))
        return Encoded(stream, offsets, np.zeros(len(offsets) - 1, dtype=np.bool_))


def adds_special_tokens(tokenizer: Any) -> bool:
    """Whether the tokenizer marks a document's edge with a special token of its own."""
    return int(tokenizer.num_special_tokens_to_add(pair=False)) > 0
