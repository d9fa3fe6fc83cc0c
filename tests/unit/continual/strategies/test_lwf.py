"""LwF: nothing to pay while the model is the teacher, and exactly the softened KL when it has moved."""

import copy

import peft
import pytest
import torch

from curlora_lab.adapters.attach import attach
from curlora_lab.backbone import load_backbone
from curlora_lab.continual.strategies import Lwf
from curlora_lab.continual.strategies.gradients import row_batch, shared_parameters
from curlora_lab.tasks.outputs import Outputs, outputs_of, without_labels


@pytest.fixture
def two(lora_backbone, classify):
    """Stage 2 of two tasks on one backbone, dropout off."""
    first, second = classify(lora_backbone, "first"), classify(lora_backbone, "second")
    return first, second, lora_backbone.eval()


def at_stage_two(first, second, backbone, **arguments):
    strategy = Lwf(**arguments)
    strategy.begin([first, second], backbone)
    strategy.before_stage(first, stage=1)
    assert strategy.penalty(first, row_batch(first, [0, 1])) is None
    strategy.after_stage(first, stage=1)
    strategy.before_stage(second, stage=2)
    return strategy


def shift(backbone, by=0.1):
    with torch.no_grad():
        for seed, parameter in enumerate(shared_parameters(backbone).values()):
            parameter.add_(by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))


def test_zero_with_zero_gradient_at_the_start_of_a_stage(two):
    first, second, backbone = two
    strategy = at_stage_two(first, second, backbone)
    penalty = strategy.penalty(second, row_batch(second, [0, 1, 2]))
    assert penalty.item() == 0.0
    gradients = torch.autograd.grad(penalty, list(shared_parameters(backbone).values()))
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_is_the_softened_divergence_of_the_old_head(two, temperature):
    first, second, backbone = two
    strategy = at_stage_two(first, second, backbone, weight=0.5, temperature=temperature)
    batch = row_batch(second, [0, 1, 2, 3])
    with torch.no_grad():
        before = (first.logits(batch) / temperature).softmax(-1)
    shift(backbone)
    with torch.no_grad():
        now = (first.logits(batch) / temperature).softmax(-1)
    expected = 0.5 * temperature**2 * (before * (before / now).log()).sum(-1).mean()
    assert strategy.penalty(second, batch).item() == pytest.approx(expected.item(), rel=1e-3)
    assert expected > 1e-6


def test_the_gradient_is_that_of_the_papers_cross_entropy(two):
    first, second, backbone = two
    strategy = at_stage_two(first, second, backbone, weight=1 / 4, temperature=2.0)  # T² off
    batch = row_batch(second, [0, 1, 2, 3])
    with torch.no_grad():
        before = (first.logits(batch) / 2).softmax(-1)
    shift(backbone)
    parameters = list(shared_parameters(backbone).values())
    found = torch.autograd.grad(strategy.penalty(second, batch), parameters)
    loss = -(before * (first.logits(batch) / 2).log_softmax(-1)).sum(-1).mean()
    expected = torch.autograd.grad(loss, parameters)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_old_heads_and_the_weights_stay_as_they_are(two):
    first, second, backbone = two
    strategy = at_stage_two(first, second, backbone)
    shift(backbone)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    flags = [parameter.requires_grad for parameter in backbone.parameters()]
    strategy.penalty(second, row_batch(second, [0, 1])).backward()
    assert first.head.weight.grad is None
    assert first.head.weight.requires_grad
    assert second.head.weight.grad is None
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in shared_parameters(backbone).values())
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert [parameter.requires_grad for parameter in backbone.parameters()] == flags


def test_a_share_of_a_batch_counts_as_in_the_tasks_own_loss(two):
    first, second, backbone = two
    strategy = at_stage_two(first, second, backbone)
    shift(backbone)
    batch = row_batch(second, [0, 1])
    whole = strategy.penalty(second, batch).item()
    batch["weight"] = torch.tensor(0.5)
    assert strategy.penalty(second, batch).item() == pytest.approx(whole / 2)


def test_the_transformer_runs_once_for_all_old_heads(lora_backbone, classify, monkeypatch):
    tasks = [classify(lora_backbone, name) for name in ("first", "second", "third")]
    strategy = Lwf()
    strategy.begin(tasks, lora_backbone)
    for stage, task in enumerate(tasks[:2], start=1):
        strategy.before_stage(task, stage=stage)
        strategy.after_stage(task, stage=stage)
    strategy.before_stage(tasks[2], stage=3)
    runs = []
    real = type(lora_backbone).hidden_states
    monkeypatch.setattr(type(lora_backbone), "hidden_states", lambda *a: (runs.append(1), real(*a))[1])
    strategy.penalty(tasks[2], row_batch(tasks[2], [0, 1]))
    assert len(runs) == 2, "once as teacher, once as student"
    assert "hidden_states" not in vars(lora_backbone)


def test_language_models(lora_backbone, classify, language):
    """Tasks on the LM head are one old head; with language_model it is one from the first stage on."""
    first, text, more = classify(lora_backbone), language(lora_backbone, "text"), language(lora_backbone, "more")
    strategy = Lwf(language_model=True)
    strategy.begin([text, more, first], lora_backbone.eval())
    strategy.before_stage(text, stage=1)
    batch = row_batch(text, [0, 1])
    assert strategy.penalty(text, batch).item() == 0.0
    shift(lora_backbone)
    one = strategy.penalty(text, batch)
    for stage, task in enumerate((text, more), start=1):
        strategy.after_stage(task, stage=stage)
    strategy._teacher, teacher = {}, strategy._teacher
    strategy.before_stage(first, stage=3)
    assert len(strategy._old) == 1
    strategy._teacher = teacher
    batch = row_batch(first, [0, 1])
    assert strategy.penalty(first, batch).item() > 0
    assert one.item() > 0


def test_state_survives_a_new_object(two):
    first, second, backbone = two
    strategy = at_stage_two(first, second, backbone)
    again = Lwf()
    again.begin([first, second], backbone)
    again.load_state(strategy.state())
    again.before_stage(second, stage=2)
    again.load_state(strategy.state())
    shift(backbone)
    batch = row_batch(second, [0, 1])
    assert torch.equal(again.penalty(second, batch), strategy.penalty(second, batch))
    with pytest.raises(ValueError, match="learnt/third, which LwF does not know"):
        again.load_state({"learnt/third": torch.tensor([0])})


def test_a_task_that_is_learnt_again_has_no_old_head_of_its_own(two):
    first, second, backbone = two
    strategy = at_stage_two(first, second, backbone)
    strategy.before_stage(first, stage=2)
    assert strategy.penalty(first, row_batch(first, [0])) is None


def test_full_fine_tuning_has_a_whole_teacher(classify):
    from curlora_lab.adapters.attach import FullFineTuning

    backbone = load_backbone("builtin")
    attach(backbone, FullFineTuning(), seed=0)
    first, second = classify(backbone, "first"), classify(backbone, "second")
    strategy = at_stage_two(first, second, backbone.eval())
    batch = row_batch(second, [0, 1])
    assert strategy.penalty(second, batch).item() == 0.0
    before = copy.deepcopy(first.logits(batch).detach())
    shift(backbone, by=0.01)
    now = first.logits(batch).detach()
    kl = ((before / 2).softmax(-1) * ((before / 2).log_softmax(-1) - (now / 2).log_softmax(-1))).sum(-1).mean()
    assert strategy.penalty(second, batch).item() == pytest.approx(4 * kl.item(), rel=1e-3)


def test_divergence_of_numbers_and_of_classes_that_are_ruled_out():
    rows = torch.tensor([0])
    one, other = (Outputs(values=torch.tensor([[value]]), rows=rows) for value in (1.0, 3.0))
    assert one.divergence(other).tolist() == [2.0]
    inf = -torch.inf
    p, q = (Outputs(values=torch.tensor([values]), rows=rows) for values in ([0.0, inf, 0.0], [1.0, inf, 0.0]))
    expected = 0.5 * (torch.tensor([0.5, 0.5]).log() - torch.tensor([1.0, 0.0]).log_softmax(0)).sum()
    assert q.divergence(p).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_head_without_outputs_is_named():
    with pytest.raises(ValueError, match="object does not say its outputs"):
        outputs_of(object(), without_labels({"input_ids": torch.zeros(1, 1), "attention_mask": torch.ones(1, 1)}))


def test_the_language_model_of_an_encoder_is_refused(make_backbone):
    with pytest.raises(ValueError, match=r"strategy\.language_model=true, but 'small-bert' is an encoder"):
        Lwf(language_model=True).prepare(make_backbone("bert"), {})


def test_nothing_shared_means_nothing_to_do(classify, caplog):
    from curlora_lab.adapters.attach import HeadOnly

    backbone = load_backbone("builtin")
    attach(backbone, HeadOnly(), seed=0)
    first, second = classify(backbone, "first"), classify(backbone, "second")
    caplog.set_level("WARNING", logger="curlora_lab")
    strategy = at_stage_two(first, second, backbone)
    assert strategy.penalty(second, row_batch(second, [0])) is None
    assert "lwf has no effect: only task heads are trained" in caplog.text


def test_arguments_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"strategy\.temperature=0\.0 must be a positive number"):
        Lwf(temperature=0.0)
    with pytest.raises(ValueError, match=r"strategy\.weight=-1\.0 must be a number from 0"):
        Lwf(weight=-1.0)


def test_curlora_too(classify):
    from curlora_lab import CurLoraConfig

    backbone = load_backbone("builtin")
    attach(backbone, CurLoraConfig(r=4, seed=0), seed=0)
    first, second = classify(backbone, "first"), classify(backbone, "second")
    strategy = at_stage_two(first, second, backbone.eval())
    batch = row_batch(second, [0, 1])
    assert strategy.penalty(second, batch).item() == 0.0
    shift(backbone, by=0.3)
    assert strategy.penalty(second, batch).item() > 0
    assert isinstance(backbone.model, peft.PeftModel)
