"""A-GEM: what is left of a gradient is orthogonal to the memory's, and a gradient that points the right way stays."""

import pytest
import torch

from curlora_lab.continual.strategies import Agem
from curlora_lab.continual.strategies.agem import project


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]


def dot(one, other):
    return sum((a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)).item()


@pytest.mark.parametrize("seed", range(8))
def test_projection(seed):
    g, m = tensors(seed), tensors(seed + 100)
    if dot(g, m) > 0:
        assert project(g, m) is None
        g = [-each for each in g]
    changed = project(g, m)
    assert abs(dot(changed, m)) < 1e-6 * dot(m, m)
    # It is the nearest one: what was taken away lies along m.
    taken = [a - b for a, b in zip(g, changed, strict=True)]
    assert dot(taken, m) ** 2 == pytest.approx(dot(taken, taken) * dot(m, m), rel=1e-5)
    assert project(changed, m) is None or abs(dot(changed, m)) < 1e-6


def test_hand_worked():
    changed = project([torch.tensor([1.0, -2.0])], [torch.tensor([0.0, 1.0])])
    assert torch.equal(changed[0], torch.tensor([1.0, 0.0]))
    assert project([torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 1.0])]) is None
    assert project([torch.tensor([1.0, -2.0])], [torch.tensor([0.0, 0.0])]) is None


@pytest.fixture
def two(lora_backbone, classify):
    """Two tasks on one backbone; the first is in the memory, whole."""
    first, second = classify(lora_backbone, "first"), classify(lora_backbone, "second")
    strategy = Agem(rows_per_task=24, memory_batch=24)
    strategy.begin([first, second], lora_backbone)
    strategy.before_stage(first, stage=1)
    strategy.after_stage(first, stage=1)
    strategy.before_stage(second, stage=2)
    return first, second, strategy, lora_backbone.eval()


def shared(backbone):
    return [parameter for parameter in backbone.parameters() if parameter.requires_grad]


def memory_gradient(strategy, task, backbone):
    loss = strategy.memory.mean_loss({task.name: list(range(24))})
    return torch.autograd.grad(loss, shared(backbone))


def test_a_step_against_the_memory_is_projected_and_the_head_is_left_alone(two):
    first, second, strategy, backbone = two
    reference = memory_gradient(strategy, first, backbone)
    against = [-2 * m + 0.1 * torch.randn(m.shape, generator=torch.Generator().manual_seed(1)) for m in reference]
    for parameter, gradient in zip(shared(backbone), against, strict=True):
        parameter.grad = gradient.clone()
    second.head.weight.grad = torch.ones_like(second.head.weight)
    strategy.on_gradients(second)
    left = [parameter.grad for parameter in shared(backbone)]
    assert abs(dot(left, reference)) < 1e-5 * dot(reference, reference)
    assert torch.equal(second.head.weight.grad, torch.ones_like(second.head.weight))
    assert first.head.weight.grad is None
    assert (strategy.steps, strategy.projected) == (1, 1)


def test_a_step_along_the_memory_stays(two):
    first, second, strategy, backbone = two
    along = memory_gradient(strategy, first, backbone)
    for parameter, gradient in zip(shared(backbone), along, strict=True):
        parameter.grad = gradient.clone()
    strategy.on_gradients(second)
    assert all(torch.equal(p.grad, g) for p, g in zip(shared(backbone), along, strict=True))
    assert (strategy.steps, strategy.projected) == (1, 0)
    assert strategy.cost() == {
        "stored_rows": 24.0,
        "stored_bytes": strategy.cost()["stored_bytes"],
        "projected_steps": 0.0,
    }


def test_a_gradient_that_is_missing_counts_as_zero(two):
    _, second, strategy, backbone = two
    for parameter in shared(backbone):
        parameter.grad = None
    strategy.on_gradients(second)
    assert strategy.projected == 0


def test_nothing_happens_in_the_first_stage(lora_backbone, classify):
    task = classify(lora_backbone)
    strategy = Agem()
    strategy.begin([task], lora_backbone)
    strategy.on_gradients(task)
    assert strategy.steps == 0


def test_state_survives_in_the_middle_of_a_stage(two):
    first, second, strategy, backbone = two
    strategy.memory_batch = 4

    def step(which):
        for seed, parameter in enumerate(shared(backbone)):
            parameter.grad = -torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        which.on_gradients(second)
        return [parameter.grad.clone() for parameter in shared(backbone)]

    first_step = step(strategy)
    state = strategy.state()
    expected = step(strategy)
    again = Agem(rows_per_task=24, memory_batch=4)
    again.begin([first, second], backbone)
    again.load_state({**state, "agem/steps": torch.tensor([7, 7])})  # the end of the stage before
    again.before_stage(second, stage=2)
    assert again.steps == 0
    again.load_state(state)
    assert all(torch.equal(a, b) for a, b in zip(step(again), expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first_step, expected, strict=True)), "each step draws its own rows"
    with pytest.raises(ValueError, match="no state of A-GEM"):
        again.load_state({"x": torch.zeros(1)})


def test_arguments_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"strategy\.memory_batch=0 must be at least 1"):
        Agem(memory_batch=0)
