"""What keeps a run from doing harm or ending in a traceback: another run's folder, a full disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curlora_lab.build import Parts
from curlora_lab.config import ConfigError, RunError
from curlora_lab.continual import files
from curlora_lab.continual.inputs import RECORD, what_differs


@contextmanager
def said_without_a_traceback() -> Iterator[None]:
    """A full disk is no fault of the program; where it was met inside a run, the run has said so itself.

    Raises:
        RunError: instead of a ``StorageError``.
    """
    try:
        yield
    except files.StorageError as error:
        raise RunError(str(error)) from error


def refuse_another(folder: Path, key: str, parts: Parts) -> None:
    """A folder that was named by hand may hold another run; that one is neither continued nor overwritten.

    Args:
        folder: the run folder.
        key: identity of this run.
        parts: what this run is made of.

    Raises:
        ConfigError: it holds another run; names what differs.
    """
    found = files.read_json(folder / RECORD)
    if not found.get("provenance") or found["provenance"].get("identity") == key:
        return
    lines = what_differs(found, parts.config, **parts.inputs)
    raise ConfigError(
        f"{folder} holds another run. What differs:\n"
        + "\n".join(f"  - {line}" for line in lines[:20])
        + "\nChoose another name=..., or move that run aside with fresh=true."
    )
