"""Learning-rate schedules, counted in optimiser steps of the stage."""

from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

Shape = Literal["constant", "linear", "cosine"]


def schedule(
    optimizer: Optimizer,
    *,
    steps: int,
    examples: int | None = None,
    shape: Shape = "linear",
    warmup: float = 0.0,
    warmup_steps: int | None = None,
    count: Literal["steps", "examples"] = "steps",
) -> LRScheduler:
    """Warm up linearly from zero, then hold, fall linearly or fall by a half cosine to zero at the end of the stage.

    Args:
        optimizer: whose groups are scheduled, each from its own learning rate.
        steps: optimiser steps of the stage.
        examples: rows read in the stage, epochs counted; needed for ``count=examples``.
        shape: what follows the warm-up.
        warmup: length of the warm-up as a fraction of the length of the schedule.
        warmup_steps: length of the warm-up in steps; wins over ``warmup``.
        count: ``steps``: the schedule ends with the stage. ``examples``: it is laid out over as many steps as rows are read,
            as in the published CURLoRA notebooks, so that the stage ends long before the schedule does.

    Raises:
        ValueError: ``warmup`` is outside 0..1, or ``shape`` or ``count`` is unknown.
    """
    if not 0.0 <= warmup <= 1.0:
        raise ValueError(f"scheduler.warmup={warmup} is a fraction of the steps of a stage: between 0 and 1.")
    if shape not in ("constant", "linear", "cosine"):
        raise ValueError(f"scheduler.shape={shape!r} is unknown; choose constant, linear or cosine.")
    if count not in ("steps", "examples"):
        raise ValueError(f"scheduler.count={count!r} is unknown; choose steps or examples.")
    if count == "examples" and examples is None:
        raise ValueError("scheduler.count=examples needs the number of rows read in the stage (examples).")
    length = steps if count == "steps" or examples is None else examples
    name = "constant_with_warmup" if shape == "constant" else shape
    make = partial(get_scheduler, name, optimizer, num_training_steps=length)
    return make(num_warmup_steps=round(warmup * length) if warmup_steps is None else warmup_steps)
