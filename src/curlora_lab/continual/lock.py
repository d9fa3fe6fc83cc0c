"""One process works on a run at a time."""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from curlora_lab.continual.files import BLOCK, naming_what_is_full, read_json

logger = logging.getLogger(__name__)


class RunLockedError(RuntimeError):
    """Another process holds the run, or the file system can't say whether one does."""


@contextmanager
def lock(path: Path, *, run: Path) -> Iterator[None]:
    """Hold the lock of a run.

    The system releases the lock when its process ends, however it ends, so that no stale lock needs judging; the file
    only says who holds it. Where a file system keeps its locks to each machine (NFS mounted with ``local_lock``), the file shows
    that another machine may be at work, which is said.

    Args:
        path: the lock file; created if need be, never removed (removing it would race with a third process).
        run: the run folder, for the message.

    Raises:
        RunLockedError: another process holds it; names host and process. Or the file system has no locks.
        StorageError: there is no room for the file.
    """
    with naming_what_is_full(path, BLOCK):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        holder = _read(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLockedError(f"{run} is being worked on by {_named(holder)}; wait for it or stop it.") from error
        except OSError as error:
            raise RunLockedError(
                f"The file system of {path.parent} has no locks ({error.strerror}), without which two processes could work on "
                f"{run} at once; use another output_dir."
            ) from error
        _warn_of_another_machine(holder, run)
        with suppress(OSError):  # the lock is held, whether or not the disk has room to say by whom
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode())
        yield
    finally:
        os.close(descriptor)


def lock_file(folder: Path) -> Path:
    """The lock of a run folder; it lies beside the runs, so that a run that is moved aside can't take it along."""
    return folder.parent.parent / ".locks" / f"{folder.parent.name}-{folder.name}"


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
    except OSError:  # held, or a file system without locks, on which nobody can tell that it is not
        return True
    return False


def _read(descriptor: int) -> dict[str, Any]:
    """Who wrote the lock file: ``host`` and ``process``, as far as it says so."""
    try:
        found = json.loads(os.pread(descriptor, BLOCK, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    known = {"host", "process"} <= set(holder)
    return f"process {holder['process']} on host {holder['host']}" if known else "another process"


def _warn_of_another_machine(holder: dict[str, Any], run: Path) -> None:
    """The lock is ours; where its file system keeps locks to each machine, another one may think so too."""
    here = socket.gethostname()
    if holder.get("host", here) != here and read_json(run / "results.json").get("status") == "running":
        logger.warning(
            "%s was left running by %s, and its lock is free now. If that process still works, this file system keeps its locks "
            "to each machine: stop one of the two.",
            run,
            _named(holder),
        )
