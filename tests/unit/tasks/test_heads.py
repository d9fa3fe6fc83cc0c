"""Heads beyond classification: what they compute, how pieces become rows, and what a sceptic is told."""

import lightning as L
import pytest
import torch

from curlora_lab.adapters.attach import HeadOnly, attach
from curlora_lab.continual.strategies import Strategy
from curlora_lab.data import DataSource, QuestionData, RegressionData, TokenData
from curlora_lab.data.builtin import questions, similarity, words
from curlora_lab.data.loading import make_loader
from curlora_lab.tasks import QuestionAnswering, Regression, TokenClassification
from curlora_lab.tasks.base import Outcome, Training
from curlora_lab.tasks.outputs import without_labels
from curlora_lab.tasks.question_answering import _best_spans

METRICS = {
    "similarity": ["pearson", "spearman", "negative_mse"],
    "words": ["entity_f1", "token_accuracy"],
    "questions": ["exact_match", "f1"],
}
HEADS = {
    "similarity": (Regression, RegressionData, similarity, {"columns": ["sentence1", "sentence2"]}),
    "words": (
        TokenClassification,
        TokenData,
        words,
        {"labels": ["O", "B-person", "B-animal", "B-object", "B-place", "I-place"]},
    ),
    "questions": (QuestionAnswering, QuestionData, questions, {"no_answer": True, "template": "{question} {context}"}),
}


@pytest.fixture
def make(make_backbone):
    """Make a prepared task on a small random model: ``make("words", max_length=12)``."""

    def task(name, *, kind="llama", generator=None, task_arguments=None, **changes):
        cls, data_cls, built_in, arguments = HEADS[name]
        backbone = make_backbone(kind)
        attach(backbone, HeadOnly(), seed=0)
        source = DataSource(
            name=name,
            splits={"train": "train", "test": "test"},
            generator=generator or built_in,
            sizes={"train": 40, "test": 30},
        )
        data = data_cls(name=name, source=source, **{"max_length": 60, "choose_fraction": 0.0, **arguments, **changes})
        plan = Training(
            optimizer=torch.optim.AdamW,
            scheduler=None,
            lr=1e-3,
            head_lr=3e-2,
            batch_size=8,
            eval_batch_size=16,
            num_workers=0,
            seed=0,
        )
        made = cls(
            name=name,
            data=data,
            backbone=backbone,
            training=plan,
            metric=METRICS[name][0],
            metrics=METRICS[name],
            **(task_arguments or {}),
        )
        data.prepare(backbone.tokenizer, seed=0)
        return made

    return task


def trainer(epochs):
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def trained(task, epochs=1):
    runner = trainer(epochs)
    task.start_stage(1, Strategy())
    runner.fit(task)
    runner.test(task, verbose=False)
    return task


def first_batch(task, role="test", size=30):
    return next(iter(make_loader(task.data.rows(role), batch_size=size)))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "roberta"])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_trains_and_scores_every_row_in_order(make, name, kind):
    task = trained(make(name, kind=kind))
    records = task.outcome.records
    assert [record["row"] for record in records] == [example.row_id for example in task.data.examples("test")]
    assert list(task.outcome.scores) == METRICS[name]
    assert all(parameter.grad is None for parameter in task.backbone.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_predictions_do_not_depend_on_the_batch_they_stand_in(make, name):
    task = make(name).eval()
    found = []
    for size in (1, 30):
        records = []
        for batch in make_loader(task.data.rows("test"), batch_size=size):
            with torch.no_grad():
                records += task.predict(batch)
        found.append([record["prediction"] for record in task.finish(records[::-1], "test")])
    if name == "similarity":
        assert found[0] == pytest.approx(found[1], abs=1e-4)
    else:
        assert found[0] == found[1]


@pytest.mark.parametrize("name", HEADS)
def test_the_outputs_are_what_the_loss_is_made_of(make, name):
    task = make(name).eval()
    batch = first_batch(task, size=8)
    with torch.no_grad():
        outputs, loss = task.outputs(batch), task.batch_loss(batch)
        bare = task.outputs(without_labels(batch))
    rows = outputs.row_means(outputs.nll(outputs.targets), batch=8)
    assert float(rows.mean()) * (2 if name == "similarity" else 1) == pytest.approx(float(loss), rel=1e-5)
    assert bare.targets is None
    assert torch.isfinite(outputs.divergence(outputs)).all()


@pytest.mark.parametrize("name", HEADS)
def test_a_constant_answer_is_objected_to(make, name):
    task = make(name)
    records = []
    for example in task.data.examples("test"):
        label = {"similarity": example.target, "words": [task.data.labels[tag] for tag in example.target or ()]
                 if name == "words" else None, "questions": ""}[name]  # fmt: skip
        constant = {"similarity": 1.5, "words": ["O"] * len(example.texts), "questions": ""}[name]
        answers = example.target["text"] if name == "questions" else None
        records.append({"row": example.row_id, "label": label, "answers": answers, "prediction": constant})
    outcome = Outcome(scores=task.score(records), records=records)
    codes = [finding.code for finding in task.findings(outcome, stage=1, learnt_in=1, before=None)]
    assert codes == ["constant_prediction", "not_learnt"]
    assert task.findings(outcome, stage=0, learnt_in=1, before=None) == []
    score, what = task.constant_baseline()
    assert outcome.scores[task.metric] == pytest.approx(score, abs=1e-9)
    assert what in ("O", "(no answer)") or float(what) == pytest.approx(1.5, abs=0.3)


# -- regression --------------------------------------------------------------------------------------------------------


def test_predictions_are_in_the_unit_of_the_labels(make):
    def far(split, n, seed):
        return [{**row, "label": 1000 + 100 * row["label"]} for row in similarity(split, n, seed)]

    task = trained(make("similarity", generator=far), epochs=2)
    mean, spread = task.data.statistics()
    assert task.head.mean.item() == pytest.approx(mean)
    assert task.head.scale.item() == pytest.approx(spread)
    assert all(700 < record["prediction"] < 1600 for record in task.outcome.records)
    assert -1e6 < task.outcome.scores["negative_mse"] < 0
    same = trained(make("similarity"), epochs=2)
    assert same.outcome.scores["pearson"] == pytest.approx(task.outcome.scores["pearson"], abs=1e-3)


def test_the_scale_is_stored_with_the_head(make):
    task = trained(make("similarity"))
    assert set(task.head.state_dict()) == {"weight", "bias", "mean", "scale"}
    assert sum(parameter.numel() for parameter in task.head.parameters()) == task.backbone.hidden_size + 1


# -- words -------------------------------------------------------------------------------------------------------------


def test_words_that_are_cut_off_are_wrong_and_no_entity(make):
    whole, cut = make("words"), make("words", max_length=10)
    assert any("words are cut off" in note for note in cut.data.notes)
    for task in (whole, cut):
        with torch.no_grad():
            records = task.finish(task.eval().predict(first_batch(task)), "test")
        for record, example in zip(records, task.data.examples("test"), strict=True):
            assert len(record["label"]) == len(record["prediction"]) == len(example.texts)
        unread = [tag for record in records for tag in record["prediction"] if tag is None]
        assert bool(unread) == (task is cut)
        right = [{**record, "prediction": [None if tag is None else label for tag, label in
                  zip(record["prediction"], record["label"], strict=True)]} for record in records]  # fmt: skip
        assert (task.score(right)["token_accuracy"] == 1.0) == (task is whole)


def test_entity_metrics_need_entities(make):
    with pytest.raises(ValueError, match=r"entity_f1 needs tags of entities, but data\.scheme is none"):
        make("words", scheme="none")


# -- questions ---------------------------------------------------------------------------------------------------------


def test_the_best_span_is_that_of_trying_all():
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(20, 9, generator=generator), torch.randn(20, 9, generator=generator)
    start[:, :2] = end[:, :2] = -torch.inf
    for longest in (1, 3, 30):
        score, first, last = _best_spans(start, end, longest)
        for row in range(20):
            tried = {
                (i, j): float(start[row, i] + end[row, j]) for i in range(9) for j in range(i, min(9, i + longest))
            }
            best = max(tried, key=lambda span: tried[span])
            assert (int(first[row]), int(last[row])) == best
            assert float(score[row]) == pytest.approx(tried[best])


def test_windows_become_one_record_a_question(make):
    task = make("questions", max_length=22, stride=4)
    windows = len(task.data.rows("test"))
    assert windows > 30
    with torch.no_grad():
        found = task.eval().predict(first_batch(task, size=windows))
    records = task.finish(found, "test")
    assert len(records) == 30
    owner = task.data.questions("test").tolist()
    for index, (record, example) in enumerate(zip(records, task.data.examples("test"), strict=True)):
        own = [window for window in found if owner[window["row"]] == index]
        assert record["score"] == max(window["score"] for window in own)
        assert record["none"] == min(window["none"] for window in own)
        assert record["prediction"] == "" or record["prediction"] in example.texts[1]
        if record["start"] is not None:
            assert example.texts[1][record["start"] :].startswith(record["prediction"])


def test_none_wins_only_where_it_may(make):
    task, forced = make("questions"), make("questions", task_arguments={"none_threshold": -1e9})
    with torch.no_grad():
        found = task.eval().predict(first_batch(task))
    assert {record["prediction"] for record in forced.finish(found, "test")} == {""}
    assert "" not in {record["prediction"] for record in _always(task).finish(found, "test")}
    with pytest.raises(ValueError, match="max_answer_tokens=0 must be at least 1"):
        make("questions", task_arguments={"max_answer_tokens": 0})


def _always(task):
    task.data.no_answer = False
    return task


def test_only_the_context_is_answered_from(make):
    task = make("questions").eval()
    batch = first_batch(task)
    with torch.no_grad():
        start, _ = task.logits(batch)
    first, last = batch["context"][:, 0], batch["context"][:, 1]
    for row in range(30):
        finite = torch.isfinite(start[row]).nonzero()[:, 0].tolist()
        assert finite == [0, *range(int(first[row]) + 1, int(last[row]) + 1)]


@pytest.mark.parametrize("name", HEADS)
def test_the_constant_score_is_that_of_the_rows_that_are_asked_for(make, name):
    task = make(name, choose_fraction=0.3)
    assert task.constant_baseline() == task.constant_baseline("test")
    asked: list[str] = []
    rows_of = task.data.examples
    task.data.examples = lambda role: asked.append(role) or rows_of(role)
    task.constant_baseline("choose")
    assert asked == ["choose"]
