"""Tokenizers of the four kinds that differ in how they treat two texts, made in memory; and data folders."""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = (
    *("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "away", "from", "big", "red", "house"),
    *("he", "she", "said", "that", "film", "was", "good", "bad", "not", "very"),
)


def _byte_level(special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    return tokenizer


def _word_level(special: Sequence[str]) -> Tokenizer:
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def gpt2_like() -> PreTrainedTokenizerFast:
    """Puts nothing anywhere; pad is eos."""
    tokens = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=_byte_level(["<|endoftext|>"]), model_max_length=64, **tokens)


def llama_like() -> PreTrainedTokenizerFast:
    """Puts <s> before each text, also before the second."""
    tokenizer = _byte_level(["<s>", "</s>"])
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=64
    )


def bert_like() -> PreTrainedTokenizerFast:
    """[CLS] A [SEP] B [SEP], words only, newlines are lost."""
    tokenizer = _word_level(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **tokens)


def roberta_like() -> PreTrainedTokenizerFast:
    """<s> A </s></s> B </s>."""
    tokenizer = _byte_level(["<s>", "</s>", "<pad>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sep_token": "</s>", "cls_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **tokens)


def words_only() -> PreTrainedTokenizerFast:
    """A decoder of words: newlines are lost, nothing is put between two texts."""
    tokens = {"eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=_word_level(["[PAD]", "[UNK]", "</s>"]), model_max_length=64, **tokens
    )


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": gpt2_like,
    "llama": llama_like,
    "bert": bert_like,
    "roberta": roberta_like,
    "words": words_only,
}


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One tokenizer of each kind."""
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.fixture(scope="session")
def tokenizer(tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The GPT-2 kind."""
    return tokenizers["gpt2"]


WriteSplit = Callable[..., Path]


@pytest.fixture
def write_split(tmp_path: Path) -> WriteSplit:
    """Write ``<tmp>/data/<name>/<split>.<suffix>`` and give the data folder."""

    def write(
        name: str, split: str, content: Sequence[Mapping[str, Any]] | str | bytes, suffix: str = "jsonl.gz"
    ) -> Path:
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list | tuple):
            content = "".join(json.dumps(row) + "\n" for row in content)
        raw = content.encode() if isinstance(content, str) else bytes(content)
        (folder / f"{split}.{suffix}").write_bytes(gzip.compress(raw) if suffix.endswith(".gz") else raw)
        return tmp_path / "data"

    return write


def numbered(n: int, labels: int = 2, start: int = 0) -> list[dict[str, Any]]:
    """n different rows with a text, a label and an idx."""
    texts = (" ".join(WORDS[i * k % len(WORDS)] for k in range(1, 4)) + f" {i}" for i in range(start, start + n))
    return [{"text": text, "label": i % labels, "idx": i} for i, text in enumerate(texts)]


@pytest.fixture
def rows() -> Callable[..., list[dict[str, Any]]]:
    """Makes n different rows with a text, a label and an idx."""
    return numbered
