"""O-LoRA: each task learns in a low-rank subspace that is held orthogonal to those of earlier tasks."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from curlora_lab.adapters.several import lora_factors_of
from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.stacked import Stack
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch

OrthogonalityForm = Literal["paper", "reference"]


def orthogonality(earlier: Tensor, new: Tensor, *, form: OrthogonalityForm) -> Tensor:
    """How much the row space of a new A overlaps with earlier ones: ``Σ_jk |(A_i A_tᵀ)_jk|`` to the power 2 or 1.

    Args:
        earlier: A of earlier tasks, one below the other, (rows, in).
        new: A of the new task, (r, in).
        form: ``paper`` squares the entries, ``reference`` (the published code) takes them absolute.

    Returns:
        A scalar; 0 where the spaces are orthogonal.
    """
    product = earlier @ new.T
    return product.square().sum() if form == "paper" else product.abs().sum()


class OLora(Strategy):
    """A fresh LoRA for each task, earlier ones frozen and summed, with a penalty on overlapping input subspaces.

    Loss of task t: ``CE + lambda1 Σ_modules Σ_{i<t} L_orth(A_i, A_t) + lambda2 Σ_modules (‖A_t‖_F + ‖B_t‖_F)``, see
    :func:`orthogonality`. Only A is constrained, and the first task has nothing to be orthogonal to.

    CURLoRA is refused: all its stages share the same frozen R, so the subspace in which a stage reads its input is not learnt.
    What could be held orthogonal are the rows of U, and the first U uses all r directions that there are.

    Args:
        lambda1: weight of the orthogonality penalty.
        lambda2: weight of the plain (not squared) Frobenius norms of the new factors.
        form: ``paper`` or ``reference``.

    Raises:
        ValueError: a weight is negative, or the form is unknown.

    Reference:
        Wang et al. (2023), "Orthogonal Subspace Learning for Language Model Continual Learning", arXiv 2310.14152, eq. 7-9; the
        published code takes absolute entries where the paper squares them, and sets lambda2 to 0 in its main runs.
    """

    def __init__(self, *, lambda1: float = 0.5, lambda2: float = 0.0, form: OrthogonalityForm = "paper") -> None:
        if lambda1 < 0 or lambda2 < 0:
            raise ValueError(
                f"strategy.lambda1={lambda1}, strategy.lambda2={lambda2}: a penalty's weight is at least 0."
            )
        if form not in get_args(OrthogonalityForm):
            raise ValueError(
                f"strategy.form={form!r} is unknown; choose one of {', '.join(get_args(OrthogonalityForm))}."
            )
        self.lambda1 = lambda1
        self.lambda2 = lambda2
        self.form: OrthogonalityForm = form
        self._stack = Stack("olora", only_lora=True)
        self._earlier: dict[str, Tensor] = {}

    def prepare(self, backbone: Backbone, probes: Mapping[str, PerplexityProbe]) -> str:
        """Refuse an adapter that is no LoRA.

        Raises:
            ValueError: the adapter is no LoRA that others can stand beside.
        """
        self._stack.require(backbone)
        return ""

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """The run begins with one adapter."""
        self._stack.begin(tasks, backbone)

    def before_stage(self, task: TaskModule, *, stage: int) -> None:
        """Add the stage's pair, freeze the others."""
        self._stack.start(stage)
        self._earlier = {}

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """Overlap with earlier tasks and norms of the new factors."""
        backbone, (*old, new) = self._stack.backbone, self._stack.names
        if old and not self._earlier:
            self._earlier = _joined([lora_factors_of(backbone, name) for name in old])
        terms = []
        for module, (A, B) in lora_factors_of(backbone, new).items():
            if old and self.lambda1:
                terms.append(self.lambda1 * orthogonality(self._earlier[module].to(A.device), A, form=self.form))
            if self.lambda2:
                terms.append(self.lambda2 * (torch.linalg.vector_norm(A) + torch.linalg.vector_norm(B)))
        return torch.stack(terms).sum() if terms else None

    def cost(self) -> dict[str, float]:
        """How many adapters there are, and their parameters together."""
        return self._stack.cost()

    def state(self) -> dict[str, Tensor]:
        """How many stages have an adapter."""
        return self._stack.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ValueError: the stage was made by another strategy.
        """
        self._stack.load_state(state)
        self._earlier = {}


def _joined(factors: Sequence[Mapping[str, tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    """A of all earlier tasks, one below the other, by module; they do not change any more."""
    return {module: torch.cat([pairs[module][0].detach() for pairs in factors]) for module in factors[0]}
