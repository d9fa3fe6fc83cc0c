"""Calibrated label words: what is subtracted is what the LM says of the words behind a prompt about nothing."""

import pytest
import torch

from curlora_lab.data import ClassificationData, DataSource
from curlora_lab.data.loading import make_loader
from curlora_lab.tasks import LabelWords
from curlora_lab.tasks.base import Training

PLAN = {"lr": 1e-3, "head_lr": 1e-2, "batch_size": 8, "eval_batch_size": 16, "num_workers": 0, "seed": 0}
WORDS = ("bad", "very good")


def rows(split, n, seed):
    return [{"text": f"the soup was fine {split}{i}", "label": i % 2} for i in range(n)]


def task(backbone, **prompt):
    source = DataSource(
        name="task", splits={"train": "train", "test": "test"}, generator=rows, sizes={"train": 6, "test": 5}
    )
    data = ClassificationData(
        name="task",
        source=source,
        columns=["text"],
        labels=list(WORDS),
        prompt={"text": "{text}. It was", **prompt},
        choose_fraction=0.0,
        max_length=40,
    )
    data.prepare(backbone.tokenizer, seed=0)
    plan = Training(optimizer=torch.optim.SGD, scheduler=None, **PLAN)
    given = {"backbone": backbone, "training": plan, "metrics": ["accuracy"], "metric": "accuracy"}
    return LabelWords(name="task", data=data, **given)


def score_behind(backbone, prompt, words, *, end, reduction):
    """Log-probability of the words behind a prompt, one token after the other, from the model's own logits."""
    tokenizer = backbone.tokenizer
    before = tokenizer(prompt)["input_ids"]
    ids = tokenizer(f"{prompt} {words}")["input_ids"] + ([tokenizer.eos_token_id] if end else [])
    assert ids[: len(before)] == before
    row = torch.tensor([ids])
    log_probabilities = backbone.lm_logits(row, torch.ones_like(row)).log_softmax(-1)[0]
    values = [float(log_probabilities[i - 1, ids[i]]) for i in range(len(before), len(ids))]
    return sum(values) / (len(values) if reduction == "mean" else 1)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_what_is_subtracted(make_backbone, end, reduction):
    backbone = make_backbone("llama")
    plain, calibrated = (task(backbone, end=end, reduction=reduction, calibrated=given) for given in (False, True))
    batch = next(iter(make_loader(plain.data.rows("test"), batch_size=5)))
    with torch.inference_mode():
        difference = plain.label_scores(batch) - calibrated.label_scores(batch)
        behind = [score_behind(backbone, "N/A. It was", words, end=end, reduction=reduction) for words in WORDS]
    assert abs(behind[0] - behind[1]) > 0.01  # or an exchange of the labels could not show
    torch.testing.assert_close(difference, torch.tensor([behind] * 5), atol=2e-4, rtol=0)
