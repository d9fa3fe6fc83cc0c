"""Several multiruns that make up a study: what each has to do, how far it is, and how it is started."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from curlora_lab.continual.files import read_json, write_json
from curlora_lab.sweeps import jobs
from curlora_lab.sweeps.isolation import die_with_parent

TIMES = "times.json"
LOOK = 0.5  # seconds between looks at what is running


@dataclass(frozen=True)
class Progress:
    """How far a multirun is.

    Attributes:
        planned: its jobs.
        done: those whose run is there.
        failed: those that ended without one.
    """

    planned: int
    done: int
    failed: int

    @property
    def complete(self) -> bool:
        """Whether every job has its run."""
        return self.done == self.planned

    @property
    def word(self) -> str:
        """The state in a word or two."""
        if self.complete:
            return "done"
        missing = self.planned - self.done - self.failed
        parts = [f"{self.done} done"] if self.done else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join([*parts, f"{missing} to do"] if missing else parts)


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of a grid: the product of the values that its overrides list, as Hydra's own sweeper makes them.

    Args:
        overrides: as on the command line; of a key that stands twice the last counts.

    Returns:
        The overrides of each job.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def quoted(value: str | Path) -> str:
    """A value for the command line that Hydra reads as this text, whatever it contains.

    Args:
        value: a text, such as a path with blanks or commas.
    """
    text = str(value)
    if re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return text
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")  # Hydra unescapes backslashes before quotes only
    return f"'{text}'"


def progress(folder: Path, planned: int) -> Progress:
    """How far the multirun is that is kept in a folder.

    Args:
        folder: the sweep's folder; one that is not there has done nothing.
        planned: how many jobs it has.
    """
    found = jobs.read_all(folder)
    done = sum(job.status in jobs.DONE for job in found)
    failed = sum(job.status not in (*jobs.DONE, "waiting", "running") for job in found)
    return Progress(planned, min(done, planned), min(failed, planned - min(done, planned)))


def run_folders(folder: Path) -> list[Path]:
    """Folders of the runs that a multirun has finished, in the order of its jobs, each once.

    Args:
        folder: the sweep's folder.
    """
    found = [Path(job.run) for job in jobs.read_all(folder) if job.run and job.status in jobs.DONE]
    return list(dict.fromkeys(found))


class Work:
    """``train.py`` at work in a process of its own, which ends when this one is killed.

    It gets one thread: as many run side by side as there are cores, and the numbers do not depend on how many there are.

    Args:
        arguments: of ``train.py``.
        source: a folder that :func:`~curlora_lab.sweeps.snapshot.take` made, whose code does the work; ``None``: this code.
        folder: where to keep how long it took; for a multirun, which is then kept there too.
    """

    def __init__(self, arguments: Sequence[str], *, source: Path | None = None, folder: Path | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if source is not None:
            before = os.environ.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([str(source / "src"), *([before] if before else [])])
        where = [f"hydra.sweep.dir={quoted(folder)}"] if folder is not None else []
        follow = die_with_parent if sys.platform == "linux" else None
        self._folder = folder
        self._began, self._clock = time.time(), time.perf_counter()
        command = [sys.executable, "-m", "curlora_lab.cli", *arguments, *where]
        self._process = subprocess.Popen(command, env=environment, preexec_fn=follow)

    def ended(self) -> "Spell | None":
        """How long it took and its exit code, 0 where every job has its run; ``None`` while it is at work."""
        code = self._process.poll()
        if code is None:
            return None
        spell = Spell(round(self._began, 1), round(time.perf_counter() - self._clock, 1), code)
        if self._folder is not None:
            write_json(self._folder / TIMES, {"spells": [asdict(one) for one in (*times(self._folder), spell)]})
        return spell

    def wait(self) -> "Spell":
        """The same when it has ended; Ctrl-C reaches it too and is waited out: it saves what it has."""
        try:
            self._process.wait()
        except KeyboardInterrupt:
            self._process.wait()
            raise
        spell = self.ended()
        assert spell is not None
        return spell

    def stop(self) -> None:
        """End it as SLURM would: it saves what it has."""
        self._process.terminate()
        self._process.wait()


def side_by_side(
    needs: Mapping[str, Sequence[str]],
    begin: Callable[[str, int], Work | None],
    *,
    cores: int,
    sizes: Mapping[str, int],
) -> Generator[tuple[str, "Spell | None"], None, None]:
    """Do pieces of work that wait for one another, as many at once as there are cores.

    Of those that can begin, the one goes first on which most work hangs, its own included, so that no long chain is left
    for the end. Cores that no other piece can use go to the one that begins.

    Args:
        needs: the pieces by name, each with the names of those that have to end before it begins.
        begin: begins a piece on so many cores; ``None`` where there is nothing to do.
        cores: how many there are.
        sizes: how much work each piece is.

    Yields:
        The name of each piece as it ends, and how it ended; ``None`` where there was nothing to do.
    """
    order = TopologicalSorter(needs)
    order.prepare()
    ready: list[str] = []
    running: dict[str, tuple[Work, int]] = {}
    try:
        while order.is_active():
            ready = sorted([*ready, *order.get_ready()], key=lambda name: -_chain(name, needs, sizes))
            free = cores - sum(taken for _, taken in running.values())
            ended: dict[str, Spell | None] = {}
            if ready and free:
                share = max(1, free // len(ready))
                name = ready.pop(0)
                work = begin(name, share)
                if work is not None:
                    running[name] = (work, share)
                    continue
                ended = {name: None}
            ended |= {name: spell for name, (work, _) in running.items() if (spell := work.ended())}
            for name, spell in ended.items():
                running.pop(name, None)
                order.done(name)
                yield name, spell
            if not ended:
                time.sleep(LOOK)
    except KeyboardInterrupt:
        for work, _ in running.values():
            work.wait()
        raise
    except BaseException:
        for work, _ in running.values():
            work.stop()
        raise


def _chain(name: str, needs: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> int:
    """The work of a piece and of the longest chain of those that wait for it."""
    return sizes[name] + max((_chain(other, needs, sizes) for other in needs if name in needs[other]), default=0)


@dataclass(frozen=True)
class Spell:
    """One time that a multirun was at work.

    Attributes:
        started: seconds since 1970.
        seconds: wall time.
        code: exit code.
    """

    started: float
    seconds: float
    code: int


def times(folder: Path) -> list[Spell]:
    """When a multirun was at work, and for how long.

    Args:
        folder: the sweep's folder.
    """
    spells: Sequence[Mapping[str, float]] = read_json(folder / TIMES).get("spells", [])
    return [Spell(spell["started"], spell["seconds"], int(spell["code"])) for spell in spells]


def ended(folder: Path) -> float | None:
    """When a multirun last came to its end, in seconds since 1970; ``None`` if it never did.

    Args:
        folder: the sweep's folder.
    """
    whole = [spell.started + spell.seconds for spell in times(folder) if spell.code in (0, 1)]
    return max(whole, default=None)


def on_the_clock(spells: Iterable[Spell]) -> float:
    """Seconds in which anything was at work: of spells side by side only one counts.

    Args:
        spells: of any multiruns.
    """
    seconds, until = 0.0, float("-inf")
    for spell in sorted(spells, key=lambda one: one.started):
        end = spell.started + spell.seconds
        seconds += max(0.0, end - max(until, spell.started))
        until = max(until, end)
    return seconds
