"""Parameter groups and the optimiser of a stage."""

from functools import partial

import pytest
import torch
from torch import nn

from curlora_lab.optim import parameter_groups, stage_optimizer


def parameters(*trainable: bool) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2), requires_grad=flag) for flag in trainable]


def test_groups_have_a_rate_each_and_only_what_is_trained() -> None:
    adapter, head = parameters(True, False, True), parameters(True)
    groups = parameter_groups(adapter, head, lr=0.1, head_lr=0.2)
    assert [(group["name"], group["lr"]) for group in groups] == [("adapter", 0.1), ("head", 0.2)]
    assert [id(p) for p in groups[0]["params"]] == [id(adapter[0]), id(adapter[2])]
    assert [id(p) for p in groups[1]["params"]] == [id(head[0])]


@pytest.mark.parametrize(
    ("adapter", "head", "names"),
    [((), (True,), ["head"]), ((False,), (True,), ["head"]), ((True,), (), ["adapter"]), ((), (), [])],
)
def test_empty_groups_are_left_out(adapter: tuple[bool, ...], head: tuple[bool, ...], names: list[str]) -> None:
    groups = parameter_groups(parameters(*adapter), parameters(*head), lr=0.1, head_lr=0.2)
    assert [group["name"] for group in groups] == names


def test_the_optimiser_keeps_the_rates() -> None:
    groups = parameter_groups(parameters(True), parameters(True), lr=0.1, head_lr=0.2)
    optimizer = stage_optimizer(partial(torch.optim.SGD, momentum=0.5), groups)
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.1, 0.5), (0.2, 0.5)]
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(2)
    optimizer.step()
    assert [group["params"][0].tolist() for group in optimizer.param_groups] == [
        pytest.approx([-0.1, -0.1]),
        pytest.approx([-0.2, -0.2]),
    ]


def test_nothing_to_train() -> None:
    with pytest.raises(
        ValueError, match="Nothing to train: the adapter has no trainable parameters and the task has no head"
    ):
        stage_optimizer(torch.optim.AdamW, [])
