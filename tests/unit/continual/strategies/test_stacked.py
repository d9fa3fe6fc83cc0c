"""O-LoRA and N-LoRA: penalties on hand-made factors, earlier adapters that stay as they are, what is refused."""

import peft
import pytest
import torch

from curlora_lab import CurLoraConfig
from curlora_lab.adapters.attach import FullFineTuning, HeadOnly, attach, load_adapter, save_adapter
from curlora_lab.adapters.several import lora_factors_of, updates_of
from curlora_lab.backbone import load_backbone
from curlora_lab.continual.strategies import NLora, OLora
from curlora_lab.continual.strategies.gradients import row_batch
from curlora_lab.continual.strategies.olora import orthogonality


def lora(**changes):
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"], **changes})


def begun(strategy, classify, adapter=None, stages=1, backbone=None):
    """A strategy at the beginning of a stage, and the task that is learnt in it."""
    if backbone is None:
        backbone = load_backbone("builtin")
        attach(backbone, adapter or lora(), seed=0)
    task = classify(backbone)
    strategy.prepare(backbone, {})
    strategy.begin([task], backbone)
    for stage in range(1, stages + 1):
        strategy.before_stage(task, stage=stage)
    return task


def step(task, strategy, rate=0.1):
    """One step of gradient descent on loss and penalty."""
    batch = row_batch(task, range(8))
    penalty = strategy.penalty(task, batch)
    (task.batch_loss(batch) + (0 if penalty is None else penalty)).backward()
    with torch.no_grad():
        for parameter in task.backbone.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad
    gradients = {name: p.grad for name, p in task.backbone.named_parameters() if p.grad is not None}
    task.backbone.zero_grad(set_to_none=True)
    return gradients


def weights(backbone, name):
    found = {key: value for key, value in backbone.state_dict().items() if f".{name}" in key}
    return {key: value.clone() for key, value in found.items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# -- known answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "expected"), [("paper", 1 + 4 + 9), ("reference", 1 + 2 + 3)])
def test_overlap_of_hand_made_subspaces(form, expected):
    earlier = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    new = torch.tensor([[1.0, -2.0, 5.0], [0.0, 3.0, 0.0]])
    assert orthogonality(earlier, new, form=form).item() == expected
    assert orthogonality(earlier, torch.tensor([[0.0, 0.0, 7.0]]), form=form).item() == 0


@pytest.mark.parametrize("form", ["paper", "reference"])
def test_the_penalty_sums_over_earlier_tasks_and_modules(classify, form):
    strategy = OLora(lambda1=0.5, lambda2=0.25, form=form)
    task = begun(strategy, classify, stages=3)
    with torch.no_grad():
        for number, name in enumerate(("default", "stage_2", "stage_3"), start=1):
            for A, B in lora_factors_of(task.backbone, name).values():
                A.zero_()[0, 0] = number  # both rows: (number, 0, ...) and zeros
                B.zero_()[0, 0] = 2.0
    strategy.before_stage(task, stage=3)
    modules = len(lora_factors_of(task.backbone, "default"))
    overlap = (1 * 3) ** 2 + (2 * 3) ** 2 if form == "paper" else 1 * 3 + 2 * 3
    expected = modules * (0.5 * overlap + 0.25 * (3 + 2))
    assert strategy.penalty(task, {}).item() == pytest.approx(expected)


def test_the_first_task_has_nothing_to_be_orthogonal_to(classify):
    strategy = OLora()
    task = begun(strategy, classify)
    assert strategy.penalty(task, {}) is None


def test_norms_of_a_zero_factor_have_a_gradient_of_zero(classify):
    strategy = OLora(lambda2=1.0)
    task = begun(strategy, classify)
    strategy.penalty(task, {}).backward()
    assert all(float(B.grad.abs().sum()) == 0 for _, B in lora_factors_of(task.backbone, "default").values())


def test_sparsity_is_the_sum_of_absolute_entries_of_the_update(classify):
    strategy = NLora(lam=0.1)
    task = begun(strategy, classify)
    with torch.no_grad():
        for A, B in lora_factors_of(task.backbone, "default").values():
            A.fill_(2.0)
            B.fill_(-1.0)  # B A is -4 everywhere
    entries = sum(update.numel() for update in updates_of(task.backbone, "default").values())
    assert strategy.penalty(task, {}).item() == pytest.approx(0.1 * 4 * entries)


def test_the_published_form_is_the_small_product(classify):
    strategy = NLora(lam=1.0, form="reference")
    task = begun(strategy, classify, lora(target_modules=["q_proj"]))
    with torch.no_grad():
        for A, B in lora_factors_of(task.backbone, "default").values():
            A.fill_(2.0)
            B.fill_(-1.0)
    factors = lora_factors_of(task.backbone, "default")
    width = next(iter(factors.values()))[0].shape[1]
    assert strategy.penalty(task, {}).item() == pytest.approx(len(factors) * 2 * 2 * 2 * width)


def test_sparsity_of_curlora_is_that_of_its_update(classify):
    strategy = NLora(lam=1.0)
    task = begun(strategy, classify, CurLoraConfig(r=4, alpha=2.0))
    layers = [m for m in task.backbone.modules() if hasattr(m, "curlora_U")]
    with torch.no_grad():
        for layer in layers:
            layer.curlora_U["default"].normal_(generator=torch.Generator().manual_seed(0))
    expected = sum(layer.delta_weight("default").abs().sum() / 2.0 for layer in layers)  # alpha does not count
    penalty = strategy.penalty(task, {})
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-5)
    penalty.backward()
    assert all(layer.curlora_U["default"].grad is not None for layer in layers)


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "adapter"), [(OLora, lora()), (NLora, lora()), (NLora, CurLoraConfig(r=4))])
def test_earlier_adapters_get_no_gradient_and_stay_as_they_are(classify, make, adapter):
    strategy = make()
    task = begun(strategy, classify, adapter)
    for _ in range(2):
        step(task, strategy)
    first = weights(task.backbone, "default")
    strategy.before_stage(task, stage=2)
    fresh = weights(task.backbone, "stage_2")
    for _ in range(2):
        gradients = step(task, strategy)
        assert gradients
        assert all(".stage_2" in name for name in gradients)
    assert equal(weights(task.backbone, "default"), first)
    assert not equal(weights(task.backbone, "stage_2"), fresh)
    assert strategy.cost()["adapters"] == 2


@pytest.mark.parametrize("adapter", [lora(), CurLoraConfig(r=4)])
def test_a_fresh_adapter_changes_nothing_and_the_updates_add_up(classify, adapter):
    strategy = NLora()
    task = begun(strategy, classify, adapter)
    step(task, strategy)
    batch = row_batch(task, range(4))
    before = task.logits(batch)
    strategy.before_stage(task, stage=2)
    torch.testing.assert_close(task.logits(batch), before, rtol=0, atol=1e-6)
    step(task, strategy)
    assert not torch.allclose(task.logits(batch), before, atol=1e-4)
    with torch.no_grad():
        for name, parameter in task.backbone.named_parameters():
            if ".stage_2" in name and ("lora_B" in name or "curlora_U" in name):
                parameter.zero_()
    torch.testing.assert_close(task.logits(batch), before, rtol=0, atol=1e-6)


def test_only_what_the_first_adapter_trains_is_trained(classify):
    backbone = load_backbone("builtin")
    attach(backbone, lora(), seed=0, start="frozen_a")
    strategy = NLora()
    task = begun(strategy, classify, stages=2, backbone=backbone)
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_B.stage_2." in name for name in trained)
    assert strategy.cost()["adapter_parameters"] == 2 * sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert strategy.penalty(task, {}).item() == 0


def test_the_start_of_later_pairs_is_a_matter_of_position(classify):
    tensors = []
    for _ in range(2):
        torch.manual_seed(len(tensors))  # whatever the global generator does
        task = begun(OLora(), classify, stages=3)
        tensors.append({**weights(task.backbone, "stage_2"), **weights(task.backbone, "stage_3")})
    assert equal(*tensors)
    A = [lora_factors_of(task.backbone, name) for name in ("default", "stage_2", "stage_3")]
    module = next(iter(A[0]))
    assert not torch.equal(A[1][module][0], A[2][module][0])
    assert not torch.equal(A[0][module][0], A[1][module][0])


def test_files_and_state_restore_the_stack_in_a_new_process(classify, tmp_path):
    strategy = OLora()
    task = begun(strategy, classify, stages=2)
    step(task, strategy)
    save_adapter(task.backbone, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "stage_2" / "adapter_model.safetensors").is_file()
    other = OLora()
    again = begun(other, classify)
    load_adapter(again.backbone, tmp_path)
    other.load_state(strategy.state())
    batch = row_batch(task, range(6))
    with torch.no_grad():
        again.head.load_state_dict(task.head.state_dict())
        assert torch.equal(again.logits(batch), task.logits(batch))
    for each, one in ((strategy, task), (other, again)):
        each.before_stage(one, stage=3)
    for _ in range(2):
        step(task, strategy)
        step(again, other)
    assert equal(weights(task.backbone, "stage_3"), weights(again.backbone, "stage_3"))
    assert torch.equal(other.penalty(again, {}), strategy.penalty(task, {}))


def test_going_back_to_an_earlier_stage_takes_later_adapters_away(classify, tmp_path):
    strategy = OLora()
    task = begun(strategy, classify)
    step(task, strategy)
    save_adapter(task.backbone, tmp_path)
    state = strategy.state()
    for stage in (2, 3):
        strategy.before_stage(task, stage=stage)
        step(task, strategy)
    load_adapter(task.backbone, tmp_path)
    strategy.load_state(state)
    assert list(task.backbone.model.peft_config) == ["default"]
    gradients = step(task, strategy)
    assert gradients
    assert all(".default" in name for name in gradients)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (CurLoraConfig(r=4), "olora can't have several of this adapter: it is CURLORA; use adapter=lora or rslora"),
        (peft.VeraConfig(r=4), "it is VERA"),
        (lora(use_dora=True), "DoRA rescales"),
        (lora(init_lora_weights="pissa"), "changes the base weight"),
        (lora(bias="lora_only"), "trains biases"),
        (FullFineTuning(), "adapter=full or none has none"),
        (HeadOnly(), "adapter=full or none has none"),
    ],
)
def test_what_cannot_be_stacked_is_refused(classify, adapter, message):
    with pytest.raises(ValueError, match=message):
        begun(OLora(), classify, adapter)


def test_the_published_form_needs_square_modules(classify):
    with pytest.raises(ValueError, match=r"product A B, which .* does not have"):
        begun(NLora(form="reference"), classify, lora(target_modules=["up_proj"]))


def test_a_stage_of_another_strategy_is_refused(classify):
    strategy = OLora()
    begun(strategy, classify)
    with pytest.raises(ValueError, match=r"holds nothing, needed is stacked/stages"):
        strategy.load_state({})
    with pytest.raises(ValueError, match=r"needs the adapters default, stage_2, there are default"):
        strategy.load_state({"stacked/stages": torch.tensor(2)})


@pytest.mark.parametrize(
    ("make", "arguments"),
    [(OLora, {"lambda1": -1.0}), (OLora, {"lambda2": -1.0}), (OLora, {"form": "code"}), (NLora, {"lam": -1.0})],
)
def test_settings_without_meaning_are_refused(make, arguments):
    with pytest.raises(ValueError, match=rf"strategy\.{next(iter(arguments))}="):
        make(**arguments)
