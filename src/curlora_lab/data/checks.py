"""From rows to examples: every text and every label is checked, and a broken row is named or counted, never mended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from curlora_lab.data.faults import DataError, Fault, raise_faults, summarise
from curlora_lab.data.source import Row, Split

BadRows = Literal["stop", "skip"]


@dataclass(frozen=True)
class Example:
    """One usable row.

    Args:
        where: Source and row number.
        row_id: Name of the row, unique in its split.
        texts: One text a column.
        label: Index of the label; -1 where there is none, and for rows that are drawn without regard to it.
        values: All columns as found, for sorting.
        target: What is to be predicted, where it is no label: a number, tags, answers.
    """

    where: str
    row_id: str
    texts: tuple[str, ...]
    label: int
    values: Mapping[str, Any]
    target: Any = None


class LabelReader:
    """What is in the label column -> index of the label.

    A value is looked up in ``label_map`` (its key may be written as a number or as text), then among the names, then it is
    read as an index (``1`` or ``"1"``). Booleans are the names ``True`` and ``False``.

    Args:
        labels: Label names; the position is the index.
        label_map: Value in the data -> name, or null.
        drop_labels: Names whose rows are left out; not among ``labels``, and each led to by ``label_map`` if there is one.

    Raises:
        ValueError: If there are fewer than two labels, a name is repeated, dropped and kept, unknown in ``label_map``, to
            be dropped and in no row, or looks like another label's index.
    """

    def __init__(
        self, labels: Sequence[str], *, label_map: Mapping[Any, str] | None = None, drop_labels: Sequence[str] = ()
    ) -> None:
        self.labels = tuple(str(label) for label in labels)
        self.drop_labels = tuple(str(label) for label in drop_labels)
        self.label_map = None if label_map is None else {str(key): str(name) for key, name in label_map.items()}
        self._check()
        self._index = {name: index for index, name in enumerate(self.labels)}

    def _check(self) -> None:
        if len(self.labels) < 2:
            raise ValueError(f"labels is {list(self.labels)}: a classification task needs at least two.")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels is {list(self.labels)}: each name may occur once.")
        both = sorted(set(self.labels) & set(self.drop_labels))
        if both:
            raise ValueError(f"drop_labels names {both[0]!r}, which is among labels too; take it out of labels.")
        known = {*self.labels, *self.drop_labels}
        unknown = sorted(set(self.label_map.values()) - known) if self.label_map else []
        if unknown:
            raise ValueError(
                f"label_map leads to {unknown[0]!r}; labels and drop_labels have {', '.join(sorted(known))}."
            )
        idle = sorted(set(self.drop_labels) - set(self.label_map.values())) if self.label_map else []
        if idle:
            leads = ", ".join(f"{value} to {name}" for value, name in (self.label_map or {}).items())
            raise ValueError(
                f"drop_labels names {idle[0]!r}, and label_map leads no value to it ({leads}), so no row would be left out; "
                f"say which value it is, as in label_map={{<value>: {idle[0]}}}, or take it out of drop_labels."
            )
        if self.label_map is None and any(name.isdigit() and name != str(i) for i, name in enumerate(self.labels)):
            raise ValueError(
                f"labels {list(self.labels)} look like indices of other labels; say with label_map what is meant."
            )

    def read(self, value: Any) -> int | str | None:
        """Read one value.

        Args:
            value: Content of the label column.

        Returns:
            The index; the name if it is among ``drop_labels``; None if the value is not known.
        """
        if not isinstance(value, str | int):  # bool is an int; floats, lists and null are never labels
            return None
        text = str(value)
        if self.label_map is not None:
            name = self.label_map.get(text, text)
            return name if name in self.drop_labels else self._index.get(name)
        if text in self.drop_labels:
            return text
        if text in self._index:
            return self._index[text]
        is_index = text.isascii() and text.isdigit() and not isinstance(value, bool)
        return int(text) if is_index and int(text) < len(self.labels) else None

    def fault(self, where: str, column: str, value: Any) -> Fault:
        """Say what is wrong with a value that ``read`` does not know."""
        if value is None:
            return Fault(where, "null label", f"the label {column!r} is null")
        if not isinstance(value, str | int):
            reason = f"the label {column!r} is a {type(value).__name__} ({short(value)}), not an index or a name"
            return Fault(where, "label of a wrong type", reason)
        if self.label_map is not None:
            allowed = ", ".join(f"{key} ({name})" for key, name in self.label_map.items())
        else:
            allowed = ", ".join(f"{index} ({name})" for index, name in enumerate(self.labels))
        hint = "; -1 marks rows without a label on the hub, use another split" if str(value) == "-1" else ""
        return Fault(where, "unknown label", f"the label {short(value)} is not known; allowed: {allowed}{hint}")


def check_split(
    split: Split, columns: Sequence[str], *, label: str | None = None, reader: LabelReader | None = None
) -> tuple[list[Example], list[Fault], Counter[str]]:
    """Turn rows into examples.

    Args:
        split: The rows of one role, at least one.
        columns: Text columns.
        label: The label column; None in language modelling.
        reader: How labels are read; needed with ``label``.

    Returns:
        Usable rows in file order; faults in file order, those of reading included; rows left out by label name.

    Raises:
        DataError: If no row at all has one of the columns.
    """
    needed = [*columns, *([label] if label is not None else [])]
    refuse_absent_columns(split.rows, needed)
    examples: list[Example] = []
    faults = list(split.faults)
    dropped: Counter[str] = Counter()
    for row in split.rows:
        fault = next((fault for fault in (text_fault(row, column) for column in columns) if fault), None)
        index: int | str | None = -1
        if fault is None and label is not None and reader is not None:
            fault = missing_fault(row, label)
            index = reader.read(row.values.get(label))
            if fault is None and index is None:
                fault = reader.fault(row.where, label, row.values[label])
        if fault is not None:
            faults.append(fault)
        elif isinstance(index, str):
            dropped[index] += 1
        elif index is not None:
            texts = tuple(row.values[column] for column in columns)
            examples.append(Example(row.where, row.row_id, texts, index, row.values))
    return examples, faults, dropped


def apply_policy(faults: Sequence[Fault], *, rows: int, policy: BadRows, role: str) -> str | None:
    """Stop at broken rows, or count them.

    Args:
        faults: The broken rows of one role.
        rows: How many rows were read, the broken ones included.
        policy: ``stop`` or ``skip``.
        role: The role, for the note.

    Returns:
        A note with the count under ``skip``; None if nothing is broken.

    Raises:
        DataError: Under ``stop``, if a row is broken.
    """
    if not faults:
        return None
    if policy == "stop":
        raise_faults(faults, rows=rows)
    return f"skipped: {role} rows that cannot be used, of {rows}: {summarise(faults)}"


def refuse_absent_columns(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Refuse a column that no row has: a wrong name, not broken rows.

    Raises:
        DataError: If no row at all has one of the columns.
    """
    for column in columns:
        if rows and not any(column in row.values for row in rows):
            there = ", ".join(dict.fromkeys(name for row in rows[:100] for name in row.values)) or "none"
            source = rows[0].where.rpartition(":")[0]
            raise DataError(f"{source}: no row has the column {column!r}; the columns there: {there}.")


def missing_fault(row: Row, column: str) -> Fault | None:
    """The fault of a row without a column."""
    if column in row.values:
        return None
    there = ", ".join(row.values) or "none"
    return Fault(row.where, "missing column", f"the row has no column {column!r}; it has {there}")


def text_fault(row: Row, column: str) -> Fault | None:
    """What is wrong with one text, if anything."""
    missing = missing_fault(row, column)
    if missing is not None:
        return missing
    value = row.values[column]
    if value is None:
        return Fault(row.where, "null text", f"the text {column!r} is null")
    if not isinstance(value, str):
        reason = f"{column!r} is a {type(value).__name__} ({short(value)}), not text"
        return Fault(row.where, "text of a wrong type", reason)
    if not value.strip():
        return Fault(row.where, "empty text", f"the text {column!r} is empty")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        return Fault(row.where, "broken text", f"the text {column!r} holds half of a surrogate pair")
    if "\0" in value:
        return Fault(row.where, "broken text", f"the text {column!r} holds a NUL character")
    return None


def short(value: Any, most: int = 40) -> str:
    """A value as it looks in Python, cut to what fits a message."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def text_example(row: Row, columns: Sequence[str]) -> Example | Fault:
    """A row's texts without a label, or what is wrong with the first broken one.

    Args:
        row: The row; its columns are there.
        columns: The text columns.
    """
    fault = next((fault for fault in (text_fault(row, column) for column in columns) if fault), None)
    if fault is not None:
        return fault
    return Example(row.where, row.row_id, tuple(row.values[column] for column in columns), -1, row.values)


def sorted_out(split: Split, found: Sequence[Example | Fault]) -> tuple[list[Example], list[Fault], Counter[str]]:
    """Usable rows and broken ones, those that could not be read included; nothing was left out by its label.

    Args:
        split: Where the rows come from.
        found: What each of its rows turned out to be.
    """
    faults = [one for one in found if isinstance(one, Fault)]
    return [one for one in found if isinstance(one, Example)], [*split.faults, *faults], Counter()
