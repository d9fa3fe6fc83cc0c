"""The hooks of a continual-learning strategy; all of them do nothing here, which is the strategy ``none``."""

from collections.abc import Mapping

from torch import Tensor

from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch


class Strategy:
    """What is done against forgetting: nothing. Subclasses override the hooks they need.

    A stage calls, in this order: :meth:`before_stage`; for each batch :meth:`penalty`, for each optimiser step
    :meth:`on_gradients`; :meth:`before_evaluation` for each task that is scored; :meth:`after_stage`.
    """

    def before_stage(self, task: TaskModule, *, stage: int) -> None:
        """A stage begins (counted from 1)."""

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """An addition to the loss of this batch, a scalar, or ``None``."""
        return None

    def on_gradients(self, task: TaskModule) -> None:
        """Read or change the gradients, after accumulation and before clipping and the step."""

    def before_evaluation(self, task: TaskModule) -> None:
        """A task is about to be scored: the place to switch to its own adapter."""

    def after_stage(self, task: TaskModule, *, stage: int) -> None:
        """A stage has ended and all tasks are scored."""

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
