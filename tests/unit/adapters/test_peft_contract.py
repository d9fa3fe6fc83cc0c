"""What a PEFT user may expect of a tuner, for every kind of model. One law a test; read it as the list of what works."""

import copy
import pickle

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import convert_to_lora
from torch import nn
from transformers import AutoModelForCausalLM

from curlora_lab import CurLoraConfig
from curlora_lab.adapters import CurLoraLinear


def adapted(model):
    return [module for module in model.modules() if isinstance(module, CurLoraLinear)]


def same(a, b, tolerance=2e-6):
    return (a - b).abs().max() <= tolerance * max(1.0, b.abs().max())


# --- making ---------------------------------------------------------------------------------------------------------------


def test_a_new_adapter_leaves_every_bit_of_the_output(case, output):
    base = case.build()
    expected = output(base, case.batch())
    assert torch.equal(output(get_peft_model(base, case.config()), case.batch()), expected)


def test_only_the_cores_are_trained_and_they_have_r_squared_numbers(case):
    model = get_peft_model(case.build(), case.config(r=3))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == case.layers
    assert all("curlora_U" in name and p.shape == (3, 3) and p.dtype == torch.float32 for name, p in trained.items())


@pytest.mark.parametrize("kind", ["regex", "all-linear"])
def test_targets_by_regular_expression_and_all_linear(case, kind):
    targets = case.regex if kind == "regex" else kind
    model = get_peft_model(case.build(), case.config(target_modules=targets, task_type=case.task_type))
    names = {layer.module_name for layer in adapted(model)}
    assert len(names) == case.layers if kind == "regex" else len(names) >= case.layers
    assert not any("head" in name or "classifier" in name for name in names)


def test_excluded_modules_are_left_alone(case):
    model = get_peft_model(case.build(), case.config(exclude_modules=case.targets[:1]))
    assert {layer.module_name.rpartition(".")[2] for layer in adapted(model)} == set(case.targets[1:])


def test_layers_to_transform(gpt2_case):
    model = get_peft_model(gpt2_case.build(), gpt2_case.config(layers_to_transform=[1], layers_pattern="h"))
    assert {layer.module_name.split(".")[2] for layer in adapted(model)} == {"1"}


def test_default_targets_are_known_for_known_models(gpt2_case, llama_case):
    for case, expected in ((gpt2_case, {"c_attn"}), (llama_case, {"q_proj", "v_proj"})):
        model = get_peft_model(case.build(), CurLoraConfig(r=2))
        assert {layer.module_name.rpartition(".")[2] for layer in adapted(model)} == expected


def test_an_embedding_is_refused_by_name(gpt2_case):
    with pytest.raises(TypeError, match=r"'transformer.wte' is a Embedding; CURLoRA adapts nn.Linear"):
        get_peft_model(gpt2_case.build(), gpt2_case.config(target_modules=["wte"]))


def test_the_projection_inside_multihead_attention_is_refused():
    with pytest.raises(TypeError, match="never calls it"):
        get_peft_model(nn.TransformerEncoderLayer(16, 2), CurLoraConfig(r=2, target_modules=["out_proj"]))


def test_a_rank_above_the_shape_is_refused(gpt2_case):
    message = (
        r"rank 17 is larger than 'transformer.h.0.attn.c_attn' allows \(shape 48 x 16, at most 16\); "
        r"lower rank or exclude the module."
    )
    with pytest.raises(ValueError, match=message):
        get_peft_model(gpt2_case.build(), gpt2_case.config(r=17))


def test_the_gradient_of_every_core_is_alpha_C_transposed_G_R_transposed(case):
    """G from plain autograd: the gradient of the effective weight in the merged model."""
    model = get_peft_model(case.build(), case.config(init_weights=False, alpha=0.5)).eval()

    def loss(model):
        result = model(**case.batch())
        return (result if isinstance(result, torch.Tensor) else result.logits).square().sum()

    loss(model).backward()
    layers = {layer.module_name: layer for layer in adapted(model)}
    plain = copy.deepcopy(model).merge_and_unload().requires_grad_(True)
    plain.zero_grad()
    loss(plain).backward()
    for name, layer in layers.items():
        G = plain.get_submodule(name).weight.grad
        G = G.T if layer.is_transposed else G
        expected = 0.5 * layer.curlora_C["default"].T @ G @ layer.curlora_R["default"].T
        torch.testing.assert_close(
            layer.curlora_U["default"].grad, expected, atol=1e-4 * expected.abs().max(), rtol=1e-3
        )


# --- the same basis from the same seed -------------------------------------------------------------------------------------


def test_the_basis_depends_on_seed_and_name_alone(case):
    base = case.build()
    whole = {layer.module_name: layer for layer in adapted(get_peft_model(copy.deepcopy(base), case.config(seed=5)))}
    torch.manual_seed(99)  # the global generator plays no part
    one = get_peft_model(copy.deepcopy(base), case.config(seed=5, target_modules=case.targets[-1:]))
    other = get_peft_model(copy.deepcopy(base), case.config(seed=6))
    for layer in adapted(one):  # another set of modules, the same basis
        assert torch.equal(layer.curlora_R["default"], whole[layer.module_name].curlora_R["default"])
    assert any(
        not torch.equal(layer.curlora_R["default"], whole[layer.module_name].curlora_R["default"])
        for layer in adapted(other)
    )


def test_making_an_adapter_draws_nothing_from_the_global_generator(case):
    base = case.build()
    before = torch.get_rng_state()
    get_peft_model(base, case.config(u_init="gaussian"))
    assert torch.equal(torch.get_rng_state(), before)


# --- disable, switch, delete -----------------------------------------------------------------------------------------------


def test_disabled_it_is_the_base_model(case, output, train_a_little):
    base = case.build()
    expected = output(base, case.batch())
    model = train_a_little(get_peft_model(base, case.config()))
    assert not torch.allclose(output(model, case.batch()), expected)
    with model.disable_adapter():
        assert torch.equal(output(model, case.batch()), expected)


def test_several_adapters_are_switched_and_deleted(case, output, train_a_little):
    base = case.build()
    model = train_a_little(get_peft_model(base, case.config()), seed=1)
    first = output(model, case.batch())
    model.add_adapter("rival", case.config(seed=3, r=2))
    train_a_little(model, "rival", seed=2)
    assert torch.equal(output(model, case.batch()), first)
    model.set_adapter("rival")
    second = output(model, case.batch())
    assert not torch.allclose(first, second)
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad and "_U" in name} == {
        "rival"
    }
    model.delete_adapter("rival")
    assert torch.equal(output(model, case.batch()), first)
    assert not any("rival" in name for name in model.state_dict())


def test_active_together_they_add_their_updates(case, output, train_a_little):
    model = get_peft_model(case.build(), case.config())
    model.add_adapter("rival", case.config(seed=3, r=2, alpha=0.5))
    train_a_little(train_a_little(model, seed=1), "rival", seed=2)
    model.base_model.set_adapter(["default", "rival"])
    together = output(model, case.batch())
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=["default", "rival"])
    assert same(together, output(merged, case.batch()))


def test_status_names_the_method(case):
    status = get_peft_model(case.build(), case.config()).get_model_status()
    assert status.peft_types == {"default": "CURLORA"}
    assert status.num_adapter_layers == case.layers
    assert status.requires_grad == {"default": True}


# --- merge -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unmerge(case, output, train_a_little, safe):
    base = case.build()
    untouched = output(base, case.batch())
    model = train_a_little(get_peft_model(base, case.config()))
    expected = output(model, case.batch())
    model.merge_adapter(safe_merge=safe)
    assert same(output(model, case.batch()), expected)
    model.unmerge_adapter()
    assert same(output(model, case.batch()), expected)
    with model.disable_adapter():
        assert same(output(model, case.batch()), untouched)


def test_merge_and_unload_leaves_a_plain_model(case, output, train_a_little):
    model = train_a_little(get_peft_model(case.build(), case.config()))
    expected = output(model, case.batch())
    plain = model.merge_and_unload(safe_merge=True)
    assert not adapted(plain)
    assert same(output(plain, case.batch()), expected)


def test_unload_gives_the_base_back(case, output, train_a_little):
    base = case.build()
    expected = output(base, case.batch())
    assert torch.equal(output(train_a_little(get_peft_model(base, case.config())).unload(), case.batch()), expected)


def test_an_adapter_merged_beside_an_active_one_still_counts(case, output, train_a_little):
    model = get_peft_model(case.build(), case.config())
    model.add_adapter("rival", case.config(seed=3))
    train_a_little(train_a_little(model, seed=1), "rival", seed=2)
    model.base_model.set_adapter(["default", "rival"])
    expected = output(model, case.batch())
    model.merge_adapter(adapter_names=["rival"])  # now R of "default" is no longer made of rows of W
    assert same(output(model, case.batch()), expected, 1e-5)


def test_safe_merge_refuses_what_is_not_finite(case):
    model = get_peft_model(case.build(), case.config())
    adapted(model)[0].curlora_U["default"].data.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)


# --- files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save_basis", [True, False])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_it_gives_the_same_bits(case, output, train_a_little, tmp_path, save_basis, low_cpu_mem_usage):
    base = case.build()
    model = train_a_little(get_peft_model(copy.deepcopy(base), case.config(save_basis=save_basis, alpha=0.7)))
    expected = output(model, case.batch())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(output(loaded, case.batch()), expected)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not list(tmp_path.glob("*.bin"))


def test_a_second_adapter_is_loaded_beside_the_first(case, output, train_a_little, tmp_path):
    base = case.build()
    model = train_a_little(get_peft_model(copy.deepcopy(base), case.config()))
    expected = output(model, case.batch())
    model.save_pretrained(tmp_path)
    other = train_a_little(get_peft_model(base, case.config(seed=8)), seed=4)
    before = output(other, case.batch())
    other.load_adapter(tmp_path, "loaded")
    assert torch.equal(output(other, case.batch()), before)
    other.set_adapter("loaded")
    assert torch.equal(output(other, case.batch()), expected)


def test_modules_to_save_are_trained_saved_and_merged(output, train_a_little, tmp_path, case):
    if case.head is None:
        pytest.skip("no head of its own")
    base = case.build()
    config = case.config(modules_to_save=[case.head], task_type=case.task_type)
    model = train_a_little(get_peft_model(copy.deepcopy(base), config))
    weights = [p for name, p in model.named_parameters() if f"{case.head}.modules_to_save" in name]
    assert weights
    assert all(p.requires_grad for p in weights)
    with torch.no_grad():
        weights[0].add_(0.1)
    expected = output(model, case.batch())
    model.save_pretrained(tmp_path)
    assert torch.equal(output(PeftModel.from_pretrained(base, tmp_path), case.batch()), expected)
    assert same(output(model.merge_and_unload(), case.batch()), expected)


def test_auto_classes_find_base_and_adapter(gpt2_case, output, train_a_little, tmp_path):
    gpt2_case.build().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = train_a_little(get_peft_model(base, gpt2_case.config()))
    expected = output(model, gpt2_case.batch())
    model.save_pretrained(tmp_path / "adapter")
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(output(auto, gpt2_case.batch()), expected)
    assert isinstance(PeftConfig.from_pretrained(tmp_path / "adapter"), CurLoraConfig)
    inside = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")  # transformers reads adapter folders too
    assert torch.equal(output(inside, gpt2_case.batch()), expected)


@pytest.mark.parametrize("save_basis", [True, False])
def test_transformers_adds_and_loads_it(gpt2_case, output, train_a_little, tmp_path, save_basis):
    base = gpt2_case.build()
    untouched = output(base, gpt2_case.batch())
    model = copy.deepcopy(base)
    model.add_adapter(gpt2_case.config(save_basis=save_basis), "mine")
    train_a_little(model, "mine")
    expected = output(model, gpt2_case.batch())
    model.save_pretrained(tmp_path)
    base.load_adapter(str(tmp_path), "theirs")
    assert torch.equal(output(base, gpt2_case.batch()), expected)
    base.disable_adapters()
    assert torch.equal(output(base, gpt2_case.batch()), untouched)
    base.enable_adapters()
    base.delete_adapter("theirs")
    assert torch.equal(output(base, gpt2_case.batch()), untouched)


def test_transformers_refuses_a_compact_file_of_another_base(gpt2_case, output, train_a_little, tmp_path):
    model = gpt2_case.build()
    model.add_adapter(gpt2_case.config(save_basis=False), "mine")
    train_a_little(model, "mine").save_pretrained(tmp_path)
    other = gpt2_case.build()  # other random weights
    other.load_adapter(str(tmp_path), "theirs")
    with pytest.raises(ValueError, match=r"'transformer.h.0.attn.c_attn' was saved without its basis"):
        output(other, gpt2_case.batch())


# --- combination and conversion --------------------------------------------------------------------------------------------


def test_adapters_with_one_basis_are_combined_by_weight(case, output, train_a_little):
    model = get_peft_model(case.build(), case.config(alpha=2.0))
    model.add_adapter("rival", case.config(alpha=0.5))
    train_a_little(train_a_little(model, seed=1), "rival", seed=2)
    expected = {
        layer.module_name: 0.3 * layer.delta_weight("default") - 1.5 * layer.delta_weight("rival")
        for layer in adapted(model)
    }
    model.base_model.add_weighted_adapter(["default", "rival"], [0.3, -1.5], "sum")
    for layer in adapted(model):
        torch.testing.assert_close(layer.delta_weight("sum"), expected[layer.module_name], atol=1e-6, rtol=1e-5)


def test_adapters_with_different_bases_are_not_combined(gpt2_case):
    model = get_peft_model(gpt2_case.build(), gpt2_case.config())
    model.add_adapter("rival", gpt2_case.config(seed=1))
    with pytest.raises(ValueError, match=r"different bases at 'transformer.h.0.attn.c_attn'.*same seed"):
        model.base_model.add_weighted_adapter(["default", "rival"], [0.5, 0.5], "sum")
    with pytest.raises(ValueError, match="unknown adapters"):
        model.base_model.add_weighted_adapter(["absent"], [1.0], "sum")
    with pytest.raises(ValueError, match="2 weights for 1 adapters"):
        model.base_model.add_weighted_adapter(["default"], [1.0, 2.0], "sum")


def test_pefts_own_conversion_to_lora(case, output, train_a_little):
    base = case.build()
    model = train_a_little(get_peft_model(copy.deepcopy(base), case.config()))
    expected = output(model, case.batch())
    assert model.supports_lora_conversion()
    config, weights = convert_to_lora(model, rank=4)
    lora = get_peft_model(base, config)
    peft.set_peft_model_state_dict(lora, weights)
    assert same(output(lora, case.batch()), expected, 1e-5)


# --- dtype, copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_basis_has_the_dtype_of_the_base_and_the_core_float32(case, output, dtype):
    base = case.build().to(dtype)
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in case.batch().items()}
    expected = output(base, batch)
    model = get_peft_model(base, case.config())
    for layer in adapted(model):
        assert layer.curlora_U["default"].dtype == torch.float32
        assert layer.curlora_C["default"].dtype == layer.curlora_R["default"].dtype == dtype
    assert torch.equal(output(model, batch), expected)
    low = get_peft_model(case.build().to(dtype), case.config(), autocast_adapter_dtype=False)
    assert all(layer.curlora_U["default"].dtype == dtype for layer in adapted(low))


def test_models_and_configurations_can_be_copied_and_pickled(case, output, train_a_little):
    config = case.config()
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    model = train_a_little(get_peft_model(case.build(), config))
    expected = output(model, case.batch())
    twin = copy.deepcopy(model)
    train_a_little(model, seed=9)
    assert torch.equal(output(twin, case.batch()), expected)
    assert torch.equal(output(pickle.loads(pickle.dumps(twin)), case.batch()), expected)


def test_all_parts_follow_the_model_to_another_device(case):
    model = get_peft_model(case.build(), case.config(orthonormal=True)).to("meta")
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_generation_works_and_changes_with_the_adapter(gpt2_case, train_a_little):
    model = get_peft_model(gpt2_case.build(), gpt2_case.config(alpha=1e4)).eval()
    prompt = gpt2_case.batch()["input_ids"]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    before = model.generate(input_ids=prompt, **options)
    after = train_a_little(model).generate(input_ids=prompt, **options)
    assert before.shape == after.shape == (3, 11)
    assert not torch.equal(before, after)
