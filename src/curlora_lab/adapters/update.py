"""The CURLoRA update as three autograd functions: by the base layer's output, by its input, and with the base layer's product.

With `y0 = x Wᵀ + b` and `ΔW = C K R`, where the core `K = alpha · U` and `R = W[rows]`::

    by output   y = y0 + (y0 - b)[:, rows] Kᵀ Cᵀ        since x Rᵀ = (x Wᵀ)[:, rows]
    factored    y = y0 + (x Rᵀ) Kᵀ Cᵀ                   holds for any R
    wide        as by output, with y0 made here: less to copy where there are more outputs than inputs

All keep nothing wider than r for the backward pass, and run their r-wide products in float32 (or wider), whatever
the dtype of the layer: `U` is small, and rounding it to half precision would undo an optimiser step.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_NOTHING = nullcontext()


def output_update(
    y0: Float[Tensor, "n out"],
    core: Float[Tensor, "c r"],
    *,
    C: Float[Tensor, "out c"],
    rows: Int[Tensor, " r"],
    bias_rows: Float[Tensor, " r"] | None = None,
    in_place: bool = False,
) -> Float[Tensor, "n out"]:
    """Add `ΔW = C K R` to the output of a frozen linear layer without touching its input.

    Forward: `y = y0 + z Kᵀ Cᵀ` with `z = y0[:, rows] - b[rows]`. Backward, with `g = ∂L/∂y`: `∂K = (g C)ᵀ z` and
    `∂y0 = g` with `g C K` added in the columns `rows`; the base layer's own backward then gives the exact `∂x`.

    Args:
        y0: Output of the base layer, bias included; rows of a batch, flattened to two dimensions.
        core: The core `K`, `alpha · U`, or `alpha · U M` for a basis with `R = M W[rows]`.
        C: Left factor.
        rows: Indices into the output features; an index may occur more than once.
        bias_rows: `b[rows]`; None for a layer without bias.
        in_place: Write into `y0`. Only for a tensor that the caller owns and that is no view of another one.

    Returns:
        The updated output, of shape and dtype of `y0`.
    """
    if torch.is_grad_enabled():
        return _OutputUpdate.apply(y0, core, C, rows, bias_rows, in_place)
    return _add_update(y0, _read(y0, rows, bias_rows), core, C, in_place)


def factored_update(
    y0: Float[Tensor, "n out"],
    z: Float[Tensor, "n r"],
    core: Float[Tensor, "c r"],
    *,
    C: Float[Tensor, "out c"],
    in_place: bool = False,
) -> Float[Tensor, "n out"]:
    """Add `z Kᵀ Cᵀ` to the output of a linear layer, with `z = x Rᵀ` computed by the caller.

    Args:
        y0: Output of the base layer, flattened to two dimensions.
        z: The input seen through `R`, `x Rᵀ`.
        core: The core `K = alpha · U`.
        C: Left factor.
        in_place: Write into `y0`. Only for a tensor that the caller owns and that is no view of another one.

    Returns:
        The updated output, of shape and dtype of `y0`.
    """
    if torch.is_grad_enabled():
        return _FactoredUpdate.apply(y0, z, core, C, in_place)
    return _add_update(y0, z, core, C, in_place)


def wide_update(
    x: Float[Tensor, "n in"],
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, " out"] | None,
    core: Float[Tensor, "c r"],
    *,
    C: Float[Tensor, "out c"],
    rows: Int[Tensor, " r"],
    transposed: bool,
) -> Float[Tensor, "n out"]:
    """The output of a frozen layer with the update of :func:`output_update`, for layers with more outputs than inputs.

    Backward: `∂x = g W + (g C K) W[rows]`. That is what :func:`output_update` and the layer's own backward give together, but
    there `g`, as wide as the output, has to be copied to change r of its columns; here only `∂x` is written.

    Args:
        x: Input, flattened to two dimensions.
        weight: Frozen `W`, (out, in), or (in, out) where ``transposed``.
        bias: Frozen bias, if any.
        core: The core `K`.
        C: Left factor.
        rows: Indices into the output features.
        transposed: Whether the weight lies as in `Conv1D`.

    Returns:
        The adapted output.
    """
    return _WideUpdate.apply(x, weight, bias, core, C, rows, transposed)


class _WideUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        core: Tensor,
        C: Tensor,
        rows: Tensor,
        transposed: bool,
    ) -> Tensor:
        y0 = (
            torch.addmm(bias, x, weight)
            if transposed and bias is not None
            else F.linear(x, weight.T if transposed else weight, bias)
        )
        z = _read(y0, rows, None if bias is None else bias.index_select(0, rows))
        ctx.save_for_backward(z, core, C, rows, weight)
        ctx.transposed = transposed
        return _add_update(y0, z, core, C, in_place=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, core, C, rows, weight = ctx.saved_tensors
        wants_x, _, _, wants_core, *_ = ctx.needs_input_grad
        grad_core, grad_z = _core_and_input_grads(g, z, core, C, wants_core, wants_x)
        grad_x = None
        if wants_x and grad_z is not None:
            W = weight.T if ctx.transposed else weight
            grad_x = (g @ W).addmm_(grad_z, W.index_select(0, rows))
        return grad_x, None, None, grad_core, None, None, None


class _OutputUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y0: Tensor, core: Tensor, C: Tensor, rows: Tensor, bias_rows: Tensor | None, in_place: bool
    ) -> Tensor:
        z = _read(y0, rows, bias_rows)
        ctx.save_for_backward(z, core, C, rows)
        if in_place:
            ctx.mark_dirty(y0)
        return _add_update(y0, z, core, C, in_place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, core, C, rows = ctx.saved_tensors
        wants_y0, wants_core, _, _, wants_bias, _ = ctx.needs_input_grad
        grad_core, grad_z = _core_and_input_grads(g, z, core, C, wants_core, wants_y0 or wants_bias)
        grad_y0 = grad_bias = None
        if wants_y0 and grad_z is not None:
            grad_y0 = g.index_add(1, rows, grad_z)
        if wants_bias and grad_z is not None:
            grad_bias = -grad_z.sum(0)
        return grad_y0, grad_core, None, None, grad_bias, None


class _FactoredUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y0: Tensor, z: Tensor, core: Tensor, C: Tensor, in_place: bool) -> Tensor:
        ctx.save_for_backward(z, core, C)
        if in_place:
            ctx.mark_dirty(y0)
        return _add_update(y0, z, core, C, in_place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, core, C = ctx.saved_tensors
        wants_y0, wants_z, wants_core, _, _ = ctx.needs_input_grad
        grad_core, grad_z = _core_and_input_grads(g, z, core, C, wants_core, wants_z)
        return g if wants_y0 else None, grad_z, grad_core, None, None


def _read(y0: Tensor, rows: Tensor, bias_rows: Tensor | None) -> Tensor:
    """`(y0 - b)[:, rows]`, which is `x Rᵀ`."""
    z = y0.index_select(1, rows)
    return z if bias_rows is None else z.sub_(bias_rows)


def _add_update(y0: Tensor, z: Tensor, core: Tensor, C: Tensor, in_place: bool) -> Tensor:
    """`y0 + z Kᵀ Cᵀ`: the r-wide product in at least float32, the wide one in the dtype of `y0`."""
    with _without_autocast(y0):
        if y0.dtype == core.dtype == C.dtype:  # nothing to cast; each cast costs time even where it does nothing
            h = F.linear(z, core)
        else:
            exact = torch.promote_types(y0.dtype, core.dtype)
            h, C = F.linear(z.to(exact), core.to(exact)).to(y0.dtype), C.to(y0.dtype)
        return y0.addmm_(h, C.T) if in_place else torch.addmm(y0, h, C.T)


def _core_and_input_grads(
    g: Tensor, z: Tensor, core: Tensor, C: Tensor, wants_core: bool, wants_z: bool
) -> tuple[Tensor | None, Tensor | None]:
    """`∂K = (g C)ᵀ z` in the dtype of `K` and `∂z = g C K` in the dtype of `z`."""
    exact = torch.promote_types(g.dtype, core.dtype)
    with _without_autocast(g):
        gC = (g @ C.to(g.dtype)).to(exact)
        grad_core = (gC.T @ z.to(exact)).to(core.dtype) if wants_core else None
        grad_z = (gC @ core.to(exact)).to(z.dtype) if wants_z else None
    return grad_core, grad_z


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """The dtypes above are chosen; entering a context only where there is something to switch off saves time."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING
