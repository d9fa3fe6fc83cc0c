"""The data of a token classification task: words with a tag each, ready for loading."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from curlora_lab.data.alignment import Aligned, aligned, flat
from curlora_lab.data.checks import BadRows, Example, missing_fault, refuse_absent_columns, short, sorted_out
from curlora_lab.data.classification import pad_token_id
from curlora_lab.data.encoding import Encoder
from curlora_lab.data.faults import DataError, Fault
from curlora_lab.data.held import Held, HoldsRows
from curlora_lab.data.loading import IGNORED, TokenRows
from curlora_lab.data.preparation import Selection, check_policy, gather
from curlora_lab.data.source import DataSource, Row, Split
from curlora_lab.data.splitting import EvaluateOn, Subset
from curlora_lab.data.tags import Scheme, checked_tags, scheme_fault

Piece = Literal["first", "last"]
BLANK = " "


class TokenData(HoldsRows):
    """Rows of a token classification task: checked, divided into roles, tokenised. Nothing is read before ``prepare``.

    A row is a list of words and a list of as many tags. The words are joined by blanks and tokenised as running text, so
    that decoders see what they have read before; a token belongs to the word that it has a character of. Giving the words
    to the tokenizer one by one (``is_split_into_words``) would glue them together in byte-level tokenizers.

    Args:
        name: Name of the task.
        source: Where rows come from.
        words: The column with the words: a list, or a text with blanks between them.
        tags: The column with the tags: a list of names or of indices of ``labels``, or a text with blanks between names.
        labels: Tag names; the position is the index.
        scheme: ``iob2``: O, B-x and I-x, and an I-x that does not follow B-x or I-x is a broken row; ``lenient``: such an I-x
            begins an entity, as seqeval and CoNLL's script have it; ``none``: tags without entities (parts of speech).
        piece: Which piece of a word is read, ``first`` (customary) or ``last`` (in a decoder the only one that has seen the
            whole word).
        drop_words: Tags whose words are left out and counted, such as ``_`` of multiword tokens in Universal Dependencies.
        sort_by: Role -> column by which its rows are sorted before anything is taken.
        subset: ``random`` or ``first``.
        bad_rows: ``stop`` or ``skip``.
        choose_fraction: Part of train set aside for choosing.
        test_fraction: Part of train set aside for testing where the source has no test split.
        evaluate_on: ``test``; ``choose``: the part for choosing is evaluated, and the reported split not even read.
        train_rows: Rows to train on; None for all.
        eval_rows: At most so many rows to test on; None for all.
        max_length: Tokens a row may have; words that are cut off count as tagged wrongly.
        best: Best achievable score of the main metric, where it is known.

    Attributes:
        notes: What a reader of the scores should know, as in ``ClassificationData``; what is cut off is counted in words.

    Raises:
        ValueError: If an argument cannot be right, whatever the data are.
    """

    def __init__(
        self,
        *,
        name: str,
        source: DataSource,
        labels: Sequence[str],
        words: str = "tokens",
        tags: str = "tags",
        scheme: Scheme = "iob2",
        piece: Piece = "first",
        drop_words: Sequence[str] = (),
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
        if piece not in get_args(Piece):
            raise ValueError(f"piece is {piece!r}; allowed: {', '.join(get_args(Piece))}.")
        self.labels = checked_tags(labels, scheme=scheme, drop_words=drop_words)
        self.name = name
        self.source = source
        self.columns: tuple[str, ...] = (words,)
        self.words = words
        self.tags = tags
        self.scheme = scheme
        self.piece = piece
        self.drop_words = tuple(drop_words)
        self.bad_rows = bad_rows
        self.max_length = max_length
        self.best = best
        self.notes: list[str] = []
        self._index = {label: index for index, label in enumerate(self.labels)}
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
        self._read_words: dict[str, list[NDArray[np.int64]]] = {}

    def prepare(self, tokenizer: Any, *, seed: int, cache_dir: Path | None = None) -> None:
        """Load, check, divide and tokenise; a second call does it anew.

        Args:
            tokenizer: A fast Hugging Face tokenizer with a pad token.
            seed: The run's seed: which rows are trained on and set aside for choosing.
            cache_dir: Without effect. The cache holds ids only, and here each token needs its characters too; a few
                microseconds a token (2 s for wnut17, 3 s for xquad_en, about a minute for SQuAD) did not ask for another.

        Raises:
            DataError: If the data cannot be used as they are.
            ValueError: If tokenizer and ``max_length`` do not fit.
        """
        pad_token_id(tokenizer), self.encoder(tokenizer)  # before any row is read
        used, notes = gather(self.source, self._selection, check=self._check, bad_rows=self.bad_rows, seed=seed)
        counted = Counter(tag for example in used["train"] for tag in example.target)
        if len(counted) == 1:
            only = self.labels[next(iter(counted))]
            raise DataError(
                f"task {self.name!r}: all {counted.total()} words of the {len(used['train'])} train rows are tagged "
                f"{only!r}; nothing can be learnt."
            )
        unseen = [label for index, label in enumerate(self.labels) if index not in counted]
        if unseen:
            notes.append(f"labels: no train word is tagged {', '.join(map(repr, unseen))}")
        self._hold(tokenizer, used, notes)

    def encoder(self, tokenizer: Any) -> Encoder:
        """How a row's words become tokens.

        Raises:
            ValueError: If tokenizer and ``max_length`` do not fit.
        """
        return Encoder(tokenizer, columns=("words",), template="{words}", max_length=self.max_length)

    def words_read(self, role: str) -> list[NDArray[np.int64]]:
        """Of each row, which of its words have a token with a tag, in order."""
        self._held.of(role)
        return self._read_words[role]

    def _hold(self, tokenizer: Any, used: Mapping[str, list[Example]], notes: list[str]) -> None:
        encoder, pad = self.encoder(tokenizer), pad_token_id(tokenizer)
        rows, self._read_words = {}, {}
        for role, examples in used.items():
            texts = [(BLANK.join(example.texts),) for example in examples]
            placed = [
                self._place(example, tokens) for example, tokens in zip(examples, aligned(encoder, texts), strict=True)
            ]
            encoded = flat([row.ids for row in placed], [row.cut_words > 0 for row in placed])
            labels = np.concatenate([row.labels for row in placed])
            rows[role] = TokenRows(encoded, role, pad, token_labels=labels)
            self._read_words[role] = [row.words for row in placed]
            notes += _counted(placed, examples, role, self.max_length)
        self._held, self.notes = Held(name=self.name, examples=used, rows=rows), notes

    def _place(self, example: Example, tokens: Aligned) -> "_Placed":
        """One row's tokens, cut to ``max_length`` at the end of its text, with the tags of the words at their tokens."""
        own = tokens.of(0)
        ends = np.cumsum([len(word) + len(BLANK) for word in example.texts])  # of each word and the blank behind it
        spans = tokens.spans[own]
        word_of = np.searchsorted(ends, spans[:, 0], side="right")
        word_of[tokens.owners[own] != 0] = len(example.texts)  # a token of blanks only
        left = min(len(spans), max(0, self.max_length - (len(tokens.ids) - len(spans))))
        if left == 0 < len(spans):
            raise DataError(f"max_length {self.max_length} has no room beside the special tokens; raise max_length.")
        kept = np.r_[0 : own.start, own.start : own.start + left, own.stop : len(tokens.ids)]
        words, first, sizes = np.unique(word_of, return_index=True, return_counts=True)
        at = first if self.piece == "first" else first + sizes - 1
        seen = (words < len(example.texts)) & (at < left)
        labels = np.full(len(kept), IGNORED, dtype=np.int64)
        # without tags, 0 marks the tokens that are read; no metric sees it
        tags = np.zeros(len(example.texts), dtype=np.int64) if example.target is None else np.array(example.target)
        labels[own.start + at[seen]] = tags[words[seen]]
        cut = int(((words < len(example.texts)) & (at >= left)).sum())
        return _Placed(tokens.ids[kept], labels, words[seen], cut)

    def _check(self, split: Split, *, labelled: bool = True) -> tuple[list[Example], list[Fault], Counter[str]]:
        if not labelled:
            return self._check_words(split)
        refuse_absent_columns(split.rows, [self.words, self.tags])
        dropped: Counter[str] = Counter()
        examples, faults, _ = sorted_out(split, [self._tagged(row, dropped) for row in split.rows])
        return examples, faults, dropped

    def _check_words(self, split: Split) -> tuple[list[Example], list[Fault], Counter[str]]:
        refuse_absent_columns(split.rows, [self.words])
        found = [_words(row, self.words) for row in split.rows]
        examples = [
            Example(row.where, row.row_id, words, -1, row.values)
            for row, words in zip(split.rows, found, strict=True)
            if not isinstance(words, Fault)
        ]
        faults = [fault for fault in found if isinstance(fault, Fault)]
        return examples, [*split.faults, *faults], Counter()

    def _tagged(self, row: Row, dropped: Counter[str]) -> Example | Fault:
        words = _words(row, self.words)
        if isinstance(words, Fault):
            return words
        fault = missing_fault(row, self.tags)
        if fault is not None:
            return fault
        value = row.values[self.tags]
        given = value.split() if isinstance(value, str) else value
        if not isinstance(given, list | tuple):
            return Fault(
                row.where, "tags of a wrong type", f"{self.tags!r} is a {type(value).__name__} ({short(value)})"
            )
        if len(given) != len(words):
            return Fault(row.where, "tags that do not fit", f"there are {len(words)} words and {len(given)} tags")
        kept = [(word, tag) for word, tag in zip(words, given, strict=True) if tag not in self.drop_words]
        indices = [self._read_tag(tag) for _, tag in kept]
        if None in indices:
            number = indices.index(None) + 1
            reason = f"word {number} is tagged {short(kept[number - 1][1])}; allowed: {', '.join(self.labels)}"
            return Fault(row.where, "unknown tag", f"{reason}, or an index of these, from 0")
        tags = [index for index in indices if index is not None]
        broken = scheme_fault([self.labels[tag] for tag in tags]) if self.scheme == "iob2" else None
        if broken is not None:
            return Fault(row.where, "tags against the scheme", f"{broken} (scheme=lenient takes it for a beginning)")
        if not kept:
            return Fault(row.where, "no words", f"all words are tagged {' or '.join(self.drop_words)}")
        dropped.update(str(tag) for tag in given if tag in self.drop_words)
        return Example(row.where, row.row_id, tuple(word for word, _ in kept), -1, row.values, tags)

    def _read_tag(self, tag: Any) -> int | None:
        """Index of a tag given as a name or an index."""
        if isinstance(tag, str):
            return self._index.get(tag)
        is_index = isinstance(tag, int) and not isinstance(tag, bool) and 0 <= tag < len(self.labels)
        return tag if is_index else None


@dataclass(frozen=True)
class _Placed:
    """One row's tokens: their tags, the words that have one, and how many words were cut off."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int64]
    words: NDArray[np.int64]
    cut_words: int


def _words(row: Row, column: str) -> tuple[str, ...] | Fault:
    """The words of a row, or what is wrong with them."""
    fault = missing_fault(row, column)
    if fault is not None:
        return fault
    value = row.values[column]
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        return Fault(row.where, "words of a wrong type", f"{column!r} is a {type(value).__name__} ({short(value)})")
    if not words:
        return Fault(row.where, "no words", f"{column!r} is empty")
    for number, word in enumerate(words, start=1):
        if not isinstance(word, str) or not word.strip() or any("\ud800" <= char <= "\udfff" for char in word):
            return Fault(row.where, "broken word", f"word {number} of {column!r} is {short(word)}, not text")
    return tuple(words)


def _counted(placed: Sequence[_Placed], examples: Sequence[Example], role: str, max_length: int) -> list[str]:
    """Notes on words that are not read; refuses rows without any token."""
    empty = [example.where for row, example in zip(placed, examples, strict=True) if not len(row.ids)]
    if empty:
        raise DataError(f"{empty[0]}: the words give no token at all ({len(empty)} {role} rows); leave these rows out.")
    notes = []
    words, cut = sum(len(example.texts) for example in examples), sum(row.cut_words for row in placed)
    if cut:
        rows = sum(row.cut_words > 0 for row in placed)
        notes.append(
            f"truncated: {rows} of {len(placed)} {role} rows to {max_length} tokens; {cut} of {words} words are cut off"
        )
    lost = words - cut - sum(len(row.words) for row in placed)
    if lost:
        notes.append(f"words: {lost} of {words} {role} words have no token of their own and are not read")
    return notes
