"""Records made by hand, as far as tuning reads them."""

from collections.abc import Callable
from typing import Any

import pytest


def _record(
    *,
    lr: float = 1e-3,
    score: float = 0.5,
    head_lr: float = 5e-3,
    seed: int = 0,
    adapter: str = "lora",
    rank: int = 8,
    trained: int = 100,
    **config: Any,
) -> dict[str, Any]:
    """A finished run of two tasks, evaluated on choosing rows, with ``score`` right after each task's own stage."""
    tasks = {
        name: {"name": name, "data": {"draw": 0, "eval_rows": 9, "evaluate_on": "choose"}} for name in ("one", "two")
    }
    return {
        "name": f"{adapter}-{lr:g}-{seed}",
        "status": "finished",
        "config": {
            "adapter": {"name": adapter, "r": rank, "seed": seed},
            "model": {"name": "tiny", "path": "builtin"},
            "task": None,
            "order": None,
            "sequence": {"name": "pair", "tasks": tasks},
            "scenario": "sequential",
            "repeats": 1,
            "rank": rank,
            "lr": lr,
            "head_lr": head_lr,
            "seed": seed,
            "draw": 0,
            "evaluate_on": "choose",
            "output_dir": "somewhere",
            **config,
        },
        "tasks": ["one", "two"],
        "learnt_in": {"one": 1, "two": 2},
        "metric": {"one": "accuracy", "two": "accuracy"},
        "scores": [[0.1, 0.1], [score - 0.1, 0.1], [0.2, score + 0.1]],
        "choose": {"one": {"accuracy": 0.3}, "two": {"accuracy": 0.4}},
        "continual": {"forgetting": score - 0.3},
        "probes": {"perplexity": {"text": [10.0, 11.0, 20.0]}},
        "parameters": {"adapter": trained},
        "provenance": {"model": {"name": "tiny", "fingerprint": "f"}, "source_hash": "s"},
    }


@pytest.fixture(scope="session")
def make_record() -> Callable[..., dict[str, Any]]:
    """Make a finished run of two tasks: ``make_record(lr=1e-2, score=0.8, seed=1, adapter="lora", rank=8)``."""
    return _record
