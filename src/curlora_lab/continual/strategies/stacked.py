"""Stacked adapters: a fresh one for each stage beside the earlier ones, which are frozen; the updates of all are summed.

No task id is needed when a task is scored, and the sum can be merged into the weights or written as one LoRA.
"""

from collections.abc import Mapping, Sequence

import torch
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
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import position_seed

STAGES = "stacked/stages"


class Stack:
    """The adapters of a run that gives each stage its own and sums them.

    Args:
        strategy: name of the strategy, for messages.
        only_lora: whether CURLoRA will not do.

    Attributes:
        backbone: the backbone that carries them, once a run has begun.
        names: adapters of the stages so far, in order; the last one is trained.
    """

    def __init__(self, strategy: str, *, only_lora: bool) -> None:
        self.names: list[str] = [adapter_of_stage(1)]
        self._strategy = strategy
        self._only_lora = only_lora
        self._seed = 0
        self._backbone: Backbone | None = None
        self._trained: frozenset[str] = frozenset()

    @property
    def backbone(self) -> Backbone:
        """The backbone that carries the adapters.

        Raises:
            RuntimeError: no run has begun.
        """
        if self._backbone is None:
            raise RuntimeError(f"strategy {self._strategy}: begin was not called, so it knows no backbone.")
        return self._backbone

    def require(self, backbone: Backbone) -> None:
        """Refuse an adapter that can't be stacked.

        Raises:
            ValueError: it is of another kind, or changed the base weight to start from.
        """
        require_stackable(backbone, self._strategy, only_lora=self._only_lora)

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """The run begins with one adapter."""
        self._backbone = backbone
        self._seed = tasks[0].training_plan.seed
        self._trained = trained_parameters(backbone)
        self.names = [adapter_of_stage(1)]

    def start(self, stage: int) -> None:
        """A stage begins: add its adapter, freeze the earlier ones."""
        self.names = [adapter_of_stage(number) for number in range(1, stage + 1)]
        for name in self.names:
            if name not in adapter_names(self.backbone):
                add_adapter(self.backbone, name, seed=position_seed(self._seed, "adapter", name))
        self._activate()

    def cost(self) -> dict[str, float]:
        """``adapters`` and ``adapter_parameters``: how many there are, and their numbers together."""
        count = count_adapter_parameters(self.backbone, self._trained)
        return {"adapters": float(len(self.names)), "adapter_parameters": float(count)}

    def state(self) -> dict[str, Tensor]:
        """How many stages have an adapter; the adapters themselves are saved with the stage."""
        return {STAGES: torch.tensor(len(self.names))}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned, the adapters being there.

        Raises:
            ValueError: the state is not that of stacked adapters, or the backbone does not carry the adapters it tells of.
        """
        if set(state) != {STAGES}:
            raise ValueError(
                f"strategy={self._strategy}: the stage holds {', '.join(sorted(state)[:5]) or 'nothing'}, needed is {STAGES}."
            )
        names = [adapter_of_stage(number) for number in range(1, int(state[STAGES]) + 1)]
        there = adapter_names(self.backbone)
        if set(names) - set(there):
            raise ValueError(
                f"strategy={self._strategy}: the stage needs the adapters {', '.join(names)}, there are {', '.join(there)}."
            )
        self.names = names
        self._activate()

    def _activate(self) -> None:
        activate(self.backbone, self.names, train=self.names[-1], trained=self._trained)
