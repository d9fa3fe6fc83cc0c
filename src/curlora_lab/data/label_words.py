"""Classification as a question: how a text is asked for its label, and which words stand for the labels."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curlora_lab.data.answers import ASK_AS_IT_IS, Ids, Pair, pair_rows, tokenize_pairs, trailing_special_tokens
from curlora_lab.data.cache import encode_cached
from curlora_lab.data.checks import Example
from curlora_lab.data.encoding import SEP, Encoder, check_template
from curlora_lab.data.loading import TokenRows

CONTENT_FREE = "N/A"
"""What stands in every column of the prompt that calibration subtracts (Zhao et al. 2021)."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    r"""How a text is asked for its label, and how the answer is read.

    Args:
        text: The prompt: ``{text}`` is the task's own template, or its columns with newlines between; ``{options}`` are the
            labels' words with commas between; the task's columns may be named too.
        words: What stands for each label: by label name, or a list in the labels' order. None: the names, without underscores.
        end: Whether an end token belongs to the answer, in training and in scoring.
        candidates: ``task``: the task's own words; ``all``: those of all tasks seen so far, so that nothing tells the task.
        reduction: ``sum`` or ``mean`` of the log-probabilities of a label's tokens.
        calibrated: Whether scores for a prompt without content are subtracted.
        tasks: Task name -> fields that differ for this task.

    Raises:
        ValueError: If a word is unknown.

    Reference:
        Wang et al. 2023 (O-LoRA) for the protocol; Zhao et al. 2021 for calibration.
    """

    text: str = "Option: {options}\n{text}\nAnswer:"
    words: Mapping[str, str] | Sequence[str] | None = None
    end: bool = True
    candidates: Literal["task", "all"] = "task"
    reduction: Literal["sum", "mean"] = "sum"
    calibrated: bool = False
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.candidates not in ("task", "all"):
            raise ValueError(f"prompt.candidates is {self.candidates!r}; allowed: task, all.")
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"prompt.reduction is {self.reduction!r}; allowed: sum, mean.")

    @classmethod
    def of(cls, node: Mapping[str, Any], task: str) -> "Prompt":
        """The prompt of one task.

        Args:
            node: Fields of this class.
            task: Name of the task; what ``tasks`` has under it wins.

        Raises:
            ValueError: If a field is not known.
        """
        allowed = set(cls.__dataclass_fields__)
        own = dict((node.get("tasks") or {}).get(task) or {})
        unknown = sorted((set(node) - allowed) | (set(own) - allowed))
        if unknown:
            raise ValueError(f"prompt has the field {unknown[0]!r}; allowed: {', '.join(sorted(allowed))}.")
        prompt = cls(**{**node, "tasks": {}})
        return replace(prompt, **own)

    def template(self, columns: Sequence[str], words: Sequence[str], own: str | None) -> str:
        """The prompt with the columns in braces, ready for an ``Encoder``.

        Args:
            columns: The task's columns.
            words: The words of its labels.
            own: The task's own template.

        Raises:
            ValueError: If a field is not known, or the columns do not all occur.
        """
        inside = own if own is not None else "\n".join(f"{{{column}}}" for column in columns)
        options = ", ".join(words).replace("{", "{{").replace("}", "}}")
        parts = []
        for literal, name, _, _ in _parsed(self.text):
            parts.append(literal.replace("{", "{{").replace("}", "}}"))
            if name == "text":
                parts.append(inside)
            elif name == "options":
                parts.append(options)
            elif name in (*columns, SEP):
                parts.append(f"{{{name}}}")
            elif name is not None:
                raise ValueError(
                    f"prompt.text {self.text!r} has the field {name!r}; allowed: text, options, {', '.join(columns)}."
                )
        found = "".join(parts)
        check_template(columns, found, "template")
        return found

    def words_of(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The words that stand for the labels, in their order.

        Raises:
            ValueError: If a label has none, or two have the same.
        """
        given = self.words
        if given is None:
            found = [label.replace("_", " ") for label in labels]
        elif isinstance(given, Mapping):
            missing = [label for label in labels if label not in given]
            if missing or len(given) > len(labels):
                raise ValueError(
                    f"prompt.words names {list(given)}; the labels are {list(labels)}, each needs its words."
                )
            found = [str(given[label]) for label in labels]
        else:
            if len(given) != len(labels):
                raise ValueError(f"prompt.words has {len(given)} entries for the {len(labels)} labels {list(labels)}.")
            found = [str(word) for word in given]
        if not all(word.strip() for word in found) or len(set(found)) < len(found):
            raise ValueError(f"the labels' words are {found}; each label needs words of its own, not empty.")
        return tuple(found)


class WordEncoder:
    """Rows of a classification task as prompts that are answered with a label's words.

    Only the columns' texts are cut where a row is too long; the prompt's own text and the answer always stay.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        prompt: How it is asked.
        columns: Text columns in order.
        template: The task's own template, if it has one.
        labels: Label names.
        max_length: Tokens of prompt and answer together.

    Attributes:
        words: The words of each label.
        answers: Their token ids behind the prompt, each (tokens,).
        text: The prompt, with the columns in braces.

    Raises:
        ValueError: If prompt, words, tokenizer and length do not fit.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt: Prompt,
        columns: Sequence[str],
        template: str | None,
        labels: Sequence[str],
        max_length: int,
    ) -> None:
        self.words = prompt.words_of(labels)
        self.text = prompt.template(columns, self.words, template).rstrip(" ")
        self.answers = [word_ids(tokenizer, _tail(self.text), word, end=prompt.end) for word in self.words]
        if not prompt.end:
            _refuse_prefixes(self.words, self.answers)
        self._columns = tuple(columns)
        self._end = prompt.end
        self._behind = trailing_special_tokens(tokenizer)
        room = max_length - max(len(answer) for answer in self.answers) + self._behind
        if room < 1:
            raise ValueError(f"max_length is {max_length}, and the longest label alone has {max_length - room} tokens.")
        self._encoder = Encoder(tokenizer, columns=columns, template=self.text, max_length=room)
        self._longest = max_length

    def rows(
        self, examples: Sequence[Example], role: str, pad: int, cache_dir: Path | None
    ) -> tuple[TokenRows, list[str]]:
        """Prompt and answer of each row.

        Args:
            examples: The rows; a label of -1 stands for none, and gives a prompt only.
            role: What they are for.
            pad: Token that fills short rows.
            cache_dir: Folder of the tokenised cache; None for no cache.

        Returns:
            Rows with ``prompt_length`` and ``label`` beside the tokens; and a note on rows that were cut, if any.
        """
        encoded = encode_cached(self._encoder, [example.texts for example in examples], cache_dir)
        pairs = [
            Pair(self._without_end(encoded.row(index)), self.answers[example.label] if example.label >= 0 else _NOTHING)
            for index, example in enumerate(examples)
        ]
        labels = np.array([example.label for example in examples], dtype=np.int64)
        cut = int(encoded.truncated.sum())
        notes = [f"truncated: {cut} of {len(encoded)} {role} rows to {self._longest} tokens"] if cut else []
        return pair_rows(pairs, encoded.truncated, role=role, pad=pad, label=labels), notes

    def content_free(self) -> Ids:
        """Token ids of the prompt about nothing."""
        return self._without_end(self._encoder.encode([[CONTENT_FREE] * len(self._columns)]).row(0))

    @property
    def recipe(self) -> dict[str, Any]:
        """How a row is put together, for use without this package."""
        gap = "at once" if self.text != self.text.rstrip() else "after a blank that belongs to them"
        boundary = f"{ASK_AS_IT_IS}; the words follow {gap}{', and an end token follows them' if self._end else ''}"
        return {**self._encoder.recipe, "boundary": boundary, "words": list(self.words), "max_length": self._longest}

    def _without_end(self, ids: Ids) -> Ids:
        """Without the special tokens that the tokenizer puts behind a text: the answer goes on there."""
        return ids[: len(ids) - self._behind]


_NOTHING: Ids = np.zeros(0, dtype=np.int32)


def word_ids(tokenizer: Any, before: str, words: str, *, end: bool) -> Ids:
    """Tokens of an answer behind a prompt, with the end token if wanted.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        before: How the prompt ends; a space is put between where it does not end with white space.
        words: The answer.
        end: Whether an end token follows.

    Raises:
        ValueError: If the words give no token.
    """
    space = "" if before != before.rstrip() else " "
    answer = tokenize_pairs(tokenizer, [before], [space + words], special=False)[0].answer
    if not len(answer):
        raise ValueError(f"the label words {words!r} give no token; choose others.")
    eos = getattr(tokenizer, "eos_token_id", None)
    return np.append(answer, np.int32(eos)) if end and eos is not None else answer


def _tail(template: str) -> str:
    """What follows the last column in a prompt."""
    tail = ""
    for literal, name, _, _ in _parsed(template):
        tail = tail + literal if name is None else ""
    return tail


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"prompt.text {template!r} cannot be read ({error}); write {{text}}, or {{{{ for a brace."
        ) from error


def _refuse_prefixes(words: Sequence[str], answers: Sequence[Ids]) -> None:
    """Without an end token an answer that begins another can never be less likely than it."""
    for short, left in zip(words, answers, strict=True):
        for long, right in zip(words, answers, strict=True):
            if short != long and list(right[: len(left)]) == list(left):
                raise ValueError(
                    f"the label words {short!r} begin {long!r}, so without an end token they would always win; "
                    "use prompt.end=true or other words."
                )
