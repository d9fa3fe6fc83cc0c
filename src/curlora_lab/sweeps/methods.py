"""What a method is when its learning rate is tuned: every setting but those that tuning varies or that only measure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curlora_lab.config import tasks_of
from curlora_lab.continual.identity import IRRELEVANT
from curlora_lab.report.study import flat, telling

Settings = dict[str, Any]

#: What tuning varies, and what its result holds for all the same: seeds, orders, draws.
VARIED = ("lr", "head_lr", "seed", "order", "draw", "evaluate_on")

#: Root keys that are no setting of a method: they say what is measured, or are counted by the tasks.
NOT_OF_METHOD = (*VARIED, "eval_rows", "eval_batch_size", "probe", "sequence", "task")

#: The same inside tasks and other parts.
NOT_OF_PARTS = ("draw", "evaluate_on", "eval_rows", "eval_batch_size", "data_dir")

#: Keys of the adapter that follow the run's seed, or describe it.
NOT_OF_ADAPTER = ("seed", "projection_prng_key", "laws", "tuned_on")


def method_settings(config: Mapping[str, Any]) -> Settings:
    """The settings of a method.

    Two runs are of one method if these are equal. The content of the backbone is no setting; its name is. Where things lie
    is none, but for an adapter that is continued from.

    Args:
        config: a validated configuration, or the one in a record.

    Returns:
        Plain JSON values; tasks by name, whatever their order.
    """
    found: Settings = json.loads(json.dumps({**config, "tasks": tasks_of(config)}, default=str))
    kept_from = dict(found["adapter"])
    model = dict(found["model"])
    for path in (*IRRELEVANT, *NOT_OF_METHOD):
        _drop(found, path)
    for key in NOT_OF_PARTS:
        _drop_everywhere(found, key)
    for key in NOT_OF_ADAPTER:
        found["adapter"].pop(key, None)
    found["adapter"]["init_from"] = kept_from.get("init_from")
    found["backbone"] = model.get("name") or Path(str(model.get("path"))).name
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Where two methods differ, a line each: ``rank: 8 there, 16 here``.

    Args:
        there: settings of one.
        here: settings of the other.
    """
    left, right = flat(there), flat(here)
    keys = dict.fromkeys([*left, *right])
    return [
        f"{key}: {left.get(key)!r:.60} there, {right.get(key)!r:.60} here"
        for key in keys
        if left.get(key) != right.get(key)
    ]


def names(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """A readable name for each: its adapter, and the fewest settings that tell it from the others.

    Args:
        methods: their settings.
    """
    facts = [flat(settings) for settings in methods]
    keys = [key for key in telling(facts) if key != "adapter.name"]
    return [
        " · ".join(
            [str(one.get("adapter.name", "method")), *(f"{key.rpartition('.')[2]} {one.get(key)}" for key in keys)]
        )
        for one in facts
    ]


def _drop(node: Settings, path: str) -> None:
    *parents, last = path.split(".")
    here: Any = node
    for key in parents:
        here = here.get(key) if isinstance(here, dict) else None
    if isinstance(here, dict):
        here.pop(last, None)


def _drop_everywhere(node: Any, key: str) -> None:
    if isinstance(node, dict):
        node.pop(key, None)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _drop_everywhere(child, key)
