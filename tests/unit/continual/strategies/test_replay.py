"""Experience replay: the gradient that it adds, the heads that it leaves alone or trains, its state."""

import lightning as L
import pytest
import torch

from curlora_lab.adapters.attach import HeadOnly, attach
from curlora_lab.backbone import load_backbone
from curlora_lab.continual.strategies import Replay
from curlora_lab.continual.strategies.gradients import row_batch


def begun(strategy, *tasks):
    """A strategy in the last of these tasks, all before having been learnt."""
    strategy.begin(tasks, tasks[0].backbone)
    for stage, task in enumerate(tasks, start=1):
        task.start_stage(stage, strategy)
        strategy.before_stage(task, stage=stage)
        if task is not tasks[-1]:
            strategy.after_stage(task, stage=stage)
    return strategy


@pytest.mark.parametrize(("heads", "warned"), [("stored", True), ("trained", False)])
def test_where_only_heads_are_trained_replay_works_through_them_or_says_that_it_does_not(
    classify, caplog, heads, warned
):
    backbone = load_backbone("builtin")
    attach(backbone, HeadOnly(), seed=0)
    caplog.set_level("WARNING", logger="curlora_lab")
    Replay(heads=heads).begin([classify(backbone, "first")], backbone)
    assert ("replay has no effect: only task heads are trained" in caplog.text) == warned


def adapter_gradient(task, loss):
    parameters = [p for p in task.backbone.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.fixture
def pair(lora_backbone, classify):
    return classify(lora_backbone, "first"), classify(lora_backbone, "second", rows=16)


def test_the_first_stage_has_nothing_to_repeat(pair):
    first, _ = pair
    strategy = begun(Replay(), first)
    assert strategy.penalty(first, row_batch(first, [0, 1])) is None


def test_with_all_rows_kept_the_gradient_is_that_of_joint_training(pair):
    first, second = pair
    strategy = begun(Replay(rows_per_task=1000, replay_rows=1000, weight=1.0), first, second)
    batch = row_batch(second, range(16))
    found = adapter_gradient(second, second.batch_loss(batch) + strategy.penalty(second, batch))
    joint = first.batch_loss(row_batch(first, range(24))) + second.batch_loss(batch)
    torch.testing.assert_close(found, adapter_gradient(second, joint), rtol=1e-4, atol=1e-6)


def test_the_expected_gradient_over_draws_is_that_of_all_kept_rows(linear):
    generator = torch.Generator().manual_seed(0)
    first = linear(torch.randn(20, 3, generator=generator), [0, 1] * 10, weight=[[0.1, 0.2, 0.3], [0.0, -0.2, 0.4]])
    second = linear(torch.randn(8, 3, generator=generator), [1] * 8, backbone=first.backbone, name="second")
    second.current_epoch = 0
    strategy = Replay(rows_per_task=1000, replay_rows=6)
    strategy.begin([first, second], first.backbone)
    strategy.after_stage(first, stage=1)
    drawn = []
    for position in range(500):
        strategy_loss = strategy.penalty(second, {"row": torch.tensor([position])})
        drawn.append(adapter_gradient(second, strategy_loss))
    whole = adapter_gradient(second, first.batch_loss(row_batch(first, range(20))))
    spread = torch.stack(drawn).std(dim=0) / len(drawn) ** 0.5
    assert bool(((torch.stack(drawn).mean(dim=0) - whole).abs() <= 4 * spread).all())


def test_earlier_heads_get_no_gradient_and_the_tasks_own_does(pair):
    first, second = pair
    strategy = begun(Replay(), first, second)
    batch = row_batch(second, [0, 1, 2])
    (second.batch_loss(batch) + strategy.penalty(second, batch)).backward()
    assert all(parameter.grad is None for parameter in first.head.parameters())
    assert all(parameter.requires_grad for parameter in first.head.parameters()), "as they were"
    assert all(parameter.grad is not None for parameter in second.head.parameters())


def test_tasks_of_a_language_model_are_repeated_too(lora_backbone, classify, language):
    first, second = language(lora_backbone), classify(lora_backbone)
    strategy = begun(Replay(rows_per_task=4), first, second)
    assert strategy.penalty(second, row_batch(second, [0])).item() > 0


@pytest.mark.parametrize("heads", ["stored", "trained"])
def test_heads_are_trained_on_only_where_that_is_asked(pair, heads):
    first, second = pair
    before = first.head.weight.detach().clone()
    begun(Replay(heads=heads), first, second)
    fit(second)
    assert torch.equal(first.head.weight, before) == (heads == "stored")


def test_repeating_works_without_an_adapter_where_heads_are_trained(classify):
    backbone = load_backbone("builtin")
    attach(backbone, HeadOnly(), seed=0)
    first, second = classify(backbone, "first"), classify(backbone, "second")
    begun(Replay(heads="trained"), first, second)
    fit(second)


def test_state_restores_the_penalties(pair):
    first, second = pair
    strategy = begun(Replay(rows_per_task=10, selection="class_balanced"), first, second)
    other = Replay(rows_per_task=10, selection="class_balanced")
    other.begin([first, second], first.backbone)
    other.load_state(strategy.state())
    other.before_stage(second, stage=2)
    batch = row_batch(second, [3, 1])
    assert torch.equal(other.penalty(second, batch), strategy.penalty(second, batch))


def test_state_of_another_strategy_is_refused(pair):
    strategy = begun(Replay(), *pair)
    with pytest.raises(ValueError, match="holds fisher, which is not its state"):
        strategy.load_state({"fisher": torch.zeros(1)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replay_rows": 0}, r"strategy\.replay_rows=0"),
        ({"weight": -1.0}, r"strategy\.weight=-1"),
        ({"weight": float("nan")}, r"strategy\.weight=nan"),
        ({"heads": "all"}, "choose one of stored, trained"),
        ({"total": 4}, "give exactly one"),
    ],
)
def test_settings_without_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Replay(**arguments)


def fit(task, **arguments):
    """One epoch, with whatever strategy the task was started with."""
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **arguments,
    )
    trainer.fit(task)
    return trainer
