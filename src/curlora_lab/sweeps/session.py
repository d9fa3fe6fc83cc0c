"""A sweep from its command to its table: where it is kept, which jobs it has, how it ended."""

import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from curlora_lab.config import ConfigError
from curlora_lab.continual.files import digest
from curlora_lab.continual.lock import RunLockedError, lock
from curlora_lab.sweeps import jobs, search, table
from curlora_lab.sweeps.isolation import EARLIER_JOBS

logger = logging.getLogger(__name__)

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"

#: What can be chosen with ``sweep=`` and ``launch=`` only where more than the package itself is installed.
PLUGINS = {
    "launch=joblib": "hydra_plugins.hydra_joblib_launcher",
    "launch=slurm": "hydra_plugins.hydra_submitit_launcher",
    "launch=slurm_local": "hydra_plugins.hydra_submitit_launcher",
    "sweep=optuna": "hydra_plugins.hydra_optuna_sweeper",
    "sweep=tune_optuna": "hydra_plugins.hydra_optuna_sweeper",
}


#: Flags with which Hydra shows something and runs nothing.
LOOKING = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--version", "-sc", "--shell-completion")


class Session:
    """The sweep that this process runs.

    Attributes:
        folder: where it is kept, once Hydra has composed it.
        held: what is held until it ends: the sweep's lock.
        tolerance: of a tuning sweep, how far below the best score still counts as equal; ``None`` for any other sweep.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.held = ExitStack()
        self.tolerance: float | None = None

    def begin(self, folder: Path) -> None:
        """Take the sweep's folder.

        Raises:
            SystemExit: 3 if another process runs this sweep; Hydra turns other exceptions of a callback into warnings.
        """
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
        try:
            self.held.enter_context(lock(folder / "sweep.lock", run=folder))
        except RunLockedError as error:
            logger.error(error)
            sys.exit(3)
        self.folder = folder


_session: ContextVar[Session | None] = ContextVar("sweep_session", default=None)


def check_plugins(arguments: Sequence[str]) -> None:
    """Refuse choices whose plugin is not installed, which Hydra would call unknown.

    Args:
        arguments: the arguments after the script's name.

    Raises:
        ConfigError: says what to install.
    """
    for choice, module in PLUGINS.items():
        package, _, name = module.partition(".")
        there = importlib.util.find_spec(package) is not None and importlib.util.find_spec(module) is not None
        if choice in arguments and not there:
            raise ConfigError(f"{choice} needs {name.replace('_', '-')}: pip install 'curlora-lab[sweeps]'.")


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line starts a sweep: ``-m``, ``hydra.mode=MULTIRUN`` or a choice of ``sweep``."""
    modes = [text.partition("=")[2] for text in arguments if text.startswith("hydra.mode=")]
    if modes:
        return modes[-1] == "MULTIRUN"
    if any(text in ("-m", "--multirun") for text in arguments):
        return True
    looking = any(text.split("=")[0] in LOOKING for text in arguments)
    return not looking and any(text.startswith("sweep=") and text != "sweep=null" for text in arguments)


def sweep_name(arguments: Sequence[str]) -> str:
    """Name of a sweep: the same for the same overrides in any order, however it is launched."""
    return digest(sorted(jobs.defining([text for text in arguments if _is_override(text)])))[:8]


@contextmanager
def sweeping(argv: list[str]) -> Iterator[None]:
    """Around Hydra's main: give a sweep its folder, and show all its jobs when it ends, however it ends.

    Args:
        argv: the process's arguments, the script first; a sweep's folder is added to them.

    Raises:
        SystemExit: 1 if a job has no finished run in the end, 130 after Ctrl-C; what Hydra raises goes before.
    """
    if not is_sweep(argv[1:]):
        yield
        return
    given = argv[1:]
    argv[1:] = _arranged(given)
    session = Session()
    token = _session.set(session)
    complete = True
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        _session.reset(token)
        if session.folder is not None:
            complete = _conclude(session.folder, given, tolerance=session.tolerance)
        session.held.close()
    if not complete:
        sys.exit(1)


def _arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments with the sweep's folder, and with ``-m`` in front: among the overrides, argparse takes no more of them."""
    flags = ("-m", "--multirun")
    front = ["-m"] if set(flags) & set(arguments) else []
    rest = [text for text in arguments if text not in flags]
    if not any(text.startswith("hydra.sweep.dir=") for text in rest):
        last = max((index for index, text in enumerate(rest) if _is_override(text)), default=len(rest) - 1)
        rest.insert(last + 1, f"hydra.sweep.dir=${{output_dir}}/.multirun/{sweep_name(arguments)}")
    return [*front, *rest]


def _is_override(text: str) -> bool:
    return "=" in text and not text.startswith("-")


def _conclude(folder: Path, command: Sequence[str], *, tolerance: float | None) -> bool:
    """Show and keep the table, and what a tuning sweep found; whether every job has its run."""
    found = jobs.read_all(folder)
    if not found:
        return True
    table.write_summary(folder, found, command=command)
    table.show(folder, found)
    if tolerance is not None:
        from curlora_lab.sweeps.tuning_table import conclude  # reads records, whose libraries take seconds to import

        conclude(folder, found, tolerance=tolerance, command=command)
    return all(job.status in jobs.DONE for job in found)


class SweepCallback(Callback):
    """Hydra's callback that takes a sweep's folder and plan before its first job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder, put down the jobs as far as they are known, and prepare a study that goes on.

        Args:
            config: the sweep's configuration; a study's number of trials is lowered by those it has.
            **kwargs: what else Hydra says.
        """
        folder = Path(str(config.hydra.sweep.dir)).absolute()
        session = _session.get() or Session()
        session.begin(folder)
        session.tolerance = search.tuning_tolerance(config)
        sweeper = str(config.hydra.sweeper["_target_"])
        if sweeper == BASIC:
            jobs.plan(folder, _product(config))
        elif sweeper == OPTUNA:
            search.check_one_method(config)
            search.check(config)
            search.go_on(config)
            with open_dict(config):
                earlier = f"+hydra.job.env_set.{EARLIER_JOBS}='{len(jobs.read_all(folder))}'"
                config.hydra.overrides.hydra.append(earlier)


def _product(config: DictConfig) -> list[list[str]]:
    """Overrides of each job of a grid, as Hydra's own sweeper makes them; none where it will refuse them."""
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    given += list(config.hydra.overrides.task)
    try:
        batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)
    except HydraException as error:
        logger.debug("the jobs of this sweep are not known beforehand: %s", error)
        return []
    return [list(overrides) for batch in batches for overrides in batch]
