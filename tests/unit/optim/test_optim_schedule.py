"""Learning-rate schedules against their formulas."""

import math

import pytest
import torch

from curlora_lab.optim import schedule


def rates(steps: int, *, lrs: tuple[float, ...] = (1.0,), **arguments: object) -> list[list[float]]:
    """The learning rate of each group at each step."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    optimizer = torch.optim.SGD(groups)
    scheduler = schedule(optimizer, steps=steps, **arguments)  # type: ignore[arg-type]
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [*found, [group["lr"] for group in optimizer.param_groups]]


def expected(shape: str, step: int, steps: int, warmup: int) -> float:
    """As the docstring says it."""
    if step < warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[shape]


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.0), (20, 0.25), (7, 0.5)])
def test_shape(shape: str, steps: int, warmup: float) -> None:
    found = [rate for (rate,) in rates(steps, shape=shape, warmup=warmup)]
    assert found == pytest.approx([expected(shape, step, steps, round(warmup * steps)) for step in range(steps + 1)])


def test_ends_at_zero_but_for_constant() -> None:
    assert rates(12, shape="linear")[-1] == [0.0]
    assert rates(12, shape="cosine")[-1] == pytest.approx([0.0])
    assert rates(12, shape="constant")[-1] == [1.0]


def test_every_group_from_its_own_rate() -> None:
    found = rates(10, lrs=(1.0, 0.2), shape="linear", warmup=0.2)
    assert all(head == pytest.approx(0.2 * adapter) for adapter, head in found)


def test_steps_of_warmup_win_over_the_fraction() -> None:
    assert rates(10, warmup=0.5, warmup_steps=2) == rates(10, warmup=0.2)
    assert rates(10, warmup=0.5, warmup_steps=0)[0] == [1.0]


@pytest.mark.parametrize("warmup", [-0.1, 1.5, 5.0])
def test_warmup_outside_its_range(warmup: float) -> None:
    with pytest.raises(ValueError, match=rf"scheduler\.warmup={warmup} is a fraction .* between 0 and 1"):
        rates(10, warmup=warmup)


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match=r"scheduler\.shape='step' is unknown; choose constant, linear or cosine"):
        rates(10, shape="step")
