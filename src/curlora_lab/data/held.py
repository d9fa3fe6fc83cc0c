"""The prepared rows of a task, by role."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from curlora_lab.data.checks import Example
from curlora_lab.data.loading import TokenRows
from curlora_lab.data.preparation import evaluated_role, fingerprint


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

    A class that reads, checks and tokenises rows puts them into ``_held``.
    """

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
