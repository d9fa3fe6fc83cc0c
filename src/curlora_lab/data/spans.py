"""Answers that stand in a text: read in SQuAD's two layouts, and checked against the text."""

from collections.abc import Mapping
from typing import Any

from curlora_lab.data.checks import short
from curlora_lab.data.faults import Fault

Answers = dict[str, list[Any]]
"""``text`` and ``answer_start`` (in characters, from 0), equally long; both empty where there is no answer."""


def read_answers(value: Any, context: str, *, where: str, column: str) -> Answers | Fault:
    """Read the answers to one question.

    Args:
        value: ``{text: [...], answer_start: [...]}``, or a list of ``{text, answer_start}``.
        context: The text in which they stand.
        where: The row's place, for messages.
        column: The column's name, for messages.

    Returns:
        The answers, or what is wrong with them.
    """
    pairs = _pairs(value)
    if pairs is None:
        reason = (
            f"{column!r} is {short(value)}; write {{text: [...], answer_start: [...]}} with lists of equal length, or a list "
            "of {text, answer_start}"
        )
        return Fault(where, "answers of a wrong type", reason)
    for text, start in pairs:
        if not isinstance(text, str) or not text.strip():
            return Fault(where, "empty answer", f"an answer in {column!r} is {short(text)}; for none write empty lists")
        if not isinstance(start, int) or isinstance(start, bool):
            reason = f"answer_start of {short(text)} is {short(start)}, not a whole number"
            return Fault(where, "answer without a place", reason)
        if start < 0 or context[start : start + len(text)] != text:
            return Fault(where, "answer that is not in the text", _not_there(text, start, context))
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def _pairs(value: Any) -> list[tuple[Any, Any]] | None:
    """Texts with their starts; None if the value has neither layout."""
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple) or len(texts) != len(starts):
            return None
        return list(zip(texts, starts, strict=True))
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        return None
    return [(one.get("text"), one.get("answer_start")) for one in value]


def _not_there(text: str, start: int, context: str) -> str:
    there = context[max(start, 0) : max(start, 0) + len(text)]
    at = context.find(text)
    elsewhere = f"it stands at {at}" if at >= 0 else "it does not stand anywhere in the context"
    return f"the answer {short(text)} should stand at character {start}, where there is {short(there)}; {elsewhere}"
