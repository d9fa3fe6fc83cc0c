"""How tasks become stages, and the batches of several tasks at once."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curlora_lab.continual import identity, scenarios
from curlora_lab.continual.joint import JointSampler
from curlora_lab.data.loading import PositionSampler

TASKS: list[Any] = [SimpleNamespace(name=name) for name in ("a", "b", "c")]
COMMON, IDENTITIES = {"seed": 0}, [{"task": name} for name in "abc"]


def test_a_sequence_goes_on_from_stage_to_stage() -> None:
    plans = scenarios.plan_stages(TASKS)
    assert [plan.task.name for plan in plans] == ["a", "b", "c"]
    assert [plan.since for plan in plans] == [0, 1, 2]
    assert [[task.name for task in plan.learnt] for plan in plans] == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert all(plan.scored == ("a", "b", "c") for plan in plans)


def test_tasks_come_again() -> None:
    plans = scenarios.plan_stages(TASKS[:2], repeats=2)
    assert [plan.task.name for plan in plans] == ["a", "b", "a", "b"]
    assert [[task.name for task in plan.learnt] for plan in plans] == [["a"], ["a", "b"], ["a", "b"], ["a", "b"]]
    assert scenarios.learnt_in(["a", "b"], scenario="sequential") == {"a": 1, "b": 2}


def test_alone_each_task_starts_from_the_untrained_model_and_is_scored_alone() -> None:
    plans = scenarios.plan_stages(TASKS, scenario="independent")
    assert [plan.since for plan in plans] == [0, 0, 0]
    assert [plan.scored for plan in plans] == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "blurry"}, "choose one of sequential, joint, independent"),
        ({"scenario": "independent", "repeats": 2}, "scenario=independent is none; set repeats=1"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenarios.plan_stages(TASKS, **arguments)


def test_keys_tell_what_led_to_a_stage() -> None:
    def keys(n: int = 3, **arguments: Any) -> list[str]:
        return identity.stage_keys(COMMON, IDENTITIES[:n], **arguments)

    assert keys(2) == keys(3)[:3]  # a longer sequence finds the stages of a shorter one
    assert keys(2) == keys(2, repeats=2)[:3]
    assert len({*keys(3), *keys(3, scenario="joint"), *keys(3, scenario="independent")}) == 4 + 1 + 3
    assert keys(3, scenario="joint")[0] == keys(3)[0]  # row 0 is the untrained model, whatever comes


def samplers(sizes: list[int], batch_size: int) -> dict[int, PositionSampler]:
    return {
        index: PositionSampler(rows, batch_size=batch_size, shuffle=True, stage=index)
        for index, rows in enumerate(sizes)
    }


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 3), st.booleans())
def test_joint_batches_are_each_of_one_task_and_hold_every_row_once(sizes, batch_size, epoch, shuffle):
    joint = JointSampler(samplers(sizes, batch_size), seed=3, stage=1, shuffle=shuffle)
    joint.set_epoch(epoch)
    batches = list(joint)
    assert len(batches) == len(joint)
    assert all(len({task for task, _, _ in batch}) == 1 for batch in batches)
    seen = Counter((task, row) for batch in batches for task, row, _ in batch)
    assert seen == Counter((task, row) for task, rows in enumerate(sizes) for row in range(rows))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 30))
def test_joint_batches_go_on_where_they_were_left(sizes, batch_size, start):
    whole = JointSampler(samplers(sizes, batch_size), seed=3, stage=1, shuffle=True)
    whole.set_epoch(2)
    resumed = JointSampler(samplers(sizes, batch_size), seed=3, stage=1, shuffle=True)
    resumed.set_epoch(2, start)
    assert list(resumed) == list(whole)[start:]
    resumed.set_epoch(3)
    whole.set_epoch(3)
    assert list(resumed) == list(whole)
