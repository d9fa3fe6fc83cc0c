"""One job of a sweep: in this process, or in one of its own that can die without taking the others with it."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from curlora_lab.sweeps import jobs
from curlora_lab.sweeps.jobs import Entered, Job, Value

logger = logging.getLogger(__name__)

#: Set for the process of a job: ``<number>:<the job's file>``.
JOB = "CURLORA_LAB_JOB"

#: Jobs that a study had before this sweep went on with it, so that numbers stay unique.
EARLIER_JOBS = "CURLORA_LAB_EARLIER_JOBS"

#: ``model.path`` of the built-in model.
BUILTIN = "builtin"

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
PR_SET_PDEATHSIG = 1  # linux/prctl.h

#: Variables by which launchers tell processes that train together apart; the job's file is the first one's.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")

Work = Callable[[Entered | None], Mapping[str, float | None]]


def perform(cfg: DictConfig, work: Work) -> Value:
    """Do what a configuration says, as a run of its own or as a job of a sweep.

    Args:
        cfg: as Hydra composed it.
        work: does the run and returns its objectives; is given whom to tell the run folder.

    Returns:
        What a sweeper takes. In a sweep a failure is recorded in the job's file, said, and ``None``; a run of its own
        raises.
    """
    hydra = HydraConfig.get()
    given = os.environ.get(JOB)
    if _rank() > 0 or (given is None and hydra.mode != RunMode.MULTIRUN):
        return jobs.returned(work(None))
    if given is not None:
        number, _, path = given.partition(":")
        return jobs.record(Path(path), Job(int(number), list(hydra.overrides.task)), work).value
    overrides = list(hydra.overrides.task)
    job = Job(int(hydra.job.num) + int(os.environ.get(EARLIER_JOBS) or 0), overrides)
    file = jobs.job_file(Path(hydra.sweep.dir).absolute(), overrides)
    if isolated(cfg, launcher=hydra.launcher["_target_"]):
        return _in_own_process(file, job).value
    return jobs.record(file, job, work).value


def isolated(cfg: DictConfig, *, launcher: str) -> bool:
    """Whether a job gets a process of its own.

    Args:
        cfg: the job's configuration; its ``isolate`` decides if set.
        launcher: ``_target_`` of the launcher.

    Returns:
        With ``isolate=null``: yes, since a job that the system kills for its memory would take the whole sweep with it. No only
        for the built-in model, which is too small for that and whose jobs are about as short as the start of a process; but also
        then for launchers with worker processes, and where a job trains with several processes, which Lightning can start only
        once in a process.
    """
    if cfg.isolate is not None:
        return bool(cfg.isolate)
    devices = OmegaConf.select(cfg, "trainer.devices", default=1)
    model = OmegaConf.select(cfg, "model.path", default=BUILTIN)
    return launcher != BASIC or str(devices) not in ("1", "auto") or model != BUILTIN


def _rank() -> int:
    return max(int(os.environ.get(name) or 0) for name in RANKS)


def _in_own_process(file: Path, job: Job) -> Job:
    """Start ``python -m curlora_lab.cli`` with the job's overrides, wait for it, and read what it left."""
    jobs.put(file, job)
    command = [sys.executable, "-m", "curlora_lab.cli", *job.overrides, "hydra.mode=RUN"]
    environment = {**os.environ, JOB: f"{job.number}:{file}"}
    follow = die_with_parent if sys.platform == "linux" else None
    with subprocess.Popen(command, env=environment, preexec_fn=follow) as process:
        try:
            code = process.wait()
        except BaseException:
            process.wait()  # Ctrl-C reaches it too: it saves what it has and ends
            raise
    return _ended(file, job, code)


def _ended(file: Path, job: Job, code: int) -> Job:
    """The job's file, which its process may not have lived to complete."""
    found = jobs.read(file) or job
    if code < 0:
        found.status, found.reason = "killed", f"its process was ended by {signal.Signals(-code).name}{_because(-code)}"
    elif found.status == "waiting":
        found.status, found.reason = (
            "failed",
            f"its process ended with code {code} before it began; see what it printed",
        )
    else:
        return found
    logger.error("Job %d %s: %s", found.number, found.status, found.reason)
    jobs.put(file, found)
    return found


def _because(number: int) -> str:
    return "; the system does so when memory is short" if number == signal.SIGKILL else ""


def die_with_parent() -> None:
    """Let the system end this process, gently, when its parent dies: nobody would wait for it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
