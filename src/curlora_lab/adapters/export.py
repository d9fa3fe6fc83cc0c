"""CURLoRA to LoRA in closed form: `A = R`, `B = alpha · C U`, a scale of 1. No approximation, no singular values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import LoraConfig
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from curlora_lab.adapters.config import CurLoraConfig
from curlora_lab.adapters.layer import CurLoraLinear

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DELTA_TOLERANCE = 1e-6
_OUTPUT_TOLERANCE = 1e-4  # sums run in another order


@dataclass(frozen=True, kw_only=True)
class LoraExport:
    """What an export wrote, and how it compares with the original.

    Args:
        folder: Folder of the LoRA adapter.
        modules: Number of adapted modules.
        delta_error: Largest `max|ΔW' - ΔW| / max|ΔW|` over the modules; 0 means the same bits.
        output_error: `max|y' - y| / max|y|` on the given batch; None without a batch.
    """

    folder: Path
    modules: int
    delta_error: float
    output_error: float | None


def to_lora(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    dtype: torch.dtype = torch.float32,
    allow_lossy: bool = False,
    modules_to_save: bool = True,
    batch: Mapping[str, Any] | None = None,
) -> LoraExport:
    """Write a CURLoRA adapter as a LoRA adapter, which plain PEFT, transformers and vLLM load.

    `A = R`, `B = alpha · C U`, `lora_alpha = r`: `ΔW = B A` is the same matrix at the same rank. In float32 it has the
    bits of `CurLoraLinear.delta_weight`. What was written is read back and compared before this returns.

    Args:
        model: A `PeftModel`, or a model with injected adapter layers.
        folder: Where `adapter_config.json` and `adapter_model.safetensors` go.
        adapter_name: Adapter to export.
        dtype: Dtype of `A` and `B`.
        allow_lossy: Accept a dtype that rounds `A` or `B`.
        modules_to_save: Write modules that were trained as a whole (heads) too. vLLM refuses files that hold them.
        batch: Keyword arguments of the model; with them the outputs of original and export are compared too.

    Returns:
        Folder and errors.

    Raises:
        ValueError: There is no such adapter, it is merged into the base, or the dtype would round.
        RuntimeError: What was written does not give the original update.

    Reference:
        Hu et al. (2021), "LoRA", arXiv 2106.09685, for the form written; Fawi (2024), arXiv 2408.14572, for `C U R`.
    """
    layers = _adapted_layers(model, adapter_name)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        exact = lora_factors(layer, adapter_name)
        for letter, factor in zip("AB", exact, strict=True):
            written = factor.to(dtype)
            if not allow_lossy and not torch.equal(written.to(factor.dtype), factor):
                raise ValueError(
                    f"dtype={dtype} rounds lora_{letter} of {name!r}: the export would lose digits of the update; "
                    f"use torch.float32, or allow_lossy=True if that is meant."
                )
            tensors[f"{_PREFIX}{name}.lora_{letter}.weight"] = written.detach().cpu().contiguous()
    heads = _saved_modules(model, adapter_name) if modules_to_save else {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors | heads, folder / _WEIGHTS, metadata={"format": "pt"})
    _lora_config(model, layers, adapter_name, with_heads=bool(heads)).save_pretrained(str(folder))
    return _verified(model, layers, folder, adapter_name, batch, allow_lossy)


def lora_factors(layer: CurLoraLinear, adapter_name: str) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
    """`A = R` and `B = alpha · C U` of one layer, in the dtype of `U` (float32).

    Args:
        layer: The adapted layer.
        adapter_name: The adapter.

    Returns:
        `A` and `B`, with `B A = ΔW`.
    """
    U = layer.curlora_U[adapter_name].detach()
    exact = torch.promote_types(U.dtype, torch.float32)
    B = layer.alpha[adapter_name] * (layer.curlora_C[adapter_name].to(exact) @ U.to(exact))
    return layer.curlora_R[adapter_name].to(exact), B


def _adapted_layers(model: nn.Module, adapter_name: str) -> dict[str, CurLoraLinear]:
    """Adapted layers by their name in the base model."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, CurLoraLinear)}
    layers = {name.removeprefix(_PREFIX): layer for name, layer in found.items() if adapter_name in layer.curlora_U}
    if not layers:
        known = sorted({name for layer in found.values() for name in layer.curlora_U})
        raise ValueError(f"the model has no CURLoRA adapter {adapter_name!r}; it has {', '.join(known) or 'none'}.")
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(
            f"adapters are merged into {merged[0]!r} and {len(merged) - 1} more modules; unmerge them first."
        )
    return layers


def _saved_modules(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """Weights of the modules that were trained as a whole, under the names of a PEFT file."""
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            for key, tensor in module.modules_to_save[adapter_name].state_dict().items():
                tensors[f"{_PREFIX}{name.removeprefix(_PREFIX)}.{key}"] = tensor.detach().cpu().clone().contiguous()
    return tensors


def _lora_config(
    model: nn.Module, layers: Mapping[str, CurLoraLinear], adapter_name: str, *, with_heads: bool
) -> LoraConfig:
    source = cast(dict[str, CurLoraConfig], model.peft_config)[adapter_name]
    ranks = {name: layer.curlora_R[adapter_name].shape[0] for name, layer in layers.items()}
    others = {name: rank for name, rank in ranks.items() if rank != source.r}
    return LoraConfig(
        r=source.r,
        lora_alpha=source.r,
        rank_pattern=dict(others),
        alpha_pattern=dict(others),
        lora_dropout=source.dropout,
        target_modules=source.target_modules,
        exclude_modules=source.exclude_modules,
        layers_to_transform=source.layers_to_transform,
        layers_pattern=source.layers_pattern,
        modules_to_save=source.modules_to_save if with_heads else None,
        fan_in_fan_out=any(layer.is_transposed for layer in layers.values()),
        task_type=source.task_type,
        base_model_name_or_path=source.base_model_name_or_path,
        revision=source.revision,
        inference_mode=True,
    )


@torch.no_grad()
def _verified(
    model: nn.Module,
    layers: Mapping[str, CurLoraLinear],
    folder: Path,
    adapter_name: str,
    batch: Mapping[str, Any] | None,
    lossy: bool,
) -> LoraExport:
    """Read the file back and compare updates, and outputs where there is a batch."""
    written = load_file(folder / _WEIGHTS)
    factors = {name: tuple(written[f"{_PREFIX}{name}.lora_{letter}.weight"] for letter in "AB") for name in layers}
    errors = {}
    for name, layer in layers.items():
        delta = layer.delta_weight(adapter_name)
        A, B = (factor.to(delta) for factor in factors[name])
        errors[name] = _relative_error(B @ A, delta)
    worst = max(errors, key=lambda name: errors[name])
    if not lossy and not errors[worst] <= _DELTA_TOLERANCE:
        raise RuntimeError(
            f"the exported update of {worst!r} differs by {errors[worst]:.2g} (relative) from the original, where at most "
            f"{_DELTA_TOLERANCE:g} is rounding: look for NaN or infinite weights there, then export again."
        )
    output_error = None
    if batch is not None:
        output_error = _output_error(model, layers, factors, adapter_name, batch)
        if not lossy and not output_error <= _OUTPUT_TOLERANCE:
            raise RuntimeError(
                f"on the given batch the export differs by {output_error:.2g} (relative) from the original, where at most "
                f"{_OUTPUT_TOLERANCE:g} is rounding: load the model in float32 and export again, or leave the batch out."
            )
    return LoraExport(folder=folder, modules=len(layers), delta_error=errors[worst], output_error=output_error)


def _output_error(
    model: nn.Module,
    layers: Mapping[str, CurLoraLinear],
    factors: Mapping[str, tuple[Tensor, ...]],
    adapter_name: str,
    batch: Mapping[str, Any],
) -> float:
    """Outputs of the model with its adapter against the base with LoRA's formula on the factors that were written."""
    training = model.training
    model.eval()
    try:
        with _active(layers.values(), [adapter_name]):
            original = _tensor(model(**batch))
        with _active(layers.values(), []), _lora_hooks(layers, factors):
            exported = _tensor(model(**batch))
    finally:
        model.train(training)
    return _relative_error(exported, original)


@contextmanager
def _active(layers: Any, names: list[str]) -> Iterator[None]:
    before = [(layer, layer._active_adapter) for layer in layers]
    for layer, _ in before:
        layer._active_adapter = names
    try:
        yield
    finally:
        for layer, active in before:
            layer._active_adapter = active


@contextmanager
def _lora_hooks(layers: Mapping[str, CurLoraLinear], factors: Mapping[str, tuple[Tensor, ...]]) -> Iterator[None]:
    def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor, A: Tensor, B: Tensor) -> Tensor:
        x = args[0]
        update = F.linear(F.linear(x.to(A.dtype), A.to(x.device)), B.to(x.device))
        return output + update.to(output.dtype)

    handles = [
        layer.register_forward_hook(lambda module, args, output, pair=factors[name]: hook(module, args, output, *pair))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    for key in ("logits", "last_hidden_state"):
        if getattr(output, key, None) is not None:
            return getattr(output, key)
    return output[0]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max()
    difference = (found - expected).abs().max()
    return float(difference / scale) if scale > 0 else float(difference)
