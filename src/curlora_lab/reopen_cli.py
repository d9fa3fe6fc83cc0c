"""What the scripts that open a finished run have in common: arguments, quiet libraries, errors in one clear line."""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable

from transformers.utils import logging as transformers_logging

from curlora_lab.reopen import OpenRun, open_run
from curlora_lab.tasks import NonFiniteError

#: Exit codes: what was asked for could not be done; it was done, and the outcome is not what it should be.
FAILED = 2
DIFFERENT = 1


def run_parser(description: str | None, *, device: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments that say which run is opened, at which stage, and where it is computed.

    Args:
        description: The script's docstring.
        device: Whether the script computes on a device of choice.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of a finished run")
    parser.add_argument(
        "--stage", type=int, metavar="N", help="stage whose weights are used, from 1 (default: the last)"
    )
    parser.add_argument(
        "--model-path", metavar="PATH", help="where the backbone lies now (default: where it lay in the run)"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the model's repository, if the run used any"
    )
    if device:
        parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    return parser


def open_named(options: argparse.Namespace) -> OpenRun:
    """Open the run that the arguments of :func:`run_parser` name."""
    quieten()
    return open_run(
        options.run,
        stage=options.stage,
        model_path=options.model_path,
        trust_remote_code=options.trust_remote_code,
        device=getattr(options, "device", "cpu"),
    )


def guarded(work: Callable[[], int]) -> int:
    """Do the work of a script; what is wrong with its input becomes a message on stderr and exit code 2.

    Args:
        work: Gives the exit code.
    """
    try:
        return work()
    except (ValueError, OSError, NonFiniteError) as error:
        sys.stderr.write(f"error: {printable(str(error), lines=True)}\n")
        return FAILED


def quieten() -> None:
    """Leave the screen to the script: no progress bars, no notices of deprecations inside the libraries."""
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="PiSSA changes the base weights")  # PEFT, also while it converts it
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def printable(text: str, *, lines: bool = False) -> str:
    """Text without characters that would steer a terminal: texts, labels and names in a run folder may be anyone's.

    Args:
        text: Any text.
        lines: Keep line breaks.
    """
    kept = "\n" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text
    )
