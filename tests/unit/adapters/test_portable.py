"""An adapter that is taken away gives the original's outputs, whatever the layers are, or is refused with the reason."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from curlora_lab import CurLoraConfig
from curlora_lab.adapters.attach import FullFineTuning, HeadOnly, attach
from curlora_lab.adapters.portable import TOLERANCE, outputs, probe_batch, write_lora, write_merged
from curlora_lab.backbone import Backbone, load_backbone

F32 = torch.float32


def gpt2(vocab: int) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=2, n_positions=64))


def bert(vocab: int) -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return BertModel(BertConfig(vocab_size=vocab, max_position_embeddings=64, **sizes))


@pytest.fixture(params=["tiny", "gpt2", "bert"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Llama-like with Linear, GPT-2 with Conv1D and tied embeddings, an encoder."""
    tiny = load_backbone("builtin")
    if request.param == "tiny":
        return tiny
    torch.manual_seed(0)
    model = {"gpt2": gpt2, "bert": bert}[request.param](tiny.vocab_size).requires_grad_(False).eval()
    return Backbone(
        model,
        tiny.tokenizer,
        name=request.param,
        fingerprint="",
        is_causal=request.param == "gpt2",
        pooling="last_token",
    )


def trained(backbone: Backbone, adapter: Any) -> Callable[[], nn.Module]:
    """Attach and move every trainable number; gives what loads the untouched base."""
    untouched = copy.deepcopy(backbone.model)
    attach(backbone, adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    scale = 0.5 if isinstance(adapter, CurLoraConfig) else 0.05  # its update goes through C and R, small as weights are
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return lambda: copy.deepcopy(untouched)


ADAPTERS: dict[str, Callable[[], Any]] = {
    "curlora": lambda: CurLoraConfig(r=4, alpha=1.7),
    "curlora_svd": lambda: CurLoraConfig(r=4, basis="svd_top"),
    "lora": lambda: LoraConfig(r=4, lora_alpha=4),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=4, use_rslora=True),
    "pissa": lambda: LoraConfig(r=4, lora_alpha=4, init_lora_weights="pissa"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_lora_gives_the_original_outputs_on_the_untouched_base(backbone: Backbone, name: str, tmp_path: Path) -> None:
    base = trained(backbone, ADAPTERS[name]())
    batch = probe_batch(backbone, seed=3)
    expected = outputs(backbone.model, batch)
    assert (outputs(base(), batch) - expected).abs().max() > 10 * TOLERANCE * expected.abs().max()
    written = write_lora(backbone, tmp_path, base=base, dtype=F32)
    found = outputs(PeftModel.from_pretrained(base(), str(tmp_path)), batch)
    assert written.error <= TOLERANCE
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", [*ADAPTERS, "dora", "vera", "full", "none"])
def test_merged_gives_the_original_outputs(backbone: Backbone, name: str, tmp_path: Path) -> None:
    others: dict[str, Callable[[], Any]] = {
        "dora": lambda: LoraConfig(r=4, lora_alpha=4, use_dora=True),
        "vera": lambda: VeraConfig(r=8),
        "full": FullFineTuning,
        "none": HeadOnly,
    }
    trained(backbone, (ADAPTERS | others)[name]())
    batch = probe_batch(backbone, seed=3)
    expected = outputs(backbone.model, batch)
    written = write_merged(backbone, tmp_path, dtype=F32)
    loader = AutoModelForCausalLM if backbone.is_causal else AutoModel
    found = outputs(loader.from_pretrained(tmp_path), batch)
    assert written.error <= TOLERANCE
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (LoraConfig(r=4, use_dora=True), "DoRA rescales each output"),
        (VeraConfig(r=8), "VERA is no product B A"),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "IA3 is no product B A"),
        (FullFineTuning(), "no adapter that could be a LoRA adapter"),
        (HeadOnly(), "no adapter that could be a LoRA adapter"),
    ],
    ids=["dora", "vera", "ia3", "full", "none"],
)
def test_what_has_no_lora_form_is_refused_with_the_reason(adapter: Any, reason: str, tmp_path: Path) -> None:
    backbone = load_backbone("builtin")
    base = trained(backbone, adapter)
    with pytest.raises(ValueError, match=rf"{reason}.*--to merged"):
        write_lora(backbone, tmp_path, base=base, dtype=F32)
    assert not list(tmp_path.iterdir())


def test_an_export_for_another_base_is_found_out(tmp_path: Path) -> None:
    backbone = load_backbone("builtin")
    base = trained(backbone, CurLoraConfig(r=4))

    def other() -> nn.Module:
        model = base()
        with torch.no_grad():
            model.get_input_embeddings().weight[7:] *= 1.01  # type: ignore[operator]
        return model

    with pytest.raises(ValueError, match=r"gives other outputs than the run's model: .* so it is not written"):
        write_lora(backbone, tmp_path, base=other, dtype=F32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_refused_unless_meant(dtype: torch.dtype, tmp_path: Path) -> None:
    backbone = load_backbone("builtin")
    base = trained(backbone, LoraConfig(r=4, lora_alpha=4))
    with pytest.raises(ValueError, match=r"rounds .*--allow-lossy"):
        write_lora(backbone, tmp_path / "refused", base=base, dtype=dtype)
    written = write_lora(backbone, tmp_path / "lossy", base=base, dtype=dtype, allow_lossy=True)
    assert 0 < written.error < 0.1


def test_a_half_precision_base_is_merged_in_float32(tmp_path: Path) -> None:
    backbone = load_backbone("builtin", dtype="bfloat16")
    trained(backbone, CurLoraConfig(r=4))
    assert write_merged(backbone, tmp_path, dtype=F32).error <= TOLERANCE
    assert next(AutoModelForCausalLM.from_pretrained(tmp_path).parameters()).dtype == F32


def test_a_quantised_base_is_not_merged(tmp_path: Path) -> None:
    backbone = load_backbone("builtin")
    backbone.transformers_model.is_quantized = True
    with pytest.raises(ValueError, match=r"is quantised.*--to lora"):
        write_merged(backbone, tmp_path, dtype=F32)


def test_the_batch_holds_ordinary_tokens_of_several_lengths() -> None:
    backbone = load_backbone("builtin")
    batch = probe_batch(backbone, rows=4, length=40)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    real = batch["input_ids"][batch["attention_mask"].bool()]
    assert lengths == [40, 35, 30, 25]
    assert not set(real.tolist()) & set(backbone.tokenizer.all_special_ids)
    assert outputs(backbone.model, batch).shape == (sum(lengths), backbone.vocab_size)
