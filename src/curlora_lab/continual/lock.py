"""One process works on a run at a time."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from curlora_lab.continual.files import naming_what_is_full, read_json


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
        StorageError: there is no room for the file.
    """
    with naming_what_is_full(path, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(os.pread(descriptor, 4096, 0).decode(errors="replace"))
            raise RunLockedError(f"{run} is being worked on by {holder}; wait for it or stop it.") from error
        with suppress(OSError):  # the lock is held, whether or not the disk has room to say by whom
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode())
        yield
    finally:
        os.close(descriptor)


def lock_file(folder: Path) -> Path:
    """The lock of a run folder; it lies beside the runs, so that a run that is moved aside can't take it along."""
    return folder.parent.parent / ".locks" / f"{folder.parent.name}-{folder.name}"


def run_status(folder: Path) -> str | None:
    """How a run stands by its record; one that is ``running`` though nobody holds its lock was ``killed``.

    Args:
        folder: the run folder; ``None`` is returned where it holds no record.
    """
    found = read_json(folder / "results.json").get("status")
    if found == "running" and not is_held(lock_file(folder)):
        return "killed"
    return None if found is None else str(found)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of this file now.

    Args:
        path: the lock file; one that is not there is held by nobody.
    """
    try:
        with path.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _holder(text: str) -> str:
    """Who wrote the lock file, in words."""
    try:
        holder = json.loads(text)
        return f"process {holder['process']} on host {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
