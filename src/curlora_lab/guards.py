"""What keeps a run from doing harm or ending in a traceback, and what is to be said before it has any number."""

import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curlora_lab.budget import is_met
from curlora_lab.build import Parts
from curlora_lab.config import ConfigError, RunError
from curlora_lab.continual import files
from curlora_lab.continual.inputs import RECORD, what_differs
from curlora_lab.continual.shortage import explain, is_shortage
from curlora_lab.continual.signals import Interrupted
from curlora_lab.report import wording
from curlora_lab.sweeps.rates import unsearched

logger = logging.getLogger(__name__)

#: What is said of a run that a signal ended before there was anything to keep.
NOTHING_BEGAN = "Stopped before training; the same command starts again."


@contextmanager
def said_without_a_traceback() -> Iterator[None]:
    """A full disk is no fault of the program; where it was met inside a run, the run has said so itself.

    Raises:
        RunError: instead of a ``StorageError``.
    """
    try:
        yield
    except files.StorageError as error:
        raise RunError(str(error)) from error


@contextmanager
def while_it_is_built(config: Mapping[str, Any]) -> Iterator[None]:
    """What goes wrong before there is a run, in words: parts that do not fit, too little memory, a signal.

    Args:
        config: the resolved configuration.

    Raises:
        ConfigError: a part does not fit the others, or its files are not there or not right.
        RunError: memory was short.
        Interrupted: a signal came.
    """
    try:
        yield
    except Interrupted:
        logger.warning(NOTHING_BEGAN)
        raise
    except KeyboardInterrupt as error:  # Ctrl-C in a thread that can't take signals
        logger.warning(NOTHING_BEGAN)
        raise Interrupted(signal.SIGINT) from error
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise RunError(explain(error, None, accumulate=1, dtype=str(config["model"].get("dtype")))) from error


def refuse_another(folder: Path, key: str, parts: Parts) -> None:
    """A folder that was named by hand may hold another run; that one is neither continued nor overwritten.

    Args:
        folder: the run folder.
        key: identity of this run.
        parts: what this run is made of.

    Raises:
        ConfigError: it holds another run; names what differs.
    """
    found = files.read_json(folder / RECORD)
    if not found.get("provenance") or found["provenance"].get("identity") == key:
        return
    lines = what_differs(found, parts.config, **parts.inputs)
    raise ConfigError(
        f"{folder} holds another run. What differs:\n"
        + "\n".join(f"  - {line}" for line in lines[:20])
        + "\nChoose another name=..., or move that run aside with fresh=true."
    )


def said_before(parts: Parts, *, parameters: Mapping[str, int], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """What is to be said before any number: what is scored, about the data, a rate without a search, a budget not met.

    Args:
        parts: what the run is made of.
        parameters: its counts of parameters.
        overrides: what was given on the command line.

    Returns:
        Warnings as the record has them.
    """
    config = parts.config
    found: list[tuple[str, str | None, str]] = []
    if config["evaluate_on"] == "choose":
        found.append(("choosing_rows", None, wording.CHOOSING_ROWS))
    found += [("data", task.name, f"{task.name}: {note}") for task in parts.tasks for note in task.data.notes]
    if message := _not_the_benchmark({} if config["task"] else config["sequence"], [task.name for task in parts.tasks]):
        found.append(("not_the_benchmark", None, message))
    budget, count = config["budget"], parameters["adapter"]
    searching = config["evaluate_on"] == "choose"  # such a run has no rate to answer for
    to_judge = bool(count) and parts.tuned is None and not searching
    if to_judge and (reason := unsearched(config, model=parts.backbone.name, overrides=overrides)):
        message = f"{reason}; a comparison needs a learning rate found for each method (sweep=tune, then tuned=)"
        found.append(("untuned_learning_rate", None, message))
    if budget is not None and not is_met(budget, count):
        name = config["adapter"]["name"]
        message = f"{name} has {count} trainable parameters, {count / budget:.3g} x the budget of {budget}"
        found.append(("budget_not_met", None, message))
    return [{"code": code, "task": task, "stage": None, "message": message} for code, task, message in found]


def _not_the_benchmark(sequence: Mapping[str, Any], tasks: Sequence[str]) -> str | None:
    """In what a sequence that stands for a benchmark differs from it: a part of it, or its tasks in another order."""
    name, benchmark = sequence.get("name", "sequence"), sequence.get("benchmark") or []
    lacking = sequence.get("missing") or [task for task in benchmark if task not in tasks]
    further = [task for task in tasks if benchmark and task not in benchmark]
    differs = [f"it lacks {', '.join(lacking)}"] if lacking else []
    differs += [f"{', '.join(further)} is no part of it"] if further else []
    if benchmark and not differs and list(tasks) != list(benchmark):
        differs = [f"its order is {', '.join(benchmark)}, not {', '.join(tasks)}"]
    if not differs:
        return None
    what = f"this run is not the benchmark {name}" if benchmark else f"{name} is not the benchmark"
    return f"{what}: {' and '.join(differs)}; don't hold its scores against published ones"
