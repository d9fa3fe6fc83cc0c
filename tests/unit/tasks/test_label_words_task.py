"""Label words: the LM head chooses among words, of this task or of all tasks seen, and no head is added."""

import pytest
import torch

from curlora_lab.data import ClassificationData, DataSource
from curlora_lab.data.loading import make_loader
from curlora_lab.metrics import METRICS as LABEL_METRICS
from curlora_lab.tasks import LabelWords
from curlora_lab.tasks.base import Outcome, Training
from curlora_lab.tasks.label_words import METRICS

PLAN = {"lr": 1e-3, "head_lr": 1e-2, "batch_size": 8, "eval_batch_size": 16, "num_workers": 0, "seed": 0}
TEXTS = ("the room was nice", "the soup was bad", "we saw the film")


def rows(split, n, seed):
    return [{"text": f"{TEXTS[i % 3]} {split}{i}", "label": i % 2} for i in range(n)]


def data(backbone, name="task", labels=("bad", "good"), **prompt):
    source = DataSource(
        name=name, splits={"train": "train", "test": "test"}, generator=rows, sizes={"train": 12, "test": 9}
    )
    made = ClassificationData(
        name=name,
        source=source,
        columns=["text"],
        labels=list(labels),
        prompt={"text": "{text}. It was", **prompt},
        choose_fraction=0.0,
        max_length=40,
    )
    made.prepare(backbone.tokenizer, seed=0)
    return made


def task(backbone, name="task", metrics=("accuracy",), labels=("bad", "good"), **prompt):
    plan = Training(optimizer=torch.optim.SGD, scheduler=None, **PLAN)
    return LabelWords(
        name=name,
        data=data(backbone, name, labels, **prompt),
        backbone=backbone,
        training=plan,
        metrics=list(metrics),
        metric=metrics[0],
    )


def batch_of(made):
    return next(iter(make_loader(made.data.rows("test"), batch_size=9)))


@pytest.fixture
def backbone(make_backbone):
    return make_backbone("llama")


def test_scores_are_the_likelihoods_of_the_words_with_their_end(backbone):
    made = task(backbone, labels=("bad", "very good"))
    batch, tokenizer = batch_of(made), backbone.tokenizer
    with torch.inference_mode():
        found = made.label_scores(batch)
        for row, example in enumerate(made.data.examples("test")):
            for column, words in enumerate(("bad", "very good")):
                prompt = tokenizer(f"{example.texts[0]}. It was")["input_ids"]
                ids = torch.tensor(
                    [[*tokenizer(f"{example.texts[0]}. It was {words}")["input_ids"], tokenizer.eos_token_id]]
                )
                log_probabilities = backbone.lm_logits(ids, torch.ones_like(ids)).log_softmax(-1)[0]
                expected = sum(log_probabilities[i - 1, ids[0, i]] for i in range(len(prompt), ids.shape[1]))
                assert float(found[row, column]) == pytest.approx(float(expected), abs=2e-4)


def test_training_is_language_modelling_of_the_right_words(backbone):
    made = task(backbone)
    batch = batch_of(made)
    with torch.inference_mode():
        scores = task(backbone, reduction="mean").label_scores(batch)
        assert float(made.batch_loss(batch)) == pytest.approx(
            -float(scores[range(9), batch["label"]].mean()), abs=2e-4
        )  # each label has two tokens: the mean over rows of the mean over tokens


def test_mean_divides_by_the_number_of_tokens(backbone):
    batch = batch_of(task(backbone, labels=("bad", "very good")))
    with torch.inference_mode():
        total = task(backbone, labels=("bad", "very good")).label_scores(batch)
        mean = task(backbone, labels=("bad", "very good"), reduction="mean").label_scores(batch)
    lengths = torch.tensor([len(ids) for ids in task(backbone, labels=("bad", "very good")).candidates.values()])
    torch.testing.assert_close(mean, total / lengths)


def test_calibration_subtracts_what_the_words_get_without_content(backbone):
    plain, calibrated = task(backbone), task(backbone, calibrated=True)
    batch = batch_of(plain)
    with torch.inference_mode():
        difference = plain.label_scores(batch) - calibrated.label_scores(batch)
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), atol=1e-4, rtol=0)
    free = calibrated.data.word_encoder(backbone.tokenizer).content_free()
    assert backbone.tokenizer.decode(free, skip_special_tokens=True) == "N/A. It was"


def test_candidates_of_all_tasks_seen(backbone):
    first = task(backbone, "first", labels=("bad", "sea"), candidates="all")
    second = task(backbone, "second", metrics=("accuracy", "balanced_accuracy", "f1"), candidates="all")
    assert list(second.candidates) == ["bad", "good"]
    second.seen = [first, second]
    assert list(second.candidates) == ["bad", "good", "sea"]
    batch = batch_of(second)
    with torch.inference_mode():
        records = second.finish(second.predict(batch), "test")
    assert {record["words"] for record in records} <= {"bad", "good", "sea"}
    assert all(len(record["log_probabilities"]) == 3 for record in records)
    assert set(second.answer(records[0])["probabilities"]) == {"bad", "good", "sea"}
    narrow = task(backbone, "second")
    narrow.seen = [first]
    assert list(narrow.candidates) == ["bad", "good"]


def made_up(predictions, labels):
    return [{"label": label, "prediction": given} for given, label in zip(predictions, labels, strict=True)]


def test_a_word_of_another_task_is_wrong(backbone):
    made = task(backbone, metrics=("accuracy", "f1", "balanced_accuracy", "macro_f1"))
    foreign, plain = made_up([2, 7, 1, 0], [0, 1, 1, 0]), made_up([1, 0, 1, 0], [0, 1, 1, 0])
    found = made.score(foreign)
    assert found["accuracy"] == 0.5
    assert found["balanced_accuracy"] == 0.5
    assert found["f1"] == pytest.approx(2 / 3, abs=1e-6)  # one of two found, no wrong find: 2·1 / (2·1 + 0 + 1)
    assert found["macro_f1"] < made.score(plain)["accuracy"]
    assert made.score(plain)["f1"] == 0.5
    outcome = Outcome(scores=found, records=made_up([5] * 4, [0, 1, 1, 0]))
    codes = {finding.code: finding.message for finding in made.findings(outcome, stage=1, learnt_in=1, before=None)}
    assert codes["constant_prediction"] == "predicts '(none of the labels)' for all 4 rows"
    assert "below_constant" in codes


def test_texts_that_the_model_makes_itself(backbone):
    made = task(backbone, metrics=("normalized_match", "exact_match", "accuracy"))
    with torch.inference_mode():
        records = made.predict(batch_of(made))
    assert all(isinstance(record["text"], str) for record in records)
    labels = [record["label"] for record in records]
    words = [("Bad.", "Good")[label] for label in labels]
    told = [{**record, "text": text} for record, text in zip(records, words, strict=True)]
    assert made.score(told)["normalized_match"] == 1.0
    assert made.score(told)["exact_match"] == 0.0
    assert made.constant_baseline() == (5 / 9, "bad")
    silent = [{**record, "text": "?"} for record in records]
    found = made.findings(Outcome(scores=made.score(silent), records=silent), stage=1, learnt_in=1, before=None)
    assert "'(none of the labels)' for all 9 rows" in found[0].message
    assert "text" not in task(backbone).predict(batch_of(made))[0]


def test_what_others_need_to_know(backbone):
    made = task(backbone)
    assert made.zero_shot
    assert made.head is None
    assert made.constant_baseline() == (pytest.approx(5 / 9), "bad")
    about = made.about()
    assert about["text"] == "{text}. It was"
    assert about["words"] == ["bad", "good"]
    assert about["boundary"].endswith("after a blank that belongs to them, and an end token follows them")
    batch = batch_of(made)
    assert len(made.outputs(batch).values) == 18  # two tokens an answer
    assert set(LABEL_METRICS) < set(METRICS)


def test_rows_from_anywhere_without_labels(backbone):
    made = task(backbone)
    source = DataSource(
        name="other",
        splits={"train": "train"},
        generator=lambda split, n, seed: [{"text": "the bed was fine"}] * n,
        sizes={"train": 3},
    )
    examples, _ = made.data.read(source.read("train"), labelled=False)
    made.data = made.data.only(backbone.tokenizer, examples)
    with torch.inference_mode():
        records = made.predict(next(iter(make_loader(made.data.rows("test"), batch_size=3))))
    assert [record["label"] for record in records] == [-1] * 3


@pytest.mark.parametrize(("metrics", "message"), [(("bleu",), "no metric 'bleu' of labels; choose from accuracy")])
def test_unknown_metrics(backbone, metrics, message):
    with pytest.raises(ValueError, match=message):
        task(backbone, metrics=metrics)


def test_a_head_of_its_own_has_no_prompt(backbone, make_backbone):
    plain = data(backbone)
    plain.prompt = None
    plan = Training(optimizer=torch.optim.SGD, scheduler=None, **PLAN)
    arguments = {"name": "task", "training": plan, "metrics": ["accuracy"], "metric": "accuracy"}
    with pytest.raises(ValueError, match="set heads=label_words"):
        LabelWords(data=plain, backbone=backbone, **arguments)
    with pytest.raises(ValueError, match="needs an LM head"):
        LabelWords(data=data(backbone), backbone=make_backbone("bert"), **arguments)
