"""The built-in instructions: pure, disjoint, balanced, and answered by rules that read the text alone."""

import re
from collections import Counter

import pytest

from curlora_lab.data.builtin import instructions
from curlora_lab.data.builtin.lexicon import ANIMALS, PEOPLE, PLACES, TOPICS

THINGS = {word for words in TOPICS.values() for word in words}
LIVING = {word for concept in (*PEOPLE, *ANIMALS) for word in concept}
PLACE_WORDS = [word for concept in PLACES for word in concept]


def answer(row):
    """The right response, found without the generator."""
    text = row["input"].lower()
    if row["instruction"].startswith("Name the "):
        return f"The {row['instruction'].removeprefix('Name the ').removesuffix('.')}."
    if row["instruction"] == "Which three things?":
        one, two, three = [word for word in re.findall(r"\w+", text) if word in THINGS]
        return f"The {one}, the {two} and the {three}."
    if row["instruction"] == "Where?":
        place = next(place for place in PLACE_WORDS if re.search(rf"\b{place}\b", text))
        return f"{place[0].upper()}{place[1:]}."
    if row["instruction"] == "Who did it?":
        passive = re.search(r"by the (\w+)", text)
        agent = passive[1] if passive else next(word for word in re.findall(r"\w+", text) if word in LIVING)
        return f"The {agent}."
    return None


def test_every_response_follows_from_instruction_and_input():
    rows = instructions("train", 600, 0)
    assert Counter(row["instruction"].split()[0] for row in rows) == dict.fromkeys(
        ("Name", "Which", "Where?", "Who", "Was"), 120
    )
    for row in rows:
        right = answer(row)
        assert row["output"] == right if right else row["output"] in ("It was good.", "It was bad.")
        assert bool(row["input"]) != row["instruction"].startswith("Name")


def test_pure_and_disjoint():
    train, test = instructions("train", 600, 0), instructions("test", 300, 0)
    assert instructions("train", 100, 0) == train[:100]
    assert instructions("train", 100, 1) != train[:100]
    said = {(row["instruction"], row["input"]) for row in train}
    assert not any((row["instruction"], row["input"]) in said for row in test)
    shares = Counter(row["output"] for row in test)
    assert max(shares.values()) / len(test) < 0.16  # a constant response


def test_refusals():
    with pytest.raises(ValueError, match="split 'dev' is unknown"):
        instructions("dev", 1, 0)
