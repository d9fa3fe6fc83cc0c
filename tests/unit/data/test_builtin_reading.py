"""The built-in tasks beyond classification: pure, disjoint, and with one right answer that a rule without help finds."""

import re
from collections import Counter

import pytest
import yaml

from curlora_lab.config import conf_dir
from curlora_lab.data.builtin import lexicon, questions, reading, similarity, words
from curlora_lab.data.tags import scheme_fault

TASKS = {"similarity": similarity, "words": words, "questions": questions}
VERBS = {
    word
    for group in (lexicon.TO_THE_LIVING, lexicon.TO_THINGS, lexicon.TO_ANY)
    for concept in group
    for word in concept
}
THINGS = {word for concept in lexicon.OBJECTS for word in concept}


@pytest.fixture(params=TASKS)
def make(request):
    return TASKS[request.param]


def text_of(row):
    values = [row[key] for key in ("sentence1", "sentence2", "question", "context", "tokens") if key in row]
    return " | ".join(" ".join(value) if isinstance(value, list) else value for value in values)


def test_generator_is_pure_and_a_prefix_of_itself(make):
    long = make("train", 100, 7)
    assert make("train", 100, 7) == long
    assert make("train", 41, 7) == long[:41]
    assert make("train", 100, 8) != long
    assert [row["idx"] for row in long] == list(range(100))


def test_no_text_in_two_splits_whatever_the_seeds(make):
    texts = [
        {text_of(row) for seed in (0, 1) for row in make(split, 900, seed)} for split in ("train", "validation", "test")
    ]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]


@pytest.mark.parametrize("call", [("dev", 10, 0), ("train", -1, 0)])
def test_bad_arguments_are_refused(make, call):
    with pytest.raises(ValueError, match=r"split 'dev' is unknown|n is -1"):
        make(*call)


def test_similarity_is_what_the_topics_say():
    topic = {word: name for name, names in lexicon.TOPICS.items() for word in names}
    rows = similarity("test", 600, 0)
    for row in rows:
        first, second = (
            [topic[w] for w in re.findall(r"\w+", row[key]) if w in topic] for key in ("sentence1", "sentence2")
        )
        assert len(set(first)) == 1
        assert second.count(first[0]) == row["label"]
    counts = Counter(row["label"] for row in rows)
    assert max(counts.values()) - min(counts.values()) <= 40


def test_words_are_tagged_by_what_they_are():
    places = {tuple(place.split()) for concept in lexicon.PLACES for place in concept}
    labels = yaml.safe_load((conf_dir() / "task" / "builtin_words.yaml").read_text())["data"]["labels"]
    for row in words("test", 600, 0):
        assert scheme_fault(row["tags"]) is None
        assert set(row["tags"]) <= set(labels)
        tokens = [token.lower() for token in row["tokens"]]
        inside = {i + k for i in range(len(tokens)) if tuple(tokens[i : i + 3]) in places for k in range(3)}
        for position, (word, tag) in enumerate(zip(row["tokens"], row["tags"], strict=True)):
            assert (position in inside) == tag.endswith("place")
            assert (word in reading.KIND_OF or word in lexicon.NAMES) == (tag[2:] in ("person", "animal", "object"))


def answer(row):
    context = row["context"]
    teller = re.match(r"(\w+) said:", context)
    if row["question"] == "Who said it?":
        return teller[1] if teller else None
    if row["question"] == "Where was it?":
        return next((place for c in lexicon.PLACES for p in c for place in re.findall(p, context, re.IGNORECASE)), None)
    sought = VERBS if row["question"] == "What happened?" else THINGS
    return next((word for word in re.findall(r"\w+", context) if word in sought), None)


def test_questions_have_the_one_answer_that_a_rule_finds():
    rows = questions("test", 600, 0)
    for row in rows:
        given = row["answers"]
        assert [answer(row)] == (given["text"] or [None])
        for text, start in zip(given["text"], given["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
    for start in range(0, 600, 30):
        assert sum(not row["answers"]["text"] for row in rows[start : start + 30]) == reading.UNANSWERABLE
