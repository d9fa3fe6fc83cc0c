"""An adapter for each task: nothing that was learnt changes, and each score is taken with the right one."""

import peft
import pytest
import torch

from curlora_lab import CurLoraConfig
from curlora_lab.adapters.attach import FullFineTuning, HeadOnly, attach, load_adapter, save_adapter
from curlora_lab.backbone import load_backbone
from curlora_lab.continual.strategies import PerTaskAdapters
from curlora_lab.continual.strategies.gradients import row_batch

ADAPTERS = [peft.LoraConfig(r=4, lora_alpha=4), CurLoraConfig(r=4)]


def begun(strategy, classify, adapter):
    """A run of three tasks before its first stage."""
    backbone = load_backbone("builtin")
    attach(backbone, adapter, seed=0)
    tasks = [classify(backbone, name) for name in ("first", "second", "third")]
    strategy.prepare(backbone, {})
    strategy.begin(tasks, backbone)
    return tasks


def learn(strategy, task, stage, steps=2):
    strategy.before_stage(task, stage=stage)
    batch = row_batch(task, range(12))
    for _ in range(steps):
        task.batch_loss(batch).backward()
        with torch.no_grad():
            for parameter in [*task.backbone.parameters(), *task.head.parameters()]:
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    strategy.after_stage(task, stage=stage)


@torch.no_grad()
def scored(strategy, task):
    strategy.before_evaluation(task)
    return task.eval().logits(row_batch(task, range(8)))


@pytest.mark.parametrize("start", ["fresh", "previous"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "curlora"])
def test_what_was_learnt_is_scored_bit_for_bit_the_same_ever_after(classify, adapter, start):
    strategy = PerTaskAdapters(start=start)
    tasks = begun(strategy, classify, adapter)
    known = {}
    for stage, task in enumerate(tasks, start=1):
        learn(strategy, task, stage)
        known[task.name] = scored(strategy, task)
        for earlier in tasks[:stage]:
            assert torch.equal(scored(strategy, earlier), known[earlier.name])
    assert strategy.cost()["adapters"] == 3


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "curlora"])
def test_a_task_before_its_stage_is_scored_with_what_it_would_start_from(classify, adapter):
    base = None
    for start in ("fresh", "previous"):
        strategy = PerTaskAdapters(start=start)
        tasks = begun(strategy, classify, adapter)
        untrained = scored(strategy, tasks[1])
        base = untrained if base is None else base
        learn(strategy, tasks[0], 1)
        before = scored(strategy, tasks[1])
        strategy.before_stage(tasks[1], stage=2)
        torch.testing.assert_close(scored(strategy, tasks[1]), before, rtol=0, atol=1e-6)
        if start == "fresh":
            assert torch.equal(before, base), "the base model"
        else:
            assert not torch.allclose(before, base, atol=1e-4)


def test_the_language_model_is_probed_with_the_adapter_of_the_stage(classify):
    strategy = PerTaskAdapters()
    tasks = begun(strategy, classify, ADAPTERS[0])
    strategy.before_probes()
    for stage, task in enumerate(tasks[:2], start=1):
        learn(strategy, task, stage)
        for each in tasks:
            strategy.before_evaluation(each)
        strategy.before_probes()
        assert task.backbone.model.active_adapters == ["default" if stage == 1 else "stage_2"]
        layer = next(m for m in task.backbone.modules() if hasattr(m, "lora_A"))
        assert not layer.disable_adapters


def test_a_stage_trains_its_own_adapter_only_also_after_others_were_scored(classify):
    strategy = PerTaskAdapters()
    tasks = begun(strategy, classify, ADAPTERS[1])
    learn(strategy, tasks[0], 1)
    for each in tasks:
        strategy.before_evaluation(each)
    strategy.before_stage(tasks[1], stage=2)
    trained = [name for name, p in tasks[0].backbone.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.endswith(".stage_2") for name in trained)


def test_a_task_that_comes_again_goes_on_with_its_own(classify):
    strategy = PerTaskAdapters()
    tasks = begun(strategy, classify, ADAPTERS[0])
    learn(strategy, tasks[0], 1)
    learn(strategy, tasks[1], 2)
    other = scored(strategy, tasks[1])
    learn(strategy, tasks[0], 3)
    assert list(tasks[0].backbone.model.peft_config) == ["default", "stage_2"]
    assert torch.equal(scored(strategy, tasks[1]), other)


def test_files_and_state_restore_everything(classify, tmp_path):
    strategy = PerTaskAdapters()
    tasks = begun(strategy, classify, ADAPTERS[0])
    for stage, task in enumerate(tasks[:2], start=1):
        learn(strategy, task, stage)
    save_adapter(tasks[0].backbone, tmp_path)
    other = PerTaskAdapters()
    again = begun(other, classify, ADAPTERS[0])
    load_adapter(again[0].backbone, tmp_path)
    other.load_state(strategy.state())
    for task, twin in zip(tasks, again, strict=True):
        twin.head.load_state_dict(task.head.state_dict())
        assert torch.equal(scored(other, twin), scored(strategy, task))
    for each, one in ((strategy, tasks[2]), (other, again[2])):
        learn(each, one, 3)
    for task, twin in zip(tasks, again, strict=True):
        assert torch.equal(scored(other, twin), scored(strategy, task))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [(FullFineTuning(), "adapter=full or none has none"), (HeadOnly(), "full or none"), (peft.VeraConfig(r=4), "VERA")],
)
def test_what_there_cannot_be_several_of_is_refused(classify, adapter, message):
    with pytest.raises(ValueError, match=message):
        begun(PerTaskAdapters(), classify, adapter)


def test_state_of_another_strategy_and_a_missing_adapter_are_refused(classify):
    strategy = PerTaskAdapters()
    begun(strategy, classify, ADAPTERS[0])
    with pytest.raises(ValueError, match="holds fisher, which is not its state"):
        strategy.load_state({"fisher": torch.zeros(1)})
    with pytest.raises(ValueError, match="the adapters stage_2 are missing; there are default"):
        strategy.load_state({"adapter_of/second": torch.tensor(2), "current": torch.tensor(2)})
    with pytest.raises(ValueError, match=r"strategy\.start='warm'"):
        PerTaskAdapters(start="warm")
