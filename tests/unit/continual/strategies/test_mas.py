"""MAS against the importance of a linear model, worked out by hand."""

import pytest
import torch

from curlora_lab.continual.strategies import Mas

WEIGHT = [[0.3, -0.5, 0.2], [-0.1, 0.4, 0.0]]


def numbers(rows, seed=0):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


def importance(x, weight):
    """mean |∂ ‖W x‖² / ∂W| = mean |2 (W x) xᵀ|"""
    return (2 * (x @ weight.T)[:, :, None] * x[:, None, :]).abs().mean(0)


def test_importance_of_a_linear_model(linear):
    x = numbers(30)
    task = linear(x, [0] * 30, weight=WEIGHT)
    found = Mas(weight=1.0, rows=None).estimate(task, stage=1)["weight"]
    assert torch.allclose(found, importance(x, torch.tensor(WEIGHT)), rtol=1e-4)


def test_labels_do_not_matter(linear):
    one, other = (linear(numbers(10), labels, weight=WEIGHT) for labels in ([0] * 10, [1] * 10))
    strategy = Mas(weight=1.0, rows=None)
    assert torch.equal(strategy.estimate(one, stage=1)["weight"], strategy.estimate(other, stage=1)["weight"])


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_importance_adds_up_and_the_anchor_is_the_last(linear, decay):
    x, y = numbers(20), numbers(20, seed=1)
    first = linear(x, [0] * 20, weight=WEIGHT, name="first")
    second = linear(y, [0] * 20, backbone=first.backbone, name="second")
    strategy = Mas(weight=2.0, decay=decay, rows=None)
    strategy.begin([first, second], first.backbone)
    assert strategy.penalty(first, {}) is None
    strategy.after_stage(first, stage=1)
    old = importance(x, first.backbone.weight.detach())
    with torch.no_grad():
        first.backbone.weight.add_(0.1)
    assert strategy.penalty(second, {}).item() == pytest.approx(2 * (old * 0.01).sum().item(), rel=1e-4)
    new = importance(y, first.backbone.weight.detach())
    strategy.after_stage(second, stage=2)
    assert strategy.penalty(second, {}).item() == 0.0
    with torch.no_grad():
        first.backbone.weight.sub_(0.2)
    expected = 2 * ((decay * old + new) * 0.04).sum().item()
    assert strategy.penalty(second, {}).item() == pytest.approx(expected, rel=1e-4)


def test_state_survives_a_new_object(linear):
    task = linear(numbers(10), [0] * 10, weight=WEIGHT)
    strategy = Mas(weight=1.0, rows=None, normalize=True)
    strategy.begin([task], task.backbone)
    strategy.after_stage(task, stage=1)
    assert strategy.state()["all/importance/weight"].mean().item() == pytest.approx(1.0)
    with torch.no_grad():
        task.backbone.weight.add_(0.1)
    again = Mas(weight=1.0)
    again.begin([task], task.backbone)
    again.load_state(strategy.state())
    assert torch.equal(again.penalty(task, {}), strategy.penalty(task, {}))


def test_heads_of_text(lora_backbone, classify, language):
    for task in (classify(lora_backbone), language(lora_backbone)):
        found = Mas(weight=1.0, rows=3).estimate(task, stage=1)
        assert any(value.any() for value in found.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": float("inf")}, r"strategy\.weight=inf must be a number from 0"),
        ({"weight": 1.0, "decay": 1.5}, r"strategy\.decay=1\.5 must be from 0"),
        ({"weight": 1.0, "rows": 0}, r"strategy\.rows=0 must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mas(**arguments)
