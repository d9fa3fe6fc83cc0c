"""Quantised base layers, through a stand-in for bitsandbytes: weights in int8 with a scale, a product of its own."""

import pytest
import torch
from peft import get_peft_model
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend, QuantizationBackend
from torch import nn

from curlora_lab import CurLoraConfig
from curlora_lab.adapters import layer as layer_module
from curlora_lab.adapters import model as model_module


class Quantised(nn.Module):
    """A linear layer that keeps int8 numbers and a scale."""

    def __init__(self, wide=24, out=16, bias=True):
        super().__init__()
        W = torch.randn(out, wide)
        self.in_features, self.out_features = wide, out
        self.scale = float(W.abs().max() / 127)
        self.weight = nn.Parameter((W / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(out), requires_grad=False) if bias else None

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Backend(QuantizationBackend):
    layer_type = "linear"
    supports_merge = True
    dequantised = 0

    def __init__(self, name):
        self.backend_name = name

    def get_base_weight(self, base_layer):
        Backend.dequantised += 1
        return base_layer.weight.float() * base_layer.scale

    def set_base_weight(self, peft_layer, weight_data):
        base = peft_layer.get_base_layer()
        base.scale = float(weight_data.abs().max() / 127)
        base.weight.data = (weight_data / base.scale).round().to(torch.int8)


@pytest.fixture
def adapted(monkeypatch):
    def make(backend="bnb 4bit", **options):
        backend = Backend(backend) if isinstance(backend, str) else backend
        for module in (layer_module, model_module):
            monkeypatch.setattr(
                module,
                "resolve_quantization_backend",
                lambda base, **_: backend if isinstance(base, Quantised) else None,
            )
        Backend.dequantised = 0
        config = CurLoraConfig(**({"r": 4, "target_modules": ["0"], "init_weights": False} | options))
        model = get_peft_model(nn.Sequential(Quantised()), config)
        return model, model.base_model.model[0]

    return make


def test_the_weight_is_dequantised_once_to_choose_the_basis(adapted):
    _, layer = adapted()
    assert Backend.dequantised == 1
    W = layer.base_layer.weight.float() * layer.base_layer.scale
    assert torch.equal(layer.curlora_R["default"], W[layer.curlora_rows["default"]])


@pytest.mark.parametrize(
    ("backend", "by_output"), [("bnb 4bit", True), ("hqq", False), ("bnb 8bit", False), ("torchao", False)]
)
def test_the_output_is_read_only_where_its_product_rounds_no_input(adapted, backend, by_output):
    model, layer = adapted(backend)
    assert layer.standing["default"].by_output == by_output
    x = torch.randn(3, 5, 24, requires_grad=True)
    dequantised = Backend.dequantised
    y = model(x)
    y.sum().backward()
    assert Backend.dequantised == dequantised  # not in the forward pass
    W = layer.base_layer.weight.float() * layer.base_layer.scale + layer.delta_weight("default")
    torch.testing.assert_close(y, nn.functional.linear(x, W, layer.bias), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x.grad, W.sum(0).expand(3, 5, 24), atol=1e-4, rtol=1e-4)


def test_merging_quantises_again(adapted):
    model, layer = adapted()
    x = torch.randn(3, 24)
    expected = model(x)
    model.merge_adapter(safe_merge=True)
    assert layer.base_layer.weight.dtype == torch.int8
    assert (model(x) - expected).abs().max() <= 0.03 * expected.abs().max()


def test_a_compact_file_names_the_quantisation(adapted, tmp_path):
    model, _ = adapted(save_basis=False)
    model.save_pretrained(tmp_path)
    other, _ = adapted(save_basis=False)  # other random weights
    with pytest.raises(ValueError, match=r"'0' was saved without its basis"):
        other.load_adapter(tmp_path, "loaded")


def test_layers_that_give_no_weights_are_refused(adapted):
    with pytest.raises(TypeError, match=r"CURLoRA takes C and R from the weights of '0'.*exclude it, or quantise with"):
        adapted(ForwardOnlyQuantizationBackend("gptq"))


@pytest.mark.gpu
def test_bitsandbytes_in_four_bits():
    """The QLoRA recipe: a backbone in 4 bits through transformers' configuration, CURLoRA on top."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    bnb = pytest.importorskip("bitsandbytes")
    model = nn.Sequential(bnb.nn.Linear4bit(64, 64, compute_dtype=torch.bfloat16, quant_type="nf4")).cuda()
    model = get_peft_model(model, CurLoraConfig(r=8, target_modules=["0"]))
    x = torch.randn(4, 64, device="cuda", dtype=torch.bfloat16)
    with model.disable_adapter():
        expected = model(x)
    assert torch.equal(model(x), expected)
    model(x).sum().backward()
    layer = model.base_model.model[0]
    assert layer.curlora_U["default"].grad.abs().max() > 0
    assert layer.curlora_R["default"].device.type == "cuda"
