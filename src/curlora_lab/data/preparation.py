"""From a source to the examples of each role, with everything that happened on the way counted in notes."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from curlora_lab.data.chance import generator_at
from curlora_lab.data.checks import BadRows, Example, LabelReader, apply_policy, check_split
from curlora_lab.data.faults import DataError, Fault
from curlora_lab.data.source import ROLES, DataSource, Split
from curlora_lab.data.splitting import EvaluateOn, Subset, carve, few_shot, split_train, take_evaluation

#: From the rows of a split to usable ones, broken ones, and how many were left out by label name.
Check = Callable[[Split], tuple[list[Example], list[Fault], Counter[str]]]
Read = tuple[list[Example], list[str]]
"""Usable rows and notes on those left out."""


@dataclass(frozen=True)
class Selection:
    """Which rows are used for what.

    Args:
        train_rows: Rows to train on; None for all.
        eval_rows: At most so many rows for testing, and for choosing; None for all.
        subset: ``random``: stratified, train by the run's seed, test always the same; ``first``: the first rows.
        sort_by: Role -> column by which its rows are sorted (stably) before anything is taken.
        choose_fraction: Part for choosing, relative to the rows trained on; unused where the source has a split for it.
        test_fraction: Part of train set aside for testing; used only where the source has no test split.
        evaluate_on: ``test``; ``choose``: no row for testing is used, and a split for it is not even read.
        shots: Few-shot: so many training rows of each label; None for ``train_rows``.
        draw: Which ones.

    Raises:
        ValueError: If a number is out of range or a word is not known.
    """

    train_rows: int | None = None
    eval_rows: int | None = None
    subset: Subset = "random"
    sort_by: Mapping[str, str] = field(default_factory=dict)
    choose_fraction: float = 0.1
    test_fraction: float = 0.2
    evaluate_on: EvaluateOn = "test"
    shots: int | None = None
    draw: int = 0

    def __post_init__(self) -> None:
        if self.shots is not None and self.train_rows is not None:
            raise ValueError(f"shots={self.shots} and train_rows={self.train_rows} both say how many rows; keep one.")
        for name, value in (("train_rows", self.train_rows), ("eval_rows", self.eval_rows), ("shots", self.shots)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; write a number of rows from 1, or null for all.")
        for name, part in (("choose_fraction", self.choose_fraction), ("test_fraction", self.test_fraction)):
            if not 0 <= part < 1:
                raise ValueError(f"{name} is {part}; it is a part of train, from 0 to below 1.")
        if self.subset not in ("random", "first"):
            raise ValueError(f"subset is {self.subset!r}; allowed: random, first.")
        if self.evaluate_on not in ("test", "choose"):
            raise ValueError(f"evaluate_on is {self.evaluate_on!r}; allowed: test, choose.")
        unknown = sorted(set(self.sort_by) - set(ROLES))
        if unknown:
            raise ValueError(f"sort_by names the role {unknown[0]!r}; allowed: {', '.join(ROLES)}.")


def check_policy(bad_rows: str) -> None:
    """Refuse a policy for broken rows that does not exist.

    Raises:
        ValueError: If ``bad_rows`` is neither ``stop`` nor ``skip``.
    """
    if bad_rows not in ("stop", "skip"):
        raise ValueError(
            f"bad_rows is {bad_rows!r}; allowed: stop (one error with file and row), skip (left out and counted)."
        )


def read_split(split: Split, check: Check, *, bad_rows: BadRows, role: str) -> Read:
    """Check all rows of a split under a policy for broken ones.

    Args:
        split: The rows.
        check: How rows become examples.
        bad_rows: ``stop`` or ``skip``.
        role: What the rows are called in notes.

    Returns:
        Usable rows in file order, and what was left out of them.

    Raises:
        DataError: If a row is broken under ``stop``.
    """
    examples, faults, dropped = check(split)
    note = apply_policy(faults, rows=len(split.rows) + len(split.faults), policy=bad_rows, role=role)
    notes = [f"dropped: {count} {role} rows labelled {name!r}" for name, count in dropped.items()]
    return examples, [*filter(None, [note]), *notes]


def gather(
    source: DataSource,
    selection: Selection,
    *,
    columns: Sequence[str] = (),
    label: str | None = None,
    reader: LabelReader | None = None,
    check: Check | None = None,
    bad_rows: BadRows,
    seed: int,
) -> tuple[dict[str, list[Example]], list[str]]:
    """Read all roles of a source, check them, and take the rows that are used.

    Args:
        source: Where rows come from.
        selection: Which of them are used for what.
        columns: Text columns.
        label: Label column; None in language modelling.
        reader: How labels are read; needed with ``label``.
        check: How rows become examples; None: texts of ``columns`` with a ``label``, see ``check_split``.
        bad_rows: Policy for rows that cannot be used.
        seed: The run's seed.

    Returns:
        The examples of ``train``, ``test`` (not with ``evaluate_on=choose``) and, where there is one, ``choose``; and the
        notes, each ``<code>: <what>``.

    Raises:
        DataError: If a row is broken under ``stop``, or nothing usable is left.
    """
    check = check or partial(check_split, columns=columns, label=label, reader=reader)
    notes: list[str] = []
    splits: dict[str, Split] = {}
    pools: dict[str, list[Example]] = {}
    needed = [role for role in ROLES if role != "test" or selection.evaluate_on == "test"]
    for role in (role for role in needed if source.split(role) is not None):
        splits[role] = source.read(role)
        examples, noted = read_split(splits[role], check, bad_rows=bad_rows, role=role)
        notes += noted
        if splits[role].repeated_ids:
            notes.append(
                f"ids: {splits[role].repeated_ids} {role} rows repeat the id of an earlier one; rows are numbered instead"
            )
        pools[role] = _sorted(examples, selection.sort_by.get(role))
    used = _select(pools, selection, seed, notes, carves=source.split("test") is None)
    if selection.evaluate_on == "choose":
        used.pop("test", None)
    _refuse_too_few(used, source.name)
    notes.extend(_leaks(used, splits))
    return used, notes


def evaluated_role(roles: Collection[str]) -> str:
    """The role that is evaluated and reported: ``test``, or ``choose`` where only that is there.

    Args:
        roles: The roles that have rows.
    """
    return "test" if "test" in roles else "choose"


def fingerprint(used: Mapping[str, Iterable[Example]]) -> str:
    """sha256 of the rows used: role, row id, texts and label or target of each, in order.

    Args:
        used: Role -> examples.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for role, examples in used.items():
        for example in examples:
            target = [] if example.target is None else [example.target]
            digest.update(json.dumps([role, example.row_id, example.texts, example.label, *target]).encode())
    return digest.hexdigest()


def _sorted(examples: list[Example], column: str | None) -> list[Example]:
    if column is None:
        return examples
    try:
        return sorted(examples, key=lambda example: example.values[column])
    except KeyError as error:
        raise DataError(
            f"sort_by names the column {column!r}, which a row of {examples[0].where} or below lacks."
        ) from error
    except TypeError as error:
        raise DataError(
            f"sort_by names the column {column!r}, whose values cannot be put in order ({error})."
        ) from error


def _select(
    pools: dict[str, list[Example]], selection: Selection, seed: int, notes: list[str], *, carves: bool
) -> dict[str, list[Example]]:
    train, test = pools["train"], pools.get("test", [])
    if carves:
        test, train = carve(train, round(selection.test_fraction * len(train)), generator_at("test"))
        notes.append(
            f"carved: {len(test)} test rows set aside from train, the same for every seed; the data have no test split"
        )
    own = pools.get("choose")
    if selection.shots is not None:
        return _few_shot(train, test, own, selection, seed)
    train, choose = split_train(
        train,
        rows=selection.train_rows,
        fraction=selection.choose_fraction,
        seed=seed,
        subset=selection.subset,
        own_choose=own is not None,
    )
    if selection.train_rows is not None and len(train) < selection.train_rows:
        notes.append(f"rows: train_rows is {selection.train_rows}, and there are {len(train)} to train on")
    used = {"train": train, "test": take_evaluation(test, rows=selection.eval_rows, subset=selection.subset)}
    choose = choose if own is None else own
    if choose:
        used["choose"] = take_evaluation(choose, rows=selection.eval_rows, subset=selection.subset)
    return used


def _few_shot(
    train: list[Example], test: list[Example], own: list[Example] | None, selection: Selection, seed: int
) -> dict[str, list[Example]]:
    """So many rows of each label; the part for choosing is relative to them, as ever."""
    shots = selection.shots or 1
    used, rest = few_shot(train, shots, generator_at("shots", seed, selection.draw))
    if own is None:
        wanted = min(round(selection.choose_fraction * len(used)), len(rest))
        own, _ = carve(rest, wanted, generator_at("choose", seed, selection.draw))
    found = {"train": used, "test": take_evaluation(test, rows=selection.eval_rows, subset=selection.subset)}
    if own:
        found["choose"] = take_evaluation(own, rows=selection.eval_rows, subset=selection.subset)
    return found


def _refuse_too_few(used: Mapping[str, Sequence[Example]], name: str) -> None:
    if len(used["train"]) < 2:
        raise DataError(f"task {name!r} has {len(used['train'])} usable rows to train on; at least 2 are needed.")
    if not used.get(evaluated_role(used)):
        choosing = "evaluate_on=choose scores nothing but the rows set aside for choosing; raise choose_fraction"
        raise DataError(
            f"task {name!r} has no usable row to {'test on' if 'test' in used else f'choose on: {choosing}'}."
        )


def _leaks(used: Mapping[str, Sequence[Example]], splits: Mapping[str, Split]) -> list[str]:
    """Rows of the evaluated split that were seen before, by text and by id."""
    evaluated = evaluated_role(used)
    seen = [example for role in ("train", "choose") if role != evaluated for example in used.get(role, [])]
    texts = {_words(example) for example in seen}
    same = [example for example in used[evaluated] if _words(example) in texts]
    notes = []
    if same:
        notes.append(
            f"leak: {len(same)} of {len(used[evaluated])} {evaluated} rows have the text of a train row "
            f"(case and punctuation aside), the first {same[0].where}"
        )
    if evaluated in splits and not all(_is_counter(splits[role]) for role in ("train", evaluated)):
        ids = {example.row_id for example in seen}
        shared = [example for example in used[evaluated] if example.row_id in ids]
        if shared:
            notes.append(
                f"leak: {len(shared)} of {len(used[evaluated])} {evaluated} rows have the id of a train row, "
                f"the first {shared[0].where}"
            )
    return notes


def _words(example: Example) -> tuple[str, ...]:
    """The texts without case and punctuation: GLUE repeats rows that differ in nothing else."""
    return tuple(" ".join(re.findall(r"\w+", text.casefold())) or text for text in example.texts)


def _is_counter(split: Split) -> bool:
    """Whether ids merely number the rows of the split: then two splits share them without sharing rows."""
    if split.id_column is None:
        return True
    ids = {row.row_id for row in split.rows}
    return all(number in ids for number in map(str, range(1, len(ids))))
