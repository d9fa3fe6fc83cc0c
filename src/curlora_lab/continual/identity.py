"""What a run is: a hash of everything that determines its numbers, and of nothing else.

Configuration, package version and source, and the content of model, tokenizer and rows count; where they lie, logging,
names and launch settings do not. A stage is known by all that led to it, so that a longer sequence finds the stages it
shares with a shorter one.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import curlora_lab
from curlora_lab.continual.files import digest

#: Keys that say where things lie, how they are shown or how the work is spread; they do not change any number.
IRRELEVANT: tuple[str, ...] = (
    "output_dir",
    "name",
    "fresh",
    "objectives",
    "tuned",
    "tune_tolerance",
    "isolate",
    "display",
    "logger",
    "data_dir",
    "num_workers",
    "gradient_batches",
    "checkpoint",
    "nonfinite_limit",
    "model.path",
    "model.name",
    "model.revision",
    "adapter.init_from",
    "adapter.laws",
    "adapter.tuned_on",
    "strategy.text.source.path",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)

#: Keys that say how tasks become stages; the keys of the stages tell that themselves.
LAYOUT = ("scenario", "order", "repeats")


@cache
def source_hash() -> str:
    """Sha256 over the package's Python files, names and content."""
    folder = Path(curlora_lab.__file__).parent
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        total.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def common_identity(
    config: Mapping[str, Any], *, model: str, init_from: str | None, probes: Mapping[str, str], strategy: str = ""
) -> dict[str, Any]:
    """What all stages of a run share.

    Args:
        config: the resolved configuration.
        model: fingerprint of model and tokenizer.
        init_from: hash of the adapter that the run continues from, if any.
        probes: fingerprint of each probe's text.
        strategy: what identifies the content that the strategy read, see ``Strategy.prepare``.
    """
    relevant = copy.deepcopy(dict(config))
    for key in ("sequence", "task", *LAYOUT, *IRRELEVANT):
        _drop(relevant, key)
    _drop_everywhere(relevant, "data_dir")
    return {
        "config": relevant,
        "package_version": curlora_lab.__version__,
        "source": source_hash(),
        "model": model,
        "init_from": init_from,
        "probes": dict(probes),
        "strategy": strategy,
    }


def task_identity(node: Mapping[str, Any], *, rows: str) -> dict[str, Any]:
    """What a task is: its configuration without the place of its rows, and the content of the rows used."""
    relevant = copy.deepcopy(dict(node))
    _drop_everywhere(relevant, "data_dir")
    return {"task": relevant, "rows": rows}


def stage_keys(
    common: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    *,
    scenario: str = "sequential",
    repeats: int = 1,
) -> list[str]:
    """A key for each row of the score matrix: what is common to all, and all that led to the row.

    Row 0 depends on what is common alone, and a sequence finds the stages of a shorter one.

    Args:
        common: see :func:`common_identity`.
        tasks: identity of each task, in order.
        scenario: how tasks become stages, see :mod:`curlora_lab.continual.scenarios`.
        repeats: how often the sequence is gone through.
    """
    before = digest({"common": common, "tasks": []})
    if scenario == "joint":
        return [before, digest({"common": common, "joint": list(tasks)})]
    if scenario == "independent":
        alone = [digest({"common": common, "alone": task, "stage": stage}) for stage, task in enumerate(tasks, start=1)]
        return [before, *alone]
    stages = [*tasks] * repeats
    return [before, *(digest({"common": common, "tasks": stages[:stage]}) for stage in range(1, len(stages) + 1))]


def uneventful(common: Mapping[str, Any]) -> dict[str, Any]:
    """What the stages of a run share with those of one that stops at the first number that is not finite.

    A stage that such a run has finished had none, so it is the same under any policy.
    """
    config = {**common["config"], "on_nonfinite": "stop"}
    return {**common, "config": config}


def without_source(common: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], **layout: Any) -> str:
    """Identity of a run but for package version and source: equal for "the same run by other code"."""
    kept = {key: value for key, value in common.items() if key not in ("package_version", "source")}
    return digest({"common": kept, "tasks": list(tasks), **layout})


def differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Where two configurations differ, a line each: ``lr: 0.01 there, 0.02 here``; keys that don't matter are left out."""
    if path in IRRELEVANT or path.endswith("data_dir"):
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        keys = dict.fromkeys([*there, *here])
        return [
            line
            for key in keys
            for line in differences(there.get(key), here.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if there == here else [f"{path}: {there!r} there, {here!r} here"]


def _drop(node: dict[str, Any], path: str) -> None:
    head, _, rest = path.partition(".")
    if not rest:
        node.pop(head, None)
    elif isinstance(node.get(head), dict):
        _drop(node[head], rest)


def _drop_everywhere(node: Any, key: str) -> None:
    if isinstance(node, dict):
        node.pop(key, None)
        for child in node.values():
            _drop_everywhere(child, key)
    elif isinstance(node, list):
        for child in node:
            _drop_everywhere(child, key)
