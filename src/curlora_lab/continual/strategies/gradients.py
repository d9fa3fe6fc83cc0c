"""What strategies need of the parameters that tasks share: which they are, their gradients row by row, other values for a while.

Heads belong to their tasks and are stored, not shared, so no strategy here touches them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn

from curlora_lab.backbone import Backbone
from curlora_lab.data.chance import generator_at
from curlora_lab.data.loading import Collate
from curlora_lab.probes.windows import evaluating
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch
from curlora_lab.tasks.outputs import Outputs, outputs_of

logger = logging.getLogger(__name__)


def shared_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Parameters of the backbone, adapter included, that are trained, by name; tied ones once."""
    return {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def warn_if_nothing_is_shared(strategy: object, backbone: Backbone) -> None:
    """Say that a strategy has nothing to protect where only heads are trained."""
    if not shared_parameters(backbone):
        logger.warning(
            "strategy %s has no effect: only task heads are trained, and nothing that tasks share can be forgotten.",
            type(strategy).__name__.lower(),
        )


def device_of(backbone: Backbone) -> torch.device:
    """Where the backbone is."""
    return next(backbone.parameters()).device


def in_precision(task: TaskModule) -> AbstractContextManager[None]:
    """The precision in which a task is being trained; Lightning sets it only around its own calls."""
    trainer = getattr(task, "_trainer", None)
    return trainer.precision_plugin.forward_context() if trainer is not None else nullcontext()


def row_batch(task: TaskModule, rows: Sequence[int]) -> Batch:
    """A batch of a task's train rows where the backbone is; the head comes along (Lightning moves only the task in training)."""
    device = device_of(task.backbone)
    if task.head is not None:
        task.head.to(device)
    source = task.data.rows("train")
    batch = Collate(source.pad_token_id)([source[(row, 1.0)] for row in rows])
    return {key: value.to(device) for key, value in batch.items()}


def draw_rows(task: TaskModule, rows: int | None, *position: int | str) -> list[int]:
    """Indices of train rows, drawn without repetition by the position in the run; ``None`` or too large a number: all."""
    count = len(task.data.rows("train"))
    if rows is None or rows >= count:
        return list(range(count))
    generator = generator_at("rows", task.training_plan.seed, *position)
    return torch.randperm(count, generator=generator)[:rows].sort().values.tolist()


def row_gradients(
    task: TaskModule, rows: Sequence[int], scalar: Callable[[Outputs, int], Tensor]
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Gradients of a scalar with respect to the shared parameters, one row of the train split at a time, dropout off.

    A row each, because the square of a batch's mean gradient is no mean of squares: it is too small by about the size of the
    batch. One forward and backward pass a row: CURLoRA's autograd function has no rule for ``torch.func.vmap``.

    Args:
        task: the task, its head included.
        rows: indices of train rows.
        scalar: of the row's outputs and its index.

    Yields:
        Gradients by parameter name (float32), and the number of things that the head predicts of the row; rows without any
        are left out.
    """
    parameters = shared_parameters(task.backbone)
    with evaluating(task), torch.enable_grad():
        for row in rows:
            outputs = outputs_of(task, row_batch(task, [row]))
            if len(outputs.values) == 0:
                continue
            found = torch.autograd.grad(
                scalar(outputs, row), list(parameters.values()), allow_unused=True, materialize_grads=True
            )
            gradients = {name: g.detach().float() for name, g in zip(parameters, found, strict=True)}
            yield gradients, len(outputs.values)


def values_of(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies of parameters as they are now."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@contextmanager
def set_to(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give parameters other values for a while.

    The tensors are exchanged, not written to: graphs that were built before still find what they saved.
    """
    now = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name].to(parameter.device)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = now[name]


@contextmanager
def frozen(modules: Sequence[nn.Module | None]) -> Iterator[None]:
    """Gradients flow through these modules, not into them."""
    parameters = list(chain.from_iterable(module.parameters() for module in modules if module is not None))
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def without_adapter(backbone: Backbone) -> Iterator[None]:
    """The backbone without its adapter, in evaluation mode and without gradients; afterwards all is as it was.

    PEFT's own switch makes every parameter of the adapter trainable when it is put back, those too that were frozen on purpose.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    try:
        with torch.no_grad(), evaluating(backbone), backbone.adapter_disabled():
            yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
