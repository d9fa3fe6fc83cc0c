"""Texts to token ids: a real separator between columns, and truncation that never cuts it off."""

import hashlib
import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curlora_lab.data.faults import DataError

Pairs = Literal["template", "tokenizer"]

VERSION = 1  # of the encoding; part of the cache key
CHUNK = 1024  # rows tokenised at once
SEP = "sep"


@dataclass(frozen=True)
class Encoded:
    """Token ids of many rows, end to end.

    Args:
        ids: int32, shape ``(tokens,)``.
        offsets: int64, shape ``(rows + 1,)``; row i is ``ids[offsets[i]:offsets[i + 1]]``.
        truncated: bool, shape ``(rows,)``; whether tokens of the row were cut off.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> NDArray[np.int32]:
        """Token ids of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


class Encoder:
    """How the columns of a row become one sequence of tokens.

    - One column: the tokenizer's encoding of the text, with its special tokens.
    - Two columns and no template: the tokenizer's own pair encoding if it puts its separator token between the texts (BERT,
      RoBERTa). Decoders such as GPT-2 put nothing there, not even a space, and Llama's second ``<s>`` means a new document:
      there, and with more columns, the columns are joined by ``separator(tokenizer)``.
    - A template: text with the columns in braces; ``{sep}`` is the separator.

    What is longer than ``max_length`` loses tokens from the end of its longest column, again and again, until it fits:
    special tokens, the template's own text and separators always stay.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        columns: Text columns in order.
        template: Text with every column in braces, or None.
        pairs: ``template``: as above; ``tokenizer``: ``tokenizer(a, b)`` whatever it does, the published gluing.
        max_length: Tokens a row may have; None for any number.

    Raises:
        ValueError: If the template and the columns do not fit, ``pairs=tokenizer`` with other than two columns, the tokenizer
            is not a fast one, or ``max_length`` is below 1 or above what the tokenizer's model can read.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        columns: Sequence[str],
        template: str | None = None,
        pairs: Pairs = "template",
        max_length: int | None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"the tokenizer {type(tokenizer).__name__} is not a fast one; load it with tokenizer.json."
            )
        if max_length is not None:
            check_length(tokenizer, max_length)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.columns = tuple(columns)
        self.separator = ""
        self.parts: list[tuple[str, int | None]] = []  # (literal text, column that follows)
        self.as_pair = check_template(self.columns, template, pairs) == "pair" or (
            len(self.columns) == 2 and template is None and pair_separator(tokenizer) is not None
        )
        if not self.as_pair:
            template = (
                template if template is not None else f"{{{SEP}}}".join(f"{{{column}}}" for column in self.columns)
            )
            if f"{{{SEP}}}" in template:
                self.separator = separator(tokenizer)
            self.parts = self._parse(template)

    @property
    def identity(self) -> str:
        """What determines the ids besides the texts: sha256 of tokenizer content, template and length, as hex."""
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # Truncation and padding are states that the last call left behind, not properties of the tokenizer.
        content.pop("truncation", None)
        content.pop("padding", None)
        how = [VERSION, content, self.parts, self.separator, self.as_pair, self.max_length]
        return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()

    @property
    def recipe(self) -> dict[str, Any]:
        """How a row is put together, for use without this package: a Python format string, or the tokenizer's own pair."""
        text = "".join(
            literal.replace("{", "{{").replace("}", "}}") + ("" if column is None else f"{{{self.columns[column]}}}")
            for literal, column in self.parts
        )
        return {
            "columns": list(self.columns),
            "text": None if self.as_pair else text,
            "tokenizer_pair": self.as_pair,
            "max_length": self.max_length,
        }

    def encode(self, rows: Sequence[Sequence[str]]) -> Encoded:
        """Tokenise rows.

        Args:
            rows: One text a column for each row.

        Returns:
            Token ids of all rows, each with at most ``max_length``.

        Raises:
            DataError: If ``max_length`` has no room for one token of each column.
        """
        ids: list[NDArray[np.int32]] = []
        truncated = np.zeros(len(rows), dtype=np.bool_)
        for index, (encoding, spans) in enumerate(self.encodings(rows)):
            row = np.asarray(encoding.ids, dtype=np.int32)
            if self.max_length is not None and len(row) > self.max_length:
                row = row[self._kept(encoding, spans, self.max_length)]
                truncated[index] = True
            ids.append(row)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in ids], out=offsets[1:])
        return Encoded(np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32), offsets, truncated)

    def _parse(self, template: str) -> list[tuple[str, int | None]]:
        parts: list[tuple[str, int | None]] = []
        literal = ""
        for text, field, _, _ in string.Formatter().parse(template):
            literal += text
            if field == SEP:
                literal += self.separator
            elif field is not None:
                parts.append((literal, self.columns.index(field)))
                literal = ""
        return [*parts, (literal, None)]

    def encodings(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
        """Yield the tokenizer's encoding of each row, uncut, and where the columns of ``parts`` lie in the text."""
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            spans: list[list[tuple[int, int]]]
            if self.as_pair:
                texts, spans = [[row[0] for row in chunk], [row[1] for row in chunk]], [[] for _ in chunk]
            else:
                rendered = [self._render(row) for row in chunk]
                texts, spans = [[text for text, _ in rendered]], [span for _, span in rendered]
            # verbose=False: the tokenizer's warning about long rows; they are counted and cut here.
            encodings = self.tokenizer(*texts, truncation=False, padding=False, verbose=False).encodings
            yield from zip(encodings, spans, strict=True)

    def _render(self, row: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """The row's text, and (start, end) of each column in it, in characters."""
        text = ""
        spans = []
        for literal, column in self.parts:
            text += literal
            if column is not None:
                spans.append((len(text), len(text) + len(row[column])))
                text += row[column]
        return text, spans

    def _kept(self, encoding: Any, spans: list[tuple[int, int]], max_length: int) -> list[int]:
        """Positions of the tokens that stay when a row is cut to ``max_length``."""
        owners = list(encoding.sequence_ids) if self.as_pair else _owners(encoding, spans)
        count = len(self.columns) if self.as_pair else len(spans)
        lengths = [owners.count(column) for column in range(count)]
        room = max_length - owners.count(None)
        present = sum(length > 0 for length in lengths)
        if room < present:
            raise DataError(
                f"max_length {max_length} has no room: special tokens, separators and the template take "
                f"{owners.count(None)}, and {present} texts need one each; raise max_length."
            )
        left = _shorten(lengths, room)
        kept = []
        for position, owner in enumerate(owners):
            if owner is not None:
                left[owner] -= 1
            if owner is None or left[owner] >= 0:
                kept.append(position)
        return kept


def check_length(tokenizer: Any, max_length: int) -> None:
    """Check that the tokenizer's model can read rows of ``max_length`` tokens.

    Args:
        tokenizer: A Hugging Face tokenizer.
        max_length: Tokens a row may have.

    Raises:
        ValueError: If it cannot.
    """
    limit = getattr(tokenizer, "model_max_length", None) or max_length  # 1e30 where a model states none
    if not 1 <= max_length <= limit:
        raise ValueError(f"max_length is {max_length}; the tokenizer's model reads 1 to {limit} tokens.")


def check_template(columns: Sequence[str], template: str | None, pairs: str) -> Literal["pair", "text"]:
    """Check that columns, template and ``pairs`` fit together.

    Args:
        columns: Text columns.
        template: Text with the columns in braces, or None.
        pairs: ``template`` or ``tokenizer``.

    Returns:
        ``pair`` if the tokenizer's own pair encoding is asked for, else ``text``.

    Raises:
        ValueError: If they do not.
    """
    if not columns or len(set(columns)) < len(columns) or SEP in columns:
        raise ValueError(f"columns is {list(columns)}; name at least one column, each once, none of them {SEP!r}.")
    if pairs not in ("template", "tokenizer"):
        raise ValueError(f"pairs is {pairs!r}; allowed: template, tokenizer.")
    if pairs == "tokenizer":
        if len(columns) != 2 or template is not None:
            raise ValueError(
                f"pairs=tokenizer glues two columns and takes no template; there are {len(columns)} columns."
            )
        return "pair"
    if template is not None:
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(
                f"template {template!r} cannot be read ({error}); write {{column}}, or {{{{ for a brace."
            ) from error
        fields = [field for _, field, _, _ in parsed if field is not None]
        plain = all(not spec and not conversion for _, field, spec, conversion in parsed if field is not None)
        if {*fields} - {SEP} != set(columns) or not plain:
            raise ValueError(f"template has the fields {fields}; needed: each of {list(columns)}; allowed too: {SEP}.")
    return "text"


def pair_separator(tokenizer: Any) -> str | None:
    """What the tokenizer itself puts between two texts, if that includes its separator token.

    Args:
        tokenizer: A fast Hugging Face tokenizer.

    Returns:
        E.g. ``[SEP]`` for BERT, ``</s></s>`` for RoBERTa; None for tokenizers without a separator of their own (GPT-2 puts
        nothing between, Llama a second ``<s>``).
    """
    if getattr(tokenizer, "sep_token", None) is None:
        return None
    encoding = tokenizer(["a"], ["b"], truncation=False, padding=False, verbose=False).encodings[0]
    owners = encoding.sequence_ids
    if 0 not in owners or 1 not in owners:
        return None
    between = encoding.tokens[len(owners) - owners[::-1].index(0) : owners.index(1)]
    return "".join(between) if tokenizer.sep_token in between else None


def separator(tokenizer: Any) -> str:
    r"""The text that separates two columns for this tokenizer.

    In this order: what its own pair encoding puts there; a newline, if the tokenizer keeps it as a token of its own; its
    separator, end or begin token. Decoders read a newline as the end of a sentence in running text, while their end token
    says that nothing before matters.

    Args:
        tokenizer: A fast Hugging Face tokenizer.

    Returns:
        E.g. ``[SEP]``, ``"\n"``, ``</s>``.

    Raises:
        ValueError: If the tokenizer has none of these.
    """
    own = pair_separator(tokenizer)
    if own is not None:
        return own
    if _keeps(tokenizer, "\n"):
        return "\n"
    for token in (tokenizer.sep_token, tokenizer.eos_token, tokenizer.bos_token):
        if token is not None and _keeps(tokenizer, str(token)):
            return str(token)
    raise ValueError(
        "the tokenizer drops newlines and has no sep, eos or bos token to separate columns; give a template."
    )


def _keeps(tokenizer: Any, text: str) -> bool:
    """Whether ``text`` between two words gives a token that a space does not, and not the unknown token."""
    options: dict[str, Any] = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
    with_text, with_space = tokenizer([f"a{text}b", "a b"], **options).encodings
    inside = [
        token
        for token, (start, end) in zip(with_text.ids, with_text.offsets, strict=True)
        if start < 1 + len(text) and end > 1
    ]
    return bool(inside) and with_text.ids != with_space.ids and tokenizer.unk_token_id not in inside


def _owners(encoding: Any, spans: list[tuple[int, int]]) -> list[int | None]:
    """Which column each token lies wholly inside of; None for special tokens and for those that touch the template's text."""
    owners: list[int | None] = []
    for (start, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        inside = (column for column, (first, last) in enumerate(spans) if first <= start and end <= last)
        owners.append(next(inside, None) if end > start and not special else None)
    return owners


def _shorten(lengths: Sequence[int], room: int) -> list[int]:
    """Shorten the longest again and again until the sum fits; what does not divide evenly stays with the longest."""
    left = list(lengths)
    order = sorted(range(len(left)), key=lambda column: (left[column], column))
    for rank, column in enumerate(order):
        left[column] = min(left[column], room // (len(order) - rank))
        room -= left[column]
    return left
