"""Numbers that are not finite: found within one optimiser step, and what happens then."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: An optimiser step within a stage: the epoch and the first batch of the step.
Place = tuple[int, int]

Policy = Literal["stop", "skip", "rollback"]


class NonFiniteError(RuntimeError):
    """A loss, a gradient, a weight or what a model says of a row is not finite.

    Args:
        message: where and what.
        place: the optimiser step; ``None`` where it was met outside of training.
        weights_spoilt: whether the step was made, so that the weights are not those of the step before.
    """

    def __init__(self, message: str, *, place: Place | None = None, weights_spoilt: bool = False) -> None:
        super().__init__(message)
        self.place = place
        self.weights_spoilt = weights_spoilt


class StepGuard:
    """Decides what happens to an optimiser step whose numbers are not finite.

    ``stop``: the run ends with :class:`NonFiniteError`, the weights of the step before are kept. ``skip``: the step is left
    out, counted and said. ``rollback``: :class:`NonFiniteError` too, and whoever trains goes back to the last checkpoint and
    leaves this step out; unlike ``skip`` that also mends weights that a finite gradient has spoilt.

    Args:
        policy: one of these words.
        limit: how many steps may be left out in a stage.

    Attributes:
        left_out: the steps that are left out; in a stage that is gone through again they are known beforehand.

    Raises:
        ValueError: there is no such policy, or the limit is negative.
    """

    def __init__(self, policy: Policy = "stop", limit: int = 10) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"on_nonfinite={policy!r} is unknown; choose one of {', '.join(get_args(Policy))}.")
        if limit < 0:
            raise ValueError(f"nonfinite_limit={limit} must not be negative.")
        self.policy = policy
        self.limit = limit
        self.left_out: list[Place] = []

    def expect(self, places: Iterable[Place]) -> None:
        """A stage begins or goes on; these steps are left out."""
        self.left_out = [(epoch, batch) for epoch, batch in places]

    def report(self, place: Place, what: str) -> None:
        """Something in a step is not finite, and the weights are still those before it.

        Raises:
            NonFiniteError: unless the step is left out.
        """
        if place in self.left_out:
            return
        if self.policy != "skip":
            raise NonFiniteError(
                f"{what} The weights are still those of the step before. Lower lr or head_lr, clip gradients with "
                "trainer.gradient_clip_val=1, or leave such steps out with on_nonfinite=skip.",
                place=place,
            )
        self.leave_out(place, what)

    def leave_out(self, place: Place, what: str) -> None:
        """Leave a step out.

        Raises:
            NonFiniteError: there were as many already as are allowed.
        """
        if len(self.left_out) >= self.limit:
            raise NonFiniteError(
                f"{what} {self.limit} steps of this stage were left out before (nonfinite_limit={self.limit}). Lower lr or "
                "head_lr, or clip gradients with trainer.gradient_clip_val=1.",
                place=place,
            )
        self.left_out.append(place)
        logger.warning("%s This step is left out (%d of at most %d).", what, len(self.left_out), self.limit)

    def check_weights(self, weights: Mapping[str, Tensor], place: Place, where: str) -> None:
        """Look at the weights after a step.

        Raises:
            NonFiniteError: one is not finite.
        """
        bad = first_nonfinite(weights)
        if bad is not None:
            raise NonFiniteError(
                f"{where}: {bad!r} is not finite after the step, though its gradient was. Lower lr or head_lr, or go back to "
                "the last checkpoint with on_nonfinite=rollback.",
                place=place,
                weights_spoilt=True,
            )


def first_nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or an infinity, or ``None``.

    One norm over all of them is looked at first: that is one pass and, on a GPU, one wait instead of one a tensor.
    """
    floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floating or torch.isfinite(torch.nn.utils.get_total_norm(list(floating.values()))):
        return None
    return next((name for name, tensor in floating.items() if not torch.isfinite(tensor).all()), None)


def first_overflow(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or plus infinity, or ``None``; minus infinity is a logit that is ruled out."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    return next((name for name, tensor in floating.items() if not (tensor < torch.inf).all()), None)


def nonfinite_in(value: Any, *, ruled_out: bool = False, path: str = "") -> tuple[str, float] | None:
    """The first number of a nested JSON value that is none.

    Args:
        value: numbers, texts, and lists and dicts of them.
        ruled_out: whether minus infinity may stand in it, as the log-probability of what is ruled out.
        path: where the value stands.

    Returns:
        Its place, such as ``metrics.mrpc.f1``, and itself; ``None`` where all are finite.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) or (ruled_out and value == -math.inf) else (path, value)
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            found = nonfinite_in(part, ruled_out=ruled_out, path=f"{path}.{key}" if path else str(key))
            if found is not None:
                return found
    return None


def refuse_nonfinite(records: Sequence[Mapping[str, Any]], *, where: str, row_name: Callable[[Any], str]) -> None:
    """Refuse to score what is no number: an argmax over such logits is a label like any other.

    Args:
        records: what a head says of each row; minus infinity is the log-probability of what is ruled out.
        where: task, stage and role.
        row_name: id of a record's row.

    Raises:
        NonFiniteError: names the row.
    """
    for record in records:
        said = {key: part for key, part in record.items() if key != "label"}  # a text that is only asked about has none
        bad = nonfinite_in(said, ruled_out=True)
        if bad is not None:
            raise NonFiniteError(
                f"{where}: what the model says of row {row_name(record)!r} is no number ({bad[0]} is {bad[1]}). Use "
                "model.dtype=float32 or bfloat16 (float16 overflows above 65504), or lower lr or head_lr."
            )
