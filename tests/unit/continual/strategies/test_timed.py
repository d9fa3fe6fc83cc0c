"""The clock around a strategy passes everything on and counts what its hooks take."""

import inspect
import time

import pytest
import torch

from curlora_lab.continual.strategies import Strategy
from curlora_lab.continual.strategies.timed import Timed


class Slow(Strategy):
    """Remembers its hooks and takes its time."""

    def __init__(self):
        self.called = []
        self.held = {}

    def penalty(self, task, batch):
        time.sleep(0.01)
        self.called.append("penalty")
        return torch.tensor(2.0)

    def after_stage(self, task, *, stage):
        self.called.append(("after_stage", stage))

    def state(self):
        return {"x": torch.zeros(3)}

    def load_state(self, state):
        self.held = dict(state)


def test_every_hook_is_passed_on():
    hooks = {name for name, value in vars(Strategy).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert hooks <= set(vars(Timed)), "a new hook of Strategy needs its line in Timed"
    slow = Slow()
    timed = Timed(slow)
    assert timed.penalty(None, {}).item() == 2.0
    timed.after_stage(None, stage=3)
    timed.load_state({"y": torch.ones(1)})
    timed.before_stage(None, stage=1)
    timed.on_gradients(None)
    timed.before_evaluation(None)
    timed.begin([], None)
    assert timed.prepare(None, {}) == ""
    assert slow.called == ["penalty", ("after_stage", 3)]
    assert set(slow.held) == {"y"}
    assert set(timed.state()) == {"x"}


def spent(seconds, outside):
    """A clock that shows this."""
    timed = Timed(Slow())
    timed.seconds, timed.outside = seconds, outside
    return timed


def test_a_process_that_goes_on_adds_what_the_one_before_had_spent():
    before, after = spent(3.0, 1.0), spent(0.5, 0.25)
    after.go_on_from(before.clock())
    found = after.spent()
    assert (found["seconds"], found["outside_seconds"]) == (3.5, 1.25)


def test_going_back_to_a_checkpoint_counts_nothing_twice():
    before, after = spent(3.0, 1.0), spent(0.5, 0.25)
    early = before.clock()
    before.go_on_from(early)  # its own: a step was left out
    assert before.clock() == {"seconds": 3.0, "outside_seconds": 1.0}
    after.go_on_from(early)
    after.go_on_from(early)
    after.go_on_from(after.clock())
    assert after.clock() == {"seconds": 3.5, "outside_seconds": 1.25}


def test_each_stage_has_an_earlier_process_of_its_own():
    timed = spent(0.0, 0.0)
    timed.go_on_from({"seconds": 3.0, "outside_seconds": 1.0})
    timed.spent()
    timed.go_on_from({"seconds": 2.0, "outside_seconds": 0.5})
    assert timed.clock() == {"seconds": 2.0, "outside_seconds": 0.5}


def test_a_checkpoint_without_a_clock_adds_nothing():
    timed = spent(0.5, 0.25)
    timed.go_on_from({})
    assert timed.clock() == {"seconds": 0.5, "outside_seconds": 0.25}


def test_seconds_are_those_since_it_was_last_asked():
    timed = Timed(Slow())
    timed.penalty(None, {})
    timed.penalty(None, {})
    found = timed.spent()
    assert 0.02 <= found["seconds"] < 1.0
    assert found["stored_bytes"] == 12.0
    assert found["stored_rows"] == 0.0
    assert found["outside_seconds"] == 0.0
    assert timed.spent()["seconds"] == 0.0
    timed.after_stage(None, stage=1)
    found = timed.spent()
    assert 0 < found["outside_seconds"] == found["seconds"]


def test_what_a_strategy_says_of_its_cost_counts(monkeypatch):
    slow = Slow()
    monkeypatch.setattr(slow, "cost", lambda: {"stored_rows": 7.0, "stored_bytes": 99.0, "other": 1.0})
    assert Timed(slow).cost() == {"stored_rows": 7.0, "stored_bytes": 99.0, "other": 1.0}


def test_a_hook_that_fails_is_counted_and_fails():
    class Broken(Strategy):
        def on_gradients(self, task):
            raise ValueError("no")

    timed = Timed(Broken())
    with pytest.raises(ValueError, match="no"):
        timed.on_gradients(None)
    assert timed.seconds > 0


class SlowBackward(torch.autograd.Function):
    """The value itself; its backward pass takes a while."""

    @staticmethod
    def forward(ctx, value, seconds):
        ctx.seconds = seconds
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


class Pulling(Strategy):
    """A penalty of two slow steps backward on a parameter that the loss has, too."""

    def __init__(self, parameter):
        self.parameter = parameter

    def penalty(self, task, batch):
        return SlowBackward.apply(SlowBackward.apply(self.parameter, 0.02).square(), 0.02).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pass_backward_through_a_penalty_counts_and_that_through_the_loss_does_not(dtype):
    parameter = torch.tensor([1.5, -2.0], dtype=dtype, requires_grad=True)
    timed = Timed(Pulling(parameter))
    loss = SlowBackward.apply(SlowBackward.apply(parameter, 0.3).exp(), 0.3).sum()
    penalty = timed.penalty(None, {"input_ids": torch.zeros(1)})
    assert penalty.dtype == dtype
    (loss + penalty).backward()
    assert 0.04 <= timed.spent()["seconds"] < 0.3
    assert torch.equal(parameter.grad, (parameter.exp() + 2 * parameter).detach())


def test_a_penalty_that_nothing_goes_backward_through_is_as_it_was():
    timed = Timed(Slow())
    assert not timed.penalty(None, {}).requires_grad
    assert Timed(Strategy()).penalty(None, {}) is None
