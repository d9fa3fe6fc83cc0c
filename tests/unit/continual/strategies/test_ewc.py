"""EWC against the Fisher information in closed form, and as a penalty on problems whose minimum is known."""

import pytest
import torch

from curlora_lab.continual.strategies import Ewc
from curlora_lab.continual.strategies.gradients import row_batch, row_gradients, shared_parameters
from curlora_lab.continual.strategies.quadratic import normalised
from curlora_lab.continual.strategies.timed import Timed

WEIGHT = [[0.3, -0.5, 0.2], [-0.1, 0.4, 0.0]]


def numbers(rows, width=3, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def learnt(task, *, stage=1, **arguments):
    strategy = Ewc(**{"weight": 1.0, "rows": None, **arguments})
    strategy.begin([task], task.backbone)
    strategy.after_stage(task, stage=stage)
    return strategy


def move(backbone, by):
    with torch.no_grad():
        backbone.weight.add_(torch.as_tensor(by))


def test_empirical_fisher_of_logistic_regression(linear):
    x, labels = numbers(50), [i % 2 for i in range(50)]
    task = linear(x, labels, weight=WEIGHT)
    p = (x @ torch.tensor(WEIGHT).T).softmax(-1)
    away = p - torch.nn.functional.one_hot(torch.tensor(labels), 2)
    expected = (away.square()[:, :, None] * x.square()[:, None, :]).mean(0)
    found = Ewc(weight=1.0, labels="empirical", rows=None).estimate(task, stage=1)["weight"]
    assert torch.allclose(found, expected, rtol=1e-4)


def test_sampled_fisher_of_logistic_regression(linear):
    x = numbers(10).repeat(60, 1)
    task = linear(x, [0] * len(x), weight=WEIGHT)  # the labels do not matter
    p = (x @ torch.tensor(WEIGHT).T).softmax(-1)
    expected = ((p * (1 - p))[:, :, None] * x.square()[:, None, :]).mean(0)
    found = Ewc(weight=1.0, rows=None).estimate(task, stage=1)["weight"]
    assert torch.allclose(found, expected, rtol=0.2)
    batch = row_batch(task, list(range(len(x))))
    mean = torch.autograd.grad(task.batch_loss(batch), task.backbone.weight)[0]
    assert (mean.square() < found).all(), "the square of a batch's gradient is no Fisher information"


def test_fisher_of_a_number_is_the_second_moment_of_its_input(linear):
    x = numbers(10).repeat(60, 1)
    task = linear(x, [0.0] * len(x), weight=[[1.0, 0.0, -1.0]])
    found = Ewc(weight=1.0, rows=None).estimate(task, stage=1)["weight"]
    assert torch.allclose(found[0], x.square().mean(0), rtol=0.25)


def test_a_row_of_many_predictions_counts_as_one(linear):
    """With n independent predictions a row, the squared gradient of their sum is n times that of one; the loss is their mean."""
    x = numbers(10).repeat(60, 1)
    one, many = (linear(x, [0] * len(x), weight=WEIGHT, each=each) for each in (1, 5))
    single, several = (Ewc(weight=1.0, rows=None).estimate(task, stage=1)["weight"] for task in (one, many))
    assert torch.allclose(single, several, rtol=0.3)


def test_block_is_the_mean_outer_product_and_has_the_diagonal(linear):
    x, labels = numbers(30), [i % 2 for i in range(30)]
    task = linear(x, labels, weight=WEIGHT)
    block = Ewc(weight=1.0, labels="empirical", fisher="block", rows=None).estimate(task, stage=1)["weight"]
    diagonal = Ewc(weight=1.0, labels="empirical", rows=None).estimate(task, stage=1)["weight"]
    nll = lambda outputs, row: outputs.nll(outputs.targets).sum()  # noqa: E731
    gradients = torch.stack([g["weight"].flatten() for g, _ in row_gradients(task, range(30), nll)])
    assert torch.allclose(block, gradients.T @ gradients / 30, atol=1e-6)
    assert torch.allclose(block.diagonal(), diagonal.flatten(), atol=1e-6)


@pytest.mark.parametrize("fisher", ["diagonal", "block"])
def test_penalty_is_half_weight_times_the_quadratic_form(linear, fisher):
    task = linear(numbers(20), [i % 2 for i in range(20)], weight=WEIGHT)
    strategy = learnt(task, weight=3.0, fisher=fisher)
    assert strategy.penalty(task, {}).item() == 0.0
    step = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.5, -0.1]])
    matrix = strategy._pulls["stage_01"].importance["weight"]
    form = (matrix * step.square()).sum() if fisher == "diagonal" else step.flatten() @ matrix @ step.flatten()
    move(task.backbone, step)
    assert strategy.penalty(task, {}).item() == pytest.approx(1.5 * form.item(), rel=1e-5)


def test_the_penalty_is_the_divergence_of_the_old_task_to_second_order(linear):
    """weight=1, whole block: what a small step costs the old task, in nats a row."""
    x = numbers(10).repeat(60, 1)
    task = linear(x, [0] * len(x), weight=WEIGHT)
    strategy = learnt(task, fisher="block")
    batch = row_batch(task, list(range(len(x))))
    before = task.outputs(batch)
    before = type(before)(values=before.values.detach(), rows=before.rows)
    move(task.backbone, [[0.05, -0.03, 0.04], [-0.05, 0.02, 0.06]])
    divergence = task.outputs(batch).divergence(before).mean().item()
    assert strategy.penalty(task, {}).item() == pytest.approx(divergence, rel=0.2)


def test_minimum_of_two_quadratic_losses(linear):
    """L_2 = ½ (θ − 3)², penalty ½ λ F (θ − 1)², so θ = (3 + λ F) / (1 + λ F)."""
    old = linear([[2.0]] * 8, [2.0] * 8, weight=[[1.0]])  # θ x = y at θ = 1
    strategy = learnt(old, weight=0.25, rows=None)
    fisher = strategy._pulls["stage_01"].importance["weight"].item()
    new = linear([[1.0]], [3.0], backbone=old.backbone, name="new")
    optimizer = torch.optim.SGD(old.backbone.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        (new.batch_loss(row_batch(new, [0])) + strategy.penalty(new, {})).backward()
        optimizer.step()
    expected = (3 + 0.25 * fisher) / (1 + 0.25 * fisher)
    assert old.backbone.weight.item() == pytest.approx(expected, rel=1e-4)


def test_a_huge_weight_holds_what_the_old_task_sees_and_nothing_else(linear):
    """The old task sees inputs 0 and 1 only together, as x0 = x1: a block holds their sum and leaves their difference free."""
    x = numbers(40, width=1) * torch.tensor([[1.0, 1.0, 0.0]])
    old = linear(x, [0.0] * 40, weight=[[0.5, -0.5, 0.1]])
    strategy = learnt(old, weight=1e5, fisher="block")
    new = linear(numbers(40, seed=1), numbers(40, width=1, seed=2)[:, 0].tolist(), backbone=old.backbone, name="new")
    batch = row_batch(new, list(range(40)))
    optimizer = torch.optim.LBFGS(old.backbone.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = new.batch_loss(batch) + strategy.penalty(new, batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    step = (old.backbone.weight.detach() - torch.tensor([[0.5, -0.5, 0.1]]))[0]
    assert abs(step[0] + step[1]) < 1e-4
    assert abs(step[0] - step[1]) > 0.01
    assert abs(step[2]) > 0.01


def test_separate_penalties_add_up_and_online_decays(linear):
    first = linear(numbers(20), [0, 1] * 10, weight=WEIGHT, name="first")
    second = linear(numbers(20, seed=1), [1, 0] * 10, backbone=first.backbone, name="second")
    separate = Ewc(weight=2.0, labels="empirical", rows=None)
    online = Ewc(weight=2.0, labels="empirical", rows=None, mode="online", decay=0.5)
    fishers, anchors = [], []
    for strategy in (separate, online):
        strategy.begin([first, second], first.backbone)
    for stage, task in enumerate((first, second), start=1):
        fishers.append(separate.estimate(task, stage=stage)["weight"])
        anchors.append(task.backbone.weight.detach().clone())
        for strategy in (separate, online):
            strategy.after_stage(task, stage=stage)
        move(task.backbone, 0.1)
    away = [first.backbone.weight.detach() - anchor for anchor in anchors]
    expected = sum((fisher * step.square()).sum() for fisher, step in zip(fishers, away, strict=True))
    assert separate.penalty(second, {}).item() == pytest.approx(expected.item(), rel=1e-5)
    carried = 0.5 * fishers[0] + fishers[1]
    assert online.penalty(second, {}).item() == pytest.approx((carried * away[1].square()).sum().item(), rel=1e-5)
    assert len(online.state()) == 2
    assert len(separate.state()) == 4


def test_normalised_importance_has_mean_one():
    importance = {"a": torch.tensor([1.0, 3.0]), "b": torch.diag(torch.tensor([2.0, 2.0]))}
    scaled = normalised(importance, {"a": 2, "b": 2})
    assert torch.equal(scaled["a"], torch.tensor([0.5, 1.5]))
    assert torch.equal(scaled["b"].diagonal(), torch.ones(2))
    nothing = {"a": torch.zeros(2)}
    assert torch.equal(normalised(nothing, {"a": 2})["a"], torch.zeros(2))


@pytest.mark.parametrize("arguments", [{}, {"mode": "online"}, {"fisher": "block"}])
def test_state_survives_a_new_object(linear, arguments):
    task = linear(numbers(20), [0, 1] * 10, weight=WEIGHT)
    strategy = learnt(task, **arguments)
    move(task.backbone, 0.1)
    again = Ewc(weight=1.0, rows=None, **arguments)
    again.begin([task], task.backbone)
    again.before_stage(task, stage=2)
    again.load_state(strategy.state())
    assert torch.equal(again.penalty(task, {}), strategy.penalty(task, {}))
    assert again.state().keys() == strategy.state().keys()
    assert all(torch.equal(value, strategy.state()[name]) for name, value in again.state().items())
    held = sum(value.nbytes for value in strategy.state().values())
    assert Timed(again).cost() == {"stored_rows": 0.0, "stored_bytes": held}


def test_state_of_others_is_refused(linear):
    task = linear(numbers(20), [0, 1] * 10, weight=WEIGHT)
    state = learnt(task).state()
    block = Ewc(weight=1.0, fisher="block")
    block.begin([task], task.backbone)
    with pytest.raises(ValueError, match=r"stage_01/importance/weight of shape \(2, 3\).*expected \(6, 6\)"):
        block.load_state(state)
    strategy = Ewc(weight=1.0)
    strategy.begin([task], task.backbone)
    with pytest.raises(ValueError, match="learnt/animal"):
        strategy.load_state({"learnt/animal": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"state of stage_01 lacks weight"):
        strategy.load_state({"stage_01/anchor/weight": torch.zeros(2, 3)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, r"strategy\.weight=-1\.0 must be a number from 0"),
        ({"weight": 1.0, "decay": 0.0}, r"strategy\.decay=0\.0 must be above 0"),
        ({"weight": 1.0, "rows": 0}, r"strategy\.rows=0 must be at least 1, or null"),
        ({"weight": 1.0, "mode": "both"}, r"strategy\.mode='both' is unknown; choose one of separate, online"),
        ({"weight": 1.0, "labels": "true"}, r"choose one of sampled, empirical"),
        ({"weight": 1.0, "fisher": "full"}, r"choose one of diagonal, block"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ewc(**arguments)


def test_a_block_that_would_not_fit_is_refused_before_training(lora_backbone):
    first = next(iter(shared_parameters(lora_backbone).values()))
    assert first.numel() <= 4096
    Ewc(weight=1.0, fisher="block").prepare(lora_backbone, {})
    first.data = torch.zeros(128, 64)
    with pytest.raises(ValueError, match=r"strategy\.fisher=block: .* has 8192 entries.*at most 4096"):
        Ewc(weight=1.0, fisher="block").prepare(lora_backbone, {})


def test_a_real_task_and_a_text(lora_backbone, classify, language):
    for task in (classify(lora_backbone), language(lora_backbone)):
        strategy = learnt(task, rows=4)
        names = set(shared_parameters(lora_backbone))
        assert {name.split("/", 2)[2] for name in strategy.state()} == names
        assert all(name.startswith("model.") for name in names), "heads are not shared"
        assert strategy.penalty(task, {}).item() == 0.0
        fisher = strategy._pulls["stage_01"].importance
        assert all(torch.isfinite(value).all() and (value >= 0).all() for value in fisher.values())
        assert any(value.any() for value in fisher.values())
        assert all(parameter.grad is None for parameter in task.parameters()), "estimating leaves no gradients behind"
