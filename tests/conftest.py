"""What many tests share: the real configuration composed in process, and small models of four architectures."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test may reach for the network

import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
)

from curlora_lab import config
from curlora_lab.backbone import BUILTIN_FOLDER, Backbone, Pooling

VOCABULARY: int = json.loads((BUILTIN_FOLDER / "config.json").read_text())["vocab_size"]
settings.register_profile("untimed", deadline=None)  # how long an example takes says something of the machine alone
settings.load_profile("untimed")


#: Configurations of small models; the GPT-2's ``attn.c_proj`` is a square Conv1D.
SMALL: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    ),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "bert": lambda: BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "roberta": lambda: RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=66,
    ),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64
    ),
}
DECODERS = ("llama", "gpt2")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small models are fastest on one thread, and tests run side by side."""
    torch.set_num_threads(1)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return hydra_compose("train", overrides=list(overrides))


@functools.cache
def _configured(overrides: tuple[str, ...]) -> DictConfig:
    """Choices of groups are composed once; values are then set by the function with which Hydra itself sets them."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if any(override.is_sweep_override() for override in parsed):
        return _composed(overrides)
    chooses = [
        override.package is not None or (config.conf_dir() / override.key_or_group).is_dir() for override in parsed
    ]
    groups = tuple(text for text, chosen in zip(overrides, chooses, strict=True) if chosen)
    cfg = copy.deepcopy(_composed(groups))
    values = [override for override, chosen in zip(parsed, chooses, strict=True) if not chosen]
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    OmegaConf.set_readonly(cfg, True)
    return cfg


@pytest.fixture(scope="session")
def compose() -> Callable[..., DictConfig]:
    """Compose the real configuration with overrides, as the command line would; read-only."""
    return lambda *overrides: _configured(overrides)


def small_model(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A randomly initialised model of a known architecture, frozen and in eval mode; weights large enough to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cls = AutoModelForCausalLM if kind in DECODERS else AutoModel
        model = cls.from_config(SMALL[kind]())
        with torch.no_grad():  # biases and norms too, so that nothing is right by being zero
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.to(dtype).requires_grad_(False).eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Make a small model: ``make_model("gpt2", seed=0, dtype=torch.float32)``."""
    return small_model


@pytest.fixture(scope="session")
def builtin_tokenizer() -> Any:
    """The tokenizer of the built-in backbone."""
    return AutoTokenizer.from_pretrained(BUILTIN_FOLDER)


@pytest.fixture(scope="session")
def make_backbone(builtin_tokenizer: Any) -> Callable[..., Backbone]:
    """Make a backbone around a small model: ``make_backbone("llama", pooling="mean", target_modules=[...])``."""

    def make(
        kind: str = "llama",
        *,
        model: Any = None,
        pooling: Pooling | None = None,
        target_modules: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> Backbone:
        causal = kind in DECODERS
        return Backbone(
            model if model is not None else small_model(kind, dtype=dtype),
            builtin_tokenizer,
            name=f"small-{kind}",
            fingerprint=kind,
            is_causal=causal,
            pooling=pooling or ("last_token" if causal else "cls"),
            target_modules=target_modules,
        )

    return make


@pytest.fixture(scope="session")
def batch() -> dict[str, torch.Tensor]:
    """Three texts of 7, 4 and 1 tokens, padded on the right with token 3."""
    ids = torch.full((3, 7), 3)
    mask = torch.zeros(3, 7, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for row, length in enumerate((7, 4, 1)):
        ids[row, :length] = torch.randint(5, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}
