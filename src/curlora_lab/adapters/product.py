"""The product `x Wᵀ + b` of a base layer, in a tensor that may be written into where that is possible."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def base_output(
    base: nn.Module, x: Float[Tensor, "... in"], *args: Any, **kwargs: Any
) -> tuple[Float[Tensor, "n out"], bool]:
    """Output of a base layer in two dimensions, and whether it may be written into.

    A plain layer is run on the flattened input: the result is then no view, and autograd allows writing into it at the
    price of the write alone (on the view that Linear returns for three dimensions it copies twice).

    Args:
        base: The base layer.
        x: Input.
        args: Further arguments of the base layer.
        kwargs: Further arguments of the base layer.

    Returns:
        The output, and whether nobody else holds it.
    """
    if not args and not kwargs and _is_plain(base):
        flat = x.reshape(-1, x.shape[-1])
        weight, bias = base._parameters["weight"], base._parameters["bias"]
        if type(base) is Conv1D:
            return torch.addmm(bias, flat, weight), True  # type: ignore[arg-type]
        return F.linear(flat, weight, bias), True  # type: ignore[arg-type]
    y0 = base(x, *args, **kwargs)
    return y0.reshape(-1, y0.shape[-1]), False


def wide_product(base: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None, bool] | None:
    """Weight, bias and whether the weight lies (in, out), of a plain layer with more outputs than inputs; else ``None``.

    Such a layer's product is best made inside the update's own autograd function (`update.wide_update`), which needs to know
    that gradients are recorded and that no autocast stands between.
    """
    if x.is_meta or not torch.is_grad_enabled() or torch.compiler.is_compiling() or not _is_plain(base):
        return None
    if torch.is_autocast_enabled(x.device.type):
        return None
    weight, bias, transposed = base._parameters["weight"], base._parameters["bias"], type(base) is Conv1D
    if weight is None or weight.requires_grad or (bias is not None and bias.requires_grad):
        return None
    inputs, outputs = weight.shape if transposed else reversed(weight.shape)
    return (weight, bias, transposed) if outputs > inputs else None


def _is_plain(base: nn.Module) -> bool:
    """Whether a layer is a Linear or Conv1D whose forward is the product alone, without hooks around it."""
    return (
        (type(base) is nn.Linear or type(base) is Conv1D)
        and "forward" not in base.__dict__
        and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks)
    )
