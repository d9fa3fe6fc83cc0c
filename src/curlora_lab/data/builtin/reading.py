"""Tasks beyond classification over the small language: how alike two texts are, what their words name, questions on them.

Like the classification tasks (``tasks``): called ``generator(split, n, seed)``, in blocks, and no meaning stands in two
splits. Each is free of noise: the best achievable score is 1.
"""

from typing import Any

from . import scenes
from .draw import Draw, belongs
from .lexicon import ANIMALS, NAMES, OBJECTS, PEOPLE, TOPICS
from .tasks import BLOCK, block_rows, labels_in_balance

Row = dict[str, Any]

# --- similarity: how many of the things that two sentences name are of one topic ----------------------------------------

THINGS = 3
SIMILARITY_FORMS = ("We talked about the {}, the {} and the {}.", "There was the {} next to the {} and the {}.")


def similarity(split: str, n: int, seed: int) -> list[Row]:
    """Two sentences, the first of which names three things of one topic: how many of the second's three are of it too?

    The label is that number, 0 to 3, each equally often in every block of 30 but for two of each 30.

    Best achievable correlation: the words tell their topics, and the label is never wrong: 1. Constant prediction: 0.

    Args:
        split: train, validation or test.
        n: Number of rows.
        seed: Seed of the stream.

    Returns:
        Rows with keys idx, sentence1, sentence2, label.

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    return block_rows("similarity", _similarity_block, split, n, seed)


def _similarity_block(draw: Draw, split: str) -> list[Row]:
    labels = labels_in_balance(draw, THINGS + 1, 28) + draw.shuffled(range(THINGS + 1))[:2]
    return [_similar(draw, split, label) for label in draw.shuffled(labels)]


def _similar(draw: Draw, split: str, label: int) -> Row:
    while True:
        topic = draw.pick(tuple(TOPICS))
        names = draw.shuffled(TOPICS[topic])
        first, own = names[:THINGS], names[THINGS : THINGS + label]
        others = [word for other, words in TOPICS.items() if other != topic for word in words]
        second = draw.shuffled(own + draw.shuffled(others)[: THINGS - label])
        if belongs((tuple(sorted(first)), tuple(sorted(second))), split):
            form = draw.pick(SIMILARITY_FORMS)
            return {"sentence1": form.format(*first), "sentence2": form.format(*second), "label": label}


# --- words: people, animals, objects and places ---------------------------------------------------------------------------

KINDS = (("person", PEOPLE), ("animal", ANIMALS), ("object", OBJECTS))
KIND_OF = {word: kind for kind, concepts in KINDS for concept in concepts for word in concept}


def words(split: str, n: int, seed: int) -> list[Row]:
    """Scenes (``scenes``) told by somebody, word by word: who is a person, an animal, an object; and the whole place.

    Tags are IOB2; a place has three words ("in the forest"), the others one. What a word is follows from the word and what
    stands before it, so a decoder can know it.

    Best achievable entity F1: each word's kind is always the same: 1. Tagging all words ``O``: 0.

    Args:
        split: train, validation or test.
        n: Number of rows.
        seed: Seed of the stream.

    Returns:
        Rows with keys idx, tokens, tags (O, B-person, B-animal, B-object, B-place or I-place).

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    return block_rows("words", lambda draw, split: [_told(draw, split) for _ in range(BLOCK)], split, n, seed)


def _told(draw: Draw, split: str) -> Row:
    scene = scenes.draw_scene(draw, split)
    clause = scenes.clause(draw, scene)
    text = f"{draw.pick(NAMES)} said : {clause} ." if draw.chance(0.5) else f"{clause[0].upper()}{clause[1:]} ."
    tokens = text.replace(",", " ,").split()
    places = {tuple(place.split()) for place in scene.place}
    tags = []
    for position, word in enumerate(tokens):
        if word in NAMES:
            tags.append("B-person")
        elif tuple(each.lower() for each in tokens[position : position + 3]) in places:
            tags.append("B-place")
        elif any(tag == "B-place" for tag in tags[-2:]):
            tags.append("I-place")
        else:
            tags.append(f"B-{KIND_OF[word]}" if word in KIND_OF else "O")
    return {"tokens": tokens, "tags": tags}


# --- questions: who, what, where ------------------------------------------------------------------------------------------

UNANSWERABLE = 6  # of each block of 30
ASK = {"name": "Who said it?", "verb": "What happened?", "place": "Where was it?", "object": "Which thing was there?"}


def questions(split: str, n: int, seed: int) -> list[Row]:
    """A scene (``scenes``) and a question: who said it, what happened, where, which thing was there?

    What is asked for stands in the text once, or not at all (nobody is named, no place, only the living): in every block of
    30 six questions have no answer.

    Best achievable exact match: a word's kind is always the same: 1. Answering nothing: 1/5.

    Args:
        split: train, validation or test.
        n: Number of rows.
        seed: Seed of the stream.

    Returns:
        Rows with keys idx, question, context, answers (``text`` and ``answer_start``, as in SQuAD).

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    return block_rows("questions", _questions_block, split, n, seed)


def _questions_block(draw: Draw, split: str) -> list[Row]:
    answerable = draw.shuffled([number >= UNANSWERABLE for number in range(BLOCK)])
    return [_asked(draw, split, int(is_answerable)) for is_answerable in answerable]


def _asked(draw: Draw, split: str, answers: int) -> Row:
    """A scene with a question that has so many answers, 1 or 0."""
    while True:
        scene = scenes.draw_scene(draw, split)
        clause = scenes.clause(draw, scene)
        if draw.chance(0.3):
            if not belongs(scene.meaning[:3], split):  # without its place, a scene means less
                continue
            for place in scene.place:
                clause = clause.replace(f"{place}, ", "").replace(f" {place}", "")
        teller = draw.pick(NAMES) if draw.chance(0.5) else None
        context = scenes.sentence(clause) if teller is None else f"{teller} said: {clause}."
        found = _parts(scene, teller, context)
        kinds = [kind for kind in ASK if len(found[kind]) == answers]
        if kinds:
            kind = draw.pick(kinds)
            starts = [context.lower().index(text.lower()) for text in found[kind]]
            texts = [context[start : start + len(text)] for start, text in zip(starts, found[kind], strict=True)]
            return {"question": ASK[kind], "context": context, "answers": {"text": texts, "answer_start": starts}}


def _parts(scene: scenes.Scene, teller: str | None, context: str) -> dict[str, list[str]]:
    """The words that stand in the text, by what they are an answer to."""
    said = context.lower()
    found: dict[str, list[str]] = {kind: [] for kind in ASK}
    found["name"] = [] if teller is None else [teller]
    for slot in scenes.SLOTS:
        # a word may stand within another ("cap", "escaped"): blanks and stops are its ends
        there = [word for word in getattr(scene, slot) if any(f" {word}{end}" in f" {said}" for end in " .,")]
        kinds = [slot if slot in ("verb", "place") else KIND_OF[word] for word in there]
        for kind, word in zip(kinds, there, strict=True):
            if kind in found:
                found[kind].append(word)
    return found
