"""Four classification tasks over the small language, each with a known best achievable accuracy.

A generator is called ``generator(split, n, seed)`` and depends on nothing else. Rows come in blocks, each from a stream
named by task, split, seed and block, so that a shorter call gives the first rows of a longer one. Within every whole
block the labels, wrong ones included, are exactly balanced, and the share of wrong labels is exact.

No meaning stands in two splits (``draw.belongs``): what a test row says was never said in training, with any seed.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

from . import opinions, scenes
from .draw import Draw, belongs, check_split
from .lexicon import DAYS, REVIEWED, TOPICS

Row = dict[str, Any]
BLOCK = 30
TOPIC_PURITY = 0.8
VISIT = {"cafe": "went to", "hotel": "stayed at", "film": "saw", "book": "read", "show": "watched"}


def block_rows(task: str, block: Callable[[Draw, str], list[Row]], split: str, n: int, seed: int) -> list[Row]:
    """The first n rows of the task's blocks.

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    check_split(split)
    if n < 0:
        raise ValueError(f"n is {n} for the built-in task '{task}'; a number of rows is 0 or more.")
    blocks = range(-(-n // BLOCK))
    rows = chain.from_iterable(block(Draw(task, split, seed, number), split) for number in blocks)
    return [{"idx": idx, **row} for idx, row in zip(range(n), rows, strict=False)]


def labels_in_balance(draw: Draw, kinds: int, block: int = BLOCK) -> list[int]:
    """The labels 0 to kinds - 1 equally often, in random order."""
    return draw.shuffled([i % kinds for i in range(block)])


# --- paraphrase: two opinions; do they say the same? -----------------------------------------------------------------


def paraphrase(split: str, n: int, seed: int) -> list[Row]:
    """Two opinions (``opinions``) about one thing or person: do they say the same (label 1) or the opposite (label 0)?

    "The soup was far from bad." says the same as "The soup was very good."; no word, and no sentence alone, tells the
    label: it is whether two polarities are equal, each of which depends on a word and its negation.

    Best achievable accuracy: the grammar gives each opinion one polarity, and the label is never wrong: 1. Constant
    prediction: 1/2.

    Args:
        split: train, validation or test.
        n: Number of rows.
        seed: Seed of the stream.

    Returns:
        Rows with keys idx, sentence1, sentence2, label.

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    return block_rows("paraphrase", _paraphrase_block, split, n, seed)


def two_opinions(draw: Draw, split: str, same: bool, *, plain: bool = False) -> tuple[str, str]:
    """Two sentences about one subject, of the same polarity or not, never the same text."""
    field, subjects = opinions.MOOD, opinions.FAMILY
    if draw.chance(0.5):
        field, subjects = opinions.REVIEW, parts(draw.pick(tuple(REVIEWED)))
    polarity = 1 if draw.chance(0.5) else -1
    subject = draw.pick(subjects)
    while True:
        first, said = opinions.clause(draw, field, subject, polarity, plain=plain)
        second, said_too = opinions.clause(draw, field, subject, polarity if same else -polarity, plain=plain)
        if first != second and belongs(tuple(sorted((said, said_too))), split):
            return scenes.sentence(first), scenes.sentence(second)


def _paraphrase_block(draw: Draw, split: str) -> list[Row]:
    rows = []
    for label in labels_in_balance(draw, 2):
        first, second = two_opinions(draw, split, bool(label))
        rows.append({"sentence1": first, "sentence2": second, "label": label})
    return rows


# --- sentiment2: reviews, good or bad ----------------------------------------------------------------------------------


def sentiment2(split: str, n: int, seed: int) -> list[Row]:
    """Reviews (``opinions``) that are negative (label 0) or positive (label 1), with negation and concession.

    Best achievable accuracy: the grammar gives each text one polarity, and the label is never wrong: 1. Constant
    prediction: 1/2.

    Args:
        split: train, validation or test.
        n: Number of rows.
        seed: Seed of the stream.

    Returns:
        Rows with keys idx, sentence, label.

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    return block_rows("sentiment2", _sentiment2_block, split, n, seed)


def parts(thing: str) -> tuple[str, ...]:
    """What an opinion about a reviewed thing can be about."""
    return tuple(f"the {part}" for part in REVIEWED[thing])


def review(draw: Draw, split: str, polarity: int, thing: str | None = None, *, plain: bool = False) -> str:
    """A review of a place, a film, ...: where we were, and an opinion of this polarity (+1 or -1)."""
    thing = thing or draw.pick(tuple(REVIEWED))
    while True:
        words, said = opinions.opinion(draw, opinions.REVIEW, parts(thing), polarity, plain=plain)
        if belongs(said, split):
            return f"We {VISIT[thing]} the {thing}. {scenes.sentence(words)}"


def _sentiment2_block(draw: Draw, split: str) -> list[Row]:
    return [{"sentence": review(draw, split, 2 * label - 1), "label": label} for label in labels_in_balance(draw, 2)]


# --- sentiment3: moods, bad, neither or good, with wrong labels --------------------------------------------------------


def sentiment3(split: str, n: int, seed: int) -> list[Row]:
    """Diary notes (``opinions``): negative (label 0), neutral (1) or positive (2), with 10 % wrong labels.

    In each block of 30 rows, ten of each true label, one row of each true label gets the next label in a circle, or one
    of each gets the one before, with equal chance: every wrong label is equally likely, labels stay balanced.

    Best achievable accuracy: the grammar gives each text one polarity, which the given label equals with probability
    0.9, and each other label with 0.05, independently of the text; so the best rule is the true polarity, right in
    0.9 of the rows (exactly 27 of each block). Constant prediction: 1/3.

    Args:
        split: train, validation or test.
        n: Number of rows.
        seed: Seed of the stream.

    Returns:
        Rows with keys idx, sentence, label.

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    return block_rows("sentiment3", _sentiment3_block, split, n, seed)


def diary(draw: Draw, split: str, polarity: int, *, plain: bool = False) -> str:
    """A diary note of this polarity: -1, 0 or +1."""
    day = draw.pick(DAYS)
    while True:
        if polarity:
            words, said = opinions.opinion(draw, opinions.MOOD, opinions.FAMILY, polarity, plain=plain)
        else:
            words, said = opinions.no_opinion(draw, opinions.MOOD, opinions.FAMILY, plain=plain)
        if belongs(said, split):
            return f"Dear diary, this was {day}. {scenes.sentence(words)}"


def _sentiment3_block(draw: Draw, split: str) -> list[Row]:
    labels = labels_in_balance(draw, 3)
    step = 1 if draw.chance(0.5) else 2
    wrong = {labels.index(label) for label in range(3)}  # labels are in random order: the first of each is any of each
    return [
        {"sentence": diary(draw, split, label - 1), "label": (label + step) % 3 if i in wrong else label}
        for i, label in enumerate(labels)
    ]


# --- topic: four subjects, mixed words ---------------------------------------------------------------------------------


def topic(split: str, n: int, seed: int) -> list[Row]:
    """Sentences that name three things; the label is the topic they were drawn for: farm, sea, school or space.

    Each thing is drawn, independently, from the word list of the row's topic with probability q = 0.8, else from one of
    the other three lists, equally likely; word lists are of equal length and disjoint.

    Best achievable accuracy: given the words, a topic's likelihood is proportional to (q / ((1 - q) / 3)) ** k with k
    the number of its words, so the best rule names the topic with most words, any of them on a tie. It is right if the
    row has three or two words of its topic, or, in one case of three, one word of each of three topics:
    q^3 + 3 q^2 (1-q) + 3 q (1-q)^2 (2/3) (1/3) = 0.512 + 0.384 + 0.02133 = 0.91733. Constant prediction: 1/4.

    Args:
        split: train, validation or test.
        n: Number of rows.
        seed: Seed of the stream.

    Returns:
        Rows with keys idx, sentence, label.

    Raises:
        ValueError: The split is unknown, or n is negative.
    """
    return block_rows("topic", _topic_block, split, n, seed)


TOPIC_FORMS = (
    "There was the {} next to the {} and the {}.",
    "We talked about the {}, the {} and the {}.",
    "Besides the {}, we saw the {} and the {}.",
    "Somebody asked for the {}, the {} and the {}.",
)


def listing(draw: Draw, split: str, subject: str) -> str:
    """A sentence that names three things, mostly of this topic."""
    while True:
        names = []
        for _ in range(3):
            others = [name for name in TOPICS if name != subject]
            names.append(draw.pick(TOPICS[subject if draw.chance(TOPIC_PURITY) else draw.pick(others)]))
        if belongs(tuple(sorted(names)), split):
            return draw.pick(TOPIC_FORMS).format(*names)


def _topic_block(draw: Draw, split: str) -> list[Row]:
    topics = tuple(TOPICS)
    # 28 of the 30 rows are balanced; the other two have one label each, so that the balance holds over many blocks
    labels = labels_in_balance(draw, 4, 28) + draw.shuffled(range(4))[:2]
    return [{"sentence": listing(draw, split, topics[label]), "label": label} for label in draw.shuffled(labels)]
