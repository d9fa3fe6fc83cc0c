"""The prepared rows of a task, by role."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Self

from curlora_lab.data.checks import BadRows, Example
from curlora_lab.data.faults import Fault
from curlora_lab.data.loading import TokenRows
from curlora_lab.data.preparation import Read, evaluated_role, fingerprint, read_split
from curlora_lab.data.source import Split


@dataclass(frozen=True, kw_only=True)
class Held:
    """What ``prepare`` leaves behind.

    Args:
        name: Name of the task, for messages.
        examples: Role -> rows as they were found.
        rows: Role -> the same, tokenised; a row may be read in several pieces.
        names: Role -> names of its rows, where a row is no example of its own but a block of joined texts.
    """

    name: str
    examples: Mapping[str, list[Example]] = field(default_factory=dict)
    rows: Mapping[str, TokenRows] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have rows."""
        return tuple(self.examples)

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each role."""
        return {role: len(self.names.get(role, examples)) for role, examples in self.examples.items()}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the rows; empty where there are none."""
        return fingerprint(self.examples) if self.examples else ""

    def of(self, role: str) -> list[Example]:
        """The rows of a role.

        Raises:
            ValueError: If the role has none, or nothing was prepared.
        """
        if role not in self.examples:
            raise ValueError(
                f"task {self.name!r} has no rows for {role!r}; it has {list(self.examples) or 'none before prepare'}."
            )
        return self.examples[role]

    def row_ids(self, role: str) -> tuple[str, ...]:
        """Names of the rows of a role.

        Raises:
            ValueError: As :meth:`of`.
        """
        examples = self.of(role)
        return self.names[role] if role in self.names else tuple(example.row_id for example in examples)

    def tokens(self, role: str) -> TokenRows:
        """The tokenised rows of a role.

        Raises:
            ValueError: As :meth:`of`.
        """
        self.of(role)
        return self.rows[role]


class HoldsRows:
    """What a task's data offers of its rows, once they are held: the part of ``TaskData`` that is the same for every head.

    A class that reads, checks and tokenises rows puts them into ``_held``. With ``_check`` and ``_hold`` it also takes rows from
    anywhere; a class that does so in another way has its own :meth:`read` and :meth:`only`.
    """

    bad_rows: BadRows
    _held: Held

    @property
    def fingerprint(self) -> str:
        """sha256 of the rows used: ids, texts and labels or targets of each role; empty before ``prepare``."""
        return self._held.fingerprint

    @property
    def counts(self) -> dict[str, int]:
        """Rows used of each role."""
        return self._held.counts

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have rows: ``train``, ``test`` (if it is evaluated) and, where something is set aside, ``choose``."""
        return self._held.roles

    @property
    def evaluated(self) -> str:
        """The role whose rows are scored and reported: ``test``, or ``choose`` in a run with ``evaluate_on=choose``."""
        return evaluated_role(self.roles)

    def examples(self, role: str) -> list[Example]:
        """The examples of a role, in the order of ``row``.

        Raises:
            ValueError: If the role has no rows, or ``prepare`` was not called.
        """
        return self._held.of(role)

    def row_ids(self, role: str) -> tuple[str, ...]:
        """Names of the rows of a role; a batch's ``row`` is an index into them.

        Raises:
            ValueError: If the role has no rows, or ``prepare`` was not called.
        """
        return self._held.row_ids(role)

    def rows(self, role: str) -> TokenRows:
        """The tokenised rows of a role, for :func:`~curlora_lab.data.loading.make_loader`.

        Raises:
            ValueError: If the role has no rows, or ``prepare`` was not called.
        """
        return self._held.tokens(role)

    def read(self, split: Split, *, labelled: bool = True, bad_rows: BadRows | None = None) -> Read:
        """Check rows from anywhere.

        Args:
            split: The rows.
            labelled: Whether they must have what is to be predicted; otherwise only ``columns`` are needed.
            bad_rows: Policy for broken rows; None: that of the task.

        Raises:
            DataError: If a row is broken under ``stop``.
        """
        check = partial(self._check, labelled=labelled)
        return read_split(split, check, bad_rows=bad_rows or self.bad_rows, role="given")

    def only(self, tokenizer: Any, examples: Sequence[Example]) -> Self:
        """The same task with these rows, as ``test``, and no others.

        Args:
            tokenizer: As in ``prepare``.
            examples: The rows, at least one.

        Raises:
            DataError: If a text gives no token, or a row cannot be held as it is.
        """
        other = copy.copy(self)
        other._hold(tokenizer, {"test": list(examples)}, [])
        return other

    def _check(self, split: Split, *, labelled: bool = True) -> tuple[list[Example], list[Fault], Counter[str]]:
        """Usable rows, broken ones, and how many were left out by label name."""
        raise NotImplementedError

    def _hold(self, tokenizer: Any, used: Mapping[str, list[Example]], notes: list[str]) -> None:
        """Tokenise the rows of each role and hold them."""
        raise NotImplementedError
