"""The LM head's losses, likelihoods and texts, each against the plain computation over the whole sequence."""

import pytest
import torch
from torch.nn import functional as F

from curlora_lab.tasks.next_token import (
    continuation_scores,
    end_tokens,
    greedy_texts,
    left_padded,
    mean_row_loss,
    prompts_of,
    token_losses,
    token_outputs,
)

PROMPTS = [torch.tensor(ids) for ids in ([1, 20, 30, 40, 50], [1, 60], [1, 70, 80])]


def answered(make_backbone, kind):
    """A batch of prompts with answers of 1 to 3 tokens, padded on the right."""
    backbone = make_backbone(kind)
    answers = [torch.tensor(ids) for ids in ([90], [91, 92, 93], [94, 95])]
    rows = [torch.cat(pair) for pair in zip(PROMPTS, answers, strict=True)]
    pad = torch.nn.utils.rnn.pad_sequence
    labels = [torch.cat([torch.full_like(p, -100), a]) for p, a in zip(PROMPTS, answers, strict=True)]
    return backbone, {
        "input_ids": pad(rows, batch_first=True, padding_value=3),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
        "prompt_length": torch.tensor([len(p) for p in PROMPTS]),
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_losses_are_those_of_the_whole_sequence(make_backbone, kind):
    backbone, batch = answered(make_backbone, kind)
    logits = backbone.lm_logits(batch["input_ids"], batch["attention_mask"])[:, :-1]
    targets = batch["labels"][:, 1:]
    expected = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)
    losses, right, scored = token_losses(backbone, batch)
    assert losses.shape[1] < expected.shape[1]  # positions before the first target cost nothing
    torch.testing.assert_close(losses.sum(1), expected.sum(1))
    assert scored.sum(1).tolist() == [1, 3, 2]
    assert right.sum() == ((logits.argmax(-1) == targets) & (targets != -100)).sum()
    torch.testing.assert_close(mean_row_loss(losses, scored), (expected.sum(1) / torch.tensor([1, 3, 2])).mean())
    outputs = token_outputs(backbone, batch)
    torch.testing.assert_close(outputs.nll(outputs.targets).sum(), expected.sum())
    assert outputs.rows.tolist() == [0, 1, 1, 1, 2, 2]
    free = token_outputs(backbone, {key: batch[key] for key in ("input_ids", "attention_mask")})
    assert free.targets is None
    assert len(free.values) == int(batch["attention_mask"][:, 1:].sum())


def test_a_batch_without_targets_has_no_loss(make_backbone):
    backbone, batch = answered(make_backbone, "llama")
    losses, _, scored = token_losses(backbone, {**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert losses.sum() == scored.sum() == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_continuations_are_as_likely_as_in_the_whole_sequence(make_backbone, kind):
    backbone = make_backbone(kind)
    continuations = [[7], [8, 9, 10], [8, 9, 11], [12, 13]]
    with torch.inference_mode():
        found = continuation_scores(backbone, PROMPTS, continuations, pad=3)
        for row, prompt in enumerate(PROMPTS):
            for column, tokens in enumerate(continuations):
                ids = torch.cat([prompt, torch.tensor(tokens)]).unsqueeze(0)
                log_probabilities = backbone.lm_logits(ids, torch.ones_like(ids)).log_softmax(-1)[
                    0, len(prompt) - 1 : -1
                ]
                expected = sum(log_probabilities[place, token] for place, token in enumerate(tokens))
                assert float(found[row, column]) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_texts_are_the_likeliest_tokens_whatever_the_models_file_says(make_backbone, kind):
    backbone = make_backbone(kind)
    plan = backbone.transformers_model.generation_config
    plan.update(do_sample=True, repetition_penalty=9.0, temperature=5.0, max_new_tokens=1, num_beams=3)
    with torch.inference_mode():
        texts = greedy_texts(backbone, PROMPTS, max_new_tokens=6)
        for prompt, text in zip(PROMPTS, texts, strict=True):
            ids = prompt.unsqueeze(0)
            for _ in range(6):
                following = backbone.lm_logits(ids, torch.ones_like(ids))[0, -1].argmax()
                if int(following) in end_tokens(backbone):
                    break
                ids = torch.cat([ids, following.view(1, 1)], dim=1)
            assert text == backbone.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True).strip()


def test_prompts_end_at_the_last_position(make_backbone):
    ids, mask = left_padded(PROMPTS, 3)
    assert ids.tolist() == [[1, 20, 30, 40, 50], [3, 3, 3, 1, 60], [3, 3, 1, 70, 80]]
    assert mask.tolist() == [[1] * 5, [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    _, batch = answered(make_backbone, "llama")
    assert [prompt.tolist() for prompt in prompts_of(batch)] == [prompt.tolist() for prompt in PROMPTS]
