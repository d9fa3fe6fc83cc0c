"""Plain text in the small language: what the built-in backbone was trained on, and the text of its probe.

Nine kinds of documents. In most of them later words follow from the meaning of earlier ones, so that a model that
predicts the next word must follow negation and concession, compare opinions, find synonyms, and notice the topic:

- agreement: two people each tell an opinion; they agree or differ;
- asked: an opinion, then questions whether it was so, with answers;
- denial: an opinion, then the same opinion in other words;
- review and diary: opinions of one polarity, then what followed from it;
- notes: sentences about one topic;
- restatement and recall: a scene, then the same scene, or its parts, in other words;
- story: people go on doing things in one place.
"""

from typing import Any

from . import opinions, scenes
from .draw import Draw, check_split
from .lexicon import NAMES, REVIEWED, TOPICS
from .scenes import SLOTS, clause, sentence
from .tasks import diary, listing, parts, review, two_opinions

PLAIN = 0.3
KINDS = (
    ("agreement", 0.22),
    ("asked", 0.14),
    ("denial", 0.10),
    ("review", 0.20),
    ("diary", 0.16),
    ("notes", 0.06),
    ("restatement", 0.05),
    ("recall", 0.04),
    ("story", 0.03),
)
OPENINGS = ("In other words, ", "That is to say, ", "Put differently, ")
ASK = {"agent": "Who did it?", "verb": "What happened?", "patient": "To whom or what?", "place": "Where?"}
AFTER_REVIEW = {
    1: ("We will come back.", "I can recommend it.", "We had a good time.", "Ten points out of ten."),
    -1: ("I want my money back.", "Stay away from it.", "We left early.", "Not worth a penny."),
}
AFTER_DIARY = {
    1: ("I smiled.", "I sang all day.", "Life is sweet.", "We danced."),
    -1: ("I cried.", "I stayed in bed.", "Life is hard.", "We did not talk."),
    0: ("Then it rained.", "Nothing else happened.", "That is all.", "We ate soup."),
}


def documents(split: str, n: int, seed: int, *, plain: float = PLAIN) -> list[dict[str, Any]]:
    """Plain text documents of a few sentences each (generator of the causal language modelling task and the probe).

    Args:
        split: train, validation or test. The backbone was trained on train only.
        n: Number of documents.
        seed: Seed of the stream.
        plain: Share of documents whose opinions come without negation and concession. The backbone's training starts
            with many of them: with three words in ten negated, good and bad words keep nearly the same company, and which
            are which is found out late.

    Returns:
        Rows with keys idx, text.

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    check_split(split)
    if n < 0:
        raise ValueError(f"n is {n} for the built-in documents; a number of rows is 0 or more.")
    return [{"idx": i, "text": document(Draw("documents", split, seed, i), split, plain)} for i in range(n)]


def document(draw: Draw, split: str, plain: float = PLAIN) -> str:
    """One document of a kind drawn in proportion to ``KINDS``."""
    return WRITERS[draw.weighted(KINDS)](draw, split, draw.chance(plain))


def _restatement(draw: Draw, split: str, _plain: bool) -> str:
    scene = scenes.draw_scene(draw, split)
    text = sentence(clause(draw, scene))
    for opening in draw.shuffled(OPENINGS)[: 1 + draw.below(2)]:
        text += f" {opening}{clause(draw, scene)}."
    return text


def _recall(draw: Draw, split: str, _plain: bool) -> str:
    """A scene, then its parts in other words, asked for one by one."""
    scene = scenes.draw_scene(draw, split)
    text = sentence(clause(draw, scene))
    for slot in draw.shuffled(SLOTS)[: 2 + draw.below(3)]:
        word = draw.pick(getattr(scene, slot))
        text += f" {ASK[slot]} {sentence(word if slot in ('verb', 'place') else f'the {word}')}"
    return text


def _denial(draw: Draw, split: str, plain: bool) -> str:
    """Opinions, then the same in other words."""
    texts = []
    for _ in range(1 + draw.below(2)):
        first, second = two_opinions(draw, split, True, plain=plain)
        second = second if second.startswith("I ") else second[0].lower() + second[1:]
        texts.append(f"{first} {draw.pick(OPENINGS)}{second}")
    return " ".join(texts)


def _asked(draw: Draw, split: str, plain: bool) -> str:
    """An opinion, then questions whether it was this or that."""
    polarity = 1 if draw.chance(0.5) else -1
    field, subjects = draw.pick(
        ((opinions.REVIEW, parts(draw.pick(tuple(REVIEWED)))), (opinions.MOOD, opinions.FAMILY))
    )
    text = sentence(opinions.clause(draw, field, draw.pick(subjects), polarity, plain=plain)[0])
    for _ in range(2 + draw.below(3)):
        same = draw.chance(0.5)
        text += f" Really {draw.pick(field.words(polarity if same else -polarity))}? {'Yes' if same else 'No'}."
    return text


def _agreement(draw: Draw, split: str, plain: bool) -> str:
    """Two people each tell an opinion; they agree or not."""
    same = draw.chance(0.5)
    (one, two), (first, second) = draw.shuffled(NAMES)[:2], two_opinions(draw, split, same, plain=plain)
    end = draw.pick(("They agreed.", "Yes, they did agree.") if same else ("They differed.", "No, they did not agree."))
    return f"{one}: {first} {two}: {second} {end}"


def _opinions(draw: Draw, field: opinions.Field, subjects: tuple[str, ...], polarity: int, plain: bool) -> str:
    """More sentences of the same polarity, some of which say again what a negation said."""
    text = ""
    for _ in range(1 + draw.below(3) if plain else draw.below(3)):
        if draw.chance(0.5):
            words, said = opinions.clause(draw, field, draw.pick(subjects), polarity, plain=plain)
            text += f" {sentence(words)}"
            if said[1] not in field.words(polarity):
                text += f" {sentence(f'{said[0]} was {draw.pick(field.words(polarity))}')}"
        else:
            text += f" {sentence(opinions.opinion(draw, field, subjects, polarity, plain=plain)[0])}"
    return text


def _ending(draw: Draw, endings: tuple[str, ...]) -> str:
    return "".join(f" {words}" for words in draw.shuffled(endings)[: 1 + draw.below(2)])


def _review(draw: Draw, split: str, plain: bool) -> str:
    polarity = 1 if draw.chance(0.5) else -1
    thing = draw.pick(tuple(REVIEWED))
    more = _opinions(draw, opinions.REVIEW, parts(thing), polarity, plain)
    return f"{review(draw, split, polarity, thing, plain=plain)}{more}{_ending(draw, AFTER_REVIEW[polarity])}"


def _diary(draw: Draw, split: str, plain: bool) -> str:
    polarity = draw.pick((-1, 0, 1))
    more = _opinions(draw, opinions.MOOD, opinions.FAMILY, polarity, plain) if polarity else ""
    return f"{diary(draw, split, polarity, plain=plain)}{more}{_ending(draw, AFTER_DIARY[polarity])}"


def _notes(draw: Draw, split: str, _plain: bool) -> str:
    subject = draw.pick(tuple(TOPICS))
    return " ".join(listing(draw, split, subject) for _ in range(2 + draw.below(3)))


def _story(draw: Draw, split: str, _plain: bool) -> str:
    text = f"{draw.pick(NAMES)} and {draw.pick(NAMES)} were {draw.pick(scenes.draw_scene(draw, split).place)}."
    for _ in range(2 + draw.below(2)):
        scene = scenes.draw_scene(draw, split)
        agent, verb, patient = draw.pick(scene.agent), draw.pick(scene.verb), draw.pick(scene.patient)
        text += f" {draw.pick(('Then', 'Later', 'Soon'))} the {agent} {verb} the {patient}."
    return text


WRITERS = {
    "restatement": _restatement,
    "recall": _recall,
    "asked": _asked,
    "denial": _denial,
    "agreement": _agreement,
    "review": _review,
    "diary": _diary,
    "notes": _notes,
    "story": _story,
}
