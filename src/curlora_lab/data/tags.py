"""Tags of words: which names a task may have, and whether the tags of a text keep to the scheme."""

from collections.abc import Sequence
from typing import Literal, get_args

Scheme = Literal["iob2", "lenient", "none"]
OUTSIDE = "O"


def checked_tags(labels: Sequence[str], *, scheme: str, drop_words: Sequence[str] = ()) -> tuple[str, ...]:
    """Check the tag names of a task.

    Args:
        labels: The names; the position is the index.
        scheme: ``iob2``, ``lenient`` or ``none``.
        drop_words: Tags whose words are left out.

    Returns:
        The names as text.

    Raises:
        ValueError: If the scheme is unknown, there are fewer than two names, one is repeated, dropped and kept, or not one of
            O, B-x and I-x with a B-x for each I-x where the scheme says so.
    """
    names = tuple(str(label) for label in labels)
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme is {scheme!r}; allowed: {', '.join(get_args(Scheme))}.")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"labels is {list(names)}; name at least two tags, each once.")
    both = sorted(set(names) & set(drop_words))
    if both:
        raise ValueError(f"drop_words names {both[0]!r}, which is among labels too; take it out of labels.")
    if scheme == "none":
        return names
    for name in names:
        prefix, _, kind = name.partition("-")
        if name != OUTSIDE and (prefix not in ("B", "I") or not kind):
            raise ValueError(
                f"labels has {name!r}; with scheme={scheme} a tag is O, B-<type> or I-<type>. "
                "For tags without entities, such as parts of speech, write scheme=none."
            )
        if prefix == "I" and f"B-{kind}" not in names:
            raise ValueError(f"labels has {name!r} without 'B-{kind}', with which such an entity begins.")
    return names


def scheme_fault(tags: Sequence[str]) -> str | None:
    """What breaks the IOB2 scheme in the tags of one text, if anything: an ``I-x`` must follow ``B-x`` or ``I-x``.

    Args:
        tags: Tags of the words.

    Returns:
        Which word (from 1), its tag and the one before.
    """
    before = OUTSIDE
    for number, tag in enumerate(tags, start=1):
        prefix, _, kind = tag.partition("-")
        if prefix == "I" and before not in (f"B-{kind}", f"I-{kind}"):
            after = "at the beginning" if number == 1 else f"after {before!r}"
            return f"word {number} is tagged {tag!r} {after}, where an entity begins with 'B-{kind}'"
        before = tag
    return None
