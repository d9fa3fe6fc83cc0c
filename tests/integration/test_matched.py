"""Matched comparisons as whole runs: what is to be equal is equal in the record, or the record says that it is not."""

import json
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
    lines = [json.loads(line) for line in (record["folder"] / "metrics.jsonl").read_text().splitlines()]
    norms = [line["train/sentiment2/update_norm"] for line in lines if "train/sentiment2/update_norm" in line]
    assert all(norm < 0.02 for norm in norms[:-1])
    assert norms[-1] >= 0.02
    assert len(norms) < 40 * 64 / 8 / 2  # measured at each step: less than half of those allowed were made


def test_equal_plasticity(small_run: Runner) -> None:
    """A stage ends after the first epoch that is good enough on the choosing rows, and not when it is as good as it gets."""
    record = small_run(
        "task=builtin_sentiment2",
        "experiment=matched/plasticity",
        "callbacks.stop_at_score.target=0.5",
        "train_rows=160",
        "epochs=40",
        "lr=3e-3",
        "head_lr=3e-3",
    )
    assert (record["baselines"]["sentiment2"]["constant"], record["baselines"]["sentiment2"]["best"]) == (0.5, 1.0)
    lines = [json.loads(line) for line in (record["folder"] / "metrics.jsonl").read_text().splitlines()]
    accuracies = [line["choose/sentiment2/accuracy"] for line in lines if "choose/sentiment2/accuracy" in line]
    shares = [2 * accuracy - 1 for accuracy in accuracies]
    assert 1 < len(shares) < 40
    assert all(share < 0.5 for share in shares[:-1])
    assert 0.5 <= shares[-1] < 0.8
    assert record["choose"]["sentiment2"]["accuracy"] == accuracies[-1]
