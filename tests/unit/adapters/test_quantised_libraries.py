"""Base layers quantised by the real libraries, on the CPU: bitsandbytes in 4 and 8 bits, torchao in int8.

`test_quantised.py` holds the same laws for a stand-in, so that they are tested where the libraries are absent.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

from curlora_lab import CurLoraConfig
from curlora_lab.adapters import CurLoraLinear

EXAMPLE = Path(__file__).parents[3] / "examples" / "qlora_like.py"
TOKENS = torch.randint(3, 50, (3, 6), generator=torch.Generator().manual_seed(7))

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def four_bits(kind="nf4", compute=torch.float32, twice=False):
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=twice,
    )


def torchao_int8():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


METHODS = {
    "nf4": four_bits,
    "fp4": lambda: four_bits("fp4"),
    "nf4 twice": lambda: four_bits(twice=True),
    "nf4 in bfloat16": lambda: four_bits(compute=torch.bfloat16),
    "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "torchao": torchao_int8,
}
TOLERANCE = {"int8": 0.03, "nf4 in bfloat16": 0.02}  # the product rounds its input
PARAMETERS = [
    pytest.param(name, marks=needs_torchao if name == "torchao" else needs_bitsandbytes)
    for name in METHODS
    if name not in ("fp4", "nf4 twice")
] + [pytest.param(name, marks=[needs_bitsandbytes, pytest.mark.slow]) for name in ("fp4", "nf4 twice")]


@pytest.fixture(params=PARAMETERS)
def method(request):
    return request.param


def tiny_llama():
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
            max_position_embeddings=32, attention_bias=True,
        )
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def quantised(tmp_path):
    """Load the same weights again and again, quantised."""

    def load(method, seed=0):
        folder = tmp_path / f"base_{seed}"
        if not folder.exists():
            torch.manual_seed(seed)
            tiny_llama().save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=METHODS[method](), dtype=torch.float32, device_map={"": "cpu"}
        )

    return load


def config(**options):
    return CurLoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]} | options))


def adapted(model):
    return [module for module in model.modules() if isinstance(module, CurLoraLinear)]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def test_the_basis_is_taken_from_the_dequantised_weight(quantised, method):
    model = get_peft_model(quantised(method), config())
    layers = adapted(model)
    assert len(layers) == 8
    for layer in layers:
        W = layer.oriented_weight()
        assert layer.quantization_backend is not None
        assert torch.equal(layer.curlora_C["default"], W[:, layer.curlora_columns["default"]])
        assert torch.equal(layer.curlora_R["default"], W[layer.curlora_rows["default"]])
        assert layer.standing["default"].by_output == ("4" in method)
        assert layer.curlora_U["default"].dtype == torch.float32


def test_a_new_adapter_leaves_every_bit_of_the_output(quantised, method):
    model = get_peft_model(quantised(method), config())
    with model.disable_adapter():
        expected = logits(model)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("part", ["q_proj", "up_proj"])
def test_output_and_gradients_are_those_of_the_dequantised_layer(quantised, method, train_a_little, part):
    model = train_a_little(get_peft_model(quantised(method), config(alpha=0.5)))
    layer = next(layer for layer in adapted(model) if layer.module_name.endswith(part))
    x = torch.randn(3, 5, 64, requires_grad=True)
    y = layer(x)
    found = torch.autograd.grad(y.square().sum(), (x, layer.curlora_U["default"]))
    U = layer.curlora_U["default"].detach().requires_grad_()
    C, R, bias = layer.curlora_C["default"].float(), layer.curlora_R["default"].float(), layer.bias
    W = layer.oriented_weight().float() + 0.5 * C @ U @ R
    again = x.detach().requires_grad_()
    reference = nn.functional.linear(again, W, None if bias is None else bias.float())
    expected = torch.autograd.grad(reference.square().sum(), (again, U))
    for one, other in zip((y, *found), (reference, *expected), strict=True):
        assert (one - other).abs().max() <= TOLERANCE.get(method, 1e-4) * other.abs().max()


@pytest.mark.parametrize("save_basis", [True, False])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_it_gives_the_same_bits(
    quantised, method, train_a_little, tmp_path, save_basis, low_cpu_mem_usage
):
    model = train_a_little(get_peft_model(quantised(method), config(save_basis=save_basis)))
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(quantised(method), tmp_path / "adapter", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), expected)
    if not save_basis:
        with pytest.raises(ValueError, match="was saved without its basis"):
            PeftModel.from_pretrained(quantised(method, seed=1), tmp_path / "adapter")


def test_it_learns_after_an_evaluation_and_leaves_the_base_alone(quantised, method):
    """On a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights when a model is evaluated, and its gradients end."""
    model = get_peft_model(prepare_model_for_kbit_training(quantised(method)), config(r=8, alpha=30.0))
    frozen = {layer.module_name: layer.oriented_weight().clone() for layer in adapted(model)}
    first, losses = [], []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(8):
        logits(model)
        loss = model.train()(input_ids=TOKENS, labels=TOKENS).loss
        losses.append(float(loss.detach()))
        loss.backward()
        if step == 1:  # the cores are no longer zero
            first = [layer.curlora_U["default"].grad.abs().max() for layer in adapted(model)]
        optimizer.step()
        optimizer.zero_grad()
    assert all(gradient > 0 for gradient in first)
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(layer.oriented_weight(), frozen[layer.module_name]) for layer in adapted(model))


def test_merging_quantises_again(quantised, method, train_a_little):
    model = train_a_little(get_peft_model(quantised(method), config(alpha=30.0)))
    expected = logits(model)
    with model.disable_adapter():
        base = logits(model)
    kind = type(adapted(model)[0].base_layer.weight)
    model.merge_adapter(safe_merge=True)
    assert type(adapted(model)[0].base_layer.weight) is kind
    assert (logits(model) - expected).norm() <= 0.5 * (expected - base).norm()


@needs_bitsandbytes
def test_a_biased_layer_that_computes_in_half_precision_loses_no_digits(quantised, train_a_little):
    """Law: the error of the update is at most twice that of the factored form. Its output is float32, its product not."""
    model = train_a_little(get_peft_model(quantised("nf4 in bfloat16"), config(alpha=0.1)))
    layer = adapted(model)[0]
    layer.base_layer.bias.data.fill_(3.0)
    x = torch.randn(200, 64)
    assert layer(x).dtype == torch.float32
    with torch.no_grad():
        y0 = layer.base_layer(x)
        exact = x.double() @ layer.delta_weight("default").double().T
        half = x.bfloat16() @ layer.curlora_R["default"].bfloat16().T
        factored = 0.1 * half.float() @ layer.curlora_U["default"].T @ layer.curlora_C["default"].float().T
        found = layer(x) - y0
    assert (found - exact).norm() <= 2 * (factored - exact).norm()


@needs_bitsandbytes
def test_a_weight_packed_for_inference_is_refused(quantised):
    base = quantised("nf4")
    base.model.layers[1].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(RuntimeError, match=r"'model.layers.1.mlp.up_proj' was packed.*load the model again"):
        get_peft_model(base, config(target_modules=["q_proj"]))


@needs_bitsandbytes
def test_the_example_trains_on_a_backbone_in_4_bits():
    spec = importlib.util.spec_from_file_location("example_qlora_like", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    result = example.main(steps=15)
    assert result["quantized"]
    assert result["layers_in_4_bits"] > 0
    assert result["after"] < 0.5 * result["before"]
