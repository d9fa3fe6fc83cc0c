"""Models without weights: counts and shapes at once, the basis when the weights arrive."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from curlora_lab import CurLoraConfig
from curlora_lab.adapters import CurLoraLinear


def trainable(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def mistral_7b():
    with torch.device("meta"):
        return MistralForCausalLM(
            MistralConfig(
                hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                num_key_value_heads=8, vocab_size=32768,
            )
        )  # fmt: skip


def gpt2_large():
    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config(n_embd=1280, n_layer=36, n_head=20))


@pytest.mark.parametrize(
    ("build", "targets", "r", "curlora", "lora"),
    [
        (mistral_7b, ["q_proj", "k_proj", "v_proj"], 16, 24_576, 9_437_184),
        (gpt2_large, ["c_attn"], 8, 2_304, 1_474_560),
    ],
)
def test_the_papers_counts(build, targets, r, curlora, lora):
    model = get_peft_model(build(), CurLoraConfig(r=r, target_modules=targets))
    assert trainable(model) == curlora
    assert all(parameter.is_meta for parameter in model.parameters())
    assert trainable(get_peft_model(build(), LoraConfig(r=r, target_modules=targets))) == lora


def reference():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))


def on_meta():
    return reference().to("meta")


CONFIG = {"r": 3, "target_modules": ["0", "1"], "seed": 4}


def base_weights(model):
    """Weights of the reference under the names they have in an adapted model."""
    return {f"base_model.model.{key.replace('.', '.base_layer.')}": value for key, value in model.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"orthonormal": True}, {"basis": "svd_top"}, {"save_basis": False}])
@pytest.mark.parametrize("assign", [True, False])
def test_the_basis_is_chosen_when_the_weights_are_loaded(options, assign):
    expected = get_peft_model(reference(), CurLoraConfig(**CONFIG, **options))
    model = get_peft_model(on_meta(), CurLoraConfig(**CONFIG, **options))
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(base_weights(reference()), strict=False, assign=assign)
    x = torch.randn(4, 8)
    for layer, twin in zip(model.base_model.model, expected.base_model.model, strict=True):
        assert isinstance(layer, CurLoraLinear)
        assert torch.equal(layer.curlora_C["default"], twin.curlora_C["default"])
        assert torch.equal(layer.curlora_R["default"], twin.curlora_R["default"])
    assert torch.equal(model(x), expected(x))
    assert trainable(model) == 2 * 9


@pytest.mark.parametrize("to_empty", [False, True])
def test_a_forward_before_that_raises(to_empty):
    model = get_peft_model(on_meta(), CurLoraConfig(**CONFIG))
    if to_empty:
        model.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=r"adapter 'default' of '0' has no basis yet.*load_state_dict"):
        model(torch.randn(4, 8, device="cpu" if to_empty else "meta"))


def test_weights_that_arrive_by_another_way_need_a_word():
    model = get_peft_model(on_meta(), CurLoraConfig(**CONFIG))
    with pytest.raises(RuntimeError, match="the base weight of '0' is on the meta device; load it first"):
        model.base_model.select_basis()
    for layer, source in zip(model.base_model.model, reference(), strict=True):
        layer.base_layer.weight, layer.base_layer.bias = source.weight, source.bias
    model.base_model.select_basis()
    expected = get_peft_model(reference(), CurLoraConfig(**CONFIG))
    x = torch.randn(4, 8)
    assert torch.equal(model(x), expected(x))


def test_a_whole_checkpoint_brings_its_own_basis():
    source = get_peft_model(reference(), CurLoraConfig(**CONFIG, init_weights=False))
    model = get_peft_model(on_meta(), CurLoraConfig(**(CONFIG | {"seed": 99})))
    model.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(4, 8)
    assert torch.equal(model(x), source(x))


def test_with_low_cpu_mem_usage_an_adapter_without_a_file_has_no_values():
    model = get_peft_model(reference(), CurLoraConfig(**CONFIG), low_cpu_mem_usage=True)
    with pytest.raises(RuntimeError, match="no basis yet"):
        model(torch.randn(4, 8))


def test_loading_onto_the_meta_device_without_assigning_brings_nothing():
    source = get_peft_model(reference(), CurLoraConfig(**CONFIG))
    model = get_peft_model(on_meta(), CurLoraConfig(**CONFIG))
    with pytest.warns(UserWarning, match="no-op"):
        model.load_state_dict(source.state_dict())
    with pytest.raises(RuntimeError, match="no basis yet"):
        model(torch.randn(4, 8, device="meta"))


def test_a_compact_adapter_without_basis_is_not_saved(tmp_path):
    model = get_peft_model(on_meta(), CurLoraConfig(**CONFIG, save_basis=False))
    with pytest.raises(RuntimeError, match="no basis yet"):
        model.save_pretrained(tmp_path)
