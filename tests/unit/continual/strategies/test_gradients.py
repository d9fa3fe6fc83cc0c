"""Gradients row by row, other values for a while, and parameters that nobody meant to thaw."""

import pytest
import torch

from curlora_lab.continual.strategies.gradients import (
    draw_rows,
    frozen,
    row_batch,
    row_gradients,
    set_to,
    shared_parameters,
    values_of,
    without_adapter,
)


def test_shared_parameters_are_the_adapters(lora_backbone, classify):
    names = shared_parameters(lora_backbone)
    assert names
    assert all("lora_" in name for name in names)
    task = classify(lora_backbone)
    assert not any("head" in name for name in shared_parameters(task.backbone))


@pytest.mark.parametrize("kind", ["classify", "language"])
def test_the_mean_of_row_gradients_is_the_gradient_of_the_mean_loss(request, lora_backbone, kind):
    task = request.getfixturevalue(kind)(lora_backbone)
    rows = list(range(5))
    found = list(row_gradients(task, rows, lambda outputs, row: outputs.nll(outputs.targets).mean()))
    assert len(found) == 5
    parameters = shared_parameters(lora_backbone)
    lora_backbone.eval()
    whole = torch.autograd.grad(task.batch_loss(row_batch(task, rows)), list(parameters.values()))
    for name, expected in zip(parameters, whole, strict=True):
        mean = torch.stack([gradients[name] for gradients, _ in found]).mean(0)
        assert torch.allclose(mean, expected, atol=1e-5)


def test_rows_are_drawn_by_position_without_repetition(lora_backbone, classify):
    task = classify(lora_backbone)
    one = draw_rows(task, 10, "fisher", 1)
    assert one == draw_rows(task, 10, "fisher", 1) == sorted(set(one))
    assert len(one) == 10
    assert one != draw_rows(task, 10, "fisher", 2)
    assert draw_rows(task, None) == draw_rows(task, 1000) == list(range(24))


def test_other_values_for_a_while_do_not_spoil_a_graph(lora_backbone, classify):
    task = classify(lora_backbone)
    lora_backbone.eval()
    parameters = shared_parameters(lora_backbone)
    before = values_of(parameters)
    batch = row_batch(task, [0, 1])
    loss = task.batch_loss(batch)
    expected = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    with set_to(parameters, {name: torch.zeros_like(value) for name, value in before.items()}), torch.no_grad():
        other = task.batch_loss(batch)
    assert other.item() != loss.item()
    found = torch.autograd.grad(loss, list(parameters.values()))
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())


def test_frozen_and_without_adapter_put_back_what_was(lora_backbone, classify):
    task = classify(lora_backbone)
    some = [parameter for name, parameter in lora_backbone.named_parameters() if "lora_A" in name]
    for parameter in some:
        parameter.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in task.parameters()]
    lora_backbone.train()
    with frozen([task.head, None]):
        assert not any(parameter.requires_grad for parameter in task.head.parameters())
    batch = row_batch(task, [0])
    text = batch["input_ids"], batch["attention_mask"]
    with without_adapter(lora_backbone):
        base = lora_backbone.lm_logits(*text)
    assert not base.requires_grad
    assert not torch.equal(base, lora_backbone.lm_logits(*text))
    assert lora_backbone.training
    assert [parameter.requires_grad for parameter in task.parameters()] == flags
