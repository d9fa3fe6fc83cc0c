"""An adapter for each task, chosen by the task's name when it is scored: nothing that was learnt can be forgotten."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from curlora_lab.adapters.several import (
    activate,
    adapter_names,
    adapter_of_stage,
    add_adapter,
    count_adapter_parameters,
    require_stackable,
    trained_parameters,
)
from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import position_seed

PREFIX = "adapter_of/"

Start = Literal["fresh", "previous"]


class PerTaskAdapters(Strategy):
    """Each task trains an adapter of its own; every score of a task is taken with its own adapter and head.

    This needs the task id at test time, as the stored heads do, and its parameters grow with the tasks: the honest
    comparison for methods with stored heads, and the bound for a sequence without transfer. A task that was learnt is scored
    exactly the same ever after. A task that has not been learnt yet has no adapter: it is scored with the base model where
    adapters start fresh, with the newest adapter where they start from it. The language model is probed with the
    adapter of the stage.

    Args:
        start: ``fresh`` (each as at the beginning of the run) or ``previous`` (each from the one before: transfer without
            forgetting).

    Raises:
        ValueError: ``start`` is unknown.
    """

    def __init__(self, *, start: Start = "fresh") -> None:
        if start not in get_args(Start):
            raise ValueError(f"strategy.start={start!r} is unknown; choose one of {', '.join(get_args(Start))}.")
        self.start: Start = start
        self._stages: dict[str, int] = {}  # by task: the stage in which its adapter began
        self._current: int | None = None
        self._seed = 0
        self._trained: frozenset[str] = frozenset()
        self._backbone: Backbone | None = None

    def prepare(self, backbone: Backbone, probes: Mapping[str, PerplexityProbe]) -> str:
        """Refuse an adapter of which there can't be several.

        Raises:
            ValueError: there is no such adapter.
        """
        require_stackable(backbone, "per_task")
        return ""

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """The run begins with one adapter."""
        self._backbone = backbone
        self._seed = tasks[0].training_plan.seed
        self._trained = trained_parameters(backbone)
        self._stages, self._current = {}, None

    def before_stage(self, task: TaskModule, *, stage: int) -> None:
        """Add the task's adapter and train it; a task that comes again goes on with its own."""
        backbone = task.backbone
        before = adapter_of_stage(self._current) if self._current else None
        number = self._stages.setdefault(task.name, stage)
        name = adapter_of_stage(number)
        if name not in adapter_names(backbone):
            like = before if self.start == "previous" else None
            add_adapter(backbone, name, seed=position_seed(self._seed, "adapter", name), like=like)
        self._current = number
        activate(backbone, [name], train=name, trained=self._trained)

    def before_evaluation(self, task: TaskModule) -> None:
        """Switch to the task's own adapter."""
        if self._current is None:  # before any training there is one adapter, and it is as it was made
            return
        own = self._stages.get(task.name)
        activate(task.backbone, adapters_of(own, newest=self._current, start=self.start), train=None)

    def before_probes(self) -> None:
        """Switch to the adapter of the stage."""
        if self._current is not None and self._backbone is not None:
            activate(self._backbone, [adapter_of_stage(self._current)], train=None)

    def cost(self) -> dict[str, float]:
        """``adapters`` and ``adapter_parameters``: how many there are, and their numbers together."""
        if self._backbone is None:
            return {}
        count = count_adapter_parameters(self._backbone, self._trained)
        return {"adapters": float(len(adapter_names(self._backbone))), "adapter_parameters": float(count)}

    def state(self) -> dict[str, Tensor]:
        """Which adapter is whose: ``adapter_of/<task>``, the stage in which it began, and ``current``."""
        if self._current is None:
            return {}
        stages = {f"{PREFIX}{task}": torch.tensor(stage) for task, stage in self._stages.items()}
        return {**stages, "current": torch.tensor(self._current)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned, the adapters being there.

        Raises:
            ValueError: the stage was made by another strategy, or an adapter is missing.
        """
        unknown = [key for key in state if not key.startswith(PREFIX) and key != "current"]
        if unknown or ("current" not in state and state):
            raise ValueError(
                f"strategy=per_task: the stage holds {', '.join(sorted(state)[:5])}, which is not its state."
            )
        self._stages = stages_of(state)
        self._current = int(state["current"]) if state else None
        if self._current is None or self._backbone is None:
            return
        there = adapter_names(self._backbone)
        missing = [name for name in map(adapter_of_stage, self._stages.values()) if name not in there]
        if missing:
            raise ValueError(
                f"strategy=per_task: the adapters {', '.join(missing)} are missing; there are {', '.join(there)}."
            )
        name = adapter_of_stage(self._current)
        activate(self._backbone, [name], train=name, trained=self._trained)


def adapters_from(tasks: Iterable[str], start: str, file: Path) -> dict[str, list[str]]:
    """The adapter with which each task is scored at the end of a stage, from the strategy's file of that stage.

    Args:
        tasks: names of all tasks.
        start: how adapters start.
        file: ``strategy.safetensors``.
    """
    state = load_file(file)
    own, newest = stages_of(state), int(state["current"])
    return {task: adapters_of(own.get(task), newest=newest, start=start) for task in tasks}


def stages_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """By task, the stage in which its adapter began, from the strategy's state."""
    return {key.removeprefix(PREFIX): int(value) for key, value in state.items() if key.startswith(PREFIX)}


def adapters_of(own: int | None, *, newest: int, start: str) -> list[str]:
    """The adapter with which a task is scored, or none of them.

    Args:
        own: the stage in which its adapter began, if it has one.
        newest: the stage whose adapter was trained last.
        start: how adapters start.
    """
    if own is not None:
        return [adapter_of_stage(own)]
    return [] if start == "fresh" else [adapter_of_stage(newest)]
