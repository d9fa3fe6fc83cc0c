"""Over random shapes, ranks, scales and bases: the LoRA factors give the update, and merging adds it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from curlora_lab import CurLoraConfig
from curlora_lab.adapters import CurLoraLinear
from curlora_lab.adapters.basis import BASES
from curlora_lab.adapters.export import lora_factors


@st.composite
def layers(draw):
    wide, out = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    base = Conv1D(out, wide) if draw(st.booleans()) else nn.Linear(wide, out, bias=draw(st.booleans()))
    nn.init.normal_(base.weight)
    config = CurLoraConfig(
        r=draw(st.integers(1, min(wide, out))),
        alpha=draw(st.sampled_from([0.3, 1.0, 2.0, 16.0])),
        basis=draw(st.sampled_from(sorted(BASES))),
        orthonormal=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
        init_weights=False,
    )
    layer = CurLoraLinear(base.requires_grad_(False), "default", config, module_name="layer")
    return layer, torch.randn(3, wide)


@settings(max_examples=60, deadline=None)
@given(layers())
def test_layer_export_and_merge_agree(drawn):
    layer, x = drawn
    layer.requires_grad_(False)
    A, B = lora_factors(layer, "default")
    assert torch.equal(B @ A, layer.delta_weight("default"))
    y = layer(x)
    by_lora = layer.base_layer(x) + nn.functional.linear(nn.functional.linear(x, A), B)
    scale = max(1.0, float(y.abs().max()), float(layer.delta_weight("default").norm() * x.norm()))
    assert (y - by_lora).abs().max() <= 1e-5 * scale
    layer.merge()
    assert (layer(x) - y).abs().max() <= 1e-5 * scale
