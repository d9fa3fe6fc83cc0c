"""Ways to start LoRA that PEFT does not have, and one to start CURLoRA, applied once after the adapter is attached.

PEFT's own are chosen by ``init_lora_weights``; these by the lab's key ``adapter.start``.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from curlora_lab.adapters.basis import check_rank, module_seed
from curlora_lab.adapters.config import CurLoraConfig
from curlora_lab.adapters.layer import CurLoraLinear

#: Starts that take the first factors out of the base weight.
CHANGES_BASE = ("milora",)
#: Starts of a CURLoRA adapter; all others are of LoRA.
OF_CURLORA = ("frozen_u",)
#: Attribute of a model that names the start of its adapter; further adapters of it start so too.
STARTED = "curlora_lab_start"


def start_adapter(model: nn.Module, how: str, *, seed: int) -> None:
    """Start the active adapter in another way than PEFT does.

    Args:
        model: a model with an untrained LoRA adapter, or for ``frozen_u`` a CURLoRA adapter.
        how: a key of :data:`STARTS`.
        seed: seed of what is drawn; each module has its own stream.

    Raises:
        ValueError: ``how`` is unknown or for another kind of adapter, or a module does not allow it.
    """
    if how not in STARTS:
        raise ValueError(
            f"adapter.start={how!r} is unknown; choose one of {', '.join(STARTS)}, or null for PEFT's own."
        )
    config = model.peft_config[model.active_adapter] if isinstance(model, PeftModel) else None
    _check_kind(config, how)
    for name, layer in _layers(model, str(model.active_adapter)):
        generator = torch.Generator().manual_seed(module_seed(seed, name))
        with torch.no_grad():
            STARTS[how](layer, str(model.active_adapter), name, generator)
    setattr(model, STARTED, how)


def _check_kind(config: Any, how: str) -> None:
    """Refuse a start that is for another kind of adapter, or of which nothing would be seen."""
    kind, wanted = ("CURLoRA", CurLoraConfig) if how in OF_CURLORA else ("LoRA", LoraConfig)
    if not isinstance(config, wanted) or getattr(config, "use_dora", False):
        raise ValueError(f"adapter.start={how!r} is a way to start {kind}; this adapter is {type(config).__name__}.")
    if kind == "LoRA" and config.init_lora_weights is not True:
        raise ValueError(
            f"adapter.start={how!r} and adapter.init_lora_weights={config.init_lora_weights!r} are two ways to start; keep one."
        )
    if kind == "CURLoRA" and (config.u_init != "gaussian" or not config.u_std):
        raise ValueError(
            f"adapter.start={how!r} leaves U as it was drawn, but adapter.u_init={config.u_init!r} with "
            f"adapter.u_std={config.u_std} makes it zero; set u_init=gaussian and u_std above 0."
        )


def _published(layer: Any, adapter: str, name: str, generator: torch.Generator) -> None:
    """A ~ U(-1/√r, 1/√r): the published CURLoRA code's baseline, which keeps A as (in, r) and so takes r for the fan-in.

    PEFT and the LoRA paper's code draw from U(-1/√in, 1/√in), smaller by √(in/r): 16 times at in=4096, r=16.
    """
    A = layer.lora_A[adapter].weight
    bound = 1 / math.sqrt(A.shape[0])
    A.copy_((2 * torch.rand(A.shape, generator=generator) - 1) * bound)


def _frozen_a(layer: Any, adapter: str, name: str, generator: torch.Generator) -> None:
    """A stays as it was drawn, only B is trained: r · out parameters a matrix (LoRA-FA, arXiv 2308.03303)."""
    layer.lora_A[adapter].weight.requires_grad_(False)


def _frozen_u(layer: Any, adapter: str, name: str, generator: torch.Generator) -> None:
    """U stays as it was drawn and nothing is trained: a random shift of the base weight in the form of CURLoRA's update."""
    layer.curlora_U[adapter].requires_grad_(False)


def _milora(layer: Any, adapter: str, name: str, generator: torch.Generator) -> None:
    """Start from the r smallest singular triplets of W, which are taken out of the base weight (arXiv 2406.09044).

    With W = Σ σ_i u_i v_iᵀ and s the scaling: B = U_r √(Σ_r / s), A = √(Σ_r / s) V_rᵀ over the smallest r, W ← W - s B A.
    """
    base = layer.get_base_layer()
    if not base.weight.is_floating_point():
        raise ValueError(
            f"adapter.start=milora changes the base weight, and that of {name!r} is quantised; load the model "
            "unquantised, or take adapter=lora."
        )
    transposed = isinstance(base, Conv1D)
    W: Tensor = base.weight.T if transposed else base.weight
    A, B, s = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
    check_rank(A.shape[0], W.shape, name)
    U, sigma, Vh = torch.linalg.svd(W.float(), full_matrices=False)
    root = (sigma[-A.shape[0] :] / s).sqrt()
    B.copy_(U[:, -A.shape[0] :] * root)
    A.copy_(root[:, None] * Vh[-A.shape[0] :])
    rest = (W.float() - s * (B.float() @ A.float())).to(W.dtype)
    base.weight.copy_(rest.T if transposed else rest)


#: How an adapter can be started, by the value of ``adapter.start``.
STARTS: dict[str, Callable[[Any, str, str, torch.Generator], None]] = {
    "published": _published,
    "frozen_a": _frozen_a,
    "milora": _milora,
    "frozen_u": _frozen_u,
}


def _layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, Any]]:
    """The layers that have the adapter, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer | CurLoraLinear) and adapter in getattr(module, module.adapter_layer_names[0]):
            yield name, module
