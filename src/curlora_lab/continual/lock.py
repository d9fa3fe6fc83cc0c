"""One process works on a run at a time."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RunLockedError(RuntimeError):
    """Another process holds the run."""


@contextmanager
def lock(path: Path, *, run: Path) -> Iterator[None]:
    """Hold the lock of a run.

    The system releases the lock when its process ends, however it ends, so that no stale lock needs judging; the file
    only says who holds it.

    Args:
        path: the lock file; created if need be, never removed (removing it would race with a third process).
        run: the run folder, for the message.

    Raises:
        RunLockedError: another process holds it; names host and process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise RunLockedError(
                f"{run} is being worked on by {_holder(stream.read())}; wait for it or stop it."
            ) from error
        stream.truncate(0)
        stream.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        stream.flush()
        yield


def _holder(text: str) -> str:
    """Who wrote the lock file, in words."""
    try:
        holder = json.loads(text)
        return f"process {holder['process']} on host {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
