"""The prepared rows of a task, by role."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from curlora_lab.data.checks import Example
from curlora_lab.data.loading import TokenRows
from curlora_lab.data.preparation import fingerprint


@dataclass(frozen=True, kw_only=True)
class Held:
    """What ``prepare`` leaves behind.

    Args:
        name: Name of the task, for messages.
        examples: Role -> rows as they were found.
        rows: Role -> the same, tokenised; a row may be read in several pieces.
    """

    name: str
    examples: Mapping[str, list[Example]] = field(default_factory=dict)
    rows: Mapping[str, TokenRows] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have rows."""
        return tuple(self.examples)

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each role."""
        return {role: len(examples) for role, examples in self.examples.items()}

    @property
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

    def tokens(self, role: str) -> TokenRows:
        """The tokenised rows of a role.

        Raises:
            ValueError: As :meth:`of`.
        """
        self.of(role)
        return self.rows[role]
