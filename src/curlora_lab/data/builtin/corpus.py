"""Plain text in the small language: what the built-in backbone was trained on, and the text of its probe.

Six kinds of documents. In all of them later words follow from the meaning of earlier ones, so that a model that
predicts the next word must compare sentences, follow negation and concession, and notice the topic:

- restatement: a scene, then the same scene in other words;
- questions: a scene, then questions about it, with "Yes." or "No, it was ..." as the answer;
- agreement: two people each tell a scene; they agree or not;
- review and diary: an opinion, then what followed from it;
- notes: sentences about one topic;
- story: people go on doing things in one place.
"""

from typing import Any

from . import opinions, scenes
from .draw import Draw, check_split
from .lexicon import NAMES, REVIEWED, TOPICS
from .scenes import SLOTS, Scene, clause, sentence
from .tasks import diary, listing, parts, review

KINDS = (
    ("restatement", 0.08),
    ("questions", 0.24),
    ("check", 0.12),
    ("agreement", 0.12),
    ("review", 0.18),
    ("diary", 0.16),
    ("notes", 0.06),
    ("story", 0.04),
)
AFTER_REVIEW = {
    1: ("We will come back.", "I can recommend it.", "We had a good time.", "Ten points out of ten."),
    -1: ("I want my money back.", "Stay away from it.", "We left early.", "Not worth a penny."),
}
AFTER_DIARY = {
    1: ("I smiled.", "I sang all day.", "Life is sweet.", "We danced."),
    -1: ("I cried.", "I stayed in bed.", "Life is hard.", "We did not talk."),
    0: ("Then it rained.", "Nothing else happened.", "That is all.", "We ate soup."),
}


def documents(split: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Plain text documents of a few sentences each (generator of the causal language modelling task and the probe).

    Args:
        split: train, validation or test. The backbone was trained on train only; the meanings of the others are new
            to it.
        n: Number of documents.
        seed: Seed of the stream.

    Returns:
        Rows with keys idx, text.

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    check_split(split)
    if n < 0:
        raise ValueError(f"n is {n} for the built-in documents; a number of rows is 0 or more.")
    return [{"idx": i, "text": document(Draw("documents", split, seed, i), split)} for i in range(n)]


def document(draw: Draw, split: str) -> str:
    """One document of a kind drawn in proportion to ``KINDS``."""
    return _WRITERS[draw.weighted(KINDS)](draw, split)


def _restatement(draw: Draw, split: str) -> str:
    scene = scenes.draw_scene(draw, split)
    text = sentence(clause(draw, scene))
    for opening in draw.shuffled(("In other words, ", "That is to say, ", "Put differently, "))[: 1 + draw.below(2)]:
        text += f" {opening}{clause(draw, scene)}."
    return text


def _other(draw: Draw, scene: Scene, split: str) -> Scene:
    """A scene that differs in one slot, in two, or altogether."""
    slots = draw.shuffled(SLOTS)[: draw.pick((1, 1, 2, 4))]
    for slot in slots:
        scene = scenes.alter(draw, scene, slot, split)
    return scene


def _questions(draw: Draw, split: str) -> str:
    """A scene, then questions about one slot, then about the whole of it."""
    scene = scenes.draw_scene(draw, split)
    text = sentence(clause(draw, scene))
    for slot in draw.shuffled(SLOTS)[: 1 + draw.below(3)]:
        asked = scene if draw.chance(0.5) else scenes.alter(draw, scene, slot, split)
        word = draw.pick(getattr(asked, slot))
        subject = word if slot in ("verb", "place") else f"the {word}"
        text += f" Was it {subject}? {_answer(draw, scene, asked)}"
    for _ in range(2):
        asked = scene if draw.chance(0.5) else _other(draw, scene, split)
        text += f" Is it true that {clause(draw, asked)}? {_answer(draw, scene, asked)}"
    return text


def _answer(draw: Draw, scene: Scene, asked: Scene) -> str:
    """Yes, or no with what is right instead."""
    wrong = [slot for slot in SLOTS if getattr(scene, slot) != getattr(asked, slot)]
    if not wrong:
        return "Yes."
    word = draw.pick(getattr(scene, wrong[0]))
    return f"No, {word}." if wrong[0] in ("verb", "place") else f"No, the {word}."


def _check(draw: Draw, split: str) -> str:
    """A scene, then a second report of it marked word for word as right or wrong."""
    scene = scenes.draw_scene(draw, split)
    text = sentence(clause(draw, scene)) + " Check:"
    other = scene
    for slot in SLOTS:
        if draw.chance(0.4):
            other = scenes.alter(draw, other, slot, split)
    for slot in draw.shuffled(SLOTS) if draw.chance(0.3) else SLOTS:
        word = draw.pick(getattr(other, slot))
        right = getattr(other, slot) == getattr(scene, slot)
        text += f" {word if slot in ('verb', 'place') else 'the ' + word} {'(right)' if right else '(wrong)'}"
    return f"{text}."


def _agreement(draw: Draw, split: str) -> str:
    scene = scenes.draw_scene(draw, split)
    agreed = draw.chance(0.5)
    other = scene if agreed else _other(draw, scene, split)
    first, second = draw.shuffled(NAMES)[:2]
    end = "They agreed." if agreed else "They did not agree."
    return f"{first} said that {clause(draw, scene)}. {second} said that {clause(draw, other)}. {end}"


def _opinions(draw: Draw, field: opinions.Field, subjects: tuple[str, ...], polarity: int) -> str:
    """More sentences of the same polarity, some of which say again what a negation said."""
    text = ""
    for _ in range(draw.below(3)):
        if draw.chance(0.5):
            words, said = opinions.clause(draw, field, draw.pick(subjects), polarity)
            text += f" {sentence(words)}"
            if said[1] not in field.words(polarity):
                text += f" {sentence(f'{said[0]} was {draw.pick(field.words(polarity))}')}"
        else:
            text += f" {sentence(opinions.opinion(draw, field, subjects, polarity)[0])}"
    return text


def _ending(draw: Draw, endings: tuple[str, ...]) -> str:
    return "".join(f" {words}" for words in draw.shuffled(endings)[: 1 + draw.below(2)])


def _review(draw: Draw, split: str) -> str:
    polarity = 1 if draw.chance(0.5) else -1
    thing = draw.pick(tuple(REVIEWED))
    more = _opinions(draw, opinions.REVIEW, parts(thing), polarity)
    return f"{review(draw, split, polarity, thing)}{more}{_ending(draw, AFTER_REVIEW[polarity])}"


def _diary(draw: Draw, split: str) -> str:
    polarity = draw.pick((-1, 0, 1))
    more = _opinions(draw, opinions.MOOD, opinions.FAMILY, polarity) if polarity else ""
    return f"{diary(draw, split, polarity)}{more}{_ending(draw, AFTER_DIARY[polarity])}"


def _notes(draw: Draw, split: str) -> str:
    subject = draw.pick(tuple(TOPICS))
    return " ".join(listing(draw, split, subject) for _ in range(2 + draw.below(3)))


def _story(draw: Draw, split: str) -> str:
    text = f"{draw.pick(NAMES)} and {draw.pick(NAMES)} were {draw.pick(scenes.draw_scene(draw, split).place)}."
    for _ in range(2 + draw.below(2)):
        scene = scenes.draw_scene(draw, split)
        agent, verb, patient = draw.pick(scene.agent), draw.pick(scene.verb), draw.pick(scene.patient)
        text += f" {draw.pick(('Then', 'Later', 'Soon'))} the {agent} {verb} the {patient}."
    return text


_WRITERS = {
    "restatement": _restatement,
    "questions": _questions,
    "check": _check,
    "agreement": _agreement,
    "review": _review,
    "diary": _diary,
    "notes": _notes,
    "story": _story,
}
