"""Sizes of saved adapters."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from costing.shapes import Shape, build
from costing.variants import share_weights
from curlora_lab import CurLoraConfig


def measure_files(shape: Shape, *, r: int) -> list[dict[str, Any]]:
    """Save CURLoRA with and without its basis and LoRA, for both choices of targets.

    Args:
        shape: The model.
        r: Rank.

    Returns:
        For each choice of targets the bytes of `adapter_model.safetensors` of `curlora`, `curlora_compact`
        (`save_basis=False`) and `lora`.
    """
    base = build(shape, device=torch.device("cpu"), dtype=torch.float32)
    entries = []
    for which in ("attention", "all"):
        targets = shape.targets(which)
        configs = {
            "curlora": CurLoraConfig(r=r, target_modules=targets),
            "curlora_compact": CurLoraConfig(r=r, target_modules=targets, save_basis=False),
            "lora": LoraConfig(r=r, target_modules=targets, fan_in_fan_out=shape.config.model_type == "gpt2"),
        }
        entry: dict[str, Any] = {
            "title": shape.title,
            "targets": shape.title_of(which),
            "r": r,
        }
        for name, config in configs.items():
            model = get_peft_model(share_weights(base), config)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                entry[name] = (Path(folder) / "adapter_model.safetensors").stat().st_size
        entries.append(entry)
    return entries
