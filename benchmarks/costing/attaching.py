"""How long it takes to choose the bases and attach the adapters, on the matrices of a 7B model."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from curlora_lab import CurLoraConfig

MATRICES_7B = {  # Mistral-7B, (out, in)
    "q_proj": (4096, 4096),
    "k_proj": (1024, 4096),
    "v_proj": (1024, 4096),
    "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096),
    "up_proj": (14336, 4096),
    "down_proj": (4096, 14336),
}
MATRICES_SMALL = {name: (out // 16, in_ // 16) for name, (out, in_) in MATRICES_7B.items()}
LAYERS_7B = 32


def measure_attaching(
    matrices: dict[str, tuple[int, int]],
    *,
    r: int,
    repeats: int,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32),
) -> list[dict[str, Any]]:
    """Time `get_peft_model` on the matrices of one layer, and say what 32 layers take.

    Args:
        matrices: Shapes (out, in) by name.
        r: Rank.
        repeats: How often to repeat; the median counts.
        device: Where the weights are.
        dtypes: Dtypes of the weights.

    Returns:
        One entry for each dtype: `read_s` (one pass over the weights: the sum of each), `curlora_s`, `lora_s` for one
        layer, and `curlora_32_layers_s`.
    """
    entries = []
    for dtype in dtypes:
        layer = _one_layer(matrices, device=device, dtype=dtype)
        names = list(matrices)
        read = _median(lambda layer=layer: [p.sum() for p in layer.parameters()], repeats, device)  # type: ignore[misc]
        curlora = _attach(layer, CurLoraConfig(r=r, target_modules=names), repeats, device)
        lora = _attach(layer, LoraConfig(r=r, target_modules=names), repeats, device)
        entries.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "parameters_a_layer": sum(parameter.numel() for parameter in layer.parameters()),
                "read_s": read,
                "curlora_s": curlora,
                "lora_s": lora,
                "curlora_32_layers_s": LAYERS_7B * curlora,
            }
        )
    return entries


def _one_layer(matrices: dict[str, tuple[int, int]], *, device: torch.device, dtype: torch.dtype) -> nn.ModuleDict:
    generator = torch.Generator(device).manual_seed(0)
    layer = nn.ModuleDict()
    for name, (out, in_) in matrices.items():
        linear = nn.Linear(in_, out, bias=False, device="meta", dtype=dtype)
        weight = torch.empty(out, in_, device=device, dtype=dtype).normal_(0, 0.02, generator=generator)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        layer[name] = linear
    return layer


def _attach(layer: nn.ModuleDict, config: Any, repeats: int, device: torch.device) -> float:
    """Seconds to attach to fresh modules around the same weights."""
    seconds = []
    for _ in range(repeats):
        model = nn.Module()
        model.layer = nn.ModuleDict(dict(layer.items()))
        start = _now(device)
        get_peft_model(model, config)
        seconds.append(_now(device) - start)
    return statistics.median(seconds)


def _median(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    seconds = []
    for _ in range(repeats):
        start = _now(device)
        work()
        seconds.append(_now(device) - start)
    return statistics.median(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
