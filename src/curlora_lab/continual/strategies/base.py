"""The hooks of a continual-learning strategy; all of them do nothing here, which is the strategy ``none``."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from curlora_lab.backbone import Backbone
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch


class Strategy:
    """What is done against forgetting: nothing. Subclasses override the hooks they need.

    A run calls :meth:`prepare` while it is built and :meth:`begin` once. A stage calls, in this order:
    :meth:`before_stage`; for each batch :meth:`penalty`, for each optimiser step :meth:`on_gradients`;
    :meth:`before_evaluation` for each task that is scored; :meth:`before_probes`; :meth:`after_stage`.

    A run that is resumed restores the last finished stage with :meth:`load_state`, calls :meth:`before_stage` of the stage
    that was interrupted and then, if that one had come to a checkpoint, :meth:`load_state` with the state of that moment. So
    ``before_stage`` must do the same again from the same state, and :meth:`state` be complete between any two optimiser steps.
    """

    def prepare(self, backbone: Backbone, probes: Mapping[str, PerplexityProbe]) -> str:
        """Look at what the run is made of, while it is built: read text of one's own, refuse what does not fit.

        Returns:
            What identifies the content that was read from outside (a hash), which is part of the run's identity; else "".

        Raises:
            ValueError: the strategy does not go with this backbone or adapter, or what it reads is not right.
        """
        return ""

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """The run begins: all its tasks in order, and the untrained backbone they share."""

    def before_stage(self, task: TaskModule, *, stage: int) -> None:
        """A stage begins (counted from 1)."""

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """An addition to the loss of this batch, a scalar, or ``None``."""
        return None

    def on_gradients(self, task: TaskModule) -> None:
        """Read or change the gradients, after accumulation and before clipping and the step."""

    def before_evaluation(self, task: TaskModule) -> None:
        """A task is about to be scored: the place to switch to its own adapter."""

    def before_probes(self) -> None:
        """All tasks are scored, and the language model is about to be probed: the place to switch to the stage's adapter."""

    def after_stage(self, task: TaskModule, *, stage: int) -> None:
        """A stage has ended and all tasks are scored."""

    def cost(self) -> dict[str, float]:
        """What the strategy holds now, for the record; ``stored_bytes`` are those of :meth:`state` unless it says so itself."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Everything that later stages need, as tensors; saved with the stage."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ValueError: there is state that this strategy does not know.
        """
        if state:
            raise ValueError(
                f"{type(self).__name__} keeps no state, but the stage holds {', '.join(sorted(state)[:5])}."
            )
