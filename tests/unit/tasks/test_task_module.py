"""What every head inherits: training by position, strategy hooks, exact scores, and stopping before a spoilt step."""

import math
from itertools import chain

import lightning as L
import pytest
import torch
from torch import nn

from curlora_lab.adapters.attach import FullFineTuning, HeadOnly, attach
from curlora_lab.backbone import load_backbone
from curlora_lab.continual.strategies import Strategy
from curlora_lab.data import ClassificationData, DataSource, LanguageModelData
from curlora_lab.data.loading import make_loader
from curlora_lab.tasks import LanguageModeling, NonFiniteError, SequenceClassification
from curlora_lab.tasks.base import Training, position_seed

WORDS = ["dog", "cat", "fish", "bird"]


def rows(split, n, seed):
    """Texts that name an animal; the label is whether it is the dog."""
    generator = torch.Generator().manual_seed(seed + len(split))
    picks = torch.randint(0, 4, (n,), generator=generator).tolist()
    return [{"text": f"The {WORDS[pick]} saw me {i}.", "label": int(pick == 0)} for i, pick in enumerate(picks)]


def training(**changes):
    plan = {
        "optimizer": torch.optim.AdamW,
        "scheduler": None,
        "lr": 1e-3,
        "head_lr": 1e-2,
        "batch_size": 8,
        "eval_batch_size": 16,
        "num_workers": 0,
        "seed": 0,
    }
    return Training(**{**plan, **changes})


def classification(adapter=None, name="animal", **changes):
    backbone = load_backbone("builtin")
    attach(backbone, adapter or HeadOnly(), seed=0)
    source = DataSource(
        name=name, splits={"train": "train", "test": "test"}, generator=rows, sizes={"train": 50, "test": 30}
    )
    data = ClassificationData(name=name, source=source, columns=["text"], labels=["other", "dog"])
    task = SequenceClassification(
        name=name,
        data=data,
        backbone=backbone,
        training=training(**changes),
        metric="accuracy",
        metrics=["accuracy", "mcc"],
    )
    data.prepare(backbone.tokenizer, seed=0)
    return task


def fit(task, hooks=None, *, stage=1, epochs=1, **arguments):
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **arguments,
    )
    task.start_stage(stage, hooks or Strategy())
    trainer.fit(task)
    return trainer


class Recorder(Strategy):
    """Remembers what a task asks of its strategy."""

    def __init__(self):
        self.batches, self.steps = [], 0

    def penalty(self, task, batch):
        self.batches.append(batch["row"].tolist())
        return 0.0 * sum(p.sum() for p in task.head.parameters())

    def on_gradients(self, task):
        self.steps += 1


def test_seeds_follow_from_positions():
    assert position_seed(0, 1, 2, 3) == position_seed(0, 1, 2, 3)
    assert (
        len({position_seed(0, stage, epoch, batch) for stage in range(9) for epoch in range(9) for batch in range(9)})
        == 729
    )
    assert position_seed(1, 12) != position_seed(11, 2)


def test_order_depends_on_seed_stage_and_epoch_alone():
    def order(**arguments):
        recorder = Recorder()
        torch.rand(arguments.pop("noise", 0) + 1)
        fit(classification(seed=arguments.pop("seed", 0)), recorder, **arguments)
        return recorder.batches

    first = order(epochs=2)
    assert order(epochs=2, noise=5) == first
    assert order(stage=2, epochs=2) != first
    assert order(seed=1, epochs=2) != first
    half = len(first) // 2
    assert first[:half] != first[half:]
    assert sorted(chain(*first[:half])) == sorted(chain(*first[half:]))


def test_the_strategy_is_asked_once_a_batch_and_once_a_step():
    recorder = Recorder()
    task = classification()
    fit(task, recorder, accumulate_grad_batches=2)
    batches = math.ceil(task.data.counts["train"] / 8)
    assert len(recorder.batches) == batches
    assert recorder.steps == math.ceil(batches / 2)


def test_a_penalty_is_added_to_the_loss():
    class Pull(Strategy):
        def penalty(self, task, batch):
            return 1e4 * sum(p.square().sum() for p in task.head.parameters())

    free, pulled = classification(), classification()
    fit(free, epochs=3)
    fit(pulled, Pull(), epochs=3)
    assert pulled.head.weight.norm() < 0.5 * free.head.weight.norm()


def test_each_task_has_its_own_head_and_the_same_seed_the_same_one():
    first, again, other = classification(), classification(), classification(name="other")
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not torch.equal(first.head.weight, classification(seed=1).head.weight)


def test_only_the_trained_parts_change():
    task = classification()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    fit(task)
    changed = {name for name, value in task.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"head.weight", "head.bias"}


def test_scores_are_those_of_every_row_in_order():
    task = classification()
    trainer = fit(task, epochs=3)
    trainer.test(task, verbose=False)
    records = task.outcome.records
    assert [record["row"] for record in records] == list(task.data.row_ids("test"))
    assert [record["label"] for record in records] == [example.label for example in task.data.examples("test")]
    hits = sum(record["label"] == record["prediction"] for record in records)
    assert task.outcome.scores["accuracy"] == pytest.approx(hits / len(records))
    for record in records:
        assert sum(torch.tensor(record["log_probabilities"]).exp()) == pytest.approx(1.0, abs=1e-5)


def test_predictions_do_not_depend_on_the_batch_they_stand_in():
    small, large = classification(eval_batch_size=1), classification(eval_batch_size=30)
    for task in (small, large):
        fit(task).test(task, verbose=False)
    for one, other in zip(small.outcome.records, large.outcome.records, strict=True):
        assert one["log_probabilities"] == pytest.approx(other["log_probabilities"], abs=1e-4)


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    class Spoil(Strategy):
        def on_gradients(self, task):
            task.head.weight.grad[0, 0] = float("inf")

    task = classification()
    with pytest.raises(NonFiniteError, match=r"gradient of 'head.weight' is not finite\. Rows: train-"):
        fit(task, Spoil())
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())


def test_nothing_to_train_is_said():
    task = classification()
    task.head = nn.Identity()
    with pytest.raises(ValueError, match="Nothing to train"):
        fit(task)


def test_a_metric_of_the_matrix_must_be_computed():
    with pytest.raises(ValueError, match=r"metric='f1' is not among its metrics \['accuracy'\]"):
        SequenceClassification(
            name="x",
            data=ClassificationData(
                name="x",
                source=DataSource(name="x", splits={"train": "train"}, generator=rows),
                columns=["text"],
                labels=["a", "b"],
            ),
            backbone=load_backbone("builtin"),
            training=training(),
            metric="f1",
            metrics=["accuracy"],
        )


def language(adapter=None, **changes):
    backbone = load_backbone("builtin")
    attach(backbone, adapter or FullFineTuning(), seed=0)
    source = DataSource(
        name="text", splits={"train": "train", "test": "test"}, generator=rows, sizes={"train": 60, "test": 20}
    )
    data = LanguageModelData(name="text", source=source, column="text")
    task = LanguageModeling(
        name="text",
        data=data,
        backbone=backbone,
        training=training(**changes),
        metric="negative_nll",
        metrics=["negative_nll", "perplexity", "token_accuracy"],
    )
    data.prepare(backbone.tokenizer, seed=0)
    return task


def test_language_modelling_learns_with_the_lm_head_and_adds_nothing():
    task = language(lr=3e-3)
    assert task.head is None
    trainer = fit(task, epochs=0)
    trainer.test(task, verbose=False)
    before = task.outcome.scores
    trainer = fit(task, epochs=4)
    trainer.test(task, verbose=False)
    after = task.outcome.scores
    assert after["negative_nll"] > before["negative_nll"] + 0.5
    assert after["perplexity"] == pytest.approx(torch.tensor(-after["negative_nll"]).exp().item(), rel=1e-4)
    baseline, _ = task.constant_baseline()
    assert baseline < after["negative_nll"]


def test_language_modelling_scores_tokens_as_a_plain_loop_does():
    task = language()
    fit(task, epochs=0).test(task, verbose=False)
    nll = tokens = 0.0
    for batch in make_loader(task.data.rows("test"), batch_size=1):
        with torch.no_grad():
            logits = task.backbone.lm_logits(batch["input_ids"], batch["attention_mask"])[0, :-1].double()
        targets = batch["input_ids"][0, 1:]
        nll -= logits.log_softmax(-1)[torch.arange(len(targets)), targets].sum().item()
        tokens += len(targets)
    assert -task.outcome.scores["negative_nll"] == pytest.approx(nll / tokens, rel=1e-5)
