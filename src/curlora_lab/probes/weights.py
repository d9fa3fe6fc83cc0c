"""The matrix that an adapted layer really applies, for any PEFT method, and how it differs from its base layer's.

PEFT's ``get_delta_weight`` is exact where the method adds a matrix to W and means something else, or nothing, where it
does not (DoRA rescales, (IA)³ and OFT multiply, MiSS wants W too). So its answer is used only after the layer's own
forward pass has confirmed it on random inputs; otherwise the layer is run on the unit vectors and its matrix read off.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from curlora_lab.probes.windows import evaluating

TRIALS = 8
ROWS_PER_CHUNK = 1024
HALF = (torch.float16, torch.bfloat16)


class WeightError(Exception):
    """A layer whose weight cannot be measured; the message is the reason that stands in the record."""


def effective_weight(module: nn.Module) -> Float[Tensor, "out in"]:
    """The matrix that a layer applies to its input, adapters included, read off by running it on the unit vectors.

    Holds for every method that is a linear map in evaluation mode; that it is one is checked on random inputs. Layers in
    half precision are measured on a float32 copy.

    Args:
        module: ``nn.Linear`` and kin, ``Conv1D`` or ``nn.Embedding``, bare or wrapped by a PEFT tuner layer.

    Returns:
        The matrix in float32: (out, in), or (tokens, hidden) for an embedding.

    Raises:
        WeightError: When the layer is of another type, is no linear map, or is quantised and cannot be measured closely.
    """
    module = _float32(module)
    base = _base(module)
    weight = base.weight
    with torch.inference_mode(), evaluating(module):
        if isinstance(base, nn.Embedding):
            return torch.cat(
                [module(ids).float() for ids in torch.arange(len(weight), device=weight.device).split(1024)]
            )
        size = _in_features(base)
        offset = module(torch.zeros(1, 1, size, device=weight.device))[0]
        rows = [
            module(unit[None])[0].float() - offset
            for unit in torch.eye(size, device=weight.device).split(ROWS_PER_CHUNK)
        ]
        matrix = torch.cat(rows).T
        x = _inputs(size, weight.device)
        if not _close(module(x) - offset, x @ matrix.T, module(x), size):
            raise WeightError(f"{type(module).__name__} is no linear map of its input, so it has no weight to compare")
        return matrix


def base_weight(module: nn.Module) -> Float[Tensor, "out in"]:
    """The base layer's own matrix, without adapters.

    Args:
        module: As for :func:`effective_weight`.

    Returns:
        The matrix in float32: (out, in), or (tokens, hidden) for an embedding; dequantised if need be.

    Raises:
        WeightError: When the layer is of another type.
    """
    base = _base(module)
    if not base.weight.is_floating_point():
        if not isinstance(module, BaseTunerLayer):
            raise WeightError(f"{type(base).__name__} is quantised")
        return module.get_base_weight().detach().float()
    weight = base.weight.detach().float()
    return weight.T if isinstance(base, Conv1D) else weight


def weight_update(module: nn.Module) -> Float[Tensor, "out in"]:
    """What the active adapters add to the base weight: effective weight minus base weight.

    Args:
        module: A PEFT tuner layer; a bare layer has no update.

    Returns:
        ΔW in float32, in the orientation of :func:`base_weight`.

    Raises:
        WeightError: When the layer's type is not supported, or its adapter is merged or disabled.
    """
    base = _base(module)
    if not isinstance(module, BaseTunerLayer):
        return torch.zeros_like(base_weight(module))
    if module.merged:
        raise WeightError("its adapter is merged into the base weight; unmerge to measure")
    if module.disable_adapters:
        raise WeightError("its adapter is disabled; enable it to measure")
    if not isinstance(base, nn.Embedding):
        update = _confirmed_delta(module)
        if update is not None:
            return update
    return effective_weight(module) - base_weight(module)


def _confirmed_delta(module: Any) -> Float[Tensor, "out in"] | None:
    """PEFT's ΔW, oriented (out, in), if the forward pass agrees with it; else None."""
    base = _base(module)
    if not base.weight.is_floating_point():
        return _delta_of_quantised(module)
    module = _float32(module)
    base = _base(module)
    delta, size = _stated_delta(module), _in_features(base)
    if delta is None or delta.dim() != 2:
        return None
    x = _inputs(size, base.weight.device)
    with torch.inference_mode(), evaluating(module):
        total = module(x)
        added = total - base(x)
    for candidate in (delta, delta.T):
        if candidate.shape == (added.shape[-1], size) and _close(added, x @ candidate.T, total, size):
            return candidate
    return None


def _delta_of_quantised(module: Any) -> Float[Tensor, "out in"] | None:
    """ΔW over a quantised base, whose forward pass is too coarse to confirm it: only of methods known to be additive."""
    delta = _stated_delta(module)
    own = type(module).__module__.startswith("curlora_lab.")
    plain_lora = isinstance(module, LoraLayer) and not module.lora_variant
    return delta if delta is not None and (own or plain_lora) else None


def _stated_delta(module: Any) -> Tensor | None:
    """Sum of ``get_delta_weight`` over the active adapters that this layer has; None where there is no such thing."""
    present = module._get_available_adapters()
    try:
        with torch.no_grad():
            deltas = [module.get_delta_weight(name) for name in module.active_adapters if name in present]
    except (AttributeError, NotImplementedError, TypeError, KeyError):
        return None
    if not deltas or not all(isinstance(delta, Tensor) for delta in deltas):
        return None
    return torch.stack([delta.float() for delta in deltas]).sum(0)


def _base(module: Any) -> Any:
    """The innermost layer, if it is of a type whose matrix is known."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(base, nn.Linear | Conv1D | nn.Embedding):
        return base
    raise WeightError(f"no weight shift is defined for layers of type {type(base).__name__}")


def _in_features(base: Any) -> int:
    return int(base.weight.shape[0] if isinstance(base, Conv1D) else base.in_features)


def _float32(module: nn.Module) -> nn.Module:
    """The layer itself, or a float32 copy of one in half precision, whose rounding would drown a small update."""
    weight = _base(module).weight
    if not weight.is_floating_point():
        raise WeightError("its base weight is quantised and its update is no additive matrix")
    return copy.deepcopy(module).float() if weight.dtype in HALF else module


def _inputs(size: int, device: torch.device) -> Tensor:
    return torch.randn(1, TRIALS, size, generator=torch.Generator().manual_seed(0)).to(device)


def _close(found: Tensor, expected: Tensor, total: Tensor, size: int) -> bool:
    """Whether two outputs differ by no more than float32 rounding of the whole output explains."""
    return bool((found - expected).norm() <= 4 * torch.finfo(torch.float32).eps * (1 + size**0.5) * total.norm())
