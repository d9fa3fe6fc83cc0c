"""Small tasks to try strategies on: a linear one whose answers are known in closed form, and real ones on the built-in model."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn

from curlora_lab.adapters.attach import attach
from curlora_lab.backbone import Backbone, load_backbone
from curlora_lab.data import ClassificationData, DataSource, LanguageModelData
from curlora_lab.data.encoding import Encoded
from curlora_lab.data.loading import TokenRows
from curlora_lab.tasks import LanguageModeling, SequenceClassification
from curlora_lab.tasks.base import Training
from curlora_lab.tasks.outputs import Outputs

WORDS = ["dog", "cat", "fish", "bird"]


class LinearTask:
    """``values = x Wᵀ`` (and no head): rows of numbers instead of text.

    Args:
        x: (rows, in).
        labels: class indices, or numbers with ``W`` of one row.
        backbone: holds ``weight`` (classes, in); shared between tasks.
        each: things predicted of each row, all from the same values.
    """

    def __init__(self, x, labels, backbone, *, name="linear", each=1, seed=0):
        self.x = np.asarray(x, dtype=np.float32)
        ids = np.zeros(len(self.x), dtype=np.int32)
        offsets = np.arange(len(self.x) + 1, dtype=np.int64)
        encoded = Encoded(ids, offsets, np.zeros(len(self.x), dtype=np.bool_))
        self._rows = TokenRows(encoded, "train", 0, labels=list(labels), columns={"x": self.x})
        self.data = SimpleNamespace(rows=lambda role: self._rows)
        self.backbone, self.name, self.each, self.head = backbone, name, each, None
        self.training_plan = SimpleNamespace(seed=seed)
        self.stage = 1

    def outputs(self, batch):
        values = (batch["x"] @ self.backbone.weight.T).repeat_interleave(self.each, dim=0)
        rows = torch.arange(len(batch["x"])).repeat_interleave(self.each)
        return Outputs(values=values, rows=rows, targets=batch["labels"].repeat_interleave(self.each))

    def batch_loss(self, batch):
        outputs = self.outputs(batch)
        return outputs.nll(outputs.targets).mean()


class LinearBackbone(nn.Module):
    """One weight, shared by linear tasks."""

    name = "linear"

    def __init__(self, weight: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))


@pytest.fixture
def linear() -> Callable[..., LinearTask]:
    """Make a linear task: ``linear(x, labels, weight=[[...], ...])``, or with ``backbone=`` of another."""

    def make(x: Any, labels: Any, *, weight: Any = None, backbone: Any = None, **arguments: Any) -> LinearTask:
        return LinearTask(x, labels, backbone or LinearBackbone(weight), **arguments)

    return make


def animals(split: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Texts that name an animal; the label is whether it is the dog."""
    generator = torch.Generator().manual_seed(seed + len(split))
    picks = torch.randint(0, 4, (n,), generator=generator).tolist()
    return [{"text": f"The {WORDS[pick]} saw me {i}.", "label": int(pick == 0)} for i, pick in enumerate(picks)]


def plan(**changes: Any) -> Training:
    """How the small tasks are trained."""
    given: dict[str, Any] = {
        "optimizer": torch.optim.AdamW,
        "scheduler": None,
        "lr": 1e-3,
        "head_lr": 1e-2,
        "batch_size": 8,
        "eval_batch_size": 16,
        "num_workers": 0,
        "seed": 0,
    }
    return Training(**{**given, **changes})


@pytest.fixture
def lora_backbone() -> Backbone:
    """The built-in model with a LoRA of rank 4 that has moved: B is not zero."""
    return moved(with_adapter(peft.LoraConfig(r=4, lora_alpha=4)))


def with_adapter(adapter: Any) -> Backbone:
    """The built-in model with an adapter, untrained."""
    backbone = load_backbone("builtin")
    attach(backbone, adapter, seed=0)
    return backbone


def moved(backbone: Backbone, by: float = 0.05, seed: int = 0) -> Backbone:
    """Change every trainable parameter a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return backbone


@pytest.fixture
def classify() -> Callable[..., SequenceClassification]:
    """Make a classification task on a backbone: ``classify(backbone, "name")``."""

    def make(backbone: Backbone, name: str = "animal", *, rows: int = 24, **changes: Any) -> SequenceClassification:
        source = DataSource(
            name=name,
            splits={"train": "train", "test": "test"},
            generator=animals,
            sizes={"train": rows, "test": 12},
            seed=len(name),
        )
        data = ClassificationData(
            name=name, source=source, columns=["text"], labels=["other", "dog"], choose_fraction=0.0
        )
        data.prepare(backbone.tokenizer, seed=0)
        arguments = {"metric": "accuracy", "metrics": ["accuracy"], "training": plan(**changes)}
        return SequenceClassification(name=name, data=data, backbone=backbone, **arguments)

    return make


@pytest.fixture
def language() -> Callable[..., LanguageModeling]:
    """Make a language modelling task on a backbone."""

    def make(backbone: Backbone, name: str = "text", *, rows: int = 16, **changes: Any) -> LanguageModeling:
        source = DataSource(
            name=name,
            splits={"train": "train", "test": "test"},
            generator=animals,
            sizes={"train": rows, "test": 8},
            seed=len(name),
        )
        data = LanguageModelData(name=name, source=source, column="text", choose_fraction=0.0)
        data.prepare(backbone.tokenizer, seed=0)
        arguments = {"metric": "negative_nll", "metrics": ["negative_nll"], "training": plan(**changes)}
        return LanguageModeling(name=name, data=data, backbone=backbone, **arguments)

    return make
