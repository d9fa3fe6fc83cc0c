"""Tiny models of every kind that the tuner adapts, built from configurations: no files, no network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from curlora_lab import CurLoraConfig


class Stack(nn.Module):
    """Two layers of one kind with a non-linearity in between."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@dataclass(frozen=True)
class Case:
    """A model and how to adapt and run it."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Any]]
    targets: list[str]
    layers: int
    regex: str
    head: str | None = None  # a module to train as a whole
    task_type: str | None = None

    def config(self, **options: Any) -> CurLoraConfig:
        return CurLoraConfig(**({"r": 4, "target_modules": self.targets} | options))


def _tokens() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    return {"input_ids": torch.randint(3, 50, (3, 6), generator=generator)}


def _vectors() -> dict[str, Any]:
    return {"x": torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(7))}


def _biased(layer: nn.Module) -> nn.Module:
    nn.init.normal_(layer.weight, std=0.2)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=0.3)
    return layer


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=1, eos_token_id=2)
    )


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
            max_position_embeddings=32,
        )
    )  # fmt: skip


def _bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=50,
            num_labels=3,
        )
    )


CASES = [
    Case("linear", lambda: Stack(_biased(nn.Linear(16, 24)), _biased(nn.Linear(24, 8, bias=False))), _vectors,
         ["first", "second"], 2, "first|second"),
    Case("conv1d", lambda: Stack(_biased(Conv1D(24, 16)), _biased(Conv1D(8, 24))), _vectors,
         ["first", "second"], 2, "first|second"),
    Case("square_conv1d", lambda: Stack(_biased(Conv1D(16, 16)), _biased(Conv1D(16, 16))), _vectors,
         ["first", "second"], 2, "first|second"),
    Case("llama", _llama, _tokens, ["q_proj", "k_proj", "v_proj"], 6, r".*self_attn\.(q|k|v)_proj",
         "lm_head", "CAUSAL_LM"),
    Case("gpt2", _gpt2, _tokens, ["c_attn", "c_proj"], 6, r".*\.(c_attn|c_proj)", None, "CAUSAL_LM"),
    Case("bert", _bert, _tokens, ["query", "value"], 4, r".*\.(query|value)", "classifier", "SEQ_CLS"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_chance():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture
def gpt2_case() -> Case:
    return next(case for case in CASES if case.name == "gpt2")


@pytest.fixture
def llama_case() -> Case:
    return next(case for case in CASES if case.name == "llama")


@pytest.fixture
def output() -> Callable[..., Tensor]:
    """Run a model without gradients in evaluation mode and give its main tensor."""

    def run(model: nn.Module, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        model.eval()
        with torch.no_grad():
            result = model(**batch, **kwargs)
        return result if isinstance(result, Tensor) else result.logits

    return run


@pytest.fixture
def train_a_little() -> Callable[..., nn.Module]:
    """Give the cores of adapters values that change the output visibly, as training would."""

    def change(model: nn.Module, adapter_name: str = "default", seed: int = 1) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if f"curlora_U.{adapter_name}" in name:
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.data.copy_(values)
        return model

    return change
