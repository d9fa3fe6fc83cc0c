"""Each fault of the published protocol is a switch, and does what it did there; `experiment=paper/...` sets them all."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

from curlora_lab import config
from curlora_lab.adapters.attach import attach, trainable_state
from curlora_lab.backbone import Backbone, pool
from curlora_lab.build import TRAINING_KEYS, make_adapter
from curlora_lab.data.loading import PositionSampler
from curlora_lab.tasks.base import Training

Compose = Callable[..., DictConfig]

#: Shapes of the two published models.
SHAPES = {
    "gpt2_large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "mistral_7b": MistralConfig(),
}
PUBLISHED_ROWS = {"mrpc": 3668, "sst2": 67349, "sentiment140": 498}


def plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def tasks(cfg: DictConfig) -> dict[str, Any]:
    return plain(cfg)["sequence"]["tasks"]


@pytest.mark.parametrize("name", ["gpt2_large", "gpt2", "mistral_7b"])
def test_validates(compose: Compose, name: str) -> None:
    config.validate(compose(f"experiment=paper/{name}"))


#: Trainable parameters that the notebooks print, for ranks 8, 16 and 24.
PRINTED = {
    ("gpt2_large", "curlora_published"): (2304, 9216, 20736),
    ("gpt2_large", "lora_published"): (1_474_560, 2_949_120, 4_423_680),
    ("mistral_7b", "curlora_published"): (6144, 24576, 55296),
    ("mistral_7b", "lora_published"): (4_718_592, 9_437_184, 14_155_776),
}


@pytest.mark.parametrize(
    ("model", "adapter", "rank", "expected"),
    [(*key, rank, count) for key, counts in PRINTED.items() for rank, count in zip((8, 16, 24), counts, strict=True)],
)
def test_trainable_parameters_are_the_published_ones(
    compose: Compose, model: str, adapter: str, rank: int, expected: int
) -> None:
    cfg = plain(compose(f"experiment=paper/{model}", f"adapter={adapter}", f"rank={rank}"))
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(SHAPES[model])
    targets = cfg["model"]["target_modules"]
    backbone = Backbone(
        bare, None, name=model, fingerprint="", is_causal=True, pooling="last_token", target_modules=targets
    )
    attach(backbone, make_adapter(cfg["adapter"]), seed=0)
    assert sum(p.numel() for p in trainable_state(backbone).values()) == expected


def trained_at(cfg: DictConfig, make_backbone: Any) -> dict[str, list[float]]:
    """The adapter's learning rate at each step of a stage, relative to ``lr``: optimiser and schedule of the tasks themselves."""
    node = plain(cfg)
    backbone = make_backbone("llama")
    attach(backbone, make_adapter(node["adapter"]), seed=0)
    plan = Training(
        optimizer=instantiate(node["optimizer"], _convert_="all"),
        scheduler=instantiate(node["scheduler"], _convert_="all"),
        **{key: node[key] for key in TRAINING_KEYS},
    )
    found = {}
    for name, its in node["sequence"]["tasks"].items():
        task = instantiate(its, _convert_="all")(backbone=backbone, training=plan)
        rows = min(its["data"]["train_rows"] or 10**9, PUBLISHED_ROWS[name])
        batches = len(PositionSampler(rows, batch_size=task.training_plan.batch_size))
        steps = task.training_plan.epochs * batches
        task.data = SimpleNamespace(counts={"train": rows})
        task.trainer = SimpleNamespace(estimated_stepping_batches=steps)
        made = task.configure_optimizers()
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        found[name] = []
        for _ in range(steps):
            found[name].append(optimizer.param_groups[0]["lr"] / node["lr"])
            optimizer.step()
            if isinstance(made, dict):
                made["lr_scheduler"]["scheduler"].step()
    return found


@pytest.mark.parametrize(
    ("model", "steps", "peaks"),
    [
        (
            "gpt2_large",
            {"mrpc": 345, "sst2": 471, "sentiment140": 80},
            {"mrpc": 0.688, "sst2": 0.94, "sentiment140": 1.0},
        ),
        (
            "mistral_7b",
            {"mrpc": 375, "sst2": 375, "sentiment140": 189},
            {"mrpc": 0.748, "sst2": 0.748, "sentiment140": 0.376},
        ),
    ],
)
def test_steps_and_peaks_of_the_rate(
    compose: Compose, make_backbone: Any, model: str, steps: dict[str, int], peaks: dict[str, float]
) -> None:
    rates = trained_at(compose(f"experiment=paper/{model}"), make_backbone)
    assert {name: len(found) for name, found in rates.items()} == steps
    assert {name: max(found) for name, found in rates.items()} == pytest.approx(peaks)
    assert all(found[-1] == max(found) for found in rates.values()), "it never comes down"


@pytest.mark.parametrize(
    ("words", "last"),
    [
        (("scheduler.count=steps",), 0.688),
        (("scheduler.warmup_steps=null",), 344 / 660),  # 6 % of 11 004
        (("scheduler.count=steps", "scheduler.warmup_steps=null"), 0.0),
    ],
)
def test_the_schedule_set_back_reaches_its_peak_and_comes_down(
    compose: Compose, make_backbone: Any, words: tuple[str, ...], last: float
) -> None:
    """Only with both keys; each alone leaves the stage inside its warm-up."""
    rates = trained_at(compose("experiment=paper/gpt2_large", *words), make_backbone)["mrpc"]
    assert len(rates) == 345
    assert rates[-1] == pytest.approx(last, abs=1e-4)
    assert max(rates) == pytest.approx(1.0 if last == 0 else last)


def test_a_task_without_a_schedule_is_trained_at_the_full_rate(compose: Compose, make_backbone: Any) -> None:
    key = "sequence.tasks.sentiment140.scheduled"
    rates = {
        on: trained_at(compose("experiment=paper/gpt2_large", f"{key}={on}"), make_backbone) for on in ("false", "true")
    }
    assert set(rates["false"]["sentiment140"]) == {1.0}
    assert rates["true"]["sentiment140"] == pytest.approx([step / 500 for step in range(80)])
    assert rates["true"]["mrpc"] == rates["false"]["mrpc"]


@pytest.mark.parametrize("name", ["protocol", "gpt2_large", "gpt2", "local", "mistral_7b"])
def test_rows_of_evaluation(compose: Compose, name: str) -> None:
    found = tasks(compose(f"experiment=paper/{name}", "model.path=nowhere"))
    assert {task: node["data"]["eval_rows"] for task, node in found.items()} == {
        **{"mrpc": None, "sst2": None},  # all 408 and 872
        "sentiment140": 1024,
    }
    assert found["sentiment140"]["data"]["source"]["splits"] == {"train": "test", "test": "train"}
    assert [found[name]["eval_batch_size"] for name in found] == [1, 1, 128]
    assert all(node["data"]["choose_fraction"] == 0 and node["data"]["subset"] == "first" for node in found.values())


REALITY = Path(os.environ.get("CURLORA_LAB_REALITY", "nowhere"))


@pytest.mark.reality
@pytest.mark.skipif(not (REALITY / "data").is_dir(), reason="CURLORA_LAB_REALITY names no such folder")
@pytest.mark.parametrize(
    ("task", "train", "test"), [("mrpc", 3668, 408), ("sst2", 5024, 872), ("sentiment140", 498, 1024)]
)
def test_rows_of_the_real_data(compose: Compose, builtin_tokenizer: Any, task: str, train: int, test: int) -> None:
    cfg = compose("experiment=paper/gpt2_large", f"data_dir={REALITY / 'data'}")
    data = instantiate(tasks(cfg)[task]["data"])
    data.prepare(builtin_tokenizer, seed=1311)
    assert data.counts == {"train": train, "test": test}


def test_the_published_rate_stays_with_another_adapter(compose: Compose) -> None:
    for adapter in ("lora", "lora_published", "curlora"):
        assert compose("experiment=paper/protocol", f"adapter={adapter}").lr == 2.5e-4


def test_logits_are_read_at_a_pad_for_all_but_the_longest_row() -> None:
    hidden = torch.arange(12.0).view(2, 6, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    assert pool(hidden, mask, "last_position").flatten().tolist() == [5.0, 11.0]
    assert pool(hidden, mask, "last_token").flatten().tolist() == [5.0, 8.0]


@pytest.mark.parametrize(("adapter", "bound"), [("lora_published", 1 / math.sqrt(4)), ("lora", 1 / math.sqrt(32))])
def test_largest_entry_of_a(compose: Compose, make_backbone: Any, adapter: str, bound: float) -> None:
    """Fan-in r instead of in: √(in/r) times too large."""
    backbone = make_backbone("llama")
    attach(backbone, make_adapter(plain(compose(f"adapter={adapter}", "rank=4"))["adapter"]), seed=0,
           start=compose(f"adapter={adapter}").adapter.start)  # fmt: skip
    largest = max(float(p.abs().max()) for n, p in backbone.named_parameters() if "lora_A" in n)
    assert 0.9 * bound < largest <= bound


@pytest.mark.parametrize(("words", "scale"), [((), 1.0), (("adapter.lora_alpha=${alpha}",), 1 / 8)])
def test_alpha_of_the_baseline(compose: Compose, make_backbone: Any, words: tuple[str, ...], scale: float) -> None:
    """As published it multiplies as it stands; set back it is divided by the rank, as PEFT does."""
    cfg = compose("experiment=paper/gpt2_large", "adapter=lora_published", *words)
    backbone = make_backbone("llama")
    attach(backbone, make_adapter(plain(cfg)["adapter"]), seed=0)
    layers = [module for module in backbone.modules() if isinstance(module, LoraLayer)]
    assert {layer.scaling["default"] for layer in layers} == {scale}


def test_heads_are_seeded_alike(compose: Compose, make_backbone: Any) -> None:
    from curlora_lab.tasks import SequenceClassification

    class Labels:
        labels = ("no", "yes")

    def head(name: str, seed: int | None) -> torch.Tensor:
        plan = Training(optimizer=torch.optim.SGD, scheduler=None, lr=1, head_lr=1, batch_size=1, eval_batch_size=1,
                        num_workers=0, seed=0, head_seed=seed)  # fmt: skip
        task = SequenceClassification(data=Labels(), name=name, backbone=make_backbone("llama"), training=plan,  # type: ignore[arg-type]
                                      metric="accuracy", metrics=["accuracy"])  # fmt: skip
        return task.head.weight  # type: ignore[union-attr,return-value]

    assert torch.equal(head("one", 1311), head("other", 1311))
    assert not torch.equal(head("one", None), head("other", None))


def test_rows_come_as_they_stand(compose: Compose) -> None:
    assert compose("experiment=paper/protocol").shuffle is False
    sampler = PositionSampler(10, batch_size=4, shuffle=False)
    first = [[row for row, _ in batch] for batch in sampler]
    sampler.set_epoch(1)
    assert first == [[row for row, _ in batch] for batch in sampler] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
