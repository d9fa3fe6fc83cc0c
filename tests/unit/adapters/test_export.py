"""The closed-form LoRA export."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from curlora_lab import CurLoraConfig, to_lora
from curlora_lab.adapters import CurLoraLinear, export
from curlora_lab.adapters.export import lora_factors


def curlora_layers(model):
    return {layer.module_name: layer for layer in model.modules() if isinstance(layer, CurLoraLinear)}


def lora_deltas(model):
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("alpha", [1.0, 2.0, 0.3])
def test_plain_lora_has_the_same_update_bit_for_bit(case, output, train_a_little, tmp_path, alpha):
    base = case.build()
    model = train_a_little(get_peft_model(copy.deepcopy(base), case.config(alpha=alpha)))
    report = to_lora(model, tmp_path, batch=case.batch())
    lora = PeftModel.from_pretrained(base, tmp_path)
    deltas = lora_deltas(lora)
    for name, layer in curlora_layers(model).items():
        assert torch.equal(deltas[name], layer.get_delta_weight("default"))
    assert report.modules == len(deltas) == case.layers
    assert report.delta_error == 0
    assert report.output_error < 1e-5
    expected = output(model, case.batch())
    assert (output(lora, case.batch()) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("alpha", [4.0, 0.3])
def test_alpha_folded_into_B_is_exact_for_powers_of_two_and_close_otherwise(gpt2_case, train_a_little, alpha):
    model = train_a_little(get_peft_model(gpt2_case.build(), gpt2_case.config(alpha=alpha)))
    for layer in curlora_layers(model).values():
        A, B = lora_factors(layer, "default")
        outside = alpha * ((layer.curlora_C["default"] @ layer.curlora_U["default"]) @ layer.curlora_R["default"])
        error = (B @ A - outside).abs().max() / outside.abs().max()
        assert error == 0 if alpha == 4 else error <= 1e-6


@pytest.mark.parametrize(
    "options",
    [{"orthonormal": True}, {"basis": "svd_top"}, {"replacement": True, "duplicates": "merge", "r": 12}],
)
def test_every_kind_of_basis_is_exported(gpt2_case, output, train_a_little, tmp_path, options):
    base = gpt2_case.build()
    model = train_a_little(get_peft_model(copy.deepcopy(base), gpt2_case.config(**options)))
    assert to_lora(model, tmp_path, batch=gpt2_case.batch()).delta_error == 0
    lora = PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(output(lora, gpt2_case.batch()), output(model, gpt2_case.batch()), atol=1e-5, rtol=1e-4)


def test_a_named_adapter_beside_others_and_one_injected_by_transformers(gpt2_case, train_a_little, tmp_path):
    model = gpt2_case.build()
    model.add_adapter(gpt2_case.config(), "one")
    model.add_adapter(gpt2_case.config(seed=2), "two")
    train_a_little(train_a_little(model, "one"), "two")
    to_lora(model, tmp_path, "one", batch=gpt2_case.batch())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    layer = curlora_layers(model)["transformer.h.0.attn.c_attn"]
    assert torch.equal(tensors["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"], layer.curlora_R["one"])
    assert layer.active_adapters == ["two"]


def test_heads_go_with_it_unless_told_otherwise(train_a_little, output, tmp_path, case):
    if case.head is None:
        pytest.skip("no head of its own")
    base = case.build()
    config = case.config(modules_to_save=[case.head], task_type=case.task_type)
    model = train_a_little(get_peft_model(copy.deepcopy(base), config))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if f"{case.head}.modules_to_save" in name).add_(0.5)
    to_lora(model, tmp_path / "with")
    lora = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "with")
    torch.testing.assert_close(output(lora, case.batch()), output(model, case.batch()), atol=1e-5, rtol=1e-4)
    to_lora(model, tmp_path / "without", modules_to_save=False)
    assert all("lora_" in name for name in load_file(tmp_path / "without" / "adapter_model.safetensors"))
    assert json.loads((tmp_path / "without" / "adapter_config.json").read_text())["modules_to_save"] is None


def test_a_dtype_that_rounds_is_refused_unless_asked_for(gpt2_case, train_a_little, tmp_path):
    model = train_a_little(get_peft_model(gpt2_case.build(), gpt2_case.config()))
    with pytest.raises(ValueError, match=r"dtype=torch.bfloat16 rounds lora_A of 'transformer.h.0.attn.c_attn'"):
        to_lora(model, tmp_path, dtype=torch.bfloat16)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    report = to_lora(model, tmp_path, dtype=torch.bfloat16, allow_lossy=True)
    assert 0 < report.delta_error < 0.05


def test_what_cannot_be_exported_is_refused(gpt2_case, tmp_path):
    model = get_peft_model(gpt2_case.build(), gpt2_case.config())
    with pytest.raises(ValueError, match="no CURLoRA adapter 'absent'; it has default"):
        to_lora(model, tmp_path, "absent")
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge them first"):
        to_lora(model, tmp_path)


def test_a_damaged_file_does_not_pass_the_check(gpt2_case, train_a_little, tmp_path, monkeypatch):
    model = train_a_little(get_peft_model(gpt2_case.build(), gpt2_case.config()))

    def damaging(tensors, path, metadata):
        name = next(name for name in tensors if "lora_B" in name)
        save_file(tensors | {name: tensors[name] * 1.001}, path, metadata=metadata)

    monkeypatch.setattr(export, "save_file", damaging)
    with pytest.raises(RuntimeError, match=r"differs by 0.001 \(relative\) .*, then export again"):
        to_lora(model, tmp_path)


def test_the_model_is_left_as_it_was(gpt2_case, output, train_a_little, tmp_path):
    model = train_a_little(get_peft_model(gpt2_case.build(), gpt2_case.config())).train()
    to_lora(model, tmp_path, batch=gpt2_case.batch())
    assert model.training
    assert model.active_adapters == ["default"]
    assert not any(layer._forward_hooks for layer in curlora_layers(model).values())


@pytest.mark.slow
def test_plain_peft_loads_it_in_a_process_that_knows_nothing_of_this_package(
    gpt2_case, output, train_a_little, tmp_path
):
    base = gpt2_case.build()
    base.save_pretrained(tmp_path / "base")
    model = train_a_little(get_peft_model(base, gpt2_case.config(alpha=50.0)))
    to_lora(model, tmp_path / "lora", batch=gpt2_case.batch())
    save_file({"ids": gpt2_case.batch()["input_ids"]}, tmp_path / "batch.safetensors")
    script = """
import sys, torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
ids = load_file(f"{folder}/batch.safetensors")["ids"]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(f"{folder}/base"), f"{folder}/lora").eval()
assert not any(name.startswith("curlora") for name in sys.modules)
with torch.no_grad():
    save_file({"logits": model(ids).logits.contiguous()}, f"{folder}/logits.safetensors")
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=tmp_path, timeout=300)
    found, expected = load_file(tmp_path / "logits.safetensors")["logits"], output(model, gpt2_case.batch())
    assert (found - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max())


def test_the_exports_configuration_is_plain_lora(gpt2_case, tmp_path):
    model = get_peft_model(gpt2_case.build(), CurLoraConfig(r=4, target_modules=["c_attn"], dropout=0.1))
    to_lora(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["use_rslora"]) == ("LORA", 4, 4, False)
    assert config["fan_in_fan_out"]
    assert config["bias"] == "none"
