"""Faults of the published implementation (github.com/MNoorFawi/curlora), each of which must not come back.

`published_update` is the published forward in our words: it materialises `C U R` and adds `x (C U R)ᵀ`.
"""

import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from curlora_lab import CurLoraConfig
from curlora_lab.adapters import CurLoraLinear
from curlora_lab.adapters.basis import BASES, BasisOptions


def adapted(base, **options):
    config = CurLoraConfig(**({"r": 4, "init_weights": False} | options))
    return CurLoraLinear(base.requires_grad_(False), "default", config, module_name="layer")


def published_update(x, C, U, R, alpha):
    return alpha * (x @ (C @ U @ R).T)


def test_linear_layers_give_the_published_result():
    layer, x = adapted(nn.Linear(12, 10), alpha=0.7), torch.randn(5, 12)
    C, U, R = (getattr(layer, f"curlora_{part}")["default"] for part in "CUR")
    expected = layer.base_layer(x) + published_update(x, C, U, R, 0.7)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_a_square_conv1d_is_not_transposed():
    """Its weight is (in, out); the published code tells that from a shape error, which a square weight does not raise."""
    base, x = Conv1D(8, 8), torch.randn(5, 8)
    nn.init.normal_(base.weight)
    layer = adapted(base)
    C, U, R = (getattr(layer, f"curlora_{part}")["default"] for part in "CUR")
    W = base.weight.T  # (out, in)
    assert torch.equal(C, W[:, layer.curlora_columns["default"]])
    assert torch.equal(R, W[layer.curlora_rows["default"]])
    torch.testing.assert_close(layer(x), base(x) + x @ (C @ U @ R).T, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(layer(x), base(x) + x @ (C @ U @ R), atol=1e-2)
    # in the paper's orientation, y = x W: rows of its W are our columns, and the core is transposed
    paper_C, paper_R = base.weight[:, layer.curlora_rows["default"]], base.weight[layer.curlora_columns["default"]]
    torch.testing.assert_close(layer(x), x @ (base.weight + paper_C @ U.T @ paper_R) + base.bias, atol=1e-5, rtol=1e-4)


def test_the_factors_are_saved_and_move_with_the_model():
    model = get_peft_model(nn.Sequential(nn.Linear(12, 10)), CurLoraConfig(r=4, target_modules=["0"]))
    names = {name.split(".")[-2] for name in model.state_dict() if "curlora" in name}
    assert names == {"curlora_U", "curlora_C", "curlora_R", "curlora_columns", "curlora_rows"}
    assert model.to(torch.float64).base_model.model[0].curlora_C["default"].dtype == torch.float64


def test_duplicates_can_be_avoided_or_merged():
    layer = adapted(nn.Linear(12, 10), r=8, replacement=True)
    assert len(set(layer.curlora_columns["default"].tolist())) < 8  # as published: the rank is lower than it says
    assert torch.linalg.matrix_rank(layer.delta_weight("default")) < 8
    assert len(set(adapted(nn.Linear(12, 10), r=8).curlora_columns["default"].tolist())) == 8
    merged = adapted(nn.Linear(12, 10), r=8, replacement=True, duplicates="merge")
    assert torch.linalg.matrix_rank(merged.delta_weight("default")) == min(merged.curlora_U["default"].shape)


def test_alpha_is_the_multiplier_whatever_the_rank():
    base = nn.Linear(12, 10)
    for r in (2, 8):
        one, two = (adapted(base, r=r, alpha=alpha).delta_weight("default") for alpha in (1.0, 2.0))
        torch.testing.assert_close(two, 2 * one)


def test_the_floor_is_a_parameter_and_uniform_a_choice():
    W = torch.randn(16, 4096) * torch.randn(4096).mul(0.5).exp()

    def distance_to_uniform(basis, **options):
        p = BASES[basis].probabilities(W, BasisOptions(r=4, **options), torch.Generator())[0]
        return float((p - 1 / 4096).abs().sum() / 2)

    paper, published = (
        distance_to_uniform("inverse_norm", floor=0.0),
        distance_to_uniform("inverse_norm", floor_absolute=1e-3),
    )
    assert distance_to_uniform("uniform") == 0
    assert published < 0.12 < 0.3 < paper


def test_fused_projections_share_one_core_as_published(gpt2_case):
    model = get_peft_model(gpt2_case.build(), gpt2_case.config(target_modules=["c_attn"]))
    layer = next(module for module in model.modules() if isinstance(module, CurLoraLinear))
    assert layer.curlora_U["default"].shape == (4, 4)
    assert layer.curlora_C["default"].shape == (48, 4)  # query, key and value together
