"""Instructions in the small language, each with the one right response."""

import re
from typing import Any

from .draw import Draw, belongs
from .lexicon import TOPICS
from .scenes import clause, draw_scene, sentence
from .tasks import BLOCK, block_rows, listing, review

Row = dict[str, Any]
KINDS = ("who", "where", "opinion", "things", "word")


def instructions(split: str, n: int, seed: int) -> list[Row]:
    """Five kinds of instructions, equally often in every block of 30: four about a text in ``input``, one without.

    ``Who did it?`` and ``Where?`` about a scene, ``Was it good or bad?`` about a review, ``Which three things?`` of a sentence
    that names three, and ``Name the comet.``

    Best achievable share of exactly right responses: each follows from instruction and input: 1. Constant response: about
    1/10, which is ``Good.`` or ``Bad.``

    Args:
        split: train, validation or test.
        n: Number of rows.
        seed: Seed of the stream.

    Returns:
        Rows with keys idx, instruction, input (empty in one kind), output.

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    return block_rows("instructions", _block, split, n, seed)


def _block(draw: Draw, split: str) -> list[Row]:
    kinds = draw.shuffled([KINDS[number % len(KINDS)] for number in range(BLOCK)])
    return [_row(draw, split, kind) for kind in kinds]


def _row(draw: Draw, split: str, kind: str) -> Row:
    if kind == "word":
        word = _word(draw, split)
        return _made(f"Name the {word}.", "", f"the {word}")
    if kind == "opinion":
        polarity = 1 if draw.chance(0.5) else -1
        return _made(
            "Was it good or bad?", review(draw, split, polarity), f"it was {'good' if polarity > 0 else 'bad'}"
        )
    if kind == "things":
        text = listing(draw, split, draw.pick(tuple(TOPICS)))
        one, two, three = [word for word in re.findall(r"\w+", text) if any(word in words for words in TOPICS.values())]
        return _made("Which three things?", text, f"the {one}, the {two} and the {three}")
    scene = draw_scene(draw, split)
    text = clause(draw, scene)
    if kind == "where":
        return _made("Where?", sentence(text), next(words for words in scene.place if words in text))
    agent = next(word for word in scene.agent if re.search(rf"\b{word}\b", text))
    return _made("Who did it?", sentence(text), f"the {agent}")


def _word(draw: Draw, split: str) -> str:
    while True:
        word = draw.pick([word for of_topic in TOPICS.values() for word in of_topic])
        if belongs(("say", word), split):
            return word


def _made(instruction: str, given: str, answer: str) -> Row:
    return {"instruction": instruction, "input": given, "output": sentence(answer)}
