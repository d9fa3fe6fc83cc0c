"""Elastic weight consolidation: parameters that earlier tasks need, by the Fisher information, are held where they were."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.gradients import (
    draw_rows,
    row_gradients,
    shared_parameters,
    warn_if_nothing_is_shared,
)
from curlora_lab.continual.strategies.quadratic import Pull, pull_to, pulls_from_state, pulls_to_state
from curlora_lab.data.chance import generator_at
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch
from curlora_lab.tasks.outputs import Outputs

Mode = Literal["separate", "online"]
Labels = Literal["sampled", "empirical"]
Fisher = Literal["diagonal", "block"]

LARGEST_BLOCK = 4096
"""Entries of a parameter that may have a whole Fisher block: 4096² float32 are 64 MiB."""


class Ewc(Strategy):
    """Elastic weight consolidation over the shared parameters θ (the adapter's; heads are stored).

    While task t is learnt, with θ*_k the parameters after task k::

        loss = L_t + (weight / 2) · Σ_{k<t} (θ − θ*_k)ᵀ F_k (θ − θ*_k)                     mode=separate
        loss = L_t + (weight / 2) · (θ − θ*_{t−1})ᵀ F̃ (θ − θ*_{t−1}),  F̃ ← decay · F̃ + F_t     mode=online

    F_k is the Fisher information of one row, a mean over rows of task k at θ*_k of ``g gᵀ / n``: g the gradient of the summed
    log-likelihood of the n things that the head predicts of a row (1 for a class; the tokens of a text). With ``fisher=diagonal``
    only ``g²`` is kept, with ``block`` the whole matrix over the entries of each parameter (r² × r² for CURLoRA's U).
    ``(weight / 2) Δᵀ F Δ`` then is ``weight`` times the KL, to second order and in nats a prediction, that the step Δ brings
    about on the old task: ``weight=1`` is the old task's own loss near its minimum.

    Args:
        weight: λ.
        mode: a penalty for each earlier task, or one that is carried along.
        decay: γ of the online form, in (0, 1].
        labels: ``sampled`` from the model (the Fisher information), or the rows' own (``empirical``).
        fisher: ``diagonal`` or ``block``.
        rows: train rows that F is estimated from, drawn anew for each task; ``None`` for all.
        normalize: scale each task's F to a mean diagonal of 1, so that ``weight`` does not depend on how certain the model is.

    Raises:
        ValueError: an argument is out of range or unknown.

    Reference:
        Kirkpatrick et al. 2017 (arXiv 1612.00796), equation 3; online: Schwarz et al. 2018 (arXiv 1805.06370), section 3.2.
        On labels and gradients of single rows: Kunstner et al. 2019 (arXiv 1905.12558).
    """

    def __init__(
        self,
        *,
        weight: float,
        mode: Mode = "separate",
        decay: float = 1.0,
        labels: Labels = "sampled",
        fisher: Fisher = "diagonal",
        rows: int | None = 200,
        normalize: bool = False,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"strategy.weight={weight} must be a number from 0.")
        if not 0 < decay <= 1:
            raise ValueError(f"strategy.decay={decay} must be above 0 and at most 1 (1: nothing is forgotten).")
        if rows is not None and rows < 1:
            raise ValueError(f"strategy.rows={rows} must be at least 1, or null for all train rows.")
        for key, value, allowed in (("mode", mode, Mode), ("labels", labels, Labels), ("fisher", fisher, Fisher)):
            if value not in get_args(allowed):
                raise ValueError(
                    f"strategy.{key}={value!r} is unknown; choose one of {', '.join(map(str, get_args(allowed)))}."
                )
        self.weight = weight
        self.mode = mode
        self.decay = decay
        self.labels = labels
        self.fisher = fisher
        self.rows = rows
        self.normalize = normalize
        self._backbone: Backbone | None = None
        self._pulls: dict[str, Pull] = {}

    def prepare(self, backbone: Backbone, probes: Mapping[str, PerplexityProbe]) -> str:
        """Refuse whole blocks of parameters that are too large for them."""
        for name, parameter in shared_parameters(backbone).items() if self.fisher == "block" else ():
            if parameter.numel() > LARGEST_BLOCK:
                raise ValueError(
                    f"strategy.fisher=block: {name!r} has {parameter.numel()} entries, whose Fisher block would be their square; "
                    f"at most {LARGEST_BLOCK} (CURLoRA up to rank 64). Use strategy.fisher=diagonal or a smaller adapter."
                )
        return ""

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """Nothing is held yet."""
        warn_if_nothing_is_shared(self, backbone)
        self._backbone = backbone
        self._pulls = {}

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """``(weight / 2) Σ (θ − θ*)ᵀ F (θ − θ*)``."""
        parameters = shared_parameters(task.backbone)
        if not self._pulls or not parameters:
            return None
        return self.weight / 2 * torch.stack([pull(parameters) for pull in self._pulls.values()]).sum()

    def after_stage(self, task: TaskModule, *, stage: int) -> None:
        """Estimate F and remember where the parameters are."""
        parameters = shared_parameters(task.backbone)
        if not parameters:
            return
        key = "online" if self.mode == "online" else f"stage_{stage:02d}"
        fisher = self.estimate(task, stage=stage)
        self._pulls[key] = pull_to(
            parameters, fisher, normalize=self.normalize, earlier=self._pulls.get(key), decay=self.decay
        )

    def estimate(self, task: TaskModule, *, stage: int) -> dict[str, Tensor]:
        """The Fisher information of a task at the parameters as they are: diagonals or blocks, by parameter.

        Raises:
            ValueError: nothing is predicted of any train row of the task.
        """
        seed = task.training_plan.seed

        def log_likelihood(outputs: Outputs, row: int) -> Tensor:
            if self.labels == "sampled" or outputs.targets is None:
                return outputs.nll(outputs.sample(generator_at("fisher", seed, stage, row))).sum()
            return outputs.nll(outputs.targets).sum()

        sums: dict[str, Tensor] = {}
        used = 0
        for gradients, predicted in row_gradients(task, draw_rows(task, self.rows, "fisher", stage), log_likelihood):
            used += 1
            for name, gradient in gradients.items():
                product = torch.outer(gradient.flatten(), gradient.flatten()) if self._blocks else gradient.square()
                sums[name] = sums[name].add_(product, alpha=1 / predicted) if name in sums else product / predicted
        if not used:
            raise ValueError(f"task {task.name!r} has no train row of which anything is predicted; EWC needs one.")
        return {name: total / used for name, total in sums.items()}

    def state(self) -> dict[str, Tensor]:
        """Anchors and Fisher information of each earlier task (or the one that is carried along)."""
        return pulls_to_state(self._pulls)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ValueError: it is of another strategy, other settings or other parameters.
        """
        self._pulls = pulls_from_state(state, self._parameters(), matrices=self._blocks)

    @property
    def _blocks(self) -> bool:
        return self.fisher == "block"

    def _parameters(self) -> dict[str, nn.Parameter]:
        if self._backbone is None:
            raise RuntimeError("Ewc.begin must be called before load_state.")
        return shared_parameters(self._backbone)
