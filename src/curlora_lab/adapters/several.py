"""Several adapters of one kind on a backbone: one for each stage of a run, summed or switched between.

The adapter that a run begins with is PEFT's ``default``; that of stage 2 is ``stage_2``, and so on. All have the
configuration of the first. What is active and what is trained are two things: earlier adapters can add to the output and
stay as they are.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from curlora_lab.adapters.config import CurLoraConfig
from curlora_lab.adapters.layer import CurLoraLinear
from curlora_lab.adapters.start import CHANGES_BASE, STARTED, start_adapter
from curlora_lab.backbone import Backbone

FIRST = "default"
SUM = "sum"

#: Ways to start LoRA that take what the factors start from out of the base weight, which earlier adapters stand on.
_PEFT_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


def adapter_of_stage(stage: int) -> str:
    """Name of the adapter that begins in a stage, counted from 1."""
    return FIRST if stage == 1 else f"stage_{stage}"


def require_stackable(backbone: Backbone, strategy: str, *, only_lora: bool = False) -> None:
    """Refuse an adapter of which a backbone can't have several side by side.

    Args:
        backbone: a backbone with its first adapter, if any.
        strategy: name of the strategy that needs several, for the message.
        only_lora: whether CURLoRA will not do either.

    Raises:
        ValueError: there is no PEFT adapter, it is of another kind, or it changed the base weight to start from.
    """
    allowed = "adapter=lora or rslora" if only_lora else "adapter=curlora, lora or rslora"
    if not isinstance(backbone.model, PeftModel):
        raise ValueError(
            f"strategy={strategy} gives each stage an adapter of its own, and adapter=full or none has none; use {allowed}."
        )
    config: Any = backbone.model.peft_config[FIRST]
    if isinstance(config, CurLoraConfig) and not only_lora:
        fault = "it trains modules_to_save as a whole" if config.modules_to_save else None
    elif type(config) is LoraConfig:
        fault = _lora_fault(config, backbone.model)
    else:
        fault = f"it is {getattr(config.peft_type, 'value', config.peft_type)}"
    if fault is not None:
        raise ValueError(f"strategy={strategy} can't have several of this adapter: {fault}; use {allowed}.")


def _lora_fault(config: LoraConfig, model: nn.Module) -> str | None:
    """Why a LoRA can't stand beside others, if so."""
    start = str(config.init_lora_weights).lower()
    if start.startswith(_PEFT_CHANGES_BASE) or getattr(model, STARTED, None) in CHANGES_BASE:
        return "it changes the base weight to start from, on which the adapters of earlier stages stand"
    if config.use_dora:
        return "DoRA rescales the whole weight, so that the updates of several do not add up"
    if config.bias != "none" or config.modules_to_save:
        return "it trains biases or whole modules, which several adapters can't share"
    return None


def adapter_names(backbone: Backbone) -> list[str]:
    """Names of the adapters in the order in which they were added."""
    return list(backbone.model.peft_config) if isinstance(backbone.model, PeftModel) else []


def trained_parameters(backbone: Backbone) -> frozenset[str]:
    """Names of the first adapter's parameters that are trained; a frozen factor is not among them."""
    return frozenset(name for name, parameter in backbone.model.named_parameters() if parameter.requires_grad)


def add_adapter(backbone: Backbone, name: str, *, seed: int, like: str | None = None) -> None:
    """Add an adapter with the configuration of the first; what is active or trained does not change.

    Args:
        backbone: a backbone with an adapter.
        name: name of the new one.
        seed: seed of its random initialisation.
        like: an adapter whose values it starts from; ``None`` for fresh ones.
    """
    model: Any = backbone.model
    before = _standing(model)
    config = copy.deepcopy(model.peft_config[FIRST])
    config.inference_mode = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(name, config)
    started = getattr(model, STARTED, None)
    if like is not None:
        own = dict(model.named_parameters())
        with torch.no_grad():
            for key, parameter in own.items():
                if name in key.split("."):
                    parameter.copy_(own[_renamed(key, name, like)])
    elif started is not None:
        model.active_adapter = name
        start_adapter(model, started, seed=seed)
    _restore(model, *before)


def activate(
    backbone: Backbone, names: Sequence[str], *, train: str | None, trained: frozenset[str] = frozenset()
) -> None:
    """Say whose updates are added, and which one is trained.

    Args:
        backbone: a backbone with adapters.
        names: adapters whose updates are summed; none of them: the base model alone.
        train: the adapter whose parameters require gradients, or ``None``.
        trained: which of its parameters do, by their names in the first adapter, see :func:`trained_parameters`.
    """
    model: Any = backbone.model
    if names:
        model.base_model.enable_adapter_layers()
        model.base_model.set_adapter(list(names))
        model.active_adapter = train or names[-1]
    else:
        model.base_model.disable_adapter_layers()
    wanted = {_renamed(name, FIRST, train) for name in trained} if train else set()
    for name, parameter in model.named_parameters():  # PEFT wants gradients for all that are active
        parameter.requires_grad_(name in wanted)


def lora_factors_of(backbone: Backbone, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors A (r, in) and B (out, r) of a LoRA adapter, by module; the parameters themselves."""
    return {
        key: (module.lora_A[name].weight, module.lora_B[name].weight)
        for key, module in backbone.model.named_modules()
        if isinstance(module, LoraLayer) and name in module.lora_A
    }


def updates_of(backbone: Backbone, name: str) -> dict[str, Tensor]:
    """The product of an adapter's factors, B A or C U R, (out, in) by module, differentiable and without ``alpha``."""
    found = {key: B @ A for key, (A, B) in lora_factors_of(backbone, name).items()}
    for key, module in backbone.model.named_modules():
        if isinstance(module, CurLoraLinear) and name in module.curlora_U:
            U = module.curlora_U[name]
            found[key] = module.curlora_C[name].to(U.dtype) @ U @ module.curlora_R[name].to(U.dtype)
    return found


def write_lora_sum(backbone: Backbone, folder: Path) -> int:
    """Write the active LoRA adapters as a single one, without loss: the A one below the other, the B side by side.

    ``Σ s_i B_i A_i = [B_1 … B_t] [s_1 A_1; …; s_t A_t]``, a LoRA of the sum of the ranks and a scaling of 1.

    Args:
        backbone: a backbone with LoRA adapters.
        folder: where ``adapter_config.json`` and ``adapter_model.safetensors`` go.

    Returns:
        The rank.
    """
    model: Any = backbone.model
    names = list(model.active_adapters)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, module in model.named_modules():
        if isinstance(module, LoraLayer) and names[0] in module.lora_A:
            A = torch.cat([module.scaling[name] * module.lora_A[name].weight for name in names])
            B = torch.cat([module.lora_B[name].weight for name in names], dim=1)
            tensors |= {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
            ranks[key.removeprefix("base_model.model.")] = len(A)
    rank = max(ranks.values())
    others = {key: own for key, own in ranks.items() if own != rank}
    sizes = {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": dict(others)}
    config = replace(copy.deepcopy(model.peft_config[names[0]]), **sizes, use_rslora=False, inference_mode=True)
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(values, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    return rank


def curlora_sum(backbone: Backbone) -> str:
    """Name of a CURLoRA adapter with the update of all active ones, which share their basis; added where there are several."""
    model: Any = backbone.model
    names = list(model.active_adapters)
    if len(names) == 1:
        return names[0]
    model.base_model.add_weighted_adapter(names, [1.0] * len(names), SUM)
    model.base_model.set_adapter(SUM)
    model.active_adapter = SUM
    return SUM


def count_adapter_parameters(backbone: Backbone, trained: frozenset[str]) -> int:
    """Numbers in all adapters that are or were trained.

    Args:
        backbone: a backbone with adapters.
        trained: see :func:`trained_parameters`.
    """
    own = dict(backbone.model.named_parameters())
    wanted = {_renamed(name, FIRST, adapter) for name in trained for adapter in adapter_names(backbone)}
    return sum(own[name].numel() for name in wanted if name in own)


def _renamed(key: str, old: str, new: str) -> str:
    """The name of the same parameter of another adapter."""
    return ".".join(new if part == old else part for part in key.split("."))


def _standing(model: Any) -> tuple[Any, list[str], list[nn.Parameter]]:
    return (
        model.active_adapter,
        list(model.base_model.active_adapters),
        [p for p in model.parameters() if p.requires_grad],
    )


def _restore(model: Any, main: str, active: list[str], training: list[nn.Parameter]) -> None:
    model.base_model.set_adapter(active)
    model.active_adapter = main
    wanted = {id(parameter) for parameter in training}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
