"""The file of a sweep's job: how far it came, what it found, or why it failed; written by the process that does the job."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.errors import CompactHydraException

from curlora_lab.continual.files import digest, read_json, write_json
from curlora_lab.continual.lock import RunLockedError, is_held, lock
from curlora_lab.integrity import is_whole, sealed

logger = logging.getLogger(__name__)

#: What a job can be. ``running`` in a file whose lock nobody holds means that its process died: :func:`read` says ``killed``.
STATUSES = ("waiting", "running", "finished", "reused", "failed", "interrupted", "killed")

#: Statuses of jobs whose run is there.
DONE = ("finished", "reused")

#: Choices that say how the work is spread and shown; they do not make another job or another sweep.
LAUNCHING = ("launch", "logger", "output_dir", "fresh", "num_workers", "isolate")

#: Hydra's own settings that make another sweep.
SEARCHED = ("hydra.sweeper.params", "hydra.sweeper.sampler", "hydra.sweeper.direction", "hydra.sweeper.study_name")

Value = float | tuple[float, ...] | None

#: Told the run folder and whether the run was finished before.
Entered = Callable[[Path, bool], None]


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        number: position in the sweep.
        overrides: what makes the job, as given to ``train.py``.
        status: one of :data:`STATUSES`.
        reason: why it failed or was stopped.
        objectives: what the sweep looks at, by name; ``None`` where the run has no such value.
        run: its run folder.
        seconds: how long the job took, start of its process not included.
    """

    number: int
    overrides: list[str]
    status: str = "waiting"
    reason: str | None = None
    objectives: dict[str, float | None] = field(default_factory=dict)
    run: str | None = None
    seconds: float | None = None

    @property
    def value(self) -> Value:
        """What a sweeper gets: the objective, a tuple of several, ``None`` where one is missing."""
        return returned(self.objectives) if self.status in DONE else None


def returned(objectives: Mapping[str, float | None]) -> Value:
    """Objectives as a sweeper takes them: one number, a tuple of several, ``None`` where one is missing."""
    there = tuple(value for value in objectives.values() if value is not None)
    if not there or len(there) < len(objectives):
        return None
    return there[0] if len(there) == 1 else there


def defining(overrides: Sequence[str]) -> list[str]:
    """The overrides that make a job what it is, without those that say where it is done and how it is shown."""
    kept = []
    for text in overrides:
        key = text.lstrip("+~").split("=")[0]
        hydras_own = key.startswith("hydra") and not key.startswith(SEARCHED)
        if not hydras_own and key.split(".")[0] not in LAUNCHING:
            kept.append(text)
    return kept


def job_file(folder: Path, overrides: Sequence[str]) -> Path:
    """Where a sweep keeps the job with these overrides.

    Args:
        folder: the sweep's folder.
        overrides: the job's overrides; their order and how the sweep is launched do not matter.
    """
    return folder / "jobs" / f"{digest(sorted(defining(overrides)))[:16]}.json"


def write(path: Path, job: Job) -> None:
    """Write a job's file, sealed."""
    write_json(path, sealed(dataclasses.asdict(job)))


def put(path: Path, job: Job) -> None:
    """Write the file of a job that no process is at; one that is being done says itself how it is."""
    if not is_held(_lock_file(path)):
        write(path, job)


def read(path: Path) -> Job | None:
    """A job as its file has it; one whose process died is ``killed``. ``None`` where there is no such file, or a damaged one."""
    found = read_json(path)
    if not is_whole(found) or not {"number", "overrides", "status"} <= set(found):
        if path.is_file():
            logger.warning("%s is damaged; the job counts as not done.", path)
        return None
    known = {entry.name for entry in dataclasses.fields(Job)}
    job = Job(**{key: value for key, value in found.items() if key in known})
    if job.status == "running" and not is_held(_lock_file(path)):
        job.status = "killed"
        job.reason = "its process ended without a word; the system kills what takes more memory than there is"
    return job


def read_all(folder: Path) -> list[Job]:
    """All jobs of a sweep, in their order.

    Args:
        folder: the sweep's folder.
    """
    found = (read(path) for path in sorted((folder / "jobs").glob("*.json")))
    return sorted((job for job in found if job is not None), key=lambda job: (job.number, job.overrides))


def plan(folder: Path, jobs: Sequence[Sequence[str]]) -> None:
    """Put down all jobs that a sweep will start, so that one that never begins is seen; forget those of another grid.

    Args:
        folder: the sweep's folder.
        jobs: overrides of each job, in their order.
    """
    planned = {job_file(folder, overrides): list(overrides) for overrides in jobs}
    for path in set((folder / "jobs").glob("*.json")) - set(planned):
        path.unlink()
    for number, (path, overrides) in enumerate(planned.items()):
        put(path, Job(number, overrides))


def record(path: Path, job: Job, work: Callable[[Entered], Mapping[str, float | None]]) -> Job:
    """Do a job and keep its file up to date. A failure is said, kept and not raised: the sweep goes on.

    Args:
        path: the job's file.
        job: the job; changed.
        work: does it and returns its objectives; says the run folder as soon as it knows it.

    Returns:
        The job as its file has it in the end.
    """
    try:
        with lock(_lock_file(path), run=path):
            return _recorded(path, job, work)
    except RunLockedError as error:
        return _failed(job, error)  # the file is the other process's


def _recorded(path: Path, job: Job, work: Callable[[Entered], Mapping[str, float | None]]) -> Job:
    began = time.monotonic()
    reused: list[bool] = []

    def entered(run: Path, finished: bool) -> None:
        job.run = str(run)
        reused.append(finished)
        write(path, job)

    job.status = "running"
    write(path, job)
    try:
        job.objectives = dict(work(entered))
        job.status = "reused" if any(reused) else "finished"
    except Exception as error:  # noqa: BLE001  whatever a job dies of, the others go on
        _failed(job, error)
    except BaseException as error:
        job.status, job.reason = "interrupted", _interruption(error)
        raise
    finally:
        job.seconds = round(time.monotonic() - began, 3)
        write(path, job)
    return job


def _failed(job: Job, error: Exception) -> Job:
    """A message says what is wrong with the configuration or the run; anything else is a fault whose place matters."""
    expected = isinstance(error, CompactHydraException | RunLockedError)
    job.status = "failed"
    job.reason = str(error) if expected else f"{type(error).__name__}: {error}"
    logger.error("Job %d failed: %s", job.number, job.reason, exc_info=None if expected else error)
    return job


def _interruption(error: BaseException) -> str:
    code = error.code if isinstance(error, SystemExit) else None
    return "Ctrl-C" if isinstance(error, KeyboardInterrupt) or code == 130 else f"stopped, exit code {code}"


def _lock_file(path: Path) -> Path:
    return path.with_suffix(".lock")
