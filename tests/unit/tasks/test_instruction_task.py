"""Instruction tuning: the loss is the response's alone, texts are made where a metric needs them, and doubts are said."""

import pytest
import torch

from curlora_lab.data import DataSource, InstructionData
from curlora_lab.data.builtin import instructions
from curlora_lab.data.loading import make_loader
from curlora_lab.tasks import Instruction
from curlora_lab.tasks.base import Outcome, Training

PLAN = {"lr": 1e-3, "head_lr": 1e-2, "batch_size": 8, "eval_batch_size": 16, "num_workers": 0, "seed": 0}


def task(backbone, metrics=("exact_match", "negative_nll"), metric=None, **arguments):
    source = DataSource(
        name="task",
        splits={"train": "train", "test": "test"},
        generator=instructions,
        sizes={"train": 30, "test": 12},
    )
    data = InstructionData(
        name="task",
        source=source,
        columns=["instruction", "input"],
        response="output",
        template=["{input} {instruction} ", "{instruction} "],
        max_length=50,
        choose_fraction=0.0,
    )
    plan = Training(optimizer=torch.optim.SGD, scheduler=None, **PLAN)
    made = Instruction(
        name="task",
        data=data,
        backbone=backbone,
        training=plan,
        metrics=list(metrics),
        metric=metric or metrics[0],
        **{"max_new_tokens": 8, **arguments},
    )
    data.prepare(backbone.tokenizer, seed=0)
    return made


def batches(made, role="test"):
    return list(make_loader(made.data.rows(role), batch_size=5))


def test_the_prompt_is_context_and_no_target(make_backbone):
    made = task(make_backbone("llama"))
    batch = batches(made)[0]
    labels = batch["labels"].clone()
    loss = made.batch_loss(batch)
    assert bool((labels[:, 0] == -100).all())
    per_row = []
    for row in range(len(labels)):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row : row + 1, :length]
        logits = made.backbone.lm_logits(ids, torch.ones_like(ids)).log_softmax(-1)[0, :-1]
        places = (labels[row, 1:length] != -100).nonzero()[:, 0]
        per_row.append(-logits[places, ids[0, 1:][places]].mean())
    torch.testing.assert_close(loss, torch.stack(per_row).mean())


def test_scores_from_records_with_texts(make_backbone):
    made = task(make_backbone("llama"), metrics=("exact_match", "sari", "negative_nll", "perplexity", "token_accuracy"))
    with torch.inference_mode():
        records = [record for batch in batches(made) for record in made.predict(batch)]
    finished = made.finish(records, "test")
    assert [record["row"] for record in finished] == list(made.data.row_ids("test"))
    assert finished[0]["label"] == made.data.examples("test")[0].target
    assert finished[0]["prompt"] == made.data.prompt(made.data.examples("test")[0])
    assert made.answer(finished[0]) == {"answer": finished[0]["prediction"]}
    right = [{**record, "prediction": record["label"]} for record in finished]
    assert made.score(right)["exact_match"] == 1.0
    assert list(made.score(finished)) == list(made.metrics)
    nll = sum(record["nll"] for record in finished) / sum(record["tokens"] for record in finished)
    assert made.score(finished)["negative_nll"] == pytest.approx(-nll)


def test_texts_are_made_only_where_they_are_needed(make_backbone):
    backbone = make_backbone("llama")
    with torch.inference_mode():
        quiet = task(backbone, metrics=("negative_nll", "token_accuracy"))
        assert "prediction" not in quiet.predict(batches(quiet)[0])[0]
        unanswered = {**batches(quiet)[0], "labels": torch.full_like(batches(quiet)[0]["labels"], -100)}
        assert "prediction" in quiet.predict(unanswered)[0]
        mixed = task(backbone, metrics=("exact_match", "negative_nll"), metric="negative_nll")
        mixed.validation_step(batches(mixed)[0], 0)
        assert "prediction" not in mixed._records[0]
        assert list(mixed.score(mixed._records)) == ["negative_nll"]
        assert "prediction" in mixed.predict(batches(mixed)[0])[0]


def test_baselines_and_findings(make_backbone):
    made = task(make_backbone("llama"))
    targets = [example.target for example in made.data.examples("test")]
    score, label = made.constant_baseline()
    assert score == max(targets.count(target) for target in targets) / len(targets)
    assert targets.count(label) / len(targets) == score
    records = [{"row": i, "prediction": "No.", "label": target} for i, target in enumerate(targets)]
    outcome = Outcome(scores={"exact_match": 0.0}, records=records)
    found = made.findings(outcome, stage=1, learnt_in=1, before={"exact_match": 0.0})
    assert [finding.code for finding in found] == ["constant_prediction", "below_constant", "not_learnt"]
    assert made.findings(outcome, stage=0, learnt_in=1, before={"exact_match": 0.0}) == []
    likelihood = task(make_backbone("llama"), metrics=("negative_nll",))
    score, label = likelihood.constant_baseline()
    assert score < 0
    assert label == "unigram frequencies"
    bad = Outcome(scores={"negative_nll": -50.0}, records=[])
    assert [f.code for f in likelihood.findings(bad, stage=1, learnt_in=1, before={"negative_nll": -8.0})] == [
        "below_constant",
        "not_learnt",
    ]
    assert task(make_backbone("llama"), metrics=("rouge_l",)).constant_baseline() == (None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ("bleu",)}, "no metric 'bleu' of texts; choose from negative_nll"),
        ({"metrics": ("perplexity",)}, "let metric=negative_nll stand"),
        ({"max_new_tokens": 60}, "do not fit into the 64 tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_refusals(make_backbone, arguments, message):
    with pytest.raises(ValueError, match=message):
        task(make_backbone("llama"), **arguments)


def test_an_encoder_cannot_answer(make_backbone):
    with pytest.raises(ValueError, match="needs an LM head"):
        task(make_backbone("bert"))


def test_what_others_need_to_know(make_backbone):
    made = task(make_backbone("llama"))
    assert made.zero_shot
    assert made.head is None
    about = made.about()
    assert about["text"] == ["{input} {instruction} ", "{instruction} "]
    assert about["columns"] == ["instruction", "input"]
    assert about["boundary"].startswith("ask without the blanks at the end of the text")
    assert made.outputs(batches(made)[0]).targets is not None


def test_who_asks_as_the_boundary_says_gives_the_tokens_of_training(make_backbone):
    made = task(make_backbone("llama"))
    tokenizer = made.backbone.tokenizer
    batch = batches(made)[0]
    for row, length in zip(batch["row"].tolist(), batch["prompt_length"].tolist(), strict=True):
        prompt = made.data.prompt(made.data.examples("test")[row])
        given = batch["input_ids"][row, :length].tolist()
        assert prompt.endswith(" ")
        assert tokenizer(prompt.rstrip(" "))["input_ids"] == given
        assert tokenizer(prompt)["input_ids"] != given


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"template": "{input}\n{instruction}\n"}, "ask with the text as it is"),
        ({"template": None}, "the columns that are filled, with blank lines between and a newline behind; ask with"),
        ({"chat": True}, "what the chat template makes, with its prompt for a response; ask without the blanks"),
    ],
)
def test_the_boundary_in_words(make_backbone, changes, start):
    made = task(make_backbone("llama"))
    made.data = InstructionData(
        name="task", source=made.data.source, columns=["instruction", "input"], response="output", **changes
    )
    assert made.about()["boundary"].startswith(start)
