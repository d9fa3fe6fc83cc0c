"""Matched comparisons as whole runs: what is to be equal is equal in the record, or the record says that it is not."""

from collections.abc import Callable
from typing import Any

import pytest

Runner = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("adapter", ["curlora", "lora", "lora_xs"])
def test_equal_parameters(small_run: Runner, adapter: str) -> None:
    record = small_run("task=builtin_sentiment2", "budget=3072", f"adapter={adapter}")
    assert record["parameters"]["adapter"] == record["config"]["budget"] == 3072


def test_a_method_that_cannot_meet_the_budget_says_so(small_run: Runner) -> None:
    record = small_run("task=builtin_sentiment2", "budget=3072", "adapter=ia3")
    (warning,) = [w for w in record["warnings"] if w["code"] == "budget_not_met"]
    assert "ia3 has 1536 trainable parameters, 0.5 x the budget of 3072" in warning["message"]


@pytest.mark.parametrize(("adapter", "lr"), [("curlora", "2e-2"), ("lora", "5e-3")])
def test_equal_update(small_run: Runner, adapter: str, lr: str) -> None:
    record = small_run(
        "task=builtin_sentiment2",
        "experiment=matched/update_norm",
        f"adapter={adapter}",
        f"lr={lr}",
        "callbacks.stop_at_update_norm.target=0.02",
        "callbacks.stop_at_update_norm.every_steps=1",
        "epochs=40",
        "batch_size=8",
    )
    assert 0.02 <= record["shift"]["weight"][1]["overall"] < 0.04
    assert record["cost"]["tokens"] < 40 * 64 * 20


def test_equal_plasticity(small_run: Runner) -> None:
    record = small_run(
        "task=builtin_sentiment2",
        "experiment=matched/plasticity",
        "callbacks.stop_at_score.target=0.5",
        "train_rows=400",
        "epochs=40",
        "lr=2e-2",
    )
    chosen = record["choose"]["sentiment2"]["accuracy"]
    constant, best = (
        record["baselines"]["sentiment2"]["constant"],
        record["baselines"]["sentiment2"]["best"],
    )
    assert (chosen - constant) / (best - constant) >= 0.45
