"""Each fault of the published protocol is a switch, and does what it did there; `experiment=paper/...` sets them all."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

from curlora_lab import config
from curlora_lab.adapters.attach import attach, trainable_state
from curlora_lab.backbone import Backbone, pool
from curlora_lab.build import make_adapter
from curlora_lab.data.loading import PositionSampler
from curlora_lab.optim import schedule

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


@pytest.mark.parametrize(
    ("model", "steps", "peaks"),
    [
        (
            "gpt2_large",
            {"mrpc": 345, "sst2": 471, "sentiment140": 80},
            {"mrpc": 0.69, "sst2": 0.94, "sentiment140": 1.0},
        ),
        (
            "mistral_7b",
            {"mrpc": 375, "sst2": 375, "sentiment140": 189},
            {"mrpc": 0.75, "sst2": 0.75, "sentiment140": 0.38},
        ),
    ],
)
def test_steps_and_peaks_of_the_rate(
    compose: Compose, model: str, steps: dict[str, int], peaks: dict[str, float]
) -> None:
    cfg = compose(f"experiment=paper/{model}")
    for name, node in tasks(cfg).items():
        rows = min(node["data"]["train_rows"] or 10**9, PUBLISHED_ROWS[name])
        batch, epochs = node["batch_size"] or cfg.batch_size, node["epochs"] or cfg.epochs
        found = epochs * len(PositionSampler(rows, batch_size=batch))
        assert found == steps[name]
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.lr)
        peak = cfg.lr
        if node["scheduled"]:
            scheduler = instantiate(plain(cfg)["scheduler"])(optimizer, steps=found, examples=epochs * rows)
            peak = 0.0
            for _ in range(found):
                optimizer.step()
                scheduler.step()
                peak = max(peak, scheduler.get_last_lr()[0])
        assert peak / cfg.lr == pytest.approx(peaks[name], abs=0.006)


def test_the_sound_schedule_reaches_its_peak_and_comes_down() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, steps=345, examples=11004, shape="cosine", warmup=0.06)
    rates = []
    for _ in range(345):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates[-1] == pytest.approx(0.0, abs=1e-6)


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


def test_each_fault_can_be_taken_out(compose: Compose) -> None:
    """One key back at a time: the configuration differs from the published one in that key alone."""
    published = plain(compose("experiment=paper/protocol"))
    for key, value in (
        ("model.pooling", "last_token"),
        ("shuffle", True),
        ("scheduler.count", "steps"),
        ("head_seed", None),
        ("adapter.replacement", False),
        ("adapter.floor_absolute", None),
        ("optimizer.eps", 1e-8),
    ):
        given = "null" if value is None else str(value).lower()
        changed = plain(compose("experiment=paper/protocol", f"{key}={given}"))
        node, there = changed, published
        *path, last = key.split(".")
        for part in path:
            node, there = node[part], there[part]
        assert node[last] != there[last]
        node[last] = there[last]
        assert changed == published


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


def test_heads_are_seeded_alike(compose: Compose, make_backbone: Any) -> None:
    from curlora_lab.tasks import SequenceClassification
    from curlora_lab.tasks.base import Training

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
