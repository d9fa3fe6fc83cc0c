"""Models of known shapes with random weights: no download, and the same arithmetic as the real ones."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """A model shape with two sets of modules to adapt.

    Args:
        name: Short name for the table.
        title: What it is like, and what was cut.
        config: Its configuration.
        attention: Modules of the narrow choice of targets.
        attention_title: Short name of that choice.
        linear: All linear layers of the blocks.
    """

    name: str
    title: str
    config: PretrainedConfig
    attention: tuple[str, ...]
    attention_title: str
    linear: tuple[str, ...]

    def targets(self, which: str) -> list[str]:
        """Module names for "attention" or "all"."""
        return list(self.attention if which == "attention" else self.linear)

    def title_of(self, which: str) -> str:
        """Name of a choice of targets in the tables."""
        return self.attention_title if which == "attention" else "all linear"


LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA_ATTENTION = ("q_proj", "k_proj", "v_proj")


def gpt2_small(*, layers: int = 4, width: int = 768) -> Shape:
    """GPT-2 small with fewer layers, and a vocabulary cut by the same factor, so that the head keeps its share."""
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=width // 64,
        vocab_size=max(50257 * layers // 12, 64),
        n_positions=512,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=True,
    )
    title = f"GPT-2 small ({width} wide), {layers} of 12 layers, vocabulary {config.vocab_size}"
    return Shape("gpt2", title, config, ("c_attn",), "c_attn", ("c_attn", "c_proj", "c_fc"))


def llama_small(*, layers: int = 4, width: int = 960) -> Shape:
    """SmolLM2-360M (a Llama) with fewer layers, and a vocabulary cut by the same factor."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(width // 192, 1),
        vocab_size=max(49152 * layers // 32, 64),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    title = f"Llama (SmolLM2-360M, {width} wide), {layers} of 32 layers, vocabulary {config.vocab_size}"
    return Shape("llama", title, config, LLAMA_ATTENTION, "q, k, v", LLAMA_LINEAR)


def mistral_7b(*, layers: int = 32) -> Shape:
    """Mistral-7B v0.3."""
    config = MistralConfig(
        num_hidden_layers=layers,
        vocab_size=32768 * layers // 32,
        max_position_embeddings=4096,
        sliding_window=None,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    title = f"Mistral-7B, {layers} of 32 layers, vocabulary {config.vocab_size}"
    return Shape("mistral-7b", title, config, LLAMA_ATTENTION, "q, k, v", LLAMA_LINEAR)


def build(shape: Shape, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model with random weights, frozen, made on its device.

    The outputs of its embeddings require a gradient, so that the backward pass goes through every layer whatever is
    adapted: the graph of the frozen backbone is then that of the adapted ones.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(shape.config, dtype=dtype, attn_implementation="sdpa")
    model.requires_grad_(False)
    model.train()
    return model
