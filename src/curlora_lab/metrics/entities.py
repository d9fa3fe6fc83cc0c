"""Scores of tags of words: entities as seqeval finds them, the share of words with the right tag, and how sure both are."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from curlora_lab.metrics.intervals import Counts, bootstrap_interval

OUTSIDE = "O"
TOKEN_METRICS = ("entity_f1", "entity_precision", "entity_recall", "token_accuracy")

Tags = Sequence[str | None]
"""Tags of one text's words; None for a word that got none, which is no entity and never right."""
Entity = tuple[str, int, int]
"""Type, first word, and the word after the last."""


def entities(tags: Tags) -> list[Entity]:
    """Entities of one text, as seqeval's default mode (that is, CoNLL's script) reads B-, I- and O tags.

    ``B-x`` begins an entity. ``I-x`` goes on with one of type x, and begins one after ``O`` or another type: a wrong
    ``I-x`` costs no more than a wrong ``B-x``.

    Args:
        tags: Tags such as ``O``, ``B-person``, ``I-person``.

    Returns:
        The entities in order.

    Reference:
        Tjong Kim Sang and De Meulder 2003 (conlleval); Nakayama 2018 (seqeval).
    """
    found: list[Entity] = []
    start, kind = 0, ""
    inside = False
    for position, tag in enumerate([*tags, OUTSIDE]):
        prefix, own = _parts(tag)
        goes_on = inside and prefix == "I" and own == kind
        if inside and not goes_on:
            found.append((kind, start, position))
        if prefix != OUTSIDE and not goes_on:
            start, kind = position, own
        inside = prefix != OUTSIDE
    return found


def token_scores(names: Sequence[str], predictions: Sequence[Tags], labels: Sequence[Tags]) -> dict[str, float]:
    """Score the tags of many texts.

    ``entity_f1`` = 2 TP / (predicted + true) over all entities of all texts (micro average), an entity being right if type
    and both ends are; ``entity_precision`` = TP / predicted; ``entity_recall`` = TP / true; each 0 where its denominator
    is. ``token_accuracy``: share of all words with the right tag.

    Args:
        names: Metrics, out of :data:`TOKEN_METRICS`.
        predictions: Predicted tags of each text.
        labels: True tags of each text.

    Returns:
        Score by metric, in the order of ``names``; all are higher-is-better and in [0, 1].

    Raises:
        ValueError: For an unknown name, no texts, or texts whose predicted and true tags differ in number.
    """
    unknown = [name for name in names if name not in TOKEN_METRICS]
    if unknown:
        raise ValueError(
            f"metric '{unknown[0]}' is not known for token classification; choose from: {', '.join(TOKEN_METRICS)}"
        )
    total = _counted(predictions, labels).sum(axis=0, keepdims=True)
    return {name: float(_from_counts(name, total)[0]) for name in names}


def constant_tag(metric: str, labels: Sequence[Tags]) -> tuple[float, str]:
    """Score of giving every word the most frequent tag (``O`` in entity recognition).

    Args:
        metric: One of :data:`TOKEN_METRICS`.
        labels: True tags of each text.

    Returns:
        The score and the tag; of equally frequent tags the first in the alphabet.

    Raises:
        ValueError: For an unknown name or no texts.
    """
    counts = Counter(str(tag) for tags in labels for tag in tags)
    most = min(counts, key=lambda tag: (-counts[tag], tag)) if counts else OUTSIDE
    return token_scores([metric], [[most] * len(tags) for tags in labels], labels)[metric], most


def token_interval(
    metric: str, predictions: Sequence[Tags], labels: Sequence[Tags], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a score over test texts: percentile bootstrap of the texts (words of one text are no independent draws).

    Args:
        metric: One of :data:`TOKEN_METRICS`.
        predictions: Predicted tags of each text.
        labels: True tags of each text.
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: As :func:`token_scores`.
    """
    token_scores([metric], predictions, labels)
    counts = _counted(predictions, labels)
    return bootstrap_interval(counts, lambda sums: _from_counts(metric, sums), confidence=confidence)


def _parts(tag: str | None) -> tuple[str, str]:
    """Prefix and type of a tag; any that is neither B- nor I- is outside."""
    prefix, _, kind = (tag or OUTSIDE).partition("-")
    return (prefix, kind) if prefix in ("B", "I") else (OUTSIDE, "")


def _counted(predictions: Sequence[Tags], labels: Sequence[Tags]) -> Counts:
    """Of each text: entities found rightly, found, there; words tagged rightly, there."""
    if not labels or len(predictions) != len(labels):
        raise ValueError(f"{len(predictions)} texts with predictions, {len(labels)} with labels: as many, at least one")
    rows = []
    for number, (given, true) in enumerate(zip(predictions, labels, strict=True), start=1):
        if len(given) != len(true):
            raise ValueError(f"text {number} has {len(given)} predicted and {len(true)} true tags")
        found, there = set(entities(given)), set(entities(true))
        hits = sum(one == other for one, other in zip(given, true, strict=True))
        rows.append((len(found & there), len(found), len(there), hits, len(true)))
    return np.array(rows, dtype=np.float64)


def _from_counts(name: str, sums: Counts) -> Counts:
    """Scores of summed counts, shape (draws,)."""
    both, found, there, hits, words = sums.T
    shares: Mapping[str, tuple[Counts, Counts]] = {
        "entity_f1": (2 * both, found + there),
        "entity_precision": (both, found),
        "entity_recall": (both, there),
        "token_accuracy": (hits, words),
    }
    above, below = shares[name]
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
