"""Questions: answers found by characters under every kind of tokenizer, long contexts in windows, broken answers named."""

from typing import Any

import pytest

from curlora_lab.data import DataError, DataSource, QuestionData
from curlora_lab.data.loading import make_loader
from curlora_lab.data.source import Row, Split

CONTEXT = "the big red dog ran far away from the house and the cat sat on a mat"


def asked(answer: str | None, question: str = "the dog ran", context: str = CONTEXT) -> dict[str, Any]:
    texts = [] if answer is None else [answer]
    starts = [context.index(text) for text in texts]
    return {"question": question, "context": context, "answers": {"text": texts, "answer_start": starts}}


def make(tokenizer: Any, test: list[Any], train: list[Any] | None = None, **arguments: Any) -> QuestionData:
    found = {"train": train or [asked("big red"), asked("cat")], "test": test}
    source = DataSource(
        name="toy",
        splits={"train": "train", "test": "test"},
        generator=lambda split, n, seed: found[split],
        sizes={split: len(rows) for split, rows in found.items()},
    )
    data = QuestionData(name="toy", source=source, **{"max_length": 64, "choose_fraction": 0.0, **arguments})
    data.prepare(tokenizer, seed=0)
    return data


def spans(data: QuestionData) -> list[list[str]]:
    """Of each question the texts that its windows' labels mark; empty where a window has none."""
    rows = data.rows("test")
    found: list[list[str]] = [[] for _ in data.examples("test")]
    for window, (owner, start) in enumerate(zip(data.questions("test"), rows.labels or (), strict=True)):
        end = int(rows.columns["end"][window])
        text = data.text_between("test", window, int(start) - 1, end - 1)[0] if start else ""
        found[owner].append(text)
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "roberta", "words"])
@pytest.mark.parametrize("template", [None, "{question}? {context}"])
def test_answers_are_found_by_their_characters(tokenizers: Any, kind: str, template: str | None) -> None:
    rows = [asked(answer) for answer in ("the big red dog", "ran", "on a mat", "from the house")]
    data = make(tokenizers[kind], rows, template=template)
    assert spans(data) == [[row["answers"]["text"][0]] for row in rows]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "roberta"])
def test_windows_overlap_and_together_hold_the_whole_context(tokenizers: Any, kind: str) -> None:
    tokenizer = tokenizers[kind]
    whole = make(tokenizer, [asked("cat sat")])
    data = make(tokenizer, [asked("cat sat")], max_length=12, stride=3)
    rows = data.rows("test")
    total = int(whole.rows("test").columns["context"][0][1] - whole.rows("test").columns["context"][0][0])
    seen, starts = [], []
    for window in range(len(rows)):
        first, last = (int(value) for value in rows.columns["context"][window])
        ids = rows.encoded.row(window)
        assert len(ids) <= 12
        text, start = data.text_between("test", window, first, last - 1)
        assert CONTEXT[start : start + len(text)] == text
        seen.append(last - first)
        starts.append(start)
    assert len(rows) > 1
    assert starts == sorted(starts)
    assert sum(seen) - 3 * (len(seen) - 1) == total
    assert data.row_ids("test") == ("test-0",) * len(rows)
    assert (data.counts["test"], any(note.startswith("windows: 1 test questions") for note in data.notes)) == (1, True)
    assert {text for text in spans(data)[0] if text} == {"cat sat"}


def test_the_question_stands_whole_in_each_window(tokenizers: Any) -> None:
    data = make(tokenizers["bert"], [asked("cat")], max_length=12, stride=3)
    batch = next(iter(make_loader(data.rows("test"), batch_size=9)))
    question = tokenizers["bert"]("the dog ran", add_special_tokens=True)["input_ids"]
    assert all(row[: len(question)] == question for row in batch["input_ids"].tolist())


def test_an_answer_that_no_window_holds_is_counted(tokenizer: Any) -> None:
    data = make(tokenizer, [asked("far away from the house and the cat")], max_length=14, stride=0)
    assert not any(spans(data)[0])
    assert any("no window holds the whole (first) answer of 1 test questions" in note for note in data.notes)


def test_no_answer_is_allowed_where_it_is_said(tokenizer: Any) -> None:
    data = make(tokenizer, [asked(None), asked("cat")], no_answer=True)
    assert spans(data) == [[""], ["cat"]]
    with pytest.raises(DataError, match=r"builtin:toy test:1: the question has no answer, .* no_answer=true"):
        make(tokenizer, [asked(None)])
    with pytest.raises(DataError, match="none of the 2 train questions has an answer"):
        make(tokenizer, [asked("cat")], [asked(None)] * 2, no_answer=True)


def test_both_layouts_of_answers_are_the_same(tokenizer: Any) -> None:
    start = CONTEXT.index("cat")
    listed = {
        **asked("cat"),
        "answers": [{"text": "cat", "answer_start": start}, {"text": "the cat", "answer_start": start - 4}],
    }
    data = make(tokenizer, [listed])
    assert data.examples("test")[0].target == {"text": ["cat", "the cat"], "answer_start": [start, start - 4]}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {"text": ["cat"], "answer_start": [3]},
            f"'cat' should stand at character 3, where .*; it stands at {CONTEXT.index('cat')}",
        ),
        ({"text": ["tiger"], "answer_start": [3]}, "it does not stand anywhere in the context"),
        ({"text": ["cat"], "answer_start": [-19]}, "should stand at character -19"),
        ({"text": ["cat"], "answer_start": ["3"]}, "answer_start of 'cat' is '3', not a whole number"),
        ({"text": ["cat"], "answer_start": []}, "lists of equal length"),
        ({"text": "cat", "answer_start": 3}, "lists of equal length"),
        ("cat", "'answers' is 'cat'; write"),
        (None, "'answers' is None; write"),
        ({"text": [""], "answer_start": [0]}, "an answer in 'answers' is ''; for none write empty lists"),
    ],
)
def test_broken_answers_are_named(tokenizer: Any, answers: Any, message: str) -> None:
    broken = {**asked("cat"), "answers": answers}
    with pytest.raises(DataError, match=rf"builtin:toy test:2: .*{message}"):
        make(tokenizer, [asked("cat"), broken])
    assert make(tokenizer, [asked("cat"), broken], bad_rows="skip").counts["test"] == 1


def test_a_question_that_leaves_no_room_is_named(tokenizer: Any) -> None:
    long = asked("cat", question="the dog ran " * 8)
    with pytest.raises(DataError, match=r"builtin:toy test:2: of 20 tokens \(max_length\) the question takes"):
        make(tokenizer, [asked("cat"), long], max_length=20)
    data = make(tokenizer, [asked("cat"), long], max_length=20, bad_rows="skip")
    assert data.counts["test"] == 1
    assert any("1 question too long" in note for note in data.notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": -1}, "stride is -1"),
        ({"template": "{context} {question}"}, "put the question first"),
        ({"template": "{context}"}, "needed: each of"),
        ({"max_length": 65}, "the tokenizer's model reads 1 to 64"),
    ],
)
def test_arguments_that_cannot_be_right(tokenizer: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tokenizer, [asked("cat")], **arguments)


def test_questions_without_answers_given_are_read_too(tokenizer: Any) -> None:
    data = make(tokenizer, [asked("cat")])
    row = {"question": "the dog ran", "context": CONTEXT}
    examples, _ = data.read(Split((Row("text 1", "0", row),), (), None, 0), labelled=False)
    other = data.only(tokenizer, examples)
    ours, theirs = (next(iter(make_loader(each.rows("test"), batch_size=1))) for each in (other, data))
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert ours["context"].tolist() == theirs["context"].tolist()
