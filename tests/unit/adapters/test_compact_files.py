"""Adapters saved without `C` and `R`: kilobytes, and never combined with a base that they do not belong to."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from curlora_lab import CurLoraConfig
from curlora_lab.adapters import CurLoraLinear
from curlora_lab.adapters.fingerprint import check_fingerprint, take_fingerprint


def first(tensors, ending):
    return min(name for name in tensors if name.endswith(ending))


def rewrite(folder, change):
    """Change the tensors of a saved adapter."""
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def reseed(folder):
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config.replace('"seed": 0', '"seed": 77'))


@pytest.fixture
def saved(gpt2_case, output, train_a_little, tmp_path):
    """A base, a folder with a compact adapter for it, and the output of both."""
    base = gpt2_case.build()
    model = train_a_little(get_peft_model(copy.deepcopy(base), gpt2_case.config(save_basis=False)))
    model.save_pretrained(tmp_path)
    return base, tmp_path, output(model, gpt2_case.batch())


def test_gpt2_small_fits_into_40_kilobytes(tmp_path):
    with torch.device("meta"):
        base = GPT2Model(GPT2Config())
    base.to_empty(device="cpu")
    for block in base.h:
        block.attn.c_attn.weight.data.normal_()
    model = get_peft_model(base, CurLoraConfig(r=16, target_modules=["c_attn"], save_basis=False))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 30_000
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 40_000


def test_the_file_holds_core_indices_and_fingerprint_only(saved):
    _, folder, _ = saved
    kinds = {name.rpartition(".")[2] for name in load_file(folder / "adapter_model.safetensors")}
    assert kinds == {"curlora_U", "curlora_columns", "curlora_rows", "curlora_fingerprint"}


def test_another_base_is_refused_by_the_name_of_the_module(saved, gpt2_case):
    with pytest.raises(ValueError, match=r"'transformer.h.0.attn.c_attn' was saved without its basis.*sha256"):
        PeftModel.from_pretrained(gpt2_case.build(), saved[1])


def test_a_base_changed_in_one_entry_is_refused(saved):
    base, folder, _ = saved
    with torch.no_grad():
        base.transformer.h[1].mlp.c_proj.weight[3, 5] += 1e-6
    with pytest.raises(ValueError, match=r"'transformer.h.1.mlp.c_proj' was saved.*merged or trained since"):
        PeftModel.from_pretrained(base, folder)


def test_a_merged_base_is_refused(saved, gpt2_case, train_a_little):
    base, folder, _ = saved
    merged = train_a_little(get_peft_model(base, gpt2_case.config(seed=9))).merge_and_unload()
    with pytest.raises(ValueError, match="merged or trained since"):
        PeftModel.from_pretrained(merged, folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_of_another_shape_is_refused(saved, dtype):
    other = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=2))
    with pytest.raises(ValueError, match=r"columns or rows outside the shape \(24, 8\) of this base"):
        PeftModel.from_pretrained(other.to(dtype), saved[1])


@pytest.mark.parametrize(("part", "index"), [("columns", 20), ("columns", -1), ("rows", 48), ("rows", -1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_indices_that_the_weight_does_not_have_are_refused(saved, part, index, dtype):
    """Shape 48 x 16: a column of 20 is below the larger side and yet not there."""
    base, folder, _ = saved
    rewrite(folder, lambda tensors: tensors[first(tensors, f"c_attn.curlora_{part}")].__setitem__(2, index))
    with pytest.raises(ValueError, match=r"'transformer.h.0.attn.c_attn'.*outside the shape \(48, 16\) of this base"):
        PeftModel.from_pretrained(base.to(dtype), folder)


FINGERPRINTS_LOST = {
    "zeros": lambda tensors: [tensors[name].zero_() for name in tensors if name.endswith("fingerprint")],
    "missing": lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith("fingerprint")],
}


@pytest.mark.parametrize("lost", FINGERPRINTS_LOST)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_without_a_fingerprint_foreign_indices_are_refused(saved, lost, low_cpu_mem_usage):
    """`C` and `R` would come from the seed and the base that is there, whatever the file says."""
    base, folder, _ = saved
    rewrite(folder, FINGERPRINTS_LOST[lost])
    reseed(folder)
    with pytest.raises(ValueError, match=r"'transformer.h.0.attn.c_attn' .* without a fingerprint"):
        PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=low_cpu_mem_usage)


@pytest.mark.parametrize("lost", FINGERPRINTS_LOST)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_without_a_fingerprint_another_base_is_refused(saved, lost, gpt2_case):
    rewrite(saved[1], FINGERPRINTS_LOST[lost])
    with pytest.raises(ValueError, match=r"'transformer.h.0.attn.c_attn' .* without a fingerprint"):
        PeftModel.from_pretrained(gpt2_case.build(), saved[1])


@pytest.mark.parametrize("lost", FINGERPRINTS_LOST)
def test_transformers_refuses_it_too(saved, lost, gpt2_case, output):
    rewrite(saved[1], FINGERPRINTS_LOST[lost])
    other = gpt2_case.build()
    other.load_adapter(str(saved[1]), "theirs")
    with pytest.raises(ValueError, match=r"'transformer.h.0.attn.c_attn' .* without a fingerprint"):
        output(other, gpt2_case.batch())


def test_indices_without_a_fingerprint_are_compared_with_the_shape_first(saved):
    base, folder, _ = saved
    rewrite(folder, FINGERPRINTS_LOST["zeros"])
    rewrite(folder, lambda tensors: tensors[first(tensors, "c_attn.curlora_columns")].__setitem__(0, 20))
    with pytest.raises(ValueError, match=r"names columns \d+ to 20 of 'transformer.h.0.attn.c_attn', which has 16"):
        PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize("options", [{}, {"orthonormal": True}, {"replacement": True, "duplicates": "merge", "r": 8}])
def test_a_state_dict_loads_on_its_own_base_and_no_other(gpt2_case, output, train_a_little, options):
    """A state dict has no fingerprint, which is taken when a folder is saved."""
    base = gpt2_case.build()
    config = gpt2_case.config(save_basis=False, **options)
    model = train_a_little(get_peft_model(copy.deepcopy(base), config))
    twin = get_peft_model(copy.deepcopy(base), config)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(output(twin, gpt2_case.batch()), output(model, gpt2_case.batch()))
    other = get_peft_model(gpt2_case.build(), config)
    with pytest.raises(ValueError, match="without a fingerprint"):
        other.load_state_dict(model.state_dict())  # brings the base weights too, but C and R stay those of the old ones
    with pytest.raises(ValueError, match="without a fingerprint"):
        get_peft_model(gpt2_case.build().to("meta"), config).load_state_dict(model.state_dict(), assign=True)


def test_a_new_adapter_may_be_cast_and_merged_before_its_first_forward(gpt2_case, output, train_a_little):
    """It was chosen here, so there is nothing to compare, though rounding or merging changed the base since."""
    for change in (
        lambda model: model.to(torch.bfloat16),
        lambda model: model.merge_adapter(adapter_names=["default"]),
    ):
        model = get_peft_model(gpt2_case.build(), gpt2_case.config(save_basis=False, orthonormal=True))
        model.add_adapter("other", gpt2_case.config(save_basis=False, seed=1))
        train_a_little(model)
        change(model)
        model.set_adapter("other")
        assert output(model, gpt2_case.batch()).isfinite().all()


def test_a_file_loaded_past_peft_is_checked_after_a_move_too(saved, gpt2_case, output):
    other = gpt2_case.build()
    other.load_adapter(str(saved[1]), "theirs")
    with pytest.raises(ValueError, match="was saved without its basis"):
        output(other.double(), gpt2_case.batch())


@pytest.mark.parametrize("part", ["C", "R"])
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_file_that_lost_a_factor_is_refused(gpt2_case, tmp_path, part):
    get_peft_model(gpt2_case.build(), gpt2_case.config()).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop(first(tensors, f"c_attn.curlora_{part}")))
    with pytest.raises(ValueError, match=r"'transformer.h.0.attn.c_attn' arrives as columns and rows without C and R"):
        PeftModel.from_pretrained(gpt2_case.build(), tmp_path)


def test_in_another_dtype_a_slight_fine_tuning_of_the_base_is_not_seen(saved, output, gpt2_case):
    """What the documentation of `save_basis` says: only norms can be compared there."""
    base, folder, _ = saved
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(1.003)
    with pytest.raises(ValueError, match="merged or trained since"):
        PeftModel.from_pretrained(copy.deepcopy(base), folder)
    with pytest.warns(UserWarning, match="norms agree"):
        PeftModel.from_pretrained(base.to(torch.bfloat16), folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_base_in_another_dtype_is_accepted_with_a_warning(saved, gpt2_case, output, dtype):
    base, folder, expected = saved
    with pytest.warns(UserWarning, match="saved on a base in float32 and is rebuilt from one in"):
        model = PeftModel.from_pretrained(base.to(dtype), folder)
    found = output(model, gpt2_case.batch()).float()
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


def test_another_base_in_another_dtype_is_refused_by_its_norms(saved, gpt2_case):
    with pytest.raises(ValueError, match="the norms of this base"):
        PeftModel.from_pretrained(gpt2_case.build().to(torch.bfloat16), saved[1])


def test_it_is_not_saved_while_merged_or_after_the_base_was_changed(gpt2_case, train_a_little, tmp_path):
    model = train_a_little(get_peft_model(gpt2_case.build(), gpt2_case.config(save_basis=False)))
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"cannot be saved with save_basis=False.*unmerge it"):
        model.save_pretrained(tmp_path)


def test_a_base_that_cannot_be_rebuilt_is_no_option():
    with pytest.raises(ValueError, match="save_basis=False needs a basis that can be rebuilt from indices"):
        CurLoraConfig(basis="svd_top", save_basis=False)


@pytest.mark.parametrize(
    "options", [{"orthonormal": True}, {"replacement": True, "duplicates": "merge", "r": 8}, {"basis": "deim"}]
)
def test_every_rebuildable_basis_comes_back_bit_for_bit(gpt2_case, output, train_a_little, tmp_path, options):
    base = gpt2_case.build()
    model = train_a_little(get_peft_model(copy.deepcopy(base), gpt2_case.config(save_basis=False, **options)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(output(loaded, gpt2_case.batch()), output(model, gpt2_case.batch()))


def test_the_stored_indices_count_and_not_the_seed(saved, gpt2_case, output):
    """A later release may draw otherwise: the file says which columns and rows were meant."""
    base, folder, expected = saved
    reseed(folder)
    assert torch.equal(output(PeftModel.from_pretrained(base, folder), gpt2_case.batch()), expected)


def test_moving_the_model_does_not_hash_the_base_again(saved, gpt2_case, monkeypatch):
    model = PeftModel.from_pretrained(saved[0], saved[1])
    monkeypatch.setattr("curlora_lab.adapters.compact.check_fingerprint", lambda *a, **k: pytest.fail("hashed again"))
    model.to("cpu").double().float().eval()(**gpt2_case.batch())


def test_with_its_basis_an_adapter_loads_on_any_base(gpt2_case, output, train_a_little, tmp_path):
    """The update stays `alpha C U R`; it is computed from the input, since R is not made of rows of the new base."""
    model = train_a_little(get_peft_model(gpt2_case.build(), gpt2_case.config()))
    model.save_pretrained(tmp_path)
    other = PeftModel.from_pretrained(gpt2_case.build(), tmp_path)
    for layer, twin in zip(other.modules(), model.modules(), strict=True):
        if isinstance(layer, CurLoraLinear):
            assert torch.equal(layer.delta_weight("default"), twin.delta_weight("default"))
            assert not layer.standing["default"].by_output
    expected = output(copy.deepcopy(other).merge_and_unload(), gpt2_case.batch())
    torch.testing.assert_close(output(other, gpt2_case.batch()), expected, atol=1e-5, rtol=1e-4)


def test_indices_beyond_the_weight_are_refused(gpt2_case, tmp_path):
    model = get_peft_model(gpt2_case.build(), gpt2_case.config())
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors[first(tensors, "rows")].__setitem__(0, 10_000))
    with pytest.raises(ValueError, match=r"names rows \d+ to 10000 of 'transformer.h.0.attn.c_attn', which has 48"):
        PeftModel.from_pretrained(gpt2_case.build(), tmp_path)


def test_a_file_of_another_rank_is_refused(gpt2_case, tmp_path):
    get_peft_model(gpt2_case.build(), gpt2_case.config(r=2)).save_pretrained(tmp_path)
    config = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config.replace('"r": 2', '"r": 3'))
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(gpt2_case.build(), tmp_path)


def test_fingerprints_of_quantised_weights_allow_for_their_rounding():
    W = torch.randn(64, 32)
    columns, rows = torch.arange(4), torch.arange(4)
    stored = take_fingerprint(W, columns, rows, dtype="bfloat16")
    rounded = W + 0.03 * torch.randn_like(W)
    with pytest.warns(UserWarning, match="bnb 4bit uint8"):
        check_fingerprint(stored, rounded, columns, rows, dtype="bnb 4bit uint8", name="x")
    with pytest.raises(ValueError, match="differ by up to"):
        check_fingerprint(stored, rounded * 1.5, columns, rows, dtype="bnb 4bit uint8", name="x")
