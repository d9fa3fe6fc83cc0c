"""The data of a regression task: texts with a number, ready for loading."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from curlora_lab.data.checks import (
    BadRows,
    Example,
    check_split,
    missing_fault,
    refuse_absent_columns,
    short,
    sorted_out,
    text_example,
)
from curlora_lab.data.classification import encode_texts, pad_token_id
from curlora_lab.data.encoding import Encoder, Pairs, check_template
from curlora_lab.data.faults import DataError, Fault
from curlora_lab.data.held import Held, HoldsRows
from curlora_lab.data.loading import TokenRows
from curlora_lab.data.preparation import Selection, check_policy, evaluated_role, gather
from curlora_lab.data.source import DataSource, Row, Split
from curlora_lab.data.splitting import EvaluateOn, Subset

STRATA = 5
"""Subsets keep the share of each fifth of the label range."""


class RegressionData(HoldsRows):
    """Rows of a regression task: checked, divided into roles, tokenised. Nothing is read before ``prepare``.

    Args:
        name: Name of the task.
        source: Where rows come from.
        columns: Text columns in order.
        label: The column with the number.
        label_range: Least and greatest number that is a label, such as [0, 5]; None for any.
        template: Text with the columns in braces; None: see ``Encoder``.
        pairs: ``template`` (a real separator) or ``tokenizer`` (the published gluing).
        sort_by: Role -> column by which its rows are sorted before anything is taken.
        subset: ``random`` (in proportion to fifths of the label range, where there is one) or ``first``.
        bad_rows: ``stop`` or ``skip``.
        choose_fraction: Part of train set aside for choosing.
        test_fraction: Part of train set aside for testing where the source has no test split.
        evaluate_on: ``test``; ``choose``: the part for choosing is evaluated, and the reported split not even read.
        train_rows: Rows to train on; None for all.
        eval_rows: At most so many rows to test on; None for all.
        max_length: Tokens a row may have.
        best: Best achievable score of the main metric, where it is known.

    Attributes:
        notes: What a reader of the scores should know, as in ``ClassificationData``.

    Raises:
        ValueError: If an argument cannot be right, whatever the data are.
    """

    def __init__(
        self,
        *,
        name: str,
        source: DataSource,
        columns: Sequence[str],
        label: str = "label",
        label_range: Sequence[float] | None = None,
        template: str | None = None,
        pairs: Pairs = "template",
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
        check_template(columns, template, pairs)
        if label_range is not None and (len(label_range) != 2 or not label_range[0] < label_range[1]):
            raise ValueError(
                f"label_range is {list(label_range)}; write the least and the greatest label, such as [0, 5]."
            )
        self.name = name
        self.source = source
        self.columns = tuple(columns)
        self.label = label
        self.label_range = None if label_range is None else (float(label_range[0]), float(label_range[1]))
        self.template = template
        self.pairs = pairs
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
            seed: The run's seed: which rows are trained on and set aside for choosing.
            cache_dir: Folder of the tokenised cache; None for no cache.

        Raises:
            DataError: If the data cannot be used as they are.
            ValueError: If tokenizer, template and ``max_length`` do not fit.
        """
        pad_token_id(tokenizer), self.encoder(tokenizer)  # before any row is read
        used, notes = gather(self.source, self._selection, check=self._check, bad_rows=self.bad_rows, seed=seed)
        numbers = {role: {example.target for example in examples} for role, examples in used.items()}
        if len(numbers["train"]) == 1:
            raise DataError(
                f"task {self.name!r}: all {len(used['train'])} train rows have the label {min(numbers['train']):g}; "
                "nothing can be learnt."
            )
        evaluated = evaluated_role(used)
        if len(numbers[evaluated]) == 1:
            only = min(numbers[evaluated])
            notes.append(f"labels: all {evaluated} rows have the label {only:g}, so no correlation is defined")
        self._hold(tokenizer, used, notes, cache_dir)

    def encoder(self, tokenizer: Any) -> Encoder:
        """How a row's texts become tokens.

        Raises:
            ValueError: If tokenizer, template and ``max_length`` do not fit.
        """
        return Encoder(
            tokenizer, columns=self.columns, template=self.template, pairs=self.pairs, max_length=self.max_length
        )

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation (of the population) of the train labels, in the label's unit.

        Raises:
            ValueError: If there are no train rows.
        """
        numbers = [float(example.target) for example in self.examples("train")]
        return fmean(numbers), pstdev(numbers)

    @property
    def labels(self) -> tuple[str, ...]:
        """Empty: the labels are numbers."""
        return ()

    def _hold(
        self, tokenizer: Any, used: Mapping[str, list[Example]], notes: list[str], cache_dir: Path | None = None
    ) -> None:
        encoder, pad = self.encoder(tokenizer), pad_token_id(tokenizer)
        rows = {}
        for role, examples in used.items():
            encoded, noted = encode_texts(encoder, examples, role, cache_dir)
            notes += noted
            # without a label, a number stands in that no metric sees
            numbers = [float("nan") if example.target is None else float(example.target) for example in examples]
            rows[role] = TokenRows(encoded, role, pad, numbers)
        self._held, self.notes = Held(name=self.name, examples=used, rows=rows), notes

    def _check(self, split: Split, *, labelled: bool = True) -> tuple[list[Example], list[Fault], Counter[str]]:
        if not labelled:
            return check_split(split, self.columns)
        refuse_absent_columns(split.rows, [*self.columns, self.label])
        return sorted_out(split, [self._labelled(row) for row in split.rows])

    def _labelled(self, row: Row) -> Example | Fault:
        found = text_example(row, self.columns)
        if isinstance(found, Fault):
            return found
        fault = missing_fault(row, self.label)
        number = row.values.get(self.label)
        if fault is not None or isinstance(number := _number(number), str):
            return fault or Fault(row.where, "label that is no number", f"the label {self.label!r} is {number}")
        low, high = self.label_range or (-math.inf, math.inf)
        if not low <= number <= high:
            hint = "; -1 marks rows without a label on the hub, use another split" if number == -1 else ""
            reason = f"the label {number:g} is outside label_range, {low:g} to {high:g}{hint}"
            return Fault(row.where, "label out of range", reason)
        stratum = min(STRATA - 1, int(STRATA * (number - low) / (high - low))) if self.label_range else -1
        return Example(found.where, found.row_id, found.texts, stratum, row.values, number)


def _number(value: Any) -> float | str:
    """The number that a value is or spells (CSV has text only), or what it is instead."""
    if value is None:
        return "null"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return f"a {type(value).__name__} ({short(value)}), not a number"
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return f"{short(value)}, not a number"
    return number if math.isfinite(number) else f"{number}, not a finite number"
