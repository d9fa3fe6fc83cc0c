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


def test_a_base_of_another_shape_is_refused(saved):
    other = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=2))
    with pytest.raises(ValueError, match=r"columns or rows beyond the shape \(24, 8\) of this base"):
        PeftModel.from_pretrained(other, saved[1])


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
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config.replace('"seed": 0', '"seed": 77'))
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
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("rows"))
    tensors[name][0] = 10_000
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
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
