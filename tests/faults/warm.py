"""Processes that are forked from this one, which has imported everything: a run then starts in milliseconds."""

import contextlib
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Exit codes of a child: an error with a message for the user, and one that nobody foresaw.
REFUSED, BROKEN = 2, 70
KILLED = -signal.SIGKILL


class Shared:
    """Counters that parent and child both see."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, 8 * size)

    def __getitem__(self, index: int) -> int:
        return int(struct.unpack_from("q", self._memory, 8 * index)[0])

    def __setitem__(self, index: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * index, value)


@dataclass
class Child:
    """A forked process.

    Args:
        pid: Its process id.
        log: What it wrote to stdout and stderr.
        began: When it was forked.
    """

    pid: int
    log: Path
    began: float

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def ended(self, within: float) -> int | None:
        """Exit code, negative for a signal; ``None`` if it still runs after so many seconds."""
        until = time.monotonic() + within
        pause = 0.001
        while True:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            left = until - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, 0.02)

    def wait(self, timeout: float = 180.0) -> int:
        """Exit code; a child that takes longer is killed, and that is an error."""
        code = self.ended(timeout)
        if code is None:
            self.kill()
            os.waitpid(self.pid, 0)
            raise TimeoutError(f"process {self.pid} did not end within {timeout:g} s:\n{self.text()[-2000:]}")
        return code

    def text(self) -> str:
        """What it wrote."""
        return self.log.read_text(errors="replace") if self.log.is_file() else ""


def fork(work: Callable[[], object], *, cwd: Path, log: Path) -> Child:
    """Do something in a forked process.

    Args:
        work: What to do. An error that the command line shows without a traceback is a refusal (exit code 2, its message in the
            log); anything else is a crash (exit code 70, with a traceback).
        cwd: Where it works.
        log: File for stdout and stderr.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    pid = os.fork()
    if pid:
        return Child(pid, log, began)
    code = BROKEN
    try:
        code = _work(work, cwd, log)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(work: Callable[[], object], cwd: Path, log: Path) -> int:
    from hydra.errors import CompactHydraException

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (open(stream, "w", closefd=False, errors="replace") for stream in (1, 2))  # noqa: SIM115
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(cwd)
    try:
        found = work()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else REFUSED
    except CompactHydraException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return REFUSED
    return found if isinstance(found, int) and not isinstance(found, bool) else 0
