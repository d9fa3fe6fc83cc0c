"""The data of a classification task: texts with a label, ready for loading."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from curlora_lab.data.cache import encode_cached
from curlora_lab.data.checks import BadRows, Example, LabelReader
from curlora_lab.data.encoding import Encoder, Pairs, check_template
from curlora_lab.data.faults import DataError
from curlora_lab.data.loading import PositionSampler, TokenRows, make_loader
from curlora_lab.data.preparation import Selection, check_policy, fingerprint, gather
from curlora_lab.data.source import DataSource
from curlora_lab.data.splitting import Subset

logger = logging.getLogger(__name__)


class ClassificationData:
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
        label_map: Value in the data -> label name.
        drop_labels: Names whose rows are left out and counted.
        sort_by: Role -> column by which its rows are sorted before anything is taken.
        subset: ``random`` (stratified) or ``first`` (the published protocol's first n rows).
        bad_rows: ``stop`` or ``skip``.
        choose_fraction: Part of train set aside for choosing.
        test_fraction: Part of train set aside for testing where the source has no test split.
        train_rows: Rows to train on; None for all.
        eval_rows: At most so many rows to test on; None for all.
        max_length: Tokens a row may have.
        best: Best achievable score of the main metric, where it is known.

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
        label_map: Mapping[Any, str] | None = None,
        drop_labels: Sequence[str] = (),
        sort_by: Mapping[str, str] | None = None,
        subset: Subset = "random",
        bad_rows: BadRows = "stop",
        choose_fraction: float = 0.1,
        test_fraction: float = 0.2,
        train_rows: int | None = None,
        eval_rows: int | None = None,
        max_length: int = 128,
        best: float | None = None,
    ) -> None:
        check_policy(bad_rows)
        check_template(columns, template, pairs)
        self.name = name
        self.source = source
        self.columns = tuple(columns)
        self.label = label
        self.template = template
        self.pairs = pairs
        self.bad_rows = bad_rows
        self.max_length = max_length
        self.best = best
        self.fingerprint = ""
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []
        self._reader = LabelReader(labels, label_map=label_map, drop_labels=drop_labels)
        self._selection = Selection(
            train_rows=train_rows,
            eval_rows=eval_rows,
            subset=subset,
            sort_by=sort_by or {},
            choose_fraction=choose_fraction,
            test_fraction=test_fraction,
        )
        self._examples: dict[str, list[Example]] = {}
        self._rows: dict[str, TokenRows] = {}
        self._pad_token_id = 0

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
        encoder = Encoder(
            tokenizer, columns=self.columns, template=self.template, pairs=self.pairs, max_length=self.max_length
        )
        self._pad_token_id = pad_token_id(tokenizer)
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
            encoded = encode_cached(encoder, [example.texts for example in examples], cache_dir)
            empty = [example.where for index, example in enumerate(examples) if len(encoded.row(index)) == 0]
            if empty:
                raise DataError(
                    f"{empty[0]}: the text gives no token at all ({len(empty)} {role} rows); leave these rows out."
                )
            if encoded.truncated.any():
                notes.append(
                    f"truncated: {int(encoded.truncated.sum())} of {len(encoded)} {role} rows to {self.max_length} tokens"
                )
            rows[role] = TokenRows(encoded, [example.label for example in examples])
        self._examples, self._rows = used, rows
        self.fingerprint = fingerprint(used)
        self.counts = {role: len(examples) for role, examples in used.items()}
        self.notes = notes

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names by index."""
        return self._reader.labels

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have rows: ``train``, ``test`` and, where something is set aside for it, ``choose``."""
        return tuple(self._examples)

    def label_counts(self, role: str) -> dict[str, int]:
        """Rows of each label, in the order of ``labels``."""
        counted = Counter(example.label for example in self.examples(role))
        return {name: counted[index] for index, name in enumerate(self.labels)}

    def examples(self, role: str) -> list[Example]:
        """The examples of a role, in the order of ``row``.

        Raises:
            ValueError: If the role has no rows, or ``prepare`` was not called.
        """
        if role not in self._examples:
            raise ValueError(
                f"task {self.name!r} has no rows for {role!r}; it has {list(self._examples) or 'none before prepare'}."
            )
        return self._examples[role]

    def row_ids(self, role: str) -> tuple[str, ...]:
        """Names of the rows of a role; a batch's ``row`` is an index into them."""
        return tuple(example.row_id for example in self.examples(role))

    def loader(
        self,
        role: str,
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
            role: ``train``, ``choose`` or ``test``.
            batch_size: Rows of a global batch, over all ranks.
            seed: The run's seed.
            stage: The stage of the sequence.
            shuffle: Whether rows are shuffled, anew in each epoch.
            num_workers: Worker processes; the batches are the same for any number.
            rank: Which share of each batch.
            world_size: Number of shares.

        Returns:
            A loader whose ``batch_sampler`` has ``set_epoch``.

        Raises:
            ValueError: If the role has no rows or a number is out of range.
        """
        sampler = PositionSampler(
            len(self.examples(role)),
            batch_size=batch_size,
            seed=seed,
            stage=stage,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            equal_steps=role == "train",
        )
        return make_loader(self._rows[role], pad_token_id=self._pad_token_id, sampler=sampler, num_workers=num_workers)

    def _check_labels(self, used: Mapping[str, Sequence[Example]]) -> list[str]:
        """Refuse one class only in train; note what a reader of the scores should know."""
        counted = {role: Counter(example.label for example in examples) for role, examples in used.items()}
        if len(counted["train"]) == 1:
            only = self.labels[next(iter(counted["train"]))]
            raise DataError(
                f"task {self.name!r}: all {len(used['train'])} train rows are labelled {only!r}; nothing can be learnt."
            )
        notes = []
        unseen = [name for index, name in enumerate(self.labels) if index not in counted["train"]]
        if unseen:
            notes.append(f"labels: no train row is labelled {', '.join(map(repr, unseen))}")
        if len(counted["test"]) == 1:
            only = self.labels[next(iter(counted["test"]))]
            notes.append(f"labels: all test rows are labelled {only!r}, so a constant prediction scores 1")
        return notes


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
