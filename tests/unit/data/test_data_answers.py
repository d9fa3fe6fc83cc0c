"""Prompt and answer in one row: the boundary lies between two tokens, and the prompt is always the one that is asked with."""

import numpy as np
import pytest

from curlora_lab.data.answers import Pair, pair_rows, plain_ids, tokenize_pairs, trailing_special_tokens
from curlora_lab.data.loading import Collate, Item, make_loader

DECODERS = ("gpt2", "llama", "words")


def whole(tokenizer, text):
    return tokenizer(text)["input_ids"]


@pytest.mark.parametrize("kind", DECODERS)
def test_the_parts_are_the_tokens_of_the_whole_text(tokenizers, kind):
    tokenizer = tokenizers[kind]
    prompts, answers = ["the cat sat\non a mat ", "that film "], ["very good", "was bad"]
    for prompt, answer, pair in zip(prompts, answers, tokenize_pairs(tokenizer, prompts, answers), strict=True):
        assert [*pair.prompt, *pair.answer] == whole(tokenizer, prompt + answer)
        assert list(pair.prompt) == whole(tokenizer, prompt.rstrip(" "))
        assert not pair.merged


def test_a_space_at_the_end_of_the_prompt_goes_to_the_answer(tokenizer):
    spaced, bare = (
        tokenize_pairs(tokenizer, [prompt], [answer])[0] for prompt, answer in (("a ", "cat"), ("a", " cat"))
    )
    assert list(spaced.answer) == list(bare.answer) == whole(tokenizer, " cat")


def test_a_token_across_the_boundary_is_divided_and_said(tokenizer):
    assert len(whole(tokenizer, "that")) == 1
    pair = tokenize_pairs(tokenizer, ["a cat tha"], ["t"])[0]
    assert pair.merged
    assert list(pair.prompt) == whole(tokenizer, "a cat tha")
    assert list(pair.answer) == whole(tokenizer, "t")
    assert tokenizer.decode([*pair.prompt, *pair.answer]) == "a cat that"


def test_special_tokens_stand_before_a_prompt_and_never_behind_it(tokenizers):
    llama, bert = tokenizers["llama"], tokenizers["bert"]
    with_, without = (tokenize_pairs(llama, ["the"], [" cat"], special=special)[0] for special in (True, False))
    assert list(with_.prompt) == [llama.bos_token_id, *without.prompt]
    pair = tokenize_pairs(bert, ["the cat "], ["sat"])[0]
    assert bert.sep_token_id not in [*pair.prompt, *pair.answer]
    assert pair.prompt[0] == bert.cls_token_id
    assert (trailing_special_tokens(llama), trailing_special_tokens(bert)) == (0, 1)
    assert list(plain_ids(llama, "", special=True)) == [llama.bos_token_id]


def test_an_empty_answer_leaves_the_prompt(tokenizer):
    pair = tokenize_pairs(tokenizer, ["the cat"], [""])[0]
    assert list(pair.prompt) == whole(tokenizer, "the cat")
    assert not len(pair.answer)
    assert tokenize_pairs(tokenizer, [], []) == []


def test_rows_have_targets_on_the_answer_alone():
    pairs = [
        Pair(np.array([5, 6], np.int32), np.array([7], np.int32)),
        Pair(np.array([8], np.int32), np.array([9, 2], np.int32)),
    ]
    rows = pair_rows(pairs, np.zeros(2, np.bool_), role="train", pad=0, label=np.array([1, 0]))
    assert isinstance(rows[0, 1.0], Item)
    batch = next(iter(make_loader(rows, batch_size=2)))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 2]]
    assert batch["labels"].tolist() == [[-100, -100, 7], [-100, 9, 2]]
    assert batch["prompt_length"].tolist() == [2, 1]
    assert batch["label"].tolist() == [1, 0]
    assert Collate(0)([rows[0, 1.0]])["labels"].shape == (1, 3)
