"""The data of a classification task: texts with a label, ready for loading."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from curlora_lab.data.cache import encode_cached
from curlora_lab.data.checks import BadRows, Example, LabelReader, check_split
from curlora_lab.data.encoding import Encoded, Encoder, Pairs, check_template
from curlora_lab.data.faults import DataError
from curlora_lab.data.held import Held, HoldsRows
from curlora_lab.data.label_words import Prompt, WordEncoder
from curlora_lab.data.loading import TokenRows
from curlora_lab.data.preparation import Read, Selection, check_policy, evaluated_role, gather, read_split
from curlora_lab.data.source import DataSource, Split
from curlora_lab.data.splitting import EvaluateOn, Subset

Tokenize = Callable[[Sequence[Example], str, Path | None], tuple[TokenRows, list[str]]]


class ClassificationData(HoldsRows):
    """Rows of a classification task: checked, divided into roles, tokenised. Nothing is read before ``prepare``.

    Roles: ``train``; ``choose``, set aside from train (or a split of its own) for early stopping and the best checkpoint;
    ``test``, which is reported and never chosen on.

    Args:
        name: Name of the task.
        source: Where rows come from.
        columns: Text columns in order.
        labels: Label names; the position is the index.
        label: The label column: an index, a name, or a key of ``label_map``.
        template: Text with the columns in braces; None: see ``Encoder``.
        pairs: ``template`` (a real separator) or ``tokenizer`` (the published gluing).
        prompt: Fields of :class:`~curlora_lab.data.label_words.Prompt`, which asks for the label's words; None: the texts alone,
            for a head that has an output for each label.
        label_map: Value in the data -> label name.
        drop_labels: Names whose rows are left out and counted.
        sort_by: Role -> column by which its rows are sorted before anything is taken.
        subset: ``random`` (stratified) or ``first`` (the published protocol's first n rows).
        bad_rows: ``stop`` or ``skip``.
        choose_fraction: Part of train set aside for choosing.
        test_fraction: Part of train set aside for testing where the source has no test split.
        evaluate_on: ``test``; ``choose``: the part for choosing is evaluated, and the reported split not even read.
        train_rows: Rows to train on; None for all.
        eval_rows: At most so many rows to test on; None for all.
        max_length: Tokens a row may have.
        best: Best achievable score of the main metric, where it is known.
        shots: Few-shot: so many rows of each label to train on, instead of ``train_rows``.
        draw: Which ones.

    Attributes:
        fingerprint: sha256 of the rows used: ids, texts and labels of each role; empty before ``prepare``.
        counts: Rows used of each role.
        notes: What a reader of the scores should know, each ``<code>: <what>``; the codes are ``skipped``, ``dropped``, ``ids``,
            ``carved``, ``rows``, ``leak``, ``labels`` and ``truncated``.

    Raises:
        ValueError: If labels, columns, template or a number cannot be right, whatever the data are.
    """

    def __init__(
        self,
        *,
        name: str,
        source: DataSource,
        columns: Sequence[str],
        labels: Sequence[str],
        label: str = "label",
        template: str | None = None,
        pairs: Pairs = "template",
        prompt: Mapping[str, Any] | None = None,
        label_map: Mapping[Any, str] | None = None,
        drop_labels: Sequence[str] = (),
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
        shots: int | None = None,
        draw: int = 0,
    ) -> None:
        check_policy(bad_rows)
        check_template(columns, template, pairs)
        self.name = name
        self.source = source
        self.columns = tuple(columns)
        self.label = label
        self.template = template
        self.pairs = pairs
        self.prompt = None if prompt is None else Prompt.of(prompt, name)
        self.bad_rows = bad_rows
        self.max_length = max_length
        self.best = best
        self.notes: list[str] = []
        self._reader = LabelReader(labels, label_map=label_map, drop_labels=drop_labels)
        self._selection = Selection(
            train_rows=train_rows,
            eval_rows=eval_rows,
            subset=subset,
            sort_by=sort_by or {},
            choose_fraction=choose_fraction,
            test_fraction=test_fraction,
            evaluate_on=evaluate_on,
            shots=shots,
            draw=draw,
        )
        self._held = Held(name=name)

    def prepare(self, tokenizer: Any, *, seed: int, cache_dir: Path | None = None) -> None:
        """Load, check, divide and tokenise; a second call does it anew.

        Args:
            tokenizer: A fast Hugging Face tokenizer with a pad token.
            seed: The run's seed: which rows are trained on and set aside for choosing.
            cache_dir: Folder of the tokenised cache; None for no cache.

        Raises:
            DataError: If the data cannot be used as they are.
            ValueError: If tokenizer, template and ``max_length`` do not fit.
        """
        tokenize = self._tokenize(tokenizer)
        used, notes = gather(
            self.source,
            self._selection,
            columns=self.columns,
            label=self.label,
            reader=self._reader,
            bad_rows=self.bad_rows,
            seed=seed,
        )
        notes += self._check_labels(used)
        rows = {}
        for role, examples in used.items():
            rows[role], noted = tokenize(examples, role, cache_dir)
            notes += noted
        self._held, self.notes = Held(name=self.name, examples=used, rows=rows), notes

    def _tokenize(self, tokenizer: Any) -> Tokenize:
        """How examples of a role become rows, with notes on those that were cut."""
        pad = pad_token_id(tokenizer)
        if self.prompt is not None:
            words = self.word_encoder(tokenizer)
            return lambda examples, role, cache_dir: words.rows(examples, role, pad, cache_dir)
        encoder = self.encoder(tokenizer)

        def rows(examples: Sequence[Example], role: str, cache_dir: Path | None) -> tuple[TokenRows, list[str]]:
            encoded, notes = encode_texts(encoder, examples, role, cache_dir)
            return TokenRows(encoded, role, pad, [example.label for example in examples]), notes

        return rows

    def word_encoder(self, tokenizer: Any) -> WordEncoder:
        """How a row is asked for its label's words.

        Raises:
            ValueError: If there is no prompt, or it does not fit tokenizer and ``max_length``.
        """
        if self.prompt is None:
            raise ValueError(f"task {self.name!r} has no prompt that asks for a label's words; set heads=label_words.")
        return WordEncoder(
            tokenizer,
            prompt=self.prompt,
            columns=self.columns,
            template=self.template,
            labels=self.labels,
            max_length=self.max_length,
        )

    def encoder(self, tokenizer: Any) -> Encoder:
        """How a row's texts become tokens.

        Raises:
            ValueError: If tokenizer, template and ``max_length`` do not fit.
        """
        return Encoder(
            tokenizer, columns=self.columns, template=self.template, pairs=self.pairs, max_length=self.max_length
        )

    def read(self, split: Split, *, labelled: bool = True, bad_rows: BadRows | None = None) -> Read:
        """Check rows from anywhere.

        Args:
            split: The rows.
            labelled: Whether they must have a label; otherwise only the text columns are needed, and labels are -1.
            bad_rows: Policy for broken rows; None: that of the task.

        Raises:
            DataError: If a row is broken under ``stop``.
        """
        label = self.label if labelled else None
        check = partial(check_split, columns=self.columns, label=label, reader=self._reader)
        return read_split(split, check, bad_rows=bad_rows or self.bad_rows, role="given")

    def only(self, tokenizer: Any, examples: Sequence[Example]) -> Self:
        """The same task with these rows, as ``test``, and no others.

        Args:
            tokenizer: As in ``prepare``.
            examples: The rows, at least one.

        Raises:
            DataError: If a text gives no token.
        """
        rows, notes = self._tokenize(tokenizer)(examples, "test", None)
        other = copy.copy(self)
        other._held = Held(name=self.name, examples={"test": list(examples)}, rows={"test": rows})
        other.notes = notes
        return other

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names by index."""
        return self._reader.labels

    def label_counts(self, role: str) -> dict[str, int]:
        """Rows of each label, in the order of ``labels``."""
        return self._counted(self.examples(role))

    def _counted(self, examples: Sequence[Example]) -> dict[str, int]:
        counted = Counter(example.label for example in examples)
        return {name: counted[index] for index, name in enumerate(self.labels)}

    def _check_labels(self, used: Mapping[str, Sequence[Example]]) -> list[str]:
        """Refuse one class only in train; note what a reader of the scores should know."""
        seen = {role: [name for name, rows in self._counted(used[role]).items() if rows] for role in used}
        if len(seen["train"]) == 1:
            raise DataError(
                f"task {self.name!r}: all {len(used['train'])} train rows are labelled {seen['train'][0]!r}; nothing can be "
                "learnt."
            )
        notes = []
        unseen = [name for name in self.labels if name not in seen["train"]]
        if unseen:
            notes.append(f"labels: no train row is labelled {', '.join(map(repr, unseen))}")
        evaluated = evaluated_role(used)
        if len(seen[evaluated]) == 1:
            only = seen[evaluated][0]
            notes.append(f"labels: all {evaluated} rows are labelled {only!r}, so a constant prediction scores 1")
        return notes


def encode_texts(
    encoder: Encoder, examples: Sequence[Example], role: str, cache_dir: Path | None
) -> tuple[Encoded, list[str]]:
    """Tokenise the texts of examples, each of which must give a token.

    Args:
        encoder: How.
        examples: The rows.
        role: What they are called in messages.
        cache_dir: Folder of the tokenised cache; None for no cache.

    Returns:
        Token ids, and a note on rows that were cut, if any.

    Raises:
        DataError: If a text gives no token.
    """
    encoded = encode_cached(encoder, [example.texts for example in examples], cache_dir)
    empty = [example.where for index, example in enumerate(examples) if len(encoded.row(index)) == 0]
    if empty:
        raise DataError(f"{empty[0]}: the text gives no token at all ({len(empty)} {role} rows); leave these rows out.")
    cut = int(encoded.truncated.sum())
    return encoded, [f"truncated: {cut} of {len(encoded)} {role} rows to {encoder.max_length} tokens"] if cut else []


def pad_token_id(tokenizer: Any) -> int:
    """The tokenizer's pad token.

    Raises:
        ValueError: If it has none.
    """
    found = getattr(tokenizer, "pad_token_id", None)
    if found is None:
        raise ValueError(
            "the tokenizer has no pad token; set tokenizer.pad_token, e.g. to its eos_token, before prepare."
        )
    return int(found)
