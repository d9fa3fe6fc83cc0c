"""The adapters that are compared, attached to copies of one model that share its weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import curlora_lab
from curlora_lab.adapters import CurLoraLinear


@dataclass(frozen=True)
class Variant:
    """One way of adapting a model.

    Args:
        name: Key in the results.
        title: Name in the table.
        attach: From a frozen model, names of target modules and a rank to the adapted model.
    """

    name: str
    title: str
    attach: Callable[[nn.Module, list[str], int], nn.Module]


def share_weights(model: nn.Module) -> nn.Module:
    """A copy of a model with modules of its own and the parameters and buffers of the original."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def attach(variant: Variant, model: nn.Module, targets: list[str], r: int) -> nn.Module:
    """A copy of the model that shares its weights, adapted, with gradients through all layers."""
    adapted = variant.attach(share_weights(model), targets, r)
    adapted.enable_input_require_grads()  # type: ignore[operator]
    return adapted.train()


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that require a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class PublishedCurLora(nn.Module):
    """The layer of the published code: `y = W x + b + alpha (C U R) x` with `C U R` made anew in every call.

    Reference:
        github.com/MNoorFawi/curlora, code/curlora.py, `CURModule` and `LinearWithCURLoRA`.
    """

    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__()
        self.base = base
        weight: Tensor = base.weight  # type: ignore[assignment]
        W = weight.T if isinstance(base, Conv1D) else weight
        columns, rows = torch.randperm(W.shape[1])[:r], torch.randperm(W.shape[0])[:r]
        self.register_buffer("C", W[:, columns.to(W.device)].detach().clone())
        self.register_buffer("R", W[rows.to(W.device)].detach().clone())
        self.U = nn.Parameter(torch.zeros(r, r, device=W.device, dtype=W.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Output of the base layer plus the update."""
        delta: Tensor = self.C @ self.U @ self.R  # type: ignore[operator]
        return self.base(x) + x @ delta.T


def _frozen(model: nn.Module, targets: list[str], r: int) -> nn.Module:
    return model


def _lora(model: nn.Module, targets: list[str], r: int) -> nn.Module:
    config = LoraConfig(r=r, lora_alpha=r, target_modules=targets, fan_in_fan_out=_has_conv1d(model))
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def _lora_float32(model: nn.Module, targets: list[str], r: int) -> nn.Module:
    config = LoraConfig(r=r, lora_alpha=r, target_modules=targets, fan_in_fan_out=_has_conv1d(model))
    return get_peft_model(model, config)


def _lora_1(model: nn.Module, targets: list[str], r: int) -> nn.Module:
    return _lora(model, targets, 1)


def _curlora(model: nn.Module, targets: list[str], r: int) -> nn.Module:
    return get_peft_model(model, curlora_lab.CurLoraConfig(r=r, target_modules=targets))


def _curlora_factored(model: nn.Module, targets: list[str], r: int) -> nn.Module:
    adapted = _curlora(model, targets, r)
    for layer in adapted.modules():
        if isinstance(layer, CurLoraLinear):
            layer.standing["default"].by_output = False  # as if R were not made of rows of W
    return adapted


def _published(model: nn.Module, targets: list[str], r: int) -> nn.Module:
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in targets and isinstance(child, (nn.Linear, Conv1D))
    ]
    for parent, name, child in places:
        setattr(parent, name, PublishedCurLora(child, r))
    return model


def _has_conv1d(model: nn.Module) -> bool:
    return any(isinstance(module, Conv1D) for module in model.modules())


FROZEN = Variant("frozen", "frozen backbone", _frozen)
LORA = Variant("lora", "LoRA (PEFT)", _lora)
LORA_FLOAT32 = Variant("lora_float32", "LoRA (PEFT), float32 adapter", _lora_float32)
LORA_1 = Variant("lora_1", "LoRA, r = 1", _lora_1)
CURLORA = Variant("curlora", "CURLoRA, by output", _curlora)
CURLORA_FACTORED = Variant("curlora_factored", "CURLoRA, factored", _curlora_factored)
PUBLISHED = Variant("published", "CURLoRA as published", _published)

FLOAT32_VARIANTS = (FROZEN, CURLORA, CURLORA_FACTORED, LORA, LORA_1, PUBLISHED)
HALF_VARIANTS = (FROZEN, CURLORA, CURLORA_FACTORED, LORA, LORA_FLOAT32, LORA_1, PUBLISHED)
