"""Stages that end at equal update or equal score."""

from types import SimpleNamespace
from typing import Any

import pytest

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
