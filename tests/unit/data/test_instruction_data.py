"""Prompts and responses: templates, chat messages, what is cut and what is refused."""

import numpy as np
import pytest

from curlora_lab.data import DataError, DataSource, InstructionData
from curlora_lab.data.templates import Templates

CHAT = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ROWS = [
    {"instruction": f"say {word}", "input": given, "output": f"the {word}"}
    for word, given in (
        ("cat", ""),
        ("dog", "a dog"),
        ("mat", ""),
        ("house", "a big red house"),
        ("film", ""),
        ("cat", "a"),
    )
]


def source(rows, name="task"):
    return DataSource(
        name=name,
        splits={"train": "train", "test": "test"},
        generator=lambda split, n, seed: rows[:n],
        sizes={"train": len(rows), "test": len(rows)},
    )


def make(rows=ROWS, tokenizer=None, **arguments):
    given = {"columns": ["instruction", "input"], "response": "output", "choose_fraction": 0.0, "max_length": 40}
    data = InstructionData(name="task", source=source(rows), **{**given, **arguments})
    if tokenizer is not None:
        data.prepare(tokenizer, seed=0)
    return data


def texts(data, tokenizer, role="test"):
    """Prompt and response of each row, from the tokens."""
    rows, found = data.rows(role), []
    for index in range(len(rows)):
        item = rows[index, 1.0]
        scored = item.label != -100
        found.append((tokenizer.decode(item.ids[~scored]), tokenizer.decode(item.ids[scored])))
    return found


def test_each_row_takes_the_first_template_that_is_filled(tokenizer):
    data = make(tokenizer=tokenizer, template=["{instruction} of {input}: ", "{instruction}: "])
    found = texts(data, tokenizer)
    assert found[0] == ("say cat:", " the cat<|endoftext|>")
    assert found[1] == ("say dog of a dog:", " the dog<|endoftext|>")
    assert data.prompt(data.examples("test")[1]) == "say dog of a dog: "
    assert data.counts == {"train": 6, "test": 6}
    plain = make(tokenizer=tokenizer)
    assert texts(plain, tokenizer)[1] == ("say dog\n\na dog\n", "the dog<|endoftext|>")
    assert texts(make(tokenizer=tokenizer, end=False), tokenizer)[0][1] == "the cat"


def test_an_empty_column_needs_a_template_without_it(tokenizer):
    with pytest.raises(DataError, match=r"(?s)task train:1: input is empty, and no template does without"):
        make(tokenizer=tokenizer, template="{instruction} {input} ")
    with pytest.raises(DataError, match="the text 'output' is empty"):
        make([{**row, "output": " "} for row in ROWS], tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "{instruction} {inpt}"}, r"fields \['inpt', 'instruction'\]; allowed: instruction, input"),
        ({"template": "{instruction}"}, r"names the columns \['instruction'\]; needed: each of"),
        ({"template": "{instruction} {input"}, "cannot be read"),
        ({"template": "{instruction!r} {input}"}, "as they are"),
        ({"system": "be kind"}, "set chat=true"),
        ({"max_prompt": 40}, "write a number of tokens from 1 to 39"),
        ({"max_prompt": 1.5}, "max_prompt is 1.5"),
        ({"max_length": 1}, "a row needs 2 tokens"),
        ({"columns": []}, "name at least one column"),
    ],
)
def test_arguments_that_can_never_be_right(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_prompts_lose_their_middle_and_responses_their_end(tokenizer):
    rows = [{**ROWS[0], "instruction": "the cat sat on a mat and the dog ran far away from that house"}] * 2 + [
        ROWS[0]
    ] * 2
    rows[1] = {**rows[1], "instruction": "say", "output": "the cat " * 12}
    data = make(rows, tokenizer, max_length=12, max_prompt=0.5)
    found, tokens = texts(data, tokenizer), data.rows("test")
    assert found[0][0].startswith("the cat sat")
    assert found[0][0].endswith("house\n")
    assert found[0][1] == "the cat<|endoftext|>"
    assert "<|endoftext|>" not in found[1][1]
    assert len(tokens[1, 1.0].ids) == 12
    assert list(tokens.encoded.truncated) == [True, True, False, False]
    assert any(
        note == "truncated: of 4 test rows 1 prompts without their middle, 1 responses without their end"
        for note in data.notes
    )


def test_a_response_that_is_cut_away_entirely_is_a_broken_row(tokenizer):
    rows = [*ROWS, {**ROWS[0], "instruction": "the cat sat on a mat " * 4}]
    with pytest.raises(DataError, match=r"task train:7: the prompt has 2\d tokens, which leaves none of max_length=12"):
        make(rows, tokenizer, max_length=12, max_prompt=None)
    data = make(rows, tokenizer, max_length=12, max_prompt=None, bad_rows="skip")
    assert data.counts == {"train": 6, "test": 6}
    assert sum("1 no room for the response" in note for note in data.notes) == 2


def test_a_merged_token_is_counted(tokenizer):
    rows = [{"instruction": "tha", "input": "", "output": "t"}, *ROWS[:1]]
    data = make(rows, tokenizer, template=["{instruction}{input} ", "{instruction}"])
    assert any(note.startswith("merged: in 1 of 2 train rows") for note in data.notes)


def test_chat_goes_through_the_tokenizers_template(tokenizers):
    import copy

    tokenizer = copy.deepcopy(tokenizers["llama"])
    with pytest.raises(ValueError, match=r"has no chat template.*use an instruction-tuned model"):
        make(tokenizer=tokenizer, chat=True)
    tokenizer.chat_template = CHAT
    data = make(
        tokenizer=tokenizer,
        chat=True,
        system="be good",
        template=["{instruction} {input}", "{instruction}"],
        max_length=60,
    )
    assert texts(data, tokenizer)[1] == ("[system] be good\n[user] say dog a dog\n[assistant]", " the dog\n")
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "cat"},
        {"role": "user", "content": "on"},
    ]
    rows = [{"turns": [*talk, {"role": "assistant", "content": f"mat {i}"}]} for i in range(3)]
    data = make(rows, tokenizer, messages="turns", max_length=60)
    assert texts(data, tokenizer)[2] == ("[user] hi\n[assistant] cat\n[user] on\n[assistant]", " mat 2\n")
    assert data.examples("test")[0].texts == ("user: hi\nassistant: cat\nuser: on",)
    tokenizer.chat_template = CHAT.replace("[assistant] ", "[model] ")
    with pytest.raises(ValueError, match="mend the template"):
        make(rows, tokenizer, messages="turns", max_length=60)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        DataError, match=r"task train:1: the tokenizer's chat template refuses these messages: roles must"
    ):
        make(rows, tokenizer, messages="turns", max_length=60)


def test_a_chat_template_that_writes_bos_gives_one_and_not_two(tokenizers):
    import copy

    tokenizer = copy.deepcopy(tokenizers["llama"])  # puts one before each text, too
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    bos = tokenizer.bos_token_id
    asked = {"chat": True, "template": ["{instruction} {input}", "{instruction}"], "max_length": 60}
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the cat"}]
    for data in (make(tokenizer=tokenizer, **asked), make([{"turns": talk}] * 3, tokenizer, messages="turns")):
        for role in ("train", "test"):
            for row in range(len(data.rows(role))):
                item = data.rows(role)[row, 1.0]
                assert (item.ids[0], (item.ids == bos).sum()) == (bos, 1)
                assert item.label[0] == -100
    data = make(tokenizer=tokenizer, **asked)
    examples, _ = data.read(source([{"instruction": "say cat", "input": ""}]).read("test"), labelled=False)
    prompt = data.only(tokenizer, examples).rows("test")[0, 1.0].ids
    assert (prompt[0], (prompt == bos).sum()) == (bos, 1)
    plain = make(tokenizer=tokenizer).rows("test")[0, 1.0].ids  # without a chat, the tokenizer's own
    assert (plain[0], (plain == bos).sum()) == (bos, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "is 'hello', not a list of messages"),
        ([], r"is \[\], not a list"),
        ([{"role": "user"}], "needs a role and a content"),
        ([{"role": "user", "content": "a"}], "ends with a message of 'user'"),
        ([{"role": "assistant", "content": "a"}], "the last of at least two"),
        (None, "is None"),
    ],
)
def test_messages_that_are_none(tokenizers, value, message):
    tokenizer = tokenizers["gpt2"]
    good = {"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError, match=message):
        make([good, good, {"turns": value}], tokenizer, messages="turns")


def test_other_rows_without_a_response(tokenizer):
    data = make(tokenizer=tokenizer)
    split = source([{"instruction": "say cat", "input": ""}]).read("test")
    examples, _ = data.read(split, labelled=False)
    other = data.only(tokenizer, examples)
    assert texts(other, tokenizer)[0] == ("say cat\n", "")
    assert data.counts["test"] == 6
    with pytest.raises(DataError, match="no row has the column 'output'"):
        data.read(split)


def test_the_same_rows_give_the_same_tokens_and_the_response_counts_for_the_fingerprint(tokenizer):
    first, again = (make(tokenizer=tokenizer) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert np.array_equal(first.rows("train").encoded.ids, again.rows("train").encoded.ids)
    other = make([{**row, "output": "another"} for row in ROWS], tokenizer)
    assert other.fingerprint != first.fingerprint


def test_templates_refuse_what_they_cannot_fill():
    templates = Templates(["a", "b"], ["{a} {b}", "{a}"])
    assert templates.fill(["x", ""]) == "x"
    assert not templates.fits(["", "y"])
    with pytest.raises(ValueError, match=r"no template does without \['a'\]"):
        templates.fill(["", "y"])
