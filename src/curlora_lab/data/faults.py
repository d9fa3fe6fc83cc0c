"""What is wrong with data, and where: one fault a row, one error that lists them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 5


class DataError(ValueError):
    """Data that cannot be used as they are; the message names file, row, reason and remedy."""


@dataclass(frozen=True)
class Fault:
    """One row that cannot be used.

    Args:
        where: File or source with the row's number, e.g. ``mrpc/train.jsonl.gz:17``.
        kind: Short name of the reason, the same for all rows of that kind (counted under the policy ``skip``).
        reason: What was wrong with the value received and what is allowed.
    """

    where: str
    kind: str
    reason: str


def raise_faults(faults: Sequence[Fault], *, rows: int) -> None:
    """Raise one error that lists the first faults.

    Args:
        faults: The rows that cannot be used, in file order; may be empty.
        rows: How many rows were read, the broken ones included.

    Raises:
        DataError: If there is a fault.
    """
    if not faults:
        return
    if len(faults) == 1:
        raise DataError(f"{faults[0].where}: {faults[0].reason}. Mend the row, or leave it out with bad_rows=skip.")
    lines = [f"{len(faults)} of {rows} rows cannot be used:"]
    lines += [f"  {fault.where}: {fault.reason}" for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"  and {len(faults) - SHOWN} more")
    lines.append("Mend the rows, or leave them out with bad_rows=skip.")
    raise DataError("\n".join(lines))


def summarise(faults: Sequence[Fault]) -> str:
    """Count the faults by kind, e.g. ``3 (2 empty text, 1 unknown label), the first at mrpc/train.csv:4``.

    Args:
        faults: At least one fault.

    Returns:
        One line for a log or a record.
    """
    kinds = Counter(fault.kind for fault in faults)
    parts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{len(faults)} ({parts}), the first at {faults[0].where}"
