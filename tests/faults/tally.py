"""What one kind of fault gave: how many were tried, how each ended, and which ended wrongly."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class Tally:
    """Counts of one kind of fault.

    Args:
        kind: Short name, e.g. ``kills``.
        law: What must hold for every fault of this kind, one sentence.
        ends: How often each acceptable end was seen.
        failures: What ended wrongly, a line each.
        notes: What a reader of the table should know.
        seconds: How long it took.
        command: What was given on the command line.
    """

    kind: str
    law: str
    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    command: str = ""

    @property
    def tried(self) -> int:
        """Faults that were tried."""
        return sum(self.ends.values()) + len(self.failures)

    def ended(self, how: str, count: int = 1) -> None:
        """Count acceptable ends."""
        self.ends[how] += count

    def failed(self, what: str) -> None:
        """Note a fault that ended wrongly."""
        self.failures.append(what)

    @contextmanager
    def timed(self) -> Iterator["Tally"]:
        """Add the time spent inside."""
        began = perf_counter()
        try:
            yield self
        finally:
            self.seconds += perf_counter() - began

    def check(self, *, least: int) -> None:
        """Raise unless enough was tried and everything ended well."""
        if self.failures:
            shown = "\n  ".join(self.failures[:12])
            raise AssertionError(f"{self.kind}: {len(self.failures)} of {self.tried} ended wrongly:\n  {shown}")
        if self.tried < least:
            raise AssertionError(
                f"{self.kind}: only {self.tried} were tried, at least {least} are needed: {dict(self.ends)}"
            )
