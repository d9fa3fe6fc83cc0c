"""Matched comparisons as whole runs: what is to be equal is equal in the record, or the record says that it is not."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curlora_lab.config import ConfigError
from curlora_lab.tasks import TaskModule

Runner = Callable[..., dict[str, Any]]

#: Stages that end where they are asked to after about ten steps.
EQUAL_UPDATE = (
    "task=builtin_sentiment2",
    "experiment=matched/update_norm",
    "callbacks.stop_at_update_norm.target=0.02",
    "epochs=40",
    "batch_size=8",
)


@pytest.mark.parametrize("adapter", ["curlora", "lora", "lora_xs"])
def test_equal_parameters(small_run: Runner, adapter: str) -> None:
    record = small_run("task=builtin_sentiment2", "budget=3072", f"adapter={adapter}")
    assert record["parameters"]["adapter"] == record["config"]["budget"] == 3072


def test_a_method_that_cannot_meet_the_budget_says_so(small_run: Runner) -> None:
    record = small_run("task=builtin_sentiment2", "budget=3072", "adapter=ia3")
    (warning,) = [w for w in record["warnings"] if w["code"] == "budget_not_met"]
    assert "ia3 has 1536 trainable parameters, 0.5 x the budget of 3072" in warning["message"]


@pytest.mark.parametrize(("adapter", "lr"), [("curlora", "2e-2"), ("lora", "5e-3"), ("lora_xs", "1e-2")])
def test_equal_update(small_run: Runner, adapter: str, lr: str) -> None:
    record = small_run(*EQUAL_UPDATE, f"adapter={adapter}", f"lr={lr}")
    assert 0.02 <= record["shift"]["weight"][1]["overall"] <= 0.02 * 1.0101
    assert "target_not_met" not in codes(record)
    norms = logged(record, "train/sentiment2/update_norm")
    assert all(norm < 0.02 for norm in norms[:-1])
    assert norms[-1] == pytest.approx(record["shift"]["weight"][1]["overall"], rel=1e-6)
    assert 2 < len(norms) < 40 * 64 / 8 / 2  # measured at each step: less than half of those allowed were made


@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.slow), 3], ids=lambda every: f"measured every {every}"
)
def test_equal_update_is_resumed_exactly(
    small_run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, every: int
) -> None:
    """Interrupted between two measurements, a stage ends with the same bytes; where they are further apart, as near."""
    overrides = (
        *EQUAL_UPDATE,
        "adapter=lora",
        "lr=1e-2",
        f"callbacks.stop_at_update_norm.every_steps={every}",
        "checkpoint.every_steps=1",
    )
    whole = small_run(*overrides)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    for batches in (3, 2):
        interrupted(small_run, monkeypatch, "training_step", batches, overrides)
    resumed = small_run(*overrides)
    assert 0.02 <= whole["shift"]["weight"][1]["overall"] <= 0.02 * 1.0101
    assert outcome(resumed["folder"]) == outcome(tmp_path / "whole" / resumed["folder"].relative_to(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("experiment=matched/update_norm", "callbacks.stop_at_update_norm.target=5"),
            r"the update of sentiment2 is 0\.0\d+, 0\.\d+ x the 5 asked for; more epochs or a higher lr",
        ),
        (
            ("experiment=matched/plasticity", "callbacks.stop_at_score.target=1.0", "lr=1e-6", "head_lr=1e-6"),
            r"sentiment2 came \d+% of the way from a constant predictor to the best score, of the 100% asked for",
        ),
    ],
    ids=["update norm", "score"],
)
def test_a_target_that_was_not_reached_is_in_the_record_once(
    small_run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    """In a run of one piece, and in one that is interrupted while it trains and again when only scoring is left."""
    overrides = ("task=builtin_sentiment2", *overrides, "epochs=2", "checkpoint.every_steps=1")
    whole = small_run(*overrides)
    (found,) = [warning for warning in whole["warnings"] if warning["code"] == "target_not_met"]
    assert (found["task"], found["stage"]) == ("sentiment2", 1)
    assert re.match(message, found["message"])
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    interrupted(small_run, monkeypatch, "training_step", 3, overrides)
    interrupted(small_run, monkeypatch, "test_step", 1, overrides)
    with monkeypatch.context() as patch:
        patch.setattr(TaskModule, "training_step", lambda *_: pytest.fail("everything was trained"))
        resumed = small_run(*overrides)
    assert resumed["warnings"] == whole["warnings"]


def test_equal_plasticity_without_choosing_rows_is_refused_before_training(small_run: Runner) -> None:
    own = ("~task.data.source.splits.choose", "~task.data.source.sizes.choose", "task.data.choose_fraction=0")
    overrides = ("task=builtin_sentiment2", "experiment=matched/plasticity", *own)
    with pytest.raises(ConfigError, match=r"needs rows set aside for choosing, but task\.data\.choose_fraction=0"):
        small_run(*overrides)


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
    accuracies = logged(record, "choose/sentiment2/accuracy")
    shares = [2 * accuracy - 1 for accuracy in accuracies]
    assert 1 < len(shares) < 40
    assert all(share < 0.5 for share in shares[:-1])
    assert 0.5 <= shares[-1] < 0.8
    assert record["choose"]["sentiment2"]["accuracy"] == accuracies[-1]
    assert "target_not_met" not in codes(record)


def codes(record: dict[str, Any]) -> list[str]:
    return [warning["code"] for warning in record["warnings"]]


def logged(record: dict[str, Any], key: str) -> list[float]:
    """All values of a metric, in order."""
    lines = [json.loads(line) for line in (record["folder"] / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def outcome(folder: Path) -> dict[str, bytes]:
    """What a stage leaves that does not depend on the time: weights and logged numbers."""
    paths = [*folder.glob("stage_01/**/*.safetensors"), folder / "metrics.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def interrupted(
    small_run: Runner, monkeypatch: pytest.MonkeyPatch, method: str, call: int, overrides: tuple[str, ...]
) -> None:
    """Start a run, and have it taken at the so-manieth call of a method of its task."""
    real, calls = getattr(TaskModule, method), []

    def taken(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            raise KeyError("taken")
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TaskModule, method, taken)
        with pytest.raises(KeyError, match="taken"):
            small_run(*overrides)
