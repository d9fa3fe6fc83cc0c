"""N-LoRA: the update of each task is held sparse, so that those of different tasks seldom change the same weights."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from curlora_lab.adapters.several import FIRST, lora_factors_of, updates_of
from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.stacked import Stack
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch

SparsityForm = Literal["paper", "reference"]


class NLora(Strategy):
    """A fresh adapter for each task, earlier ones frozen and summed, with an L1 penalty on the new update.

    Loss of task t: ``CE + lam Σ_modules ‖ΔW_t‖₁``, the sum of absolute entries. ``paper``: ``ΔW_t = B_t A_t`` (CURLoRA:
    ``C U_t R``), which takes the dense (out, in) product in each step. ``reference``: what the published code computes,
    ``‖A_t B_t‖₁`` of the r x r product, which has a value only where in = out, and is no norm of the update.
    The factor ``alpha`` does not count in either.

    With CURLoRA all stages share C and R, so that stacking is one matrix U = Σ U_t: what is new is the penalty on each part.

    Args:
        lam: weight of the penalty (λ). A sum over all entries of all modules: it depends on the size of the model.
        form: ``paper`` or ``reference``.

    Raises:
        ValueError: the weight is negative, or the form is unknown.

    Reference:
        Yang et al. (2025), "Is Parameter Collision Hindering Continual Learning in LLMs?", arXiv 2410.10179, eq. 7; code
        PKU-YuanGroup/N-LoRA.
    """

    def __init__(self, *, lam: float = 1e-4, form: SparsityForm = "paper") -> None:
        if lam < 0:
            raise ValueError(f"strategy.lam={lam}: a penalty's weight is at least 0.")
        if form not in get_args(SparsityForm):
            raise ValueError(f"strategy.form={form!r} is unknown; choose one of {', '.join(get_args(SparsityForm))}.")
        self.lam = lam
        self.form: SparsityForm = form
        self._stack = Stack("nlora", only_lora=form == "reference")

    def prepare(self, backbone: Backbone, probes: Mapping[str, PerplexityProbe]) -> str:
        """Refuse an adapter that can't be stacked, or modules that the form has no value for.

        Raises:
            ValueError: the adapter is of another kind, or ``reference`` meets a module that is not square.
        """
        self._stack.require(backbone)
        if self.form == "reference":
            _refuse_oblong(backbone, FIRST)
        return ""

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """The run begins with one adapter."""
        self._stack.begin(tasks, backbone)

    def before_stage(self, task: TaskModule, *, stage: int) -> None:
        """Add the stage's adapter, freeze the others."""
        self._stack.start(stage)

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """L1 norm of the update of the stage's own adapter."""
        backbone, new = self._stack.backbone, self._stack.names[-1]
        if self.form == "paper":
            products = list(updates_of(backbone, new).values())
        else:
            products = [A @ B for A, B in lora_factors_of(backbone, new).values()]
        return self.lam * torch.stack([product.abs().sum() for product in products]).sum()

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


def _refuse_oblong(backbone: Backbone, adapter: str) -> None:
    for module, (A, B) in lora_factors_of(backbone, adapter).items():
        if A.shape[1] != B.shape[0]:
            raise ValueError(
                f"strategy.form=reference takes the product A B, which {module!r} ({B.shape[0]} x {A.shape[1]}) does not have: "
                "the published code works on square matrices only. Use form=paper, or square target_modules."
            )
