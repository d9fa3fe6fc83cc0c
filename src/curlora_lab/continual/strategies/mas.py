"""Memory aware synapses: parameters that change what the model says are held where they were; no labels are needed."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.gradients import (
    draw_rows,
    row_gradients,
    shared_parameters,
    warn_if_nothing_is_shared,
)
from curlora_lab.continual.strategies.quadratic import Pull, pull_to, pulls_from_state, pulls_to_state
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch
from curlora_lab.tasks.outputs import Outputs


class Mas(Strategy):
    """Memory aware synapses over the shared parameters θ (the adapter's; heads are stored).

    ``loss = L_t + weight · Σ_i Ω_i (θ_i − θ*_i)²`` with θ* the parameters after the task before, and after each task
    ``Ω ← decay · Ω + mean over rows of |∂ ‖f(x)‖² / ∂θ|``, row by row. f(x) are the logits of the task's own head; where a head
    predicts several things of a row (tokens), ‖f(x)‖² is the mean over them.

    Args:
        weight: λ.
        decay: what stays of earlier tasks' importance, in [0, 1]; 1 is the paper's sum.
        rows: train rows that the importance is estimated from, drawn anew for each task; ``None`` for all.
        normalize: scale each task's importance to a mean of 1.

    Raises:
        ValueError: an argument is out of range.

    Reference:
        Aljundi et al. 2018 (arXiv 1711.09601), equations 2-4.
    """

    def __init__(self, *, weight: float, decay: float = 1.0, rows: int | None = 200, normalize: bool = False) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"strategy.weight={weight} must be a number from 0.")
        if not 0 <= decay <= 1:
            raise ValueError(f"strategy.decay={decay} must be from 0 (only the last task counts) to 1.")
        if rows is not None and rows < 1:
            raise ValueError(f"strategy.rows={rows} must be at least 1, or null for all train rows.")
        self.weight = weight
        self.decay = decay
        self.rows = rows
        self.normalize = normalize
        self._backbone: Backbone | None = None
        self._pulls: dict[str, Pull] = {}

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """Nothing is held yet."""
        warn_if_nothing_is_shared(self, backbone)
        self._backbone = backbone
        self._pulls = {}

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """``weight Σ Ω (θ − θ*)²``."""
        parameters = shared_parameters(task.backbone)
        if not self._pulls or not parameters:
            return None
        return self.weight * self._pulls["all"](parameters)

    def after_stage(self, task: TaskModule, *, stage: int) -> None:
        """Add this task's importance and remember where the parameters are."""
        parameters = shared_parameters(task.backbone)
        if not parameters:
            return
        importance = self.estimate(task, stage=stage)
        self._pulls["all"] = pull_to(
            parameters, importance, normalize=self.normalize, earlier=self._pulls.get("all"), decay=self.decay
        )

    def estimate(self, task: TaskModule, *, stage: int) -> dict[str, Tensor]:
        """Mean over rows of ``|∂ ‖f(x)‖² / ∂θ|`` at the parameters as they are, by parameter.

        Raises:
            ValueError: nothing is predicted of any train row of the task.
        """
        sums: dict[str, Tensor] = {}
        used = 0
        for gradients, _ in row_gradients(task, draw_rows(task, self.rows, "mas", stage), _squared_norm):
            used += 1
            for name, gradient in gradients.items():
                sums[name] = sums[name].add_(gradient.abs()) if name in sums else gradient.abs()
        if not used:
            raise ValueError(f"task {task.name!r} has no train row of which anything is predicted; MAS needs one.")
        return {name: total / used for name, total in sums.items()}

    def state(self) -> dict[str, Tensor]:
        """Anchor and importance."""
        return pulls_to_state(self._pulls)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ValueError: it is of another strategy or of other parameters.
        """
        if self._backbone is None:
            raise RuntimeError("Mas.begin must be called before load_state.")
        self._pulls = pulls_from_state(state, shared_parameters(self._backbone))


def _squared_norm(outputs: Outputs, row: int) -> Tensor:
    """Mean over what is predicted of the squared norm of the logits; classes that are ruled out do not count."""
    values = torch.where(torch.isfinite(outputs.values), outputs.values, 0.0)
    return values.square().sum(-1).mean()
