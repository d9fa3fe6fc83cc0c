"""Scenarios as whole runs: all at once, each on its own, again, in another order, with few rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from curlora_lab import config
from curlora_lab.adapters.attach import trainable_state
from curlora_lab.build import build
from curlora_lab.continual.store import read_predictions
from curlora_lab.tasks import TaskModule

Runner = Callable[..., dict[str, Any]]
TWO = ("~sequence.tasks.paraphrase",)
NAMES = ["sentiment2", "sentiment3"]


def test_joint(small_run: Runner) -> None:
    record = small_run(*TWO, "scenario=joint")
    assert record["tasks"] == NAMES
    assert record["learnt_in"] == {"sentiment2": 1, "sentiment3": 1}
    assert len(record["scores"]) == 2
    assert all(value is not None for row in record["scores"] for value in row)
    assert record["continual"]["bwt"] is None
    assert record["continual"]["average"] == record["continual"]["learning"]
    assert (record["folder"] / "stage_01" / "head.safetensors").is_file()


def test_joint_trains_on_the_rows_of_all_tasks(small_run: Runner) -> None:
    joint = small_run(*TWO, "scenario=joint")
    sequential = small_run(*TWO)
    assert joint["cost"]["tokens"] == sequential["cost"]["tokens"]


def test_joint_gives_a_head_of_numbers_the_scale_of_its_labels(
    configured: Callable[..., dict[str, Any]], small_run: Runner
) -> None:
    given = (
        "sequence=mixed_demo",
        *(f"~sequence.tasks.{name}" for name in ("sentiment2", "words", "questions", "instructions")),
        "+task@sequence.tasks.paraphrase=builtin_paraphrase",
        "scenario=joint",
    )
    record = small_run(*given)
    head = load_file(record["folder"] / "stage_01" / "head.safetensors")
    mean, scale = build(configured(*given)).tasks[0].data.statistics()
    assert head["similarity/mean"].item() == pytest.approx(mean, rel=1e-6)
    assert head["similarity/scale"].item() == pytest.approx(scale, rel=1e-6)
    assert (mean, scale) != (0.0, 1.0)


def test_joint_scores_choosing_rows_in_the_batches_of_each_task(configured: Callable[..., dict[str, Any]]) -> None:
    parts = build(configured(*TWO, "scenario=joint", "sequence.tasks.sentiment2.eval_batch_size=4"))
    joint = parts.plans[0].task
    sizes = {0: set(), 1: set()}
    joint._trainer = SimpleNamespace(global_rank=0, world_size=1)  # what a Lightning trainer says of processes
    for batch in joint.val_dataloader():
        sizes[int(batch["task"])].add(len(batch["row"]))
    assert max(sizes[0]) == 4 < max(sizes[1])


@pytest.mark.parametrize("override", ["epochs=3", "batch_size=4", "scheduled=false"])
def test_joint_has_one_schedule_for_all(configured: Callable[..., dict[str, Any]], override: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(
        config.ConfigError, match=rf"one value of {key}, but .*sentiment2\.{key}={value}.*sentiment2\.{key}="
    ) as told:
        configured(*TWO, "scenario=joint", f"sequence.tasks.sentiment2.{override}")
    advised = str(told.value).rpartition("for example ")[2].rstrip(".")
    assert configured(*TWO, "scenario=joint", f"sequence.tasks.sentiment2.{override}", *advised.split())
    assert configured(*TWO, f"sequence.tasks.sentiment2.{override}"), "one after the other each has its own"


def test_alone_each_task_is_what_it_is_in_a_run_of_its_own(small_run: Runner) -> None:
    record = small_run(*TWO, "scenario=independent")
    first, second = record["scores"][1], record["scores"][2]
    assert first[1] is None
    assert second[0] is None
    sequential = small_run(*TWO)
    assert first[0] == sequential["scores"][1][0]
    other_way = small_run(*TWO, "scenario=independent", "order=1")
    assert other_way["tasks"] == NAMES[::-1]
    assert record["continual"]["forgetting"] is None
    assert record["continual"]["learning"] == pytest.approx((first[0] + second[1]) / 2)


def test_independent_stages_forget_what_was_before(
    small_run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each stage starts from the untrained weights, and the second one's do not depend on how long the first was trained."""
    starts: list[dict[str, Tensor]] = []
    real = TaskModule.start_stage

    def seen(task: TaskModule, stage: int, hooks: Any) -> None:
        starts.append({name: value.clone() for name, value in trainable_state(task.backbone).items()})
        real(task, stage, hooks)

    monkeypatch.setattr(TaskModule, "start_stage", seen)
    few = (*TWO, "scenario=independent", "train_rows=32", "eval_rows=12")
    once = small_run(*few)
    assert once["shift"]["weight"][1]["overall"] > 0
    torch.testing.assert_close(starts[1], starts[0], rtol=0, atol=0)
    shutil.move(tmp_path / "runs", tmp_path / "once")  # or its second stage would be reused
    longer = small_run(*few, "sequence.tasks.sentiment2.epochs=3")
    (folder,) = tmp_path.glob("once/*/*/stage_02")
    there, here = _weights(folder), _weights(longer["folder"] / "stage_02")
    changed = {name for name, value in here.items() if not torch.equal(value, there[name])}
    assert {name.partition("/")[0] for name in changed} == {"sentiment2"}, "its head and nothing else"


def _weights(stage: Path) -> dict[str, Tensor]:
    """The adapter and all heads of a finished stage."""
    (adapter,) = (stage / "adapter").glob("*.safetensors")
    return {**load_file(adapter), **load_file(stage / "head.safetensors")}


def test_tasks_come_again(small_run: Runner) -> None:
    once = small_run(*TWO)
    twice = small_run(*TWO, "repeats=2")
    assert twice["scores"][:3] == once["scores"]
    assert len(twice["scores"]) == 5
    assert [entry["stage"] for entry in twice["provenance"]["reused_stages"]] == [0, 1, 2]
    assert twice["learnt_in"] == {"sentiment2": 1, "sentiment3": 2}


def test_orders_share_what_comes_first_alike(small_run: Runner) -> None:
    listed, reverse = small_run(*TWO), small_run(*TWO, "order=1")
    assert reverse["tasks"] == listed["tasks"][::-1]
    assert listed["scores"][0] == reverse["scores"][0][::-1]
    named = small_run(*TWO, "order=[sentiment3,sentiment2]")
    assert named["folder"] == reverse["folder"]


def test_few_shot(small_run: Runner) -> None:
    record = small_run(*TWO, "train_rows=null", "shots=4")
    data = record["provenance"]["data"]
    assert data["sentiment2"]["rows"]["train"] == 8
    assert data["sentiment3"]["rows"]["train"] == 12
    other = small_run(*TWO, "train_rows=null", "shots=4", "draw=1")
    assert other["provenance"]["data"]["sentiment2"]["fingerprint"] != data["sentiment2"]["fingerprint"]
    ours, theirs = (
        read_predictions(r["folder"] / "stage_00" / "predictions" / "sentiment2.jsonl.gz") for r in (record, other)
    )
    assert [row["row"] for row in ours] == [row["row"] for row in theirs]  # what is reported is the same for every draw


@pytest.mark.parametrize("scenario", ["joint", "independent"])
def test_the_same_command_finds_the_finished_run(small_run: Runner, scenario: str) -> None:
    first = small_run(*TWO, f"scenario={scenario}")
    before = (first["folder"] / "results.json").read_bytes()
    again = small_run(*TWO, f"scenario={scenario}")
    assert again["folder"] == first["folder"]
    assert (again["folder"] / "results.json").read_bytes() == before
    json.loads(before)
