"""Learning-rate schedules, counted in optimiser steps of the stage."""

from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

Shape = Literal["constant", "linear", "cosine"]


def schedule(
    optimizer: Optimizer, *, steps: int, shape: Shape = "linear", warmup: float = 0.0, warmup_steps: int | None = None
) -> LRScheduler:
    """Warm up linearly from zero, then hold, fall linearly or fall by a half cosine to zero at ``steps``.

    Args:
        optimizer: whose groups are scheduled, each from its own learning rate.
        steps: optimiser steps of the stage.
        shape: what follows the warm-up.
        warmup: length of the warm-up as a fraction of ``steps``.
        warmup_steps: length of the warm-up in steps; wins over ``warmup``.

    Raises:
        ValueError: ``warmup`` is outside 0..1 or ``shape`` is unknown.
    """
    if not 0.0 <= warmup <= 1.0:
        raise ValueError(f"scheduler.warmup={warmup} is a fraction of the steps of a stage: between 0 and 1.")
    if shape not in ("constant", "linear", "cosine"):
        raise ValueError(f"scheduler.shape={shape!r} is unknown; choose constant, linear or cosine.")
    name = "constant_with_warmup" if shape == "constant" else shape
    make = partial(get_scheduler, name, optimizer, num_training_steps=steps)
    return make(num_warmup_steps=round(warmup * steps) if warmup_steps is None else warmup_steps)
