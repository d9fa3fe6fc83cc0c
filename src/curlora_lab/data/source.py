"""Where rows come from: a generator, a local folder, or the Hugging Face hub."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curlora_lab.data.faults import DataError, Fault, raise_faults
from curlora_lab.data.readers import SUFFIXES, read_records, suffix_of

ROLES = ("train", "test", "choose")

Generator = Callable[[str, int, int], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Row:
    """One row as it was found.

    Args:
        where: Source and number, as an editor shows it: ``mrpc/train.jsonl.gz:17``, ``hub nyu-mll/glue/mrpc train:17``,
            ``builtin:sentiment2 train:17`` (numbers from 1).
        row_id: Name of the row, unique in its split: the value of ``idx`` or ``id`` where these are unique, else
            ``<split>-<n>`` with n from 0.
        values: Column -> value.
    """

    where: str
    row_id: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Split:
    """All rows of one role, with the ones that could not be read.

    Args:
        rows: Readable rows in file order.
        faults: Rows that could not be read at all (broken JSON, ragged CSV).
        id_column: The column that gives the row ids, or None where rows are numbered.
        repeated_ids: How many rows share their ``idx``/``id`` with an earlier one (then rows are numbered).
    """

    rows: tuple[Row, ...]
    faults: tuple[Fault, ...]
    id_column: str | None
    repeated_ids: int


class DataSource:
    r"""Rows of a task by role; nothing is read before ``read`` or ``rows`` is called.

    A generator wins over ``data_dir``, and ``data_dir`` over the hub: no source is tried after another has failed.

    Args:
        name: Folder of the data set: ``<data_dir>/<name>/<split>.{jsonl.gz,jsonl,csv,tsv,parquet}``.
        splits: Role (``train``, ``test``, ``choose``) -> split; null for a role that the source does not have.
        data_dir: Folder of local data sets, or null for the hub.
        hub: ``path`` of the data set on the hub, and as needed ``config``, ``revision``, ``splits`` (role -> split, where they
            differ from ``splits``; slices such as ``train[:1000]`` too), ``columns`` (our name -> the hub's column, or a
            text with columns in braces, e.g. ``"{title}\n{content}"``) and ``names`` (the hub's columns whose class indices are
            read as the names that the hub has for them: its order may differ from ours).
        generator: Called as ``generator(split, n, seed)``; gives n rows and is pure in its arguments.
        sizes: Role -> number of rows the generator is asked for.
        seed: The generator's seed; the same rows for every seed of the run.

    Raises:
        ValueError: If a role is unknown, or ``hub`` has an unknown key or no ``path``.
    """

    def __init__(
        self,
        *,
        name: str,
        splits: Mapping[str, str | None],
        data_dir: str | Path | None = None,
        hub: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        sizes: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        unknown = sorted(set(splits) - set(ROLES))
        if unknown:
            raise ValueError(f"splits of {name!r} names the role {unknown[0]!r}; allowed: {', '.join(ROLES)}.")
        if splits.get("train") is None:
            raise ValueError(f"splits of {name!r} names no split for the role 'train'.")
        unknown = sorted(set(map(str, sizes or {})) - set(ROLES))
        if unknown:
            raise ValueError(f"sizes of {name!r} names the role {unknown[0]!r}; allowed: {', '.join(ROLES)}.")
        allowed = {"path", "config", "revision", "splits", "columns", "names"}
        if hub is not None and (not hub.get("path") or set(hub) - allowed):
            raise ValueError(
                f"hub of {name!r} has the keys {sorted(hub)}; needed: path, allowed too: {sorted(allowed - {'path'})}."
            )
        self.name = name
        self.splits = dict(splits)
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.hub = hub
        self.generator = generator
        self.sizes = dict(sizes or {})
        self.seed = seed

    def split(self, role: str) -> str | None:
        """The split behind a role, or None if this source has none for it."""
        uses_hub = self.generator is None and self.data_dir is None and self.hub is not None
        theirs = (self.hub or {}).get("splits") or {}
        return theirs[role] if uses_hub and role in theirs else self.splits.get(role)

    def rows(self, role: str) -> list[Row]:
        """All rows of a role.

        Args:
            role: ``train``, ``test`` or ``choose``.

        Returns:
            The rows in the source's order.

        Raises:
            DataError: If the source or one of its rows cannot be read.
        """
        split = self.read(role)
        raise_faults(split.faults, rows=len(split.rows) + len(split.faults))
        return list(split.rows)

    def read(self, role: str) -> Split:
        """All rows of a role, with the unreadable ones told apart.

        Args:
            role: ``train``, ``test`` or ``choose``.

        Returns:
            Rows, faults and how rows are named.

        Raises:
            DataError: If the source as a whole cannot be read, or names no split for the role.
        """
        split = self.split(role)
        if split is None:
            named = ", ".join(f"{role}: {split}" for role, split in self.splits.items())
            raise DataError(f"task {self.name!r} has no split for the role {role!r}; it has {named}.")
        faults: list[Fault] = []
        if self.generator is not None:
            found = self._generate(self.generator, role, split)
        elif self.data_dir is not None:
            found, faults = self._read_folder(self.data_dir, split)
        elif self.hub is not None:
            found = self._read_hub(self.hub, split)
        else:
            raise DataError(
                f"no hub data set is known for task {self.name!r}; name a local one with data_dir=<folder>, "
                f"which holds {self.name}/{split}.jsonl.gz (or {', '.join(SUFFIXES[1:])})."
            )
        ids, column, repeated = _row_ids([values for _, values in found], split)
        rows = tuple(Row(where, row_id, values) for (where, values), row_id in zip(found, ids, strict=True))
        return Split(rows, tuple(faults), column, repeated)

    def _generate(self, generator: Generator, role: str, split: str) -> list[tuple[str, Mapping[str, Any]]]:
        if role not in self.sizes:
            raise DataError(
                f"task {self.name!r} is generated, and sizes names no number of rows for {role!r} (has {self.sizes})."
            )
        rows = generator(split, self.sizes[role], self.seed)
        return [(f"builtin:{self.name} {split}:{number}", row) for number, row in enumerate(rows, start=1)]

    def _read_folder(self, data_dir: Path, split: str) -> tuple[list[tuple[str, Mapping[str, Any]]], list[Fault]]:
        path = self._locate(data_dir, split)
        where = f"{self.name}/{path.name}"
        records, faults = read_records(path, where)
        return [(f"{where}:{number}", values) for number, values in records], faults

    def _locate(self, data_dir: Path, split: str) -> Path:
        """The one file of a split; says what exists if it is not there."""
        if not data_dir.is_dir():
            raise DataError(f"data_dir {str(data_dir)!r} is not a folder; it must hold {self.name}/{split}.jsonl.gz.")
        folder = data_dir / self.name
        if not folder.is_dir():
            there = sorted(child.name for child in data_dir.iterdir() if child.is_dir())
            raise DataError(
                f"data_dir {str(data_dir)!r} has no folder {self.name!r}; it has {_listed(there)}{_meant(self.name, there)}."
            )
        files = sorted(child.name for child in folder.iterdir() if child.is_file())
        matching = [
            name for name in files if suffix_of(Path(name)) and name[: -len(suffix_of(Path(name)) or "")] == split
        ]
        if len(matching) > 1:
            raise DataError(
                f"{self.name} has the split {split!r} more than once ({', '.join(matching)}); keep one of the files."
            )
        if not matching:
            other = [name for name in files if name.split(".", 1)[0] == split]
            known = f"the format of {', '.join(other)} is not known" if other else f"the folder holds {_listed(files)}"
            raise DataError(
                f"{self.name} has no split {split!r}: {known}. A split is {split} with {', '.join(SUFFIXES)}."
            )
        return folder / matching[0]

    def _read_hub(self, hub: Mapping[str, Any], split: str) -> list[tuple[str, Mapping[str, Any]]]:
        import datasets

        path, config = hub["path"], hub.get("config")
        title = f"{path}/{config}" if config else path
        try:
            rows = datasets.load_dataset(path, config, split=split, revision=hub.get("revision"))
        except Exception as error:  # the hub, its client and pyarrow each have their own errors
            first = (str(error).splitlines() or [""])[0]
            raise DataError(
                f"the split {split!r} of {title!r} cannot be had from the hub ({type(error).__name__}: {first}). "
                f"Without a network: data_dir=<folder> holding {self.name}/{self.splits['train']}.jsonl.gz and so on, "
                "or load it once where there is a network and keep its cache (HF_HOME; HF_HUB_OFFLINE=1 does not wait)."
            ) from error
        columns = hub.get("columns") or {}
        names = {column: _class_names(rows.features, column, title) for column in hub.get("names") or ()}
        return [
            (f"hub {title} {split}:{number}", _renamed(_named(values, names), columns, title))
            for number, values in enumerate(rows, start=1)
        ]


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str], title: str) -> dict[str, Any]:
    """Our columns from the hub's: a plain column name, or a text with columns in braces."""
    renamed = dict(values)
    try:
        for ours, theirs in columns.items():
            renamed[ours] = theirs.format_map(values) if "{" in theirs else values[theirs]
    except KeyError as error:
        raise DataError(f"hub {title} has no column {error.args[0]!r}; it has {', '.join(values)}.") from error
    return renamed


def _class_names(features: Mapping[str, Any], column: str, title: str) -> Sequence[str]:
    """The hub's names for the class indices of a column, or of the items of a column of lists."""
    feature = features.get(column)
    found = getattr(getattr(feature, "feature", feature), "names", None)
    if found is None:
        raise DataError(f"hub {title}: the column {column!r} has no names for its indices (it is {feature}).")
    return list(found)


def _named(values: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A row with names for class indices; what is no index of a name stays as it is and is found wrong later."""
    named = dict(values)
    for column, known in names.items():
        value = values[column]
        items = value if isinstance(value, list) else [value]
        found = [known[item] if isinstance(item, int) and 0 <= item < len(known) else item for item in items]
        named[column] = found if isinstance(value, list) else found[0]
    return named


def _row_ids(rows: Sequence[Mapping[str, Any]], split: str) -> tuple[list[str], str | None, int]:
    """Names of the rows, the column that gives them, and how many repeat an earlier one."""
    repeated = 0
    for column in ("idx", "id"):
        found = [row.get(column) for row in rows]
        if all(isinstance(value, str | int) and value != "" for value in found) and found:
            ids = [str(value) for value in found]
            if len(set(ids)) == len(ids):
                return ids, column, 0
            repeated = repeated or len(ids) - len(set(ids))
    return [f"{split}-{number}" for number in range(len(rows))], None, repeated


def _listed(names: Sequence[str], most: int = 12) -> str:
    """A short list of names for a message."""
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _meant(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
