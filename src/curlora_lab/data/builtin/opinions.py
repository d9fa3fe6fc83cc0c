"""Opinions: reviews of things and moods of people, with a polarity that follows from the grammar.

A clause says what one subject was like::

    Clause(p) = Subject "was" [Degree] Word(p)
              | Subject Negation Word(-p)                      not, never, far from
    Fact      = Subject "was" Place-or-doing

and a text combines two clauses (or has one); its polarity p is that of the main clause::

    Text(p)   = Clause(p)
              | Clause(p) "and" Clause(p)
              | Clause(-p) ", but" Clause(p)
              | "Although" Clause(-p) "," Clause(p)
              | Clause(p) ", although" Clause(-p)
    Text(0)   = Fact "and" Fact
              | Clause(p) "and" Clause(-p)
              | Subject "was neither" Word(p) "nor" Word(-p)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .draw import Draw
from .lexicon import BAD_MOODS, BLAME, DEGREES, GOOD_MOODS, NO_MOODS, PEOPLE_OF_MINE, PRAISE

NEGATED = 0.3
FORMS = (("one", 0.25), ("and", 0.3), ("but", 0.2), ("front", 0.15), ("back", 0.1))
PLAIN_FORMS = (("one", 0.5), ("and", 0.5))
NO_OPINIONS = (("facts", 0.4), ("both", 0.35), ("neither", 0.25))
PLAIN_NO_OPINIONS = (("facts", 0.7), ("neither", 0.3))
NEGATIONS = ("was not ", "was never ", "was far from ")
Said = tuple[str, str]
"""Who or what, and the word for it: the content of a clause without its negation."""


@dataclass(frozen=True)
class Field:
    """What an opinion can be about: the words for good (+1) and bad (-1), and plain facts."""

    good: tuple[str, ...]
    bad: tuple[str, ...]
    facts: tuple[str, ...] = ()

    def words(self, polarity: int) -> tuple[str, ...]:
        """The words of a polarity, +1 or -1."""
        return self.good if polarity > 0 else self.bad


REVIEW = Field(PRAISE, BLAME)
MOOD = Field(GOOD_MOODS, BAD_MOODS, NO_MOODS)
FAMILY = ("I", *(f"my {person}" for person in PEOPLE_OF_MINE))


def clause(draw: Draw, field: Field, subject: str, polarity: int, *, plain: bool = False) -> tuple[str, Said]:
    """A clause of this polarity about a subject, and what it says; negated with probability ``NEGATED``, never if plain."""
    if not plain and draw.chance(NEGATED):
        word = draw.pick(field.words(-polarity))
        return f"{subject} {draw.pick(NEGATIONS)}{word}", (subject, word)
    word = draw.pick(field.words(polarity))
    return f"{subject} was {draw.pick(DEGREES)}{word}", (subject, word)


def opinion(
    draw: Draw, field: Field, subjects: Sequence[str], polarity: int, *, plain: bool = False
) -> tuple[str, tuple[Said, ...]]:
    """A text of this polarity and what its clauses say.

    Args:
        draw: Stream of choices.
        field: What the opinion is about.
        subjects: Two or more; the text is about one or two of them.
        polarity: +1 or -1.
        plain: Without negation and concession.
    """
    first, second = draw.shuffled(subjects)[:2]
    form = draw.weighted(PLAIN_FORMS if plain else FORMS)
    p = -polarity if form in ("but", "front") else polarity
    q = -polarity if form == "back" else polarity
    one, said_one = clause(draw, field, first, p, plain=plain)
    two, said_two = clause(draw, field, second, q, plain=plain)
    if form == "one":
        return one, (said_one,)
    words = {
        "and": f"{one} and {two}",
        "but": f"{one}, but {two}",
        "front": f"although {one}, {two}",
        "back": f"{one}, although {two}",
    }
    return words[form], tuple(sorted((said_one, said_two)))


def no_opinion(
    draw: Draw, field: Field, subjects: Sequence[str], *, plain: bool = False
) -> tuple[str, tuple[Said, ...]]:
    """A text of polarity 0: facts, two opposite opinions of equal weight (never if plain), or neither good nor bad."""
    first, second = draw.shuffled(subjects)[:2]
    form = draw.weighted(PLAIN_NO_OPINIONS if plain else NO_OPINIONS)
    p = 1 if draw.chance(0.5) else -1
    if form == "facts":
        one, two = draw.shuffled(field.facts)[:2]
        return f"{first} was {one} and {second} was {two}", tuple(sorted(((first, one), (second, two))))
    if form == "both":
        one, said_one = clause(draw, field, first, p)
        two, said_two = clause(draw, field, second, -p)
        return f"{one} and {two}", tuple(sorted((said_one, said_two)))
    one, two = draw.pick(field.words(p)), draw.pick(field.words(-p))
    return f"{first} was neither {one} nor {two}", ((first, one), (first, two))
