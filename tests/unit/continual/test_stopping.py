"""Stages that end at equal update or equal score."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from curlora_lab.continual import stopping
from curlora_lab.continual.stopping import StopAtScore, StopAtUpdateNorm


@pytest.mark.parametrize("target", [0.0, -1.0])
def test_update_norm_wants_a_positive_target(target: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        StopAtUpdateNorm(target)


@pytest.mark.parametrize("target", [0.0, 1.5])
def test_score_wants_a_share(target: float) -> None:
    with pytest.raises(ValueError, match="is a share of the way"):
        StopAtScore(target)


@pytest.mark.parametrize(("score", "stops"), [(0.79, False), (0.81, True)])
def test_reported_rows_do_not_decide_when_a_stage_stops(
    score: float, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant predictor gets 0.6 on the choosing rows and 0.9 on those reported: half the way to 1 is 0.8."""
    task: Any = SimpleNamespace(
        name="task",
        metric="accuracy",
        chosen_scores=[{"accuracy": score}],
        data=SimpleNamespace(best=None),
        constant_baseline=lambda role=None: ({"choose": 0.6, None: 0.9}[role], "yes"),
    )
    monkeypatch.setattr(stopping, "_task", lambda given: given)
    trainer: Any = SimpleNamespace(sanity_checking=False, should_stop=False)
    StopAtScore(0.5).on_validation_end(trainer, task)
    assert trainer.should_stop is stops


def scored(*accuracies: float, choose: int = 10, constant: float | None = 0.6) -> Any:
    """A task with the accuracies of its epochs on so many choosing rows."""
    return SimpleNamespace(
        name="task",
        stage=2,
        metric="accuracy",
        chosen_scores=[{"accuracy": accuracy} for accuracy in accuracies],
        data=SimpleNamespace(best=None, counts={"choose": choose}),
        constant_baseline=lambda role: (constant, "yes"),
    )


def test_a_share_that_no_epoch_reached_is_found() -> None:
    """From 0.6 to 1: 0.78 is 45 % of the way, whatever the last epoch has."""
    stop = StopAtScore(0.5)
    stop.judge(scored(0.7, 0.78, 0.5))
    assert stop.finding is not None
    assert (stop.finding.code, stop.finding.task, stop.finding.stage) == ("target_not_met", "task", 2)
    assert "45% of the way" in stop.finding.message
    stop = StopAtScore(0.5)
    stop.judge(scored(0.7, 0.81))
    assert stop.finding is None


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (scored(choose=0), r"'task' has none; raise its data\.choose_fraction"),
        (scored(constant=None), r"'task' has no constant predictor"),
        (scored(constant=1.0), r"always giving one answer is perfect"),
    ],
    ids=["no rows", "no constant predictor", "nothing to learn"],
)
def test_a_task_without_a_way_to_go_is_refused(task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StopAtScore(0.5).check(task)


@pytest.mark.parametrize(("moved", "is_found"), [(0.91, False), (1.09, False), (0.89, True), (1.11, True)])
def test_an_update_more_than_a_tenth_away_is_found(moved: float, is_found: bool) -> None:
    """A weight of norm 1 that trains itself, moved so far of 1."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    task: Any = SimpleNamespace(name="task", stage=1, backbone=SimpleNamespace(model=model))
    stop = StopAtUpdateNorm(1.0)
    stop.start(task)
    with torch.no_grad():
        model.weight.add_(moved)
    stop.judge(task)
    assert (stop.finding is not None) is is_found
