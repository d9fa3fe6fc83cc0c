"""A realistic record to render: three tasks on a small story model, one of them not learnt."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from curlora_lab.metrics import summarise

TASKS = ["mrpc", "sst2", "sentiment140"]
SCORES = [
    [0.3162, 0.4908, 0.5125],
    [0.7010, 0.5092, 0.5000],
    [0.6838, 0.6892, 0.5310],
    [0.6740, 0.6651, 0.6225],
]
MODULES = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(6) for p in "qkv"]


def _weight(stage: int) -> dict[str, Any]:
    modules = {name: stage * (0.004 + 0.0013 * (k * 7 % 11)) for k, name in enumerate(MODULES)}
    return {"overall": 0.0102 * stage, "absolute": 1.31 * stage, "modules": modules, "reasons": {}}


def _record() -> dict[str, Any]:
    baselines = {
        "mrpc": {"constant": 279 / 408, "constant_label": "equivalent", "best": None, "rows": 408},
        "sst2": {"constant": 444 / 872, "constant_label": "positive", "best": None, "rows": 872},
        "sentiment140": {"constant": 0.5069, "constant_label": "positive", "best": None, "rows": 359},
    }
    summary = summarise(SCORES, TASKS, baselines=baselines, fwt_defined=[False] * 3, metrics=["accuracy"] * 3)
    return {
        "schema_version": "1",
        "status": "finished",
        "message": None,
        "name": "stories3m-curlora-r16-a1-lr0.005-s0-1a2b3c4d",
        "config": {
            "seed": 0, "rank": 16, "alpha": 1.0, "lr": 0.005, "head_lr": 0.001, "epochs": 2, "batch_size": 32,
            "model": {"_target_": "curlora_lab.backbone.load_backbone", "name": "stories3m", "path": "models/stories3m"},
            "adapter": {"_target_": "curlora_lab.CurLoraConfig", "r": 16, "alpha": 1.0, "basis": "inverse_norm"},
            "strategy": {"_target_": "curlora_lab.continual.strategies.Strategy"},
        },
        "overrides": ["sequence=paper", "data_dir=data", "model=local", "model.path=models/stories3m", "probe=tinystories"],
        "tasks": TASKS,
        "metric": dict.fromkeys(TASKS, "accuracy"),
        "learnt_in": {"mrpc": 1, "sst2": 2, "sentiment140": 3},
        "scores": [list(row) for row in SCORES],
        "metrics": {
            task: [{"accuracy": row[j], "balanced_accuracy": 0.5 + (row[j] - 0.5) / 2} for row in SCORES]
            for j, task in enumerate(TASKS)
        },
        "choose": {"mrpc": {"accuracy": 0.69}, "sst2": None, "sentiment140": None},
        "baselines": baselines,
        "warnings": [
            {"code": "not_learnt", "task": "mrpc", "stage": 1, "message":
             "accuracy 0.7010 (95 % interval 0.6549 to 0.7434, 408 rows) is not above 0.6838: "
             "always answering 'equivalent' gets 0.6838"},
            {"code": "constant_prediction", "task": "mrpc", "stage": 2, "message": "predicts 'equivalent' for all 408 rows"},
            {"code": "below_constant", "task": "mrpc", "stage": 3, "message":
             "accuracy 0.6740, while always answering 'equivalent' gets 0.6838"},
        ],
        "continual": summary.continual,
        "variants": summary.variants,
        "reasons": summary.reasons,
        "probes": {
            "perplexity": {"tinystories": [4.7035, 5.2184, 7.9136, 9.0412]},
            "bits_per_character": {"tinystories": [0.5746, 0.6131, 0.7675, 0.8169]},
            "details": {"tinystories": {
                "protocol": "first 200 rows read one by one, first 512 tokens each; window 512, stride 256, bos auto",
                "window": 512, "stride": 256, "documents": 200, "tokens": 41453, "characters": 161155,
                "shift_positions": 1024, "fingerprint": "eccb0296bafe8c89",
            }},
        },
        "parameters": {"adapter": 4608, "head": 1158, "trainable": 5766, "total": 3_153_990},
        "shift": {"weight": [_weight(i) for i in range(4)], "output": {"tinystories": [0.0, 0.091, 0.472, 0.611]}},
        "cost": {
            "seconds": 212.4,
            "stages": [
                {"seconds": 61.2, "tokens": 412_000, "tokens_per_second": 6732.0},
                {"seconds": 38.9, "tokens": 268_400, "tokens_per_second": 6899.7},
                {"seconds": 44.1, "tokens": 301_100, "tokens_per_second": 6827.7},
            ],
            "evaluation_seconds": 68.2, "tokens": 981_500, "peak_memory_bytes": 812_000_000,
        },
        "provenance": {
            "package_version": "0.1.0", "source_hash": "9f2c" * 16, "git_commit": "6d7eda0" + "0" * 33,
            "identity": "1a2b3c4d" * 8, "started": "2026-11-22T07:12:40+00:00", "finished": "2026-11-22T07:16:13+00:00",
            "host": "workstation", "python": "3.11.2", "platform": "Linux-6.1-x86_64", "device": "x86_64",
            "versions": {"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.23.0", "lightning": "2.6.6"},
            "model": {"name": "stories3m", "path": "models/stories3m", "revision": None, "fingerprint": "ab" * 32},
            "data": {task: {"fingerprint": "cd" * 32, "rows": {"train": 900, "choose": 100, "test": 400},
                            "notes": ["3 texts were longer than 128 tokens and lost their end"]} for task in TASKS},
            "reused_stages": [{"stage": 1, "from": "runs/paper/stories3m-curlora-r16-a1-lr0.005-s0-99887766"}],
        },
    }  # fmt: skip


@pytest.fixture
def record() -> dict[str, Any]:
    """A finished run."""
    return _record()


@pytest.fixture
def running(record: dict[str, Any]) -> dict[str, Any]:
    """The same run after its first stage."""
    return make_running(record)


@pytest.fixture
def changed(record: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A copy of the finished run with top-level keys replaced."""
    return lambda **changes: {**copy.deepcopy(record), **changes}


def make_running(record: dict[str, Any]) -> dict[str, Any]:
    """Cut a finished record back to its first stage."""
    record = copy.deepcopy(record)
    record["status"] = "running"
    for row in record["scores"][2:]:
        row[:] = [None] * len(row)
    for rows in record["metrics"].values():
        rows[2:] = [{} for _ in rows[2:]]
    for key in ("perplexity", "bits_per_character"):
        record["probes"][key]["tinystories"][2:] = [None, None]
    record["shift"]["weight"][2:] = [None, None]
    record["shift"]["output"]["tinystories"][2:] = [None, None]
    record["cost"]["stages"] = record["cost"]["stages"][:1]
    record["warnings"] = record["warnings"][:1]
    summary = summarise(record["scores"], record["tasks"], baselines=record["baselines"], fwt_defined=[False] * 3)
    record |= {"continual": summary.continual, "variants": summary.variants, "reasons": summary.reasons}
    record["provenance"]["finished"] = None
    return record


@pytest.fixture
def seeds(record: dict[str, Any]) -> Callable[..., list[dict[str, Any]]]:
    """Seeds of one configuration: their learning is 0.70, 0.72, ..., and settings of the configuration can be given."""

    def make(number: int = 3, **settings: Any) -> list[dict[str, Any]]:
        made = []
        for seed in range(number):
            twin = copy.deepcopy(record)
            adapter = settings.get("adapter", "curlora")
            twin["config"] |= {"seed": seed, "adapter": {"name": adapter, "r": settings.get("rank", 16), "seed": seed}}
            twin["config"] |= {key: value for key, value in settings.items() if key != "adapter"}
            twin["name"] = f"tiny-{adapter}-s{seed}-0123abc{seed}"
            twin["continual"] |= {"learning": 0.70 + 0.02 * seed, "average": 0.6, "forgetting": 0.1}
            made.append(twin)
        return made

    return make
