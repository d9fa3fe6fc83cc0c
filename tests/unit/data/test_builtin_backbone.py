"""The backbone that ships with the package: what it says of itself is so, and training again gives it."""

import hashlib
import importlib.util
import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import curlora_lab.assets
from curlora_lab.data.builtin import documents, lexicon, tasks

TINY = Path(curlora_lab.assets.__file__).parent / "tiny"
SCRIPT = Path(__file__).parents[3] / "scripts/train_tiny_backbone.py"
PROVENANCE = json.loads((TINY / "PROVENANCE.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY).eval()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_tiny_backbone", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_those_of_the_provenance_and_small():
    for name, digest in PROVENANCE["sha256"].items():
        assert hashlib.sha256((TINY / name).read_bytes()).hexdigest() == digest, name
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 4_000_000


def test_model_is_the_one_described(model):
    assert model.config.model_type == "llama"
    assert model.config.tie_word_embeddings
    assert model.num_parameters() == PROVENANCE["parameters"]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_corpus_is_the_one_it_was_trained_on(script):
    """The generator still writes the held-out text of the record, byte for byte."""
    record = PROVENANCE["heldout"]
    assert script.text_hash(documents(record["split"], record["documents"], record["seed"])) == record["sha256"]


@pytest.mark.parametrize(
    "text",
    ["The soup was not bad.", "Hello wörld, 東京 🙂", "  two  spaces\nand\ttabs ", "", "don't STOP 3.14159 </s"],
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens(tokenizer, model):
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 4
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(model.config, name) == getattr(tokenizer, name)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.model_max_length == model.config.max_position_embeddings


def test_every_word_of_the_language_is_one_token(tokenizer):
    texts = [row["text"] for row in documents("test", 500, 5)]
    texts += [row["sentence"] for row in tasks.sentiment3("train", 300, 0) + tasks.topic("train", 300, 0)]
    words = {word for text in texts for word in re.findall(r" [A-Za-z]+", text)}
    assert {word for word in words if len(tokenizer(word)["input_ids"]) != 2} == set()
    assert {f" {word}" for word in lexicon.PRAISE} <= words


def test_held_out_perplexity_is_the_recorded_one(script, model, tokenizer):
    record = PROVENANCE["heldout"]
    texts = [row["text"] for row in documents(record["split"], record["documents"], record["seed"])]
    encoded = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    value, tokens = script.perplexity(model, encoded)
    assert tokens == record["tokens"]
    assert value == pytest.approx(record["perplexity"], rel=1e-4)
    assert value < 0.05 * math.exp(math.log(model.config.vocab_size))


def test_a_short_training_is_deterministic(script, tmp_path):
    """Two small runs give the same bytes and the same record; another seed gives others."""
    small = ["--documents", "200", "--heldout", "20", "--hidden", "16", "--mlp", "16", "--layers", "1", "--warmup", "2"]
    records = [script.main([*small, "--seed", seed, "--out", str(tmp_path / str(i))]) for i, seed in enumerate("001")]
    assert records[0]["sha256"] == records[1]["sha256"]
    assert records[0]["heldout"] == records[1]["heldout"]
    assert records[0]["sha256"]["model.safetensors"] != records[2]["sha256"]["model.safetensors"]


@pytest.mark.slow  # about ten minutes on one core
def test_training_again_reaches_the_recorded_perplexity(script, tmp_path):
    options = [
        part for name, value in PROVENANCE["arguments"].items() for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    record = script.main([*options, "--out", str(tmp_path)])
    assert record["corpus"]["sha256"] == PROVENANCE["corpus"]["sha256"]
    assert record["heldout"]["sha256"] == PROVENANCE["heldout"]["sha256"]
    assert record["heldout"]["perplexity"] == pytest.approx(PROVENANCE["heldout"]["perplexity"], rel=0.02)
