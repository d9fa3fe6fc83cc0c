"""Named moments of a run: counted in one process, struck in another.

The library code is not changed: a child installs wrappers around the calls that a moment is named after, and an audit hook
that sees every file that Python opens for writing, renames or removes. At the chosen moment the process kills itself (so
nothing is flushed, closed or cleaned up) or gets the error of a full disk.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import safetensors.torch
from tests.faults.warm import Shared

#: Moments, in the order of their counters.
NAMES = (
    "step",  # a training step begins
    "optimizer",  # gradients are there, the optimiser has not stepped
    "choosing",  # a batch of the choosing rows is scored
    "evaluation",  # a batch of the reported rows is scored
    "measure",  # a row of the matrix is about to be measured
    "stage",  # a stage begins
    "strategy",  # a hook of the strategy is called
    "tensors",  # a safetensors file is about to be written
    "written",  # a safetensors file was written, not yet declared
    "open",  # a file is about to be opened for writing
    "fsync",  # a file or folder is about to be synced
    "rename",  # a file or folder is about to take its name
    "remove",  # a file or folder is about to be removed
    "report",  # the report is about to be written
)

#: What the moments belong to, in the words of the table.
MEANING = {
    "step": "step",
    "optimizer": "step",
    "choosing": "evaluation",
    "evaluation": "evaluation",
    "measure": "evaluation",
    "stage": "stage switch",
    "strategy": "strategy update",
    "tensors": "save",
    "written": "save",
    "open": "save",
    "fsync": "save",
    "rename": "save",
    "remove": "save",
    "report": "report",
}

Strike = Callable[[], None]


def die() -> None:
    """End this process as the system would: at once, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


class Counting:
    """Count moments, and strike at one.

    Args:
        counters: One counter for each of :data:`NAMES`, shared with the parent.
        at: Moment and number (from 1) to strike at; ``None`` only counts.
        strike: What happens then.
    """

    def __init__(self, counters: Shared, at: tuple[str, int] | None = None, strike: Strike = die) -> None:
        self.counters = counters
        self.at = at
        self.strike = strike

    def pass_(self, name: str) -> None:
        """A moment has come."""
        index = NAMES.index(name)
        self.counters[index] += 1
        if self.at == (name, self.counters[index]):
            self.strike()

    def install(self) -> None:
        """Wrap the calls; only for a process that is about to end."""
        from curlora_lab import run as runner
        from curlora_lab.continual.strategies import Strategy
        from curlora_lab.continual.trainer import ContinualTrainer
        from curlora_lab.tasks import TaskModule

        self._wrap(TaskModule, "training_step", "step")
        self._wrap(TaskModule, "on_before_optimizer_step", "optimizer")
        self._wrap(TaskModule, "validation_step", "choosing")
        self._wrap(TaskModule, "test_step", "evaluation")
        self._wrap(TaskModule, "start_stage", "stage")
        self._wrap(ContinualTrainer, "measure", "measure")
        for kind in _family(Strategy):
            for hook in ("begin", "before_stage", "penalty", "on_gradients", "after_stage", "state"):
                if hook in vars(kind):
                    self._wrap(kind, hook, "strategy")
        self._wrap(runner, "write_report", "report")
        self._wrap(os, "fsync", "fsync")
        self._wrap_saving()
        sys.addaudithook(self._hear)

    def _wrap(self, owner: Any, attribute: str, name: str) -> None:
        real = getattr(owner, attribute)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.pass_(name)
            return real(*arguments, **options)

        setattr(owner, attribute, wrapped)

    def _wrap_saving(self) -> None:
        """``save_file`` wherever it was imported to: it writes from Rust, which Python does not see."""
        real = safetensors.torch.save_file

        def wrapped(*arguments: Any, **options: Any) -> None:
            self.pass_("tensors")
            real(*arguments, **options)
            self.pass_("written")

        for module in list(sys.modules.values()):
            for key, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
                if value is real:
                    setattr(module, key, wrapped)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and _writes(arguments):
            self.pass_("open")
        elif event == "os.rename":
            self.pass_("rename")
        elif event in ("os.remove", "os.rmdir", "shutil.rmtree"):
            self.pass_("remove")


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, mode, flags = (*arguments, None, None, None)[:3]
    if not isinstance(path, str | bytes | os.PathLike) or str(path).startswith("/dev/"):
        return False
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _family(kind: type) -> list[type]:
    return [kind, *(descendant for child in kind.__subclasses__() for descendant in _family(child))]
