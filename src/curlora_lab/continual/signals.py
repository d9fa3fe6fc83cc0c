"""Signals that ask a run to stop: a checkpoint first where training is on, then the exit code that is the custom."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

#: Signals that ask a run to stop. SIGUSR1 is what SLURM is usually told to send ahead of the end (``--signal=USR1@90``).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Interrupted(SystemExit):
    """A signal ended the run; the process exits with 128 + the signal's number (143 for SIGUSR1, as for SIGTERM).

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        asked = signal.SIGTERM if number == signal.SIGUSR1 else number
        super().__init__(128 + asked)
        self.name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"stopped by {self.name}"


class Interruption:
    """Takes the signals while a run is on; a context manager.

    Outside training a signal ends the run at once: what was being scored is scored again. While :attr:`deferring` is set it
    only leaves a note, and whoever trains asks :attr:`received` at the next optimiser step, writes a checkpoint and calls
    :meth:`leave`. A second Ctrl-C does not wait.

    Attributes:
        received: the first signal that came.
        deferring: whether signals wait for the next optimiser step.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferring = False
        self._process = os.getpid()
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python allows no handlers elsewhere
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def install(self) -> None:
        """Take the signals, again: Lightning puts its own handler in front, which would end training before a checkpoint."""
        for number in self._before:
            signal.signal(number, self._handle)

    def leave(self) -> None:
        """End the run for the signal that came (SIGTERM, where it came to another process of this run).

        Whoever took the signal before this run did, like a job launcher, decides instead; if that returns, the run goes on.

        Raises:
            Interrupted: nobody did.
        """
        number = self.received or signal.SIGTERM
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, None)  # submitit, for one, puts the job back into the queue here, and passes over SIGTERM
            self.received = None
            return
        raise Interrupted(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker inherited this; Ctrl-C is for its parent to handle
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        again = self.received is not None and number == signal.SIGINT
        self.received = self.received or number
        if again:
            raise Interrupted(number)
        if not self.deferring:
            self.leave()
            return
        more = " Once more stops at once." if number == signal.SIGINT else ""
        logger.warning("%s: a checkpoint is written at the next optimiser step.%s", signal.Signals(number).name, more)
