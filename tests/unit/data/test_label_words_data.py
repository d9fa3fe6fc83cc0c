"""A text asked for its label: prompts, label words, and what cannot be asked."""

import pytest

from curlora_lab.data.checks import Example
from curlora_lab.data.label_words import Prompt, WordEncoder, word_ids

LABELS = ["bad", "very_good"]


def example(texts, label=0):
    return Example("here:1", "1", tuple(texts), label, {})


def encoder(tokenizer, *, columns=("text",), template=None, labels=LABELS, max_length=60, **prompt):
    return WordEncoder(
        tokenizer,
        prompt=Prompt.of(prompt, "task"),
        columns=columns,
        template=template,
        labels=labels,
        max_length=max_length,
    )


def row(tokenizer, made, *texts, label=0):
    rows, _ = made.rows([example(texts, label)], "train", 0, None)
    item = rows[0, 1.0]
    scored = item.label != -100
    assert int(item.columns["prompt_length"]) == int((~scored).sum())
    assert int(item.columns["label"]) == label
    return tokenizer.decode(item.ids[~scored]), tokenizer.decode(item.ids[scored])


def test_the_default_prompt_names_the_options_and_the_words_follow(tokenizer):
    made = encoder(tokenizer)
    assert made.words == ("bad", "very good")
    assert row(tokenizer, made, "that film", label=1) == (
        "Option: bad, very good\nthat film\nAnswer:",
        " very good<|endoftext|>",
    )
    assert row(tokenizer, encoder(tokenizer, end=False), "that film") == (
        "Option: bad, very good\nthat film\nAnswer:",
        " bad",
    )


def test_a_prompt_of_ones_own_with_columns_template_and_words(tokenizer):
    made = encoder(
        tokenizer,
        columns=("a", "b"),
        template="{b} of {a}",
        text="{text} was ",
        words={"bad": "red", "very_good": "big"},
    )
    assert row(tokenizer, made, "cat", "house", label=1) == ("house of cat was", " big<|endoftext|>")
    own = {"text": "{a}{{{b}}}: ", "words": ["x", "y"]}
    assert row(tokenizer, encoder(tokenizer, columns=("a", "b"), tasks={"task": own, "other": {}}), "cat", "dog") == (
        "cat{dog}:",
        " x<|endoftext|>",
    )
    lines = encoder(tokenizer, columns=("a", "b"), text="{text}\n")
    assert row(tokenizer, lines, "cat", "dog") == ("cat\ndog\n", "bad<|endoftext|>")


def test_only_the_text_is_cut(tokenizer):
    made = encoder(tokenizer, max_length=24)
    rows, notes = made.rows([example(["the cat sat on a mat and the dog ran far away"], 1)], "train", 0, None)
    ids = rows[0, 1.0].ids
    assert len(ids) <= 24
    text = tokenizer.decode(ids)
    assert text.startswith("Option: bad, very good\nthe")
    assert text.endswith("\nAnswer: very good<|endoftext|>")
    assert notes == ["truncated: 1 of 1 train rows to 24 tokens"]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "words"])
def test_the_answer_is_tokenised_as_behind_the_prompt(tokenizers, kind):
    tokenizer = tokenizers[kind]
    made = encoder(tokenizer, text="{text} film was", labels=["bad", "good"])
    whole = tokenizer("that film was good")["input_ids"]
    rows, _ = made.rows([example(["that"], 1)], "train", 0, None)
    assert rows[0, 1.0].ids.tolist() == [*whole, tokenizer.eos_token_id]
    free = made.content_free()
    assert free[0] == whole[0] if kind == "llama" else len(free)


def test_a_row_without_a_label_is_a_prompt_only(tokenizer):
    assert row(tokenizer, encoder(tokenizer), "cat", label=-1) == ("Option: bad, very good\ncat\nAnswer:", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": {"bad": "x"}}, r"the labels are \['bad', 'very_good'\], each needs its words"),
        ({"words": ["x"]}, "has 1 entries for the 2 labels"),
        ({"words": ["x", "x"]}, "each label needs words of its own"),
        ({"words": ["x", " "]}, "not empty"),
        ({"text": "{txt}"}, "has the field 'txt'; allowed: text, options, text"),
        ({"text": "{options}"}, "needed: each of"),
        ({"text": "{text"}, "cannot be read"),
        ({"end": False, "words": ["good", "good bad"]}, "'good' begin 'good bad'"),
        ({"candidates": "any"}, "allowed: task, all"),
        ({"reduction": "max"}, "allowed: sum, mean"),
        ({"word": ["x", "y"]}, "prompt has the field 'word'; allowed: calibrated"),
        ({"tasks": {"task": {"colour": 1}}}, "prompt has the field 'colour'"),
        ({"words": ["a b c d e f g", "b"], "max_length": 5}, "the longest label alone has"),
    ],
)
def test_what_cannot_be_asked(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        encoder(tokenizer, **arguments)


def test_words_without_a_token(tokenizers):
    with pytest.raises(ValueError, match="give no token"):
        word_ids(tokenizers["words"], "film", "\n", end=True)
