"""Several multiruns that make up a study: what each has to do, how far it is, and how it is started."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from curlora_lab.continual.files import read_json, write_json
from curlora_lab.sweeps import jobs
from curlora_lab.sweeps.isolation import die_with_parent

TIMES = "times.json"


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


def start(arguments: Sequence[str], *, folder: Path, source: Path | None = None) -> int:
    """Do what is missing of a multirun, in a process of its own, and keep how long it took.

    Args:
        arguments: of ``train.py``, without the sweep's folder.
        folder: the sweep's folder.
        source: a folder that :func:`~curlora_lab.sweeps.snapshot.take` made, whose code does the work; ``None``: this code.

    Returns:
        The exit code: 0 where every job has its run.
    """
    spell = train([*arguments, f"hydra.sweep.dir={quoted(folder)}"], source=source)
    write_json(folder / TIMES, {"spells": [asdict(one) for one in (*times(folder), spell)]})
    return spell.code


def train(arguments: Sequence[str], *, source: Path | None = None) -> "Spell":
    """Start ``train.py`` in a process of its own and wait for it.

    It gets one thread: as many run side by side as there are cores, and the numbers do not depend on how many there are.

    Args:
        arguments: of ``train.py``.
        source: see :func:`start`.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if source is not None:
        before = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(source / "src"), *([before] if before else [])])
    began, clock = time.time(), time.perf_counter()
    code = _waited([sys.executable, "-m", "curlora_lab.cli", *arguments], environment)
    return Spell(round(began, 1), round(time.perf_counter() - clock, 1), code)


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


def _waited(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Exit code of a process that ends when this one is killed; Ctrl-C reaches it too and is waited out: it saves what it has."""
    follow = die_with_parent if sys.platform == "linux" else None
    with subprocess.Popen(command, env=dict(environment), preexec_fn=follow) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
