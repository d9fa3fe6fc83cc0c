"""A run in the terminal while it goes on: one compact display at a terminal, plain lines in a log, or nothing but warnings."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from curlora_lab.report import wording
from curlora_lab.report.table import score_table, stage_line

logger = logging.getLogger(__name__)

MODES = ("auto", "plain", "quiet")
PLAIN_EVERY = 30.0
LIVE_EVERY = 0.2
MOST_ROWS = 6


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a run is going to do.

    Attributes:
        names: What is learnt in each stage, by stage from 1.
        steps: Optimiser steps of each stage, by stage; an estimate.
    """

    names: Mapping[int, str]
    steps: Mapping[int, int]

    @property
    def stages(self) -> int:
        """Number of stages."""
        return max(self.names, default=0)


class Eta:
    """How long a run will still take: from the pace of its own steps and evaluations, nothing before there is any.

    Args:
        outline: What the run is going to do.
        clock: The time in seconds.
    """

    def __init__(self, outline: Outline, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.outline = outline
        self.clock = clock
        self.stage = 0
        self.step = 0
        self.steps = 0
        self._began: tuple[float, int] | None = None  # when this process began with the stage, and at which step
        self._pace: float | None = None
        self._row: float | None = None
        self._trained: float = clock()

    def training(self, stage: int, step: int, steps: int) -> None:
        """Take note of a step."""
        now = self.clock()
        if stage != self.stage or self._began is None:
            self._began = (now, step)
        self.stage, self.step = stage, step
        self.steps = steps or self.outline.steps.get(stage, 0)
        self._trained = now
        if step > self._began[1]:
            self._pace = (now - self._began[0]) / (step - self._began[1])

    def row(self, stage: int) -> None:
        """Take note of a finished row of the score matrix."""
        now = self.clock()
        if stage in (0, self.stage):  # a row that was found finished took no time
            self._row = now - self._trained
        self.stage, self.step = stage, 0
        self._began, self._trained = None, now

    @property
    def share(self) -> float:
        """Share of all optimiser steps that are made."""
        total = sum(self.outline.steps.values())
        before = sum(steps for stage, steps in self.outline.steps.items() if stage < self.stage)
        done = before + (self.step if self._began else self.outline.steps.get(self.stage, 0))
        return min(done / total, 1.0) if total else 0.0

    @property
    def left(self) -> float | None:
        """Seconds left, ``None`` while there is no pace to go by."""
        if self._pace is None:
            return None
        now_left = max(self.steps - self.step, 0) if self._began else 0
        later = sum(steps for stage, steps in self.outline.steps.items() if stage > self.stage)
        rows = self.outline.stages - self.stage + (1 if self._began else 0)
        return (now_left + later) * self._pace + rows * (self._row or 0.0)


class Quiet:
    """Shows nothing."""

    def training(self, stage: int, step: int, steps: int, loss: float | None) -> None:
        """See :class:`Plain`."""

    def scoring(self, task: str, share: float) -> None:
        """See :class:`Plain`."""

    def row(self, record: Mapping[str, Any], stage: int) -> None:
        """See :class:`Plain`."""
        logger.info(stage_line(record, stage))  # for train.log


class Plain:
    """A line a stage, and now and then one about how far it is: for logs and continuous integration.

    Args:
        eta: Estimates the time.
        every: Seconds between two lines about the same stage.
    """

    def __init__(self, eta: Eta, *, every: float = PLAIN_EVERY) -> None:
        self.eta = eta
        self._every = every
        self._last = eta.clock()

    def training(self, stage: int, step: int, steps: int, loss: float | None) -> None:
        """A stage has made ``step`` of its ``steps`` optimiser steps."""
        self.eta.training(stage, step, steps)
        now = self.eta.clock()
        if loss is not None and now - self._last >= self._every:
            self._last = now
            words = [f"step {step}/{self.eta.steps}", f"loss {loss:.4g}", *_time_left(self.eta)]
            logger.info("%s: %s", _stage_title(self.eta.outline, stage), " | ".join(words))

    def scoring(self, task: str, share: float) -> None:
        """A share of a task's rows has been scored."""

    def row(self, record: Mapping[str, Any], stage: int) -> None:
        """A row of the score matrix is there."""
        self.eta.row(stage)
        self._last = self.eta.clock()
        logger.info(stage_line(record, stage))


class Compact:
    """A display that stays in place: stage, task, time left of the whole sequence, and the score matrix as it grows.

    It is drawn by whoever reports progress: a thread of its own would be in the way of processes that fork.

    Args:
        eta: Estimates the time.
        live: Where it is drawn.
        every: Seconds between two drawings.
    """

    def __init__(self, eta: Eta, live: Live, *, every: float = LIVE_EVERY) -> None:
        self.eta = eta
        self._live = live
        self._every = every
        self._drawn = float("-inf")
        self._record: Mapping[str, Any] | None = None
        self._now: tuple[str, float] = ("untrained", 0.0)
        self._loss: float | None = None

    def training(self, stage: int, step: int, steps: int, loss: float | None) -> None:
        """A stage has made ``step`` of its ``steps`` optimiser steps."""
        self.eta.training(stage, step, steps)
        self._loss = loss if loss is not None else self._loss
        self._now = (_stage_title(self.eta.outline, stage), step / max(self.eta.steps, 1))
        self._draw()

    def scoring(self, task: str, share: float) -> None:
        """A share of a task's rows has been scored."""
        where = "untrained" if self.eta.stage == 0 else f"after stage {self.eta.stage}"
        self._loss = None
        self._now = (f"{where}: scoring {task}", share)
        self._draw()

    def row(self, record: Mapping[str, Any], stage: int) -> None:
        """A row of the score matrix is there."""
        self.eta.row(stage)
        self._record, self._loss = record, None
        self._now = (_stage_title(self.eta.outline, min(stage + 1, self.eta.outline.stages)), 0.0)
        logger.info(stage_line(record, stage))
        self._draw(now=True)

    def _draw(self, *, now: bool = False) -> None:
        moment = self.eta.clock()
        if now or moment - self._drawn >= self._every:
            self._drawn = moment
            self._live.update(self.rendered(), refresh=True)

    def rendered(self) -> RenderableType:
        """What is on the screen."""
        name, share = self._now
        bars = Table.grid(padding=(0, 2))
        for justify in ("left", "left", "right"):
            bars.add_column(justify=justify, no_wrap=True)
        loss = "" if self._loss is None else f"loss {self._loss:.4g}"
        bars.add_row(Text(name, style="bold"), ProgressBar(total=1.0, completed=share, width=30), Text(loss))
        left = " ".join(_time_left(self.eta)) or "estimating the time"
        bars.add_row(Text("whole sequence"), ProgressBar(total=1.0, completed=self.eta.share, width=30), Text(left))
        parts: list[RenderableType] = [bars]
        if self._record is not None:
            filled = range(wording.last_row(self._record) + 1)
            parts.insert(0, score_table(self._record, title="so far", stages=filled[-MOST_ROWS:]))
        return Group(*parts)


Display = Quiet | Plain | Compact


@contextmanager
def display(mode: str, outline: Outline, *, stream: TextIO | None = None) -> Iterator[Display]:
    """Show a run while it goes on.

    Args:
        mode: ``auto``: compact at a terminal, plain elsewhere; ``plain``; ``quiet``: only warnings.
        outline: What the run is going to do.
        stream: Where a terminal is looked for and drawn on (default: standard error).

    Yields:
        What is to be told how far the run is.

    Raises:
        ValueError: For an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"display={mode!r} is unknown; choose one of {', '.join(MODES)}")
    eta = Eta(outline)
    if mode == "quiet":
        yield Quiet()
        return
    console = Console(file=stream or sys.stderr)
    if mode == "plain" or not console.is_terminal or console.is_dumb_terminal:
        yield Plain(eta)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live, _above(console):
        yield Compact(eta, live)


@contextmanager
def hushed(*, quiet: bool) -> Iterator[None]:
    """While it lasts, what goes to the terminal through ``logging`` begins at warnings; log files are left as they are.

    Args:
        quiet: Whether anything is to be done.
    """
    handlers = _to_terminal() if quiet else []
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(max(handler.level, logging.WARNING))
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


@contextmanager
def _above(console: Console) -> Iterator[None]:
    """Send log lines that would go to the same terminal above the display instead of through it."""
    handlers = [handler for handler in _to_terminal() if handler.stream.isatty()]
    streams = [handler.stream for handler in handlers]
    for handler in handlers:
        handler.setStream(FileProxy(console, handler.stream))
    try:
        yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream)


def _to_terminal() -> Sequence["logging.StreamHandler[Any]"]:
    """Handlers of the root logger that write to standard output or standard error."""
    return [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]


def _stage_title(outline: Outline, stage: int) -> str:
    return f"stage {stage}/{outline.stages} {outline.names.get(stage, '')}".rstrip()


def _time_left(eta: Eta) -> list[str]:
    return [] if eta.left is None else [f"about {wording.duration(eta.left)} left"]
