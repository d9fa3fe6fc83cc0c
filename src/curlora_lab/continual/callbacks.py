"""Callbacks inside a stage."""

import copy
from typing import Any

import lightning as L
import torch

from curlora_lab.tasks import TaskModule


class BestOfStage(L.Callback):
    """Give a stage the weights of the epoch that scored best on the rows set aside for choosing.

    The copy is kept in memory: what is trained is small, or, in full fine-tuning, as large as the model.

    Attributes:
        best: the best score so far.
        epoch: the epoch that had it.
    """

    def __init__(self) -> None:
        self.best = float("-inf")
        self.epoch = -1
        self._state: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, task: Any) -> None:
        """Remember the weights if this epoch is the best so far."""
        assert isinstance(task, TaskModule)
        if trainer.sanity_checking or not task.chosen_scores:
            return
        score = task.chosen_scores[-1][task.metric]
        if score > self.best:
            self.best, self.epoch = score, trainer.current_epoch
            self._state = {name: copy.deepcopy(p.detach().cpu()) for name, p in _trainable(task)}

    def on_train_end(self, trainer: L.Trainer, task: Any) -> None:
        """Put the best weights back."""
        with torch.no_grad():
            for name, parameter in _trainable(task):
                if name in self._state:
                    parameter.copy_(self._state[name])
        self._state = {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint inside the stage keeps."""
        return {"best": self.best, "epoch": self.epoch, "weights": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.best, self.epoch, self._state = state_dict["best"], state_dict["epoch"], state_dict["weights"]


def _trainable(task: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in task.named_parameters() if parameter.requires_grad]
