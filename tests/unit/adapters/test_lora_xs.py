"""LoRA-XS starts as its paper says: the trained matrix from N(0, (1e-5)²), so that the update is tiny and not zero."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from curlora_lab.adapters import CurLoraLinear
from curlora_lab.adapters.attach import attach
from curlora_lab.build import make_adapter


def test_the_trained_matrix_starts_tiny_and_not_at_zero(compose: Any, make_backbone: Any) -> None:
    node: Any = OmegaConf.to_container(compose("adapter=lora_xs", "rank=16").adapter, resolve=True)
    backbone = make_backbone("llama")
    attach(backbone, make_adapter(node), seed=0)
    layers = [module for module in backbone.modules() if isinstance(module, CurLoraLinear)]
    U = torch.cat([layer.curlora_U["default"].detach().flatten() for layer in layers])
    assert 0 < U.abs().max() < 1e-4
    assert U.std().item() == pytest.approx(1e-5, rel=0.15)
    assert U.unique().numel() > 0.9 * U.numel(), "each layer has a draw of its own"
