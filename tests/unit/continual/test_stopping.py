"""Stages that end at equal update or equal score."""

import pytest

from curlora_lab.continual.stopping import StopAtScore, StopAtUpdateNorm


@pytest.mark.parametrize("target", [0.0, -1.0])
def test_update_norm_wants_a_positive_target(target: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        StopAtUpdateNorm(target)


@pytest.mark.parametrize("target", [0.0, 1.5])
def test_score_wants_a_share(target: float) -> None:
    with pytest.raises(ValueError, match="is a share of the way"):
        StopAtScore(target)
