"""A different adapter for each row of a batch."""

import pytest
import torch
from peft import get_peft_model

from curlora_lab.adapters import CurLoraLinear, mixed


def with_three_adapters(case, train_a_little, **third):
    model = get_peft_model(case.build(), case.config(alpha=3.0))
    model.add_adapter("one", case.config(alpha=0.5))  # same seed: shares C and R with "default"
    model.add_adapter("two", case.config(**({"seed": 5} | third)))
    for seed, name in enumerate(("default", "one", "two")):
        train_a_little(model, name, seed=seed)
    return model.eval()


@pytest.mark.parametrize("third", [{}, {"r": 2}, {"basis": "gaussian"}, {"orthonormal": True}])
def test_each_row_is_as_if_alone_with_its_adapter(case, output, train_a_little, third):
    model, batch = with_three_adapters(case, train_a_little, **third), case.batch()
    names = ["two", "__base__", "one"]
    found = output(model, batch, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], alone(model, batch, name, output)[row], atol=1e-5, rtol=1e-4)


def alone(model, batch, name, output):
    if name == "__base__":
        with model.disable_adapter():
            return output(model, batch)
    model.set_adapter(name)
    return output(model, batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_in_half_precision(case, output, train_a_little, dtype):
    """With a bias (all but llama) such layers compute the update from the input, also in a mixed batch."""
    model = with_three_adapters(case, train_a_little).to(dtype)
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in case.batch().items()}
    names = ["two", "__base__", "one"]
    found = output(model, batch, adapter_names=names)
    assert found.dtype == dtype
    for row, name in enumerate(names):
        expected = alone(model, batch, name, output)[row].float()
        assert (found[row].float() - expected).abs().max() <= 0.03 * expected.abs().max()


def test_each_row_has_the_head_of_its_adapter(case, output, train_a_little):
    if case.head is None:
        pytest.skip("no head of its own")
    model = get_peft_model(case.build(), case.config(modules_to_save=[case.head]))
    model.add_adapter("one", case.config(alpha=0.5, modules_to_save=[case.head]))
    for seed, name in enumerate(("default", "one")):
        train_a_little(model, name, seed=seed)
        for key, parameter in model.named_parameters():
            if f"modules_to_save.{name}" in key:
                parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    names = ["one", "__base__", "default"]
    found = output(model, case.batch(), adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], alone(model, case.batch(), name, output)[row], atol=1e-5, rtol=1e-4)


def test_adapters_with_one_seed_share_one_group(gpt2_case, train_a_little, monkeypatch):
    model = with_three_adapters(gpt2_case, train_a_little)
    groups = []
    real = mixed._add_group
    monkeypatch.setattr(mixed, "_add_group", lambda *args: groups.append(args[3]) or real(*args))
    model(**gpt2_case.batch(), adapter_names=["default", "one", "default"])
    assert groups == [["default", "one"]] * gpt2_case.layers


def test_equality_of_bases_is_looked_up_once_and_again_after_a_change(gpt2_case, train_a_little):
    model = with_three_adapters(gpt2_case, train_a_little)
    layer = next(module for module in model.modules() if isinstance(module, CurLoraLinear))
    assert mixed.share_basis(layer, "default", "one")
    assert not mixed.share_basis(layer, "default", "two")
    layer.curlora_R["one"] = layer.curlora_R["one"] + 1
    assert not mixed.share_basis(layer, "default", "one")


def test_generation_with_beams(gpt2_case, train_a_little):
    model = with_three_adapters(gpt2_case, train_a_little)
    prompt = gpt2_case.batch()["input_ids"]
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(prompt)
    mixed_batch = model.generate(input_ids=prompt, adapter_names=["default", "two", "__base__"], **options)
    model.set_adapter("two")
    assert torch.equal(mixed_batch[1], model.generate(input_ids=prompt, **options)[1, : mixed_batch.shape[1]])


def test_the_names_are_gone_after_the_call_even_if_it_fails(gpt2_case, output, train_a_little):
    model = with_three_adapters(gpt2_case, train_a_little)
    before = output(model, gpt2_case.batch())
    with pytest.raises(ValueError, match=r"2 adapter_names for a batch of 3 rows at 'transformer.h.0.attn.c_attn'"):
        output(model, gpt2_case.batch(), adapter_names=["one", "two"])
    assert torch.equal(output(model, gpt2_case.batch()), before)


def test_what_cannot_be_is_refused(gpt2_case, output, train_a_little):
    model = with_three_adapters(gpt2_case, train_a_little)
    with pytest.raises(ValueError, match=r"unknown adapters absent; there are default, one, two, and __base__"):
        output(model, gpt2_case.batch(), adapter_names=["absent", "one", "two"])
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"cannot be used while adapters .default. are merged"):
        output(model, gpt2_case.batch(), adapter_names=["default", "one", "two"])
    model.unmerge_adapter()
    model.train()
    with pytest.raises(ValueError, match=r"for inference; call model.eval\(\) first"):
        model(**gpt2_case.batch(), adapter_names=["default", "one", "two"])


def test_heads_are_not_averaged(llama_case):
    config = llama_case.config(modules_to_save=[llama_case.head])
    model = get_peft_model(llama_case.build(), config)
    model.add_adapter("one", config)
    with pytest.raises(ValueError, match="own modules_to_save cannot be combined; switch between them"):
        model.base_model.add_weighted_adapter(["default", "one"], [0.5, 0.5], "sum")


def test_pefts_mixed_models_are_refused(llama_case):
    """Tuners of several kinds in one model: PEFT has a closed list of them."""
    with pytest.raises(ValueError, match=r"(?s)CURLORA.*Compatible types are"):
        get_peft_model(llama_case.build(), llama_case.config(), mixed=True)
