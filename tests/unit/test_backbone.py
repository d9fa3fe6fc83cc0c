"""Backbones: what is pooled, what is loaded from where, what is refused, and what the fingerprint sees."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from curlora_lab import CurLoraConfig
from curlora_lab.adapters.attach import attach, trainable_state
from curlora_lab.backbone import (
    BUILTIN_FOLDER,
    POOLINGS,
    Backbone,
    linear_names,
    load_backbone,
    load_tokenizer,
    pool,
    resolve_targets,
)

Make = Callable[..., Backbone]
KINDS = ["llama", "gpt2", "bert", "roberta", "distilbert"]


@pytest.fixture(scope="module")
def builtin() -> Backbone:
    return load_backbone("builtin")


@pytest.fixture
def save(make_model: Any, builtin_tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write a small model with the built-in tokenizer as a folder in Hugging Face format."""

    def write(kind: str, name: str = "model", **changes: Any) -> Path:
        folder = tmp_path / name
        make_model(kind).save_pretrained(folder)
        builtin_tokenizer.save_pretrained(folder)
        if changes:
            file = folder / "config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return folder

    return write


# -- pooling -----------------------------------------------------------------------------------------------------------


def test_pool_by_hand() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    right, left = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[0, 0, 1], [0, 1, 1]])
    assert pool(hidden, right, "last_token").tolist() == [[2, 3], [10, 11]]
    assert pool(hidden, left, "last_token").tolist() == [[4, 5], [10, 11]]
    assert pool(hidden, right, "cls").tolist() == [[0, 1], [6, 7]]
    assert pool(hidden, left, "cls").tolist() == [[4, 5], [8, 9]]
    assert pool(hidden, right, "mean").tolist() == [[1, 2], [8, 9]]
    assert pool(hidden, left, "mean").tolist() == [[4, 5], [9, 10]]
    assert pool(hidden, right, "last_position").tolist() == [[4, 5], [10, 11]]


def test_mean_counts_right_in_half_precision() -> None:
    hidden = torch.ones(1, 771, 1, dtype=torch.bfloat16)
    found = pool(hidden, torch.ones(1, 771, dtype=torch.int64), "mean")
    assert found.item() == 1.0
    assert found.dtype == torch.bfloat16


def spoil(batch: dict[str, Tensor], token: int) -> dict[str, Tensor]:
    """Another token at every padding position."""
    mask = batch["attention_mask"]
    return {"input_ids": torch.where(mask.bool(), batch["input_ids"], token), "attention_mask": mask}


def on_the_left(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same texts, padded on the left."""
    lengths = batch["attention_mask"].sum(dim=1)
    moved = {
        key: torch.stack([row.roll(len(row) - int(n)) for row, n in zip(value, lengths, strict=True)])
        for key, value in batch.items()
    }
    assert moved["attention_mask"][:, -1].all()
    return moved


@pytest.mark.parametrize("pooling", ["last_token", "mean", "cls"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_read(kind: str, pooling: Any, make_backbone: Make, batch: dict[str, Tensor]) -> None:
    if pooling == "cls" and kind in ("llama", "gpt2"):
        pytest.skip("refused for decoders")
    backbone = make_backbone(kind, pooling=pooling)
    for padded in (batch, on_the_left(batch)):
        expected = backbone.features(**padded)
        assert expected.shape == (3, backbone.hidden_size)
        torch.testing.assert_close(backbone.features(**spoil(padded, 17)), expected, rtol=1e-5, atol=1e-5)
    alone = torch.cat(
        [backbone.features(row[None, :n], torch.ones(1, n, dtype=torch.int64)) for row, n in texts(batch)]
    )
    torch.testing.assert_close(backbone.features(**batch), alone, rtol=1e-4, atol=1e-5)


def texts(batch: dict[str, Tensor]) -> list[tuple[Tensor, int]]:
    return [
        (row, int(n)) for row, n in zip(batch["input_ids"], batch["attention_mask"].sum(dim=1).tolist(), strict=True)
    ]


def test_side_of_padding_does_not_matter_to_relative_positions(make_backbone: Make, batch: dict[str, Tensor]) -> None:
    backbone = make_backbone("llama")
    torch.testing.assert_close(
        backbone.features(**on_the_left(batch)), backbone.features(**batch), rtol=1e-4, atol=1e-5
    )


def test_last_position_reads_padding_as_published(make_backbone: Make, batch: dict[str, Tensor]) -> None:
    backbone = make_backbone("gpt2", pooling="last_position")
    before, after = backbone.features(**batch), backbone.features(**spoil(batch, 17))
    assert torch.allclose(before[0], after[0])  # the longest text has no padding
    assert not torch.allclose(before[1:], after[1:], atol=1e-3)
    assert not torch.allclose(before[1], make_backbone("gpt2").features(**batch)[1], atol=1e-3)


def test_unknown_pooling(make_backbone: Make) -> None:
    with pytest.raises(ValueError, match="pooling='max' is unknown; choose one of " + ", ".join(POOLINGS)):
        make_backbone("llama", pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pooling=cls reads the first token"):
        make_backbone("gpt2", pooling="cls")


# -- language model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_features_are_what_the_lm_head_reads(kind: str, make_backbone: Make, batch: dict[str, Tensor]) -> None:
    backbone = make_backbone(kind)
    logits = backbone.lm_logits(**batch)
    assert logits.shape == (3, 7, backbone.vocab_size)
    head = backbone.model.get_output_embeddings()
    assert torch.allclose(head(backbone.features(**batch))[0], logits[0, -1], atol=1e-5)


def test_an_encoder_has_no_lm_head(make_backbone: Make, batch: dict[str, Tensor]) -> None:
    with pytest.raises(
        ValueError, match="'small-bert' is an encoder and has no next-token LM head; use a causal model"
    ):
        make_backbone("bert").lm_logits(**batch)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind: str, make_backbone: Make, builtin_tokenizer: Any) -> None:
    backbone = make_backbone(kind)
    assert (backbone.hidden_size, backbone.context) == (32, 64)
    assert backbone.vocab_size == len(builtin_tokenizer)
    attach(backbone, CurLoraConfig(r=2), seed=0)
    assert (backbone.hidden_size, backbone.context) == (32, 64)  # also through PEFT's wrapper
    assert trainable_state(backbone)


def test_adapter_disabled_without_an_adapter(make_backbone: Make, batch: dict[str, Tensor]) -> None:
    backbone = make_backbone("llama")
    with backbone.adapter_disabled():
        assert backbone.features(**batch).shape == (3, 32)


# -- loading -----------------------------------------------------------------------------------------------------------


def test_builtin(builtin: Backbone) -> None:
    assert builtin.name == "tiny"
    assert builtin.is_causal
    assert builtin.pooling == "last_token"
    assert builtin.target_modules == ["q_proj", "k_proj", "v_proj"]
    assert builtin.tokenizer.pad_token not in (None, builtin.tokenizer.eos_token)
    assert not any(p.requires_grad for p in builtin.parameters())
    assert not builtin.training
    assert sum(file.stat().st_size for file in BUILTIN_FOLDER.iterdir()) <= 4 * 2**20


def test_builtin_speaks_its_language(builtin: Backbone) -> None:
    """A pretrained model, not a random one: far better than uniform on a sentence of its language."""
    from curlora_lab.data.builtin.corpus import documents

    text = documents("test", 3, 0)[0]["text"]
    encoded = builtin.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = builtin.lm_logits(encoded["input_ids"], encoded["attention_mask"])[0, :-1]
    nats = nn.functional.cross_entropy(logits, encoded["input_ids"][0, 1:])
    assert nats < 0.5 * torch.log(torch.tensor(float(builtin.vocab_size)))


@pytest.mark.parametrize("kind", KINDS)
def test_local_folder(kind: str, save: Any, make_backbone: Make, batch: dict[str, Tensor]) -> None:
    backbone = load_backbone(str(save(kind, "My-Model")))
    assert backbone.name == "my-model"
    assert backbone.is_causal is (kind in ("llama", "gpt2"))
    assert backbone.pooling == ("last_token" if backbone.is_causal else "cls")
    assert torch.allclose(backbone.features(**batch), make_backbone(kind).features(**batch), atol=1e-6)
    assert not any("pooler" in name for name, _ in backbone.model.named_parameters())


def test_dtype_and_pooling_of_a_local_folder(save: Any, batch: dict[str, Tensor]) -> None:
    backbone = load_backbone(str(save("llama")), dtype="bfloat16", pooling="mean", target_modules=["o_proj"], name="m")
    assert backbone.features(**batch).dtype == torch.bfloat16
    assert (backbone.pooling, backbone.target_modules, backbone.name) == ("mean", ["o_proj"], "m")
    assert backbone.source["dtype"] == "bfloat16"


def test_a_decoder_read_as_an_encoder(save: Any) -> None:
    """Without its LM head, and pooled where it has seen the text."""
    backbone = load_backbone(str(save("gpt2")), kind="encoder")
    assert not backbone.is_causal
    assert backbone.pooling == "last_token"


def test_hub_goes_by_name_and_revision(monkeypatch: pytest.MonkeyPatch, save: Any, builtin_tokenizer: Any) -> None:
    """What reaches transformers for a hub name, and a fingerprint of name and commit, whose files never change."""
    folder = save("gpt2")
    asked: list[tuple[str, Any]] = []

    def from_folder(loader: Any, commit: str) -> Any:
        real = loader.from_pretrained

        def load(location: str, **arguments: Any) -> Any:
            asked.append((location, arguments.pop("revision")))
            found = real(str(folder), **arguments)
            if loader is AutoConfig:
                found._commit_hash = commit
            return found

        return load

    prints = []
    for commit in ("a" * 40, "a" * 40, "b" * 40):
        with monkeypatch.context() as patch:
            for loader in (AutoConfig, AutoModelForCausalLM):
                patch.setattr(loader, "from_pretrained", from_folder(loader, commit))
            patch.setattr("curlora_lab.backbone.load_tokenizer", lambda *_, **__: builtin_tokenizer)
            backbone = load_backbone("someone/gpt2", revision="main")
        prints.append(backbone.fingerprint)
        assert backbone.source == {"path": "someone/gpt2", "revision": commit, "dtype": "float32"}
    assert set(asked) == {("someone/gpt2", "main")}
    assert backbone.name == "gpt2"
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"path": None}, r"model\.path is not set"),
        ({"path": "./no/such"}, r"model\.path='\./no/such': there is no such folder"),
        ({"path": "no-such-model-anywhere"}, r"model\.path='no-such-model-anywhere' can't be loaded: .*model=local"),
        ({"path": "builtin", "dtype": "float31"}, r"model\.dtype='float31' is unknown; choose one of float32"),
        (
            {"path": "builtin", "kind": "decoder"},
            r"model\.kind='decoder' is unknown; choose one of auto, causal, encoder",
        ),
        ({"path": "builtin", "pooling": "max"}, "pooling='max' is unknown"),
        ({"path": "builtin", "quantization": {"load_in_4bit": True}}, r"pip install 'curlora-lab\[quant\]'"),
    ],
)
def test_refused(arguments: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "quantization" in arguments:
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(ValueError, match=said):
        load_backbone(**arguments)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder without config\.json"):
        load_backbone(str(tmp_path))


def test_no_pickled_weights(save: Any) -> None:
    folder = save("llama")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="can't be loaded"):
        load_backbone(str(folder))


def test_missing_weights_are_not_made_up(save: Any) -> None:
    folder = save("llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 of the weights of LlamaForCausalLM \(model\.layers\.1\.mlp\.up_proj\.weight\)"
    ):
        load_backbone(str(folder))


def test_an_encoder_is_no_causal_model(save: Any) -> None:
    with pytest.raises(ValueError, match=r"is no causal language model \(architectures \['BertModel'\], type 'bert'\)"):
        load_backbone(str(save("bert")), kind="causal")


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def word_tokenizer(folder: Path, **special: str) -> Path:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["<eos>", "<pad>", "a", "b", "<unk>"])}, "<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special).save_pretrained(folder)
    return folder


def test_tokenizer_without_pad_takes_eos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(word_tokenizer(tmp_path, eos_token="<eos>")), vocab_size=5)
    assert tokenizer.pad_token == "<eos>"
    assert tokenizer.padding_side == "right"


def test_tokenizer_keeps_its_pad(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(word_tokenizer(tmp_path, eos_token="<eos>", pad_token="<pad>")), vocab_size=5)
    assert tokenizer.pad_token == "<pad>"


def test_tokenizer_with_neither(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has neither a pad nor an eos token"):
        load_tokenizer(str(word_tokenizer(tmp_path)), vocab_size=5)


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 5 tokens but the model embeds only 4: they do not belong together"):
        load_tokenizer(str(word_tokenizer(tmp_path, eos_token="<eos>")), vocab_size=4)


# -- targets -----------------------------------------------------------------------------------------------------------


class Unknown(nn.Module):
    """An architecture nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(4, 4)
        self.gate = nn.Linear(4, 4)


def test_unknown_architecture_lists_its_modules() -> None:
    with pytest.raises(ValueError, match=r"No known attention .* in Unknown; .*model\.target_modules.*: gate, mixer\."):
        resolve_targets(Unknown(), None)
    assert resolve_targets(Unknown(), ["mixer"]) == ["mixer"]
    assert resolve_targets(Unknown(), ".*mixer") == ".*mixer"
    assert linear_names(Unknown()) == ["mixer", "gate"]


# -- fingerprint -------------------------------------------------------------------------------------------------------


def test_fingerprint_sees_content_and_not_place(save: Any, tmp_path: Path) -> None:
    folder = save("llama")
    first = load_backbone(str(folder)).fingerprint
    shutil.copytree(folder, tmp_path / "elsewhere")
    elsewhere = load_backbone(str(tmp_path / "elsewhere"))
    assert elsewhere.fingerprint == first
    (tmp_path / "elsewhere" / "README.md").write_text("not part of the model")
    (tmp_path / "elsewhere" / "PROVENANCE.json").write_text("{}")
    assert load_backbone(str(tmp_path / "elsewhere")).fingerprint == first
    changed = load_file(folder / "model.safetensors")
    changed["model.norm.weight"][0] = torch.nextafter(changed["model.norm.weight"][0], torch.tensor(9.0))
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(str(folder)).fingerprint != first


def test_fingerprint_sees_the_tokenizer(save: Any) -> None:
    folder = save("gpt2")
    first = load_backbone(str(folder)).fingerprint
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 63}))
    assert load_backbone(str(folder)).fingerprint != first


def test_loading_draws_nothing(save: Any) -> None:
    folder = str(save("bert"))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_backbone(folder)
    assert torch.equal(torch.rand(1), expected)
