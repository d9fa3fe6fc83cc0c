"""Weight shift against the truth: PEFT's own merge, for many methods and both layouts of a linear layer."""

import copy
import math

import peft
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from curlora_lab import CurLoraConfig
from curlora_lab.probes.shift import WeightReference, adapted_modules, stable_rank
from curlora_lab.probes.weights import WeightError, base_weight, effective_weight, weight_update


def gpt2(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=16)
    return GPT2LMHeadModel(config).requires_grad_(False)


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=1,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
    )
    return LlamaForCausalLM(config).requires_grad_(False)


LLAMA = ["q_proj", "k_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj"]  # attn.c_proj is a square Conv1D
METHODS = {
    "lora": (llama, peft.LoraConfig(r=2, target_modules=LLAMA)),
    "lora_conv1d": (gpt2, peft.LoraConfig(r=2, target_modules=GPT2, fan_in_fan_out=True)),
    "rslora": (llama, peft.LoraConfig(r=2, target_modules=LLAMA, use_rslora=True)),
    "dora": (llama, peft.LoraConfig(r=2, target_modules=LLAMA, use_dora=True)),
    "dora_conv1d": (gpt2, peft.LoraConfig(r=2, target_modules=GPT2, use_dora=True, fan_in_fan_out=True)),
    "pissa": (llama, peft.LoraConfig(r=2, target_modules=LLAMA, init_lora_weights="pissa")),
    "embedding": (llama, peft.LoraConfig(r=2, target_modules=["embed_tokens"])),
    "curlora": (llama, CurLoraConfig(r=4, target_modules=LLAMA)),
    "curlora_conv1d": (gpt2, CurLoraConfig(r=4, target_modules=GPT2)),
    "lora_xs": (llama, CurLoraConfig(r=4, target_modules=LLAMA, basis="svd_top", u_init="gaussian")),
    "vera": (llama, peft.VeraConfig(r=4, target_modules=LLAMA)),
    "adalora": (llama, peft.AdaLoraConfig(init_r=2, target_r=1, total_step=10, target_modules=LLAMA)),
    "loha": (llama, peft.LoHaConfig(r=2, target_modules=LLAMA)),
    "ia3": (llama, peft.IA3Config(target_modules=LLAMA, feedforward_modules=["down_proj"])),
    "oft": (llama, peft.OFTConfig(oft_block_size=4, target_modules=LLAMA)),
    "hra": (llama, peft.HRAConfig(r=2, target_modules=LLAMA)),
    "miss": (llama, peft.MissConfig(r=2, target_modules=LLAMA)),
    "osf": (llama, peft.OSFConfig(target_modules=LLAMA)),
}


def perturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def merged_weights(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    merged = copy.deepcopy(model).merge_and_unload()
    return {name: module.weight for name, module in merged.named_modules() if name in adapted_modules(model)}


@pytest.mark.parametrize("method", METHODS)
def test_shift_equals_that_of_the_merged_weights(method: str) -> None:
    build, config = METHODS[method]
    base = build()
    originals = {name: module.weight.clone() for name, module in base.named_modules() if hasattr(module, "weight")}
    model = peft.get_peft_model(base, copy.deepcopy(config))
    reference = WeightReference(model)
    untouched = reference.shift(model)
    assert untouched.overall == pytest.approx(0, abs=1e-6)
    perturb(model)
    shift = reference.shift(model)
    truth = merged_weights(model)
    assert set(shift.modules) == set(truth)
    for name, weight in truth.items():
        # PiSSA, too: the shift is from the pretrained weight, not from its residual.
        expected = (weight - originals[name]).norm() / originals[name].norm()
        assert expected > 1e-3
        assert shift.modules[name] == pytest.approx(float(expected), rel=2e-4)
    absolute = math.sqrt(sum(float((w - originals[n]).norm()) ** 2 for n, w in truth.items()))
    total = math.sqrt(sum(float(originals[n].norm()) ** 2 for n in truth))
    assert shift.absolute == pytest.approx(absolute, rel=2e-4)
    assert shift.overall == pytest.approx(absolute / total, rel=2e-4)


def test_update_has_the_orientation_of_the_weight() -> None:
    model = peft.get_peft_model(gpt2(), peft.LoraConfig(r=2, target_modules=GPT2, fan_in_fan_out=True))
    perturb(model)
    for name, weight in merged_weights(model).items():
        module = adapted_modules(model)[name]
        assert torch.allclose(base_weight(module) + weight_update(module), weight.T, atol=1e-6)
        assert torch.allclose(effective_weight(module), weight.T, atol=1e-5)


def test_two_active_adapters_add_up() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(), config)
    model.add_adapter("second", config)
    module = adapted_modules(model)["model.layers.0.self_attn.q_proj"]
    first = weight_update(module)
    model.base_model.set_adapter(["default", "second"])
    both = weight_update(module)
    model.base_model.set_adapter("second")
    assert torch.allclose(both, first + weight_update(module), atol=1e-6)


def test_a_continued_adapter_starts_at_zero() -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=LLAMA, init_lora_weights=False))
    assert WeightReference(model).shift(model).overall == 0


def test_full_fine_tuning_is_measured_by_parameter() -> None:
    model = llama().requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    reference = WeightReference(model)
    perturb(model)
    shift = reference.shift(model)
    name = "model.layers.0.mlp.down_proj"
    expected = (model.state_dict()[f"{name}.weight"] - before[f"{name}.weight"]).norm() / before[
        f"{name}.weight"
    ].norm()
    assert shift.modules[name] == pytest.approx(float(expected))
    assert len(shift.modules) == len(list(model.parameters()))


def test_a_tied_weight_counts_once() -> None:
    shift = WeightReference(gpt2().requires_grad_(True)).shift(gpt2().requires_grad_(True))
    assert "transformer.wte" in shift.modules
    assert "lm_head" not in shift.modules
    assert shift.overall == 0


def test_modules_to_save_are_measured_beside_the_adapter() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(llama(), config)
    reference = WeightReference(model)
    perturb(model)
    shift = reference.shift(model)
    assert set(shift.modules) == {"model.layers.0.self_attn.q_proj", "lm_head.modules_to_save.default"}
    assert all(value > 0 for value in shift.modules.values())


def test_nothing_trainable_is_no_shift() -> None:
    model = llama()
    assert WeightReference(model).shift(model).to_dict() == {
        "overall": 0.0, "absolute": 0.0, "modules": {}, "reasons": {}, "stable_rank": None,
    }  # fmt: skip


def test_a_changed_frozen_base_is_null_with_a_reason() -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    reference = WeightReference(model)
    module = adapted_modules(model)["model.layers.0.self_attn.q_proj"]
    with torch.no_grad():
        module.get_base_layer().weight[0, 0] += 1
    shift = reference.shift(model)
    assert shift.overall is None
    assert shift.modules == {"model.layers.0.self_attn.q_proj": None}
    assert "changed although it is frozen" in shift.reasons["model.layers.0.self_attn.q_proj"]
    assert shift.reasons["overall"] == "unknown for 1 of 1 modules"


def test_merged_and_disabled_adapters_are_refused() -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    module = adapted_modules(model)["model.layers.0.self_attn.q_proj"]
    with model.disable_adapter(), pytest.raises(WeightError, match="disabled"):
        weight_update(module)
    model.merge_adapter()
    with pytest.raises(WeightError, match="merged"):
        weight_update(module)


def test_an_unsupported_layer_is_null_with_a_reason() -> None:
    model = peft.get_peft_model(llama(), peft.LNTuningConfig(target_modules=["input_layernorm"]))
    shift = WeightReference(model).shift(model)
    assert shift.overall is None
    assert "LlamaRMSNorm" in next(iter(shift.reasons.values()))


class Bent(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).tanh()


def test_what_is_no_linear_map_has_no_weight() -> None:
    with pytest.raises(WeightError, match="no linear map"):
        effective_weight(Bent(4, 4))


def test_half_precision_does_not_drown_a_small_update() -> None:
    config = peft.LoraConfig(r=2, target_modules=LLAMA, use_dora=True)
    model = peft.get_peft_model(llama().to(torch.bfloat16), config)

    def exact() -> dict[str, torch.Tensor]:
        return {n: effective_weight(m) for n, m in adapted_modules(copy.deepcopy(model).float()).items()}

    reference, start = WeightReference(model), exact()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1e-5)
    shift, now = reference.shift(model), exact()
    for name, weight in start.items():
        # DoRA's magnitudes are rounded to bfloat16 at the start already: the shift is counted from there.
        assert shift.modules[name] == pytest.approx(float((now[name] - weight).norm() / weight.norm()), rel=1e-2)
        assert 0 < shift.modules[name] < 2**-8  # less than one rounding step of the weights themselves


def test_measuring_leaves_the_mode_of_the_model() -> None:
    model = peft.get_peft_model(
        gpt2(), peft.LoraConfig(r=2, target_modules=GPT2, lora_dropout=0.5, fan_in_fan_out=True)
    )
    model.train()
    reference = WeightReference(model)
    perturb(model)
    assert reference.shift(model) == reference.shift(model)  # dropout is off while measuring
    assert model.training
    assert all(module.training for module in model.modules())


def test_stable_rank_of_known_matrices() -> None:
    assert stable_rank(torch.eye(6)) == pytest.approx(6)
    assert stable_rank(torch.outer(torch.arange(1.0, 4.0), torch.tensor([2.0, -1.0]))) == pytest.approx(1)
    assert stable_rank(torch.diag(torch.tensor([3.0, 2.0, 1.0]))) == pytest.approx(14 / 9)
    A = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    exact = float(A.square().sum() / torch.linalg.matrix_norm(A, 2) ** 2)
    assert stable_rank(A) == pytest.approx(exact, rel=0.03)


def test_stable_rank_of_an_update_is_at_most_its_rank() -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    reference = WeightReference(model)
    assert reference.shift(model).stable_rank is None, "nothing moved"
    perturb(model)
    assert 1 <= reference.shift(model).stable_rank <= 2 + 1e-6
