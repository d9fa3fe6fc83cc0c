"""Scenes: who did what to whom, and where; one meaning, many sentences.

Grammar, with each noun, verb and place said by either of two words of equal meaning::

    Scene    = Agent Verb Patient Place
    Clause   = "the" Agent Verb "the" Patient Place
             | Place ", the" Agent Verb "the" Patient
             | "the" Patient "was" Verb "by the" Agent Place
             | Place ", the" Patient "was" Verb "by the" Agent
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from .draw import Draw, belongs
from .lexicon import ANIMALS, OBJECTS, PEOPLE, PLACES, TO_ANY, TO_THE_LIVING, TO_THINGS, Concept

Slot = Literal["agent", "verb", "patient", "place"]
SLOTS: tuple[Slot, ...] = ("agent", "verb", "patient", "place")
LIVING = PEOPLE + ANIMALS


@dataclass(frozen=True)
class Scene:
    """One meaning: four concepts, each with its words."""

    agent: Concept
    verb: Concept
    patient: Concept
    place: Concept

    @property
    def meaning(self) -> tuple[str, str, str, str]:
        """The first word of each concept: equal exactly for scenes that mean the same."""
        return self.agent[0], self.verb[0], self.patient[0], self.place[0]


def _choices(scene: Scene | None, slot: Slot, living: bool) -> tuple[Concept, ...]:
    """The concepts that may stand in a slot, less what stands in the scene already."""
    options = {
        "agent": LIVING,
        "patient": LIVING if living else OBJECTS,
        "verb": (TO_THE_LIVING if living else TO_THINGS) + TO_ANY,
        "place": PLACES,
    }[slot]
    taken = () if scene is None else (getattr(scene, slot), scene.agent, scene.patient)
    return tuple(concept for concept in options if concept not in taken)


@cache
def _neighbours(scene: Scene, slot: Slot, split: str) -> tuple[Scene, ...]:
    """The scenes of the split that differ from this one in the slot alone, by a concept of the same kind."""
    others = (replace(scene, **{slot: concept}) for concept in _choices(scene, slot, scene.patient in LIVING))
    return tuple(other for other in others if belongs(other.meaning, split))


def draw_scene(draw: Draw, split: str) -> Scene:
    """A scene whose meaning belongs to the split, as that of a scene near it does; agent and patient differ."""
    while True:
        living = draw.chance(0.5)
        agent = draw.pick(LIVING)
        patient = draw.pick([c for c in _choices(None, "patient", living) if c != agent])
        verb, place = draw.pick(_choices(None, "verb", living)), draw.pick(PLACES)
        scene = Scene(agent, verb, patient, place)
        if belongs(scene.meaning, split) and any(_neighbours(scene, slot, split) for slot in SLOTS):
            return scene


def clause(draw: Draw, scene: Scene) -> str:
    """The scene in words, without capital and full stop."""
    agent, verb, patient, place = (draw.pick(getattr(scene, slot)) for slot in SLOTS)
    words = f"the {agent} {verb} the {patient}" if draw.chance(0.65) else f"the {patient} was {verb} by the {agent}"
    return f"{place}, {words}" if draw.chance(0.25) else f"{words} {place}"


def sentence(words: str) -> str:
    """The words with a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."
