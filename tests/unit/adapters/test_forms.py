"""Which form a layer uses: read from the output where that is exact, computed from the input where it is not."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from curlora_lab import CurLoraConfig
from curlora_lab.adapters import CurLoraLinear
from curlora_lab.adapters import layer as layer_module
from curlora_lab.adapters.basis import BASES

FROM_ROWS = [name for name, rule in BASES.items() if rule.from_rows]


def adapted_layer(base=None, *, train=True, **options):
    base = nn.Linear(16, 24) if base is None else base
    base.requires_grad_(False)
    layer = CurLoraLinear(base, "default", CurLoraConfig(**({"r": 4} | options)), module_name="layer")
    if train:
        nn.init.normal_(layer.curlora_U["default"])
    return layer


@pytest.fixture
def forms(monkeypatch):
    """Names of the forms used, in order; a wide layer reads its output too, inside the function that makes it."""
    used = []
    short = {"output_update": "output", "wide_update": "output", "factored_update": "factored"}
    for name in ("output_update", "factored_update", "wide_update"):
        real = getattr(layer_module, name)
        monkeypatch.setattr(
            layer_module,
            name,
            lambda *a, _real=real, _name=name, **k: used.append(short[_name]) or _real(*a, **k),
        )
    return used


def expected_output(layer, x):
    delta = sum(layer.delta_weight(name) for name in layer.active_adapters)
    bias = layer.bias
    y = x.double() @ (layer.oriented_weight().double() + delta.double()).T
    return y if bias is None else y + bias.double()


def check(layer, x, tolerance=1e-5):
    y = layer(x)
    expected = expected_output(layer, x)
    assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("base", [nn.Linear(16, 24), nn.Linear(16, 24, bias=False), Conv1D(24, 16), Conv1D(16, 16)])
@pytest.mark.parametrize("basis", FROM_ROWS)
def test_a_basis_made_of_rows_reads_the_output(forms, base, basis):
    check(adapted_layer(copy.deepcopy(base), basis=basis), torch.randn(2, 5, 16))
    assert forms == ["output"]


@pytest.mark.parametrize(
    ("base", "wide"),
    [
        (nn.Linear(16, 24), True),
        (nn.Linear(16, 16), False),
        (nn.Linear(24, 16), False),
        (Conv1D(24, 16), True),
        (Conv1D(16, 24), False),
    ],
)
def test_a_layer_with_more_outputs_than_inputs_makes_its_product_inside_the_update(monkeypatch, base, wide):
    called = []
    real = layer_module.wide_update
    monkeypatch.setattr(layer_module, "wide_update", lambda *a, **k: called.append(1) or real(*a, **k))
    check(
        adapted_layer(copy.deepcopy(base)), torch.randn(2, 5, base.nx if isinstance(base, Conv1D) else base.in_features)
    )
    assert bool(called) is wide


def test_a_wide_layer_whose_bias_is_trained_leaves_the_product_to_its_base(forms):
    layer = adapted_layer()
    layer.get_base_layer().bias.requires_grad_()
    x = torch.randn(3, 16)
    check(layer, x)
    layer(x).sum().backward()
    assert forms == ["output"] * 2
    assert layer.get_base_layer().bias.grad is not None


@pytest.mark.parametrize("basis", ["svd_top", "svd_bottom", "gaussian"])
def test_other_bases_use_the_input(forms, basis):
    check(adapted_layer(basis=basis), torch.randn(2, 5, 16))
    assert forms == ["factored"]


def test_orthonormal_factors_keep_the_identity(forms):
    layer = adapted_layer(orthonormal=True)
    check(layer, torch.randn(2, 5, 16))
    assert forms == ["output"]
    for factor in (layer.curlora_C["default"].T, layer.curlora_R["default"]):
        torch.testing.assert_close(factor @ factor.T, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.delta_weight("default").norm(), layer.curlora_U["default"].norm())


def test_orthonormal_factors_of_nearly_parallel_rows_use_the_input(forms):
    base = nn.Linear(16, 24)
    with torch.no_grad():
        base.weight.copy_(torch.randn(1, 16) + 1e-4 * torch.randn(24, 16))
    check(adapted_layer(base, orthonormal=True), torch.randn(2, 5, 16), 1e-4)
    assert forms == ["factored"]


def test_merged_duplicates_keep_the_identity(forms):
    layer = adapted_layer(nn.Linear(16, 24), r=12, replacement=True, duplicates="merge")
    assert max(layer.curlora_U["default"].shape) < 12
    check(layer, torch.randn(2, 5, 16))
    assert forms == ["output"]


def test_dropout_uses_the_input_in_training_only(forms):
    layer = adapted_layer(dropout=0.5)
    x = torch.randn(2, 5, 16)
    layer.train()
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.eval()
    check(layer, x)
    assert forms == ["factored", "factored", "output"]


def test_a_trained_base_uses_the_input_and_so_does_the_changed_one(forms):
    layer = adapted_layer()
    x = torch.randn(2, 5, 16)
    layer.base_layer.weight.requires_grad_(True)
    layer(x).sum().backward()
    with torch.no_grad():
        layer.base_layer.weight -= 0.1 * layer.base_layer.weight.grad
    layer.base_layer.weight.requires_grad_(False)
    check(layer, x)
    assert forms == ["factored", "factored"]


def test_a_base_changed_behind_its_back_is_noticed(forms):
    layer = adapted_layer()
    with torch.no_grad():
        layer.base_layer.weight.mul_(2)
    check(layer, torch.randn(2, 5, 16))
    layer.base_layer.weight = nn.Parameter(torch.randn(24, 16), requires_grad=False)
    check(layer, torch.randn(2, 5, 16))
    assert forms == ["factored", "factored"]


def test_over_another_tuner_it_uses_the_input(forms):
    model = get_peft_model(nn.Sequential(nn.Linear(16, 24)), LoraConfig(r=2, target_modules=["0"]))
    lora = model.base_model.model[0]
    nn.init.normal_(lora.lora_B["default"].weight)
    x = torch.randn(5, 16)
    below = lora(x)
    layer = adapted_layer(lora)
    torch.testing.assert_close(layer(x), below + x @ layer.delta_weight("default").T)
    assert forms == ["factored"]


@pytest.mark.parametrize(("wide", "out"), [(16, 24), (24, 16)])
def test_a_shard_of_a_weight_uses_the_input(forms, wide, out):
    """Tensor parallelism: the output of a shard holds other rows than `R` names; told by the name of the tensor's type."""
    base = nn.Linear(wide, out)
    base.weight = type("DTensor", (nn.Parameter,), {})(base.weight.detach(), requires_grad=False)
    layer = adapted_layer(base)
    check(layer, torch.randn(2, 5, wide))
    assert forms == ["factored"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bias", "form"), [(True, "factored"), (False, "output")])
def test_in_half_precision_a_bias_decides(forms, dtype, bias, form):
    layer = adapted_layer(nn.Linear(16, 24, bias=bias).to(dtype))
    if bias:
        layer.base_layer.bias.data.fill_(2.0)
    check(layer, torch.randn(2, 5, 16).to(dtype), 0.02)
    assert forms == [form]


def test_autocast_counts_as_half_precision(forms):
    for bias in (True, False):
        layer = adapted_layer(nn.Linear(16, 24, bias=bias))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(torch.randn(2, 5, 16))
        assert y.dtype == torch.bfloat16
    assert forms == ["factored", "output"]


def test_all_gathers_come_before_the_first_write(forms):
    """Two adapters on one layer: the second must not read what the first wrote."""
    layer = adapted_layer(nn.Linear(16, 16))
    layer.update_layer("other", config=CurLoraConfig(r=8, seed=1, alpha=0.5))
    nn.init.normal_(layer.curlora_U["other"])
    layer.set_adapter(["default", "other"])
    check(layer, torch.randn(2, 5, 16))
    layer.update_layer("third", config=CurLoraConfig(r=2, basis="gaussian"))
    nn.init.normal_(layer.curlora_U["third"])
    layer.set_adapter(["default", "other", "third"])
    check(layer, torch.randn(2, 5, 16))
    assert forms == ["output", "factored"]


@pytest.mark.parametrize("basis", ["inverse_norm", "gaussian"])
@pytest.mark.parametrize("base", [nn.Linear(16, 16), nn.Linear(16, 24), Conv1D(24, 16), nn.Linear(16, 24, bias=False)])
def test_a_layer_used_twice_has_the_gradients_of_both_uses(base, basis):
    def twice(layer, x):
        return layer(torch.tanh(layer(x))[..., :16]).square().sum()

    layer = adapted_layer(copy.deepcopy(base), basis=basis)
    x = torch.randn(5, 16, requires_grad=True)
    twice(layer, x).backward()
    found = x.grad.clone(), layer.curlora_U["default"].grad.clone()
    U = layer.curlora_U["default"].detach().requires_grad_()
    W = layer.oriented_weight() + layer.curlora_C["default"] @ U @ layer.curlora_R["default"]
    again = x.detach().requires_grad_()
    twice(lambda x: nn.functional.linear(x, W, layer.bias), again).backward()
    torch.testing.assert_close(found, (again.grad, U.grad), atol=1e-4, rtol=1e-4)


def test_hooks_on_the_base_layer_still_run_and_see_the_base_output():
    layer = adapted_layer()
    x, seen = torch.randn(2, 5, 16), []
    expected = layer(x)
    layer.base_layer.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(seen[0], nn.functional.linear(x, layer.base_layer.weight, layer.bias))


@pytest.mark.parametrize("shape", [(16,), (5, 16), (0, 16), (2, 0, 16), (2, 3, 4, 16)])
def test_any_number_of_leading_dimensions(shape):
    layer, x = adapted_layer(), torch.randn(*shape)
    assert layer(x).shape == (*shape[:-1], 24)
    torch.testing.assert_close(layer(x).double(), expected_output(layer, x), atol=1e-5, rtol=1e-4)


def test_inference_mode_and_frozen_inputs():
    layer = adapted_layer()
    x = torch.randn(2, 5, 16)
    expected = layer(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


def test_checkpointed_model_has_the_same_gradients():
    layer = adapted_layer()
    x = torch.randn(2, 5, 16, requires_grad=True)
    layer(x).square().sum().backward()
    expected = x.grad.clone(), layer.curlora_U["default"].grad.clone()
    x.grad = layer.curlora_U["default"].grad = None
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close((x.grad, layer.curlora_U["default"].grad), expected)


def test_a_layer_keeps_no_activation_wider_than_r():
    layer = adapted_layer(nn.Linear(64, 96), r=4)
    x = torch.randn(10, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    own = {tensor.data_ptr() for tensor in (*layer.parameters(), *layer.buffers())}
    assert max(tensor.numel() for tensor in kept if tensor.data_ptr() not in own) <= 10 * 4


def test_the_core_starts_from_zero_or_from_small_numbers_of_its_own():
    assert not adapted_layer(train=False).curlora_U["default"].any()
    layer = adapted_layer(nn.Linear(64, 64), train=False, r=64, u_init="gaussian")
    assert layer.curlora_U["default"].detach().std() == pytest.approx(1e-5, rel=0.1)
    wide = adapted_layer(nn.Linear(64, 64), train=False, r=64, u_init="gaussian", u_std=0.5)
    assert wide.curlora_U["default"].detach().std() == pytest.approx(0.5, rel=0.1)
