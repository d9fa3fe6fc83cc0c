"""The strategy that does nothing."""

import pytest
import torch

from curlora_lab.continual.strategies import Strategy


def test_does_nothing_and_refuses_the_state_of_another():
    strategy = Strategy()
    assert strategy.penalty(None, {}) is None
    assert strategy.state() == {}
    strategy.load_state({})
    with pytest.raises(ValueError, match="keeps no state, but the stage holds fisher"):
        strategy.load_state({"fisher": torch.zeros(1)})
