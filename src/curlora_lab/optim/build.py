"""One optimiser per stage over the trainable parameters: adapter and head with a learning rate each."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer


def parameter_groups(
    adapter: Iterable[nn.Parameter], head: Iterable[nn.Parameter], *, lr: float, head_lr: float
) -> list[dict[str, Any]]:
    """Parameter groups ``adapter`` and ``head``; empty ones are left out.

    Args:
        adapter: parameters of the backbone; only those that require gradients are taken.
        head: parameters of the task head.
        lr: learning rate of the adapter.
        head_lr: learning rate of the head.
    """
    groups: list[dict[str, Any]] = [
        {"name": "adapter", "params": [p for p in adapter if p.requires_grad], "lr": lr},
        {"name": "head", "params": [p for p in head if p.requires_grad], "lr": head_lr},
    ]
    return [group for group in groups if group["params"]]


def stage_optimizer(make: Callable[..., Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """Build the optimiser of a stage.

    Raises:
        ValueError: there is nothing to train.
    """
    if not groups:
        raise ValueError("Nothing to train: the adapter has no trainable parameters and the task has no head.")
    return make(groups)
