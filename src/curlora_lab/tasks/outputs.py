"""What a head says of a batch before it becomes a loss or a prediction, in one form for all heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """One distribution for each thing that a head predicts: a row's class, a token's tag, the next token, where a span begins.

    Args:
        values: logits over the classes; or, with a single column, the mean of a Gaussian of variance one (a number is predicted).
            A class that is ruled out has minus infinity.
        rows: the row of the batch that each distribution belongs to.
        targets: what should have been predicted, class indices or numbers; ``None`` for a batch without labels.
    """

    values: Float[Tensor, "n classes"]
    rows: Int[Tensor, " n"]
    targets: Tensor | None = None

    @property
    def is_number(self) -> bool:
        """Whether a number is predicted, not a class."""
        return self.values.shape[1] == 1

    def nll(self, targets: Tensor) -> Float[Tensor, " n"]:
        """Negative log-likelihood of each target in nats; of a number without the constant."""
        if self.is_number:
            return (self.values[:, 0] - targets).square() / 2
        return F.cross_entropy(self.values, targets, reduction="none")

    def sample(self, generator: torch.Generator) -> Tensor:
        """Targets drawn from the distributions themselves, (n,)."""
        values = self.values.detach().cpu()
        if self.is_number:
            drawn = values[:, 0] + torch.randn(len(values), generator=generator)
        elif len(values):
            drawn = torch.multinomial(values.softmax(-1), 1, generator=generator)[:, 0]
        else:
            drawn = torch.zeros(0, dtype=torch.int64)
        return drawn.to(self.values.device)

    def divergence(self, teacher: "Outputs", *, temperature: float = 1.0) -> Float[Tensor, " n"]:
        """KL(teacher ‖ these) of each distribution in nats, both softened: softmax(logits / temperature).

        For a number, half the squared difference, which is the KL of the Gaussians.
        """
        if self.is_number:
            return (self.values - teacher.values).square().sum(-1) / 2
        p, q = ((each.values / temperature).log_softmax(-1) for each in (teacher, self))
        # 0 ln 0 is 0: a class that is ruled out adds nothing.
        return torch.where(p == -torch.inf, 0.0, p.exp() * (p - torch.where(p == -torch.inf, 0.0, q))).sum(-1)

    def row_means(self, each: Float[Tensor, " n"], *, batch: int) -> Float[Tensor, " batch"]:
        """Mean over the distributions of each row; 0 for a row without one."""
        zeros = each.new_zeros(batch)
        counts = zeros.index_add(0, self.rows, torch.ones_like(each))
        return zeros.index_add(0, self.rows, each) / counts.clamp(min=1)


@runtime_checkable
class HasOutputs(Protocol):
    """A head that some strategies ask: those that keep what it says, or weigh parameters by it."""

    def outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """What the head says of a batch, with gradients.

        A batch without ``labels`` is another task's: every position of it counts, and there are no targets.
        """
        ...


def outputs_of(task: object, batch: Mapping[str, Tensor]) -> Outputs:
    """Ask a head for its outputs.

    Raises:
        ValueError: it is of a kind that does not give them.
    """
    if not isinstance(task, HasOutputs):
        raise ValueError(
            f"{type(task).__name__} does not say its outputs in a common form (method 'outputs', see curlora_lab.tasks.outputs), "
            "which this strategy needs; choose another strategy, for example replay or agem."
        )
    return task.outputs(batch)


def without_labels(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a batch that any head can read."""
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def of_tokens(logits: Float[Tensor, "batch seq classes"], scored: Tensor, targets: Tensor | None) -> Outputs:
    """The outputs of a head that says something of tokens.

    Args:
        logits: over the classes.
        scored: (batch, seq), true where a position counts.
        targets: (batch, seq), or ``None``.
    """
    rows = scored.nonzero()[:, 0]
    return Outputs(values=logits[scored].float(), rows=rows, targets=None if targets is None else targets[scored])
