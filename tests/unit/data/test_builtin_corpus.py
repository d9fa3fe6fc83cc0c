"""Draws, scenes and documents of the built-in language."""

import re
from collections import Counter

import pytest

from curlora_lab.data.builtin import corpus, documents, lexicon, scenes
from curlora_lab.data.builtin.draw import BUCKETS, Draw, belongs

GROUPS = (
    *lexicon.PEOPLE, *lexicon.ANIMALS, *lexicon.OBJECTS, *lexicon.TO_THE_LIVING, *lexicon.TO_THINGS, *lexicon.TO_ANY,
    *lexicon.PLACES,
)  # fmt: skip
CONCEPTS = {word: group[0] for group in GROUPS for word in group}
PLACES = [word for group in lexicon.PLACES for word in group]


def meaning_of(words):
    """(agent, verb, patient, place) read from a clause, each by the first word of its concept."""
    place = next(p for p in PLACES if words.startswith(f"{p}, ") or words.endswith(f" {p}"))
    core = words.removeprefix(f"{place}, ").removesuffix(f" {place}")
    if passive := re.fullmatch(r"the (\w+) was (\w+) by the (\w+)", core):
        patient, verb, agent = passive.groups()
    else:
        agent, verb, patient = re.fullmatch(r"the (\w+) (\w+) the (\w+)", core).groups()
    return CONCEPTS[agent], CONCEPTS[verb], CONCEPTS[patient], CONCEPTS[place]


def test_no_word_has_two_meanings():
    words = [word for group in GROUPS for word in group]
    assert len(set(words)) == len(words)
    topical = [word for names in lexicon.TOPICS.values() for word in names]
    assert len(set(topical)) == len(topical)
    assert len({len(names) for names in lexicon.TOPICS.values()}) == 1
    assert not set(lexicon.PRAISE) & set(lexicon.BLAME)
    assert not set(lexicon.GOOD_MOODS) & set(lexicon.BAD_MOODS)


def test_known_draws():
    """The streams rest on a sequence that Python promises to keep; a change here changes every built-in text."""
    draw = Draw("known", 0)
    assert [draw.below(1000) for _ in range(5)] == KNOWN_DRAWS
    assert draw.shuffled("abcdef") == list(KNOWN_SHUFFLE)


KNOWN_DRAWS = [75, 279, 279, 149, 386]
KNOWN_SHUFFLE = "fbdeac"


def test_weights_are_kept():
    draw = Draw("weights")
    counts = Counter(draw.weighted((("a", 1.0), ("b", 3.0))) for _ in range(8000))
    assert abs(counts["b"] / 8000 - 0.75) < 0.02


def test_every_meaning_belongs_to_one_split():
    meanings = [(str(i), "x") for i in range(4000)]
    owners = [[split for split in BUCKETS if belongs(meaning, split)] for meaning in meanings]
    assert all(len(owner) == 1 for owner in owners)
    shares = Counter(owner[0] for owner in owners)
    for split, share in {"train": 0.6, "validation": 0.2, "test": 0.2}.items():
        assert abs(shares[split] / 4000 - share) < 0.03


@pytest.mark.parametrize("split", list(BUCKETS))
def test_words_say_what_the_scene_means(split):
    draw = Draw("scenes", split)
    for _ in range(200):
        scene = scenes.draw_scene(draw, split)
        assert meaning_of(scenes.clause(draw, scene)) == scene.meaning
        assert belongs(scene.meaning, split)


def test_documents_are_pure_and_a_prefix_of_themselves():
    assert documents("train", 50, 1) == documents("train", 80, 1)[:50]
    assert documents("train", 50, 1) != documents("train", 50, 2)


def test_held_out_documents_are_new():
    train = {row["text"] for row in documents("train", 4000, 0)}
    test = [row["text"] for row in documents("test", 1000, 0)]
    assert sum(text in train for text in test) <= 2


@pytest.mark.parametrize("kind", [kind for kind, _ in corpus.KINDS])
def test_every_kind_of_document_is_written_in_sentences(kind):
    draw = Draw("kind", kind)
    texts = {corpus.WRITERS[kind](draw, "train", i % 2 == 0) for i in range(60)}
    assert len(texts) > 50
    for text in texts:
        assert text[0].isupper()
        assert text[-1] == "."
        assert "  " not in text


def test_restatements_keep_the_meaning():
    draw = Draw("restatement")
    for _ in range(100):
        sentences = corpus.WRITERS["restatement"](draw, "train", False).rstrip(".").split(". ")
        openings = "|".join(corpus.OPENINGS)
        clauses = [re.sub(f"^({openings})", "", words) for words in sentences]
        clauses[0] = clauses[0][0].lower() + clauses[0][1:]
        assert len({meaning_of(words) for words in clauses}) == 1


@pytest.mark.parametrize("call", [("dev", 10, 0), ("train", -1, 0)])
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"split 'dev' is unknown .* train, validation, test|n is -1"):
        documents(*call)
