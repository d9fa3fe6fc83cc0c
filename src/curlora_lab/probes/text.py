"""The text of a probe: rows of a data source as token ids, with the number of characters that the tokens spell."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

Documents = Literal["each", "joined"]


class TextRow(Protocol):
    """What a probe needs of a :class:`curlora_lab.data.Row`."""

    @property
    def where(self) -> str:
        """Source and number of the row, for messages."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Column -> value."""


class RowSource(Protocol):
    """What a probe needs of a :class:`curlora_lab.data.DataSource`."""

    def rows(self, role: str, /) -> Sequence[TextRow]:
        """All rows of a role."""


@dataclass(frozen=True)
class EncodedText:
    """One document as the model reads it.

    Attributes:
        ids: Token ids with a leading bos token if there is one, shape (tokens,).
        characters: Characters that the scored tokens (all but the first) spell.
    """

    ids: Int[Tensor, " tokens"]
    characters: int


def read_texts(source: RowSource, role: str, column: str, *, limit: int | None) -> list[str]:
    """Texts of a data source in its order.

    Args:
        source: Where rows come from.
        role: Role of the split.
        column: Name of the text column.
        limit: At most so many rows; ``None`` for all.

    Returns:
        The texts.

    Raises:
        ValueError: When a row lacks the column or holds no text there, naming the row.
    """
    texts = []
    for row in source.rows(role)[:limit]:
        text = row.values.get(column)
        if not isinstance(text, str):
            held = f"holds {type(text).__name__}" if column in row.values else f"has only {', '.join(row.values)}"
            raise ValueError(f"{row.where}: column '{column}' of a probe must be text; this row {held}")
        texts.append(text)
    return texts


def join_texts(texts: Sequence[str], *, separator: str, strip_newline: bool, drop_empty: bool) -> str:
    """One text from many rows.

    Args:
        texts: The rows.
        separator: What stands between two rows.
        strip_newline: Whether a row loses its final newline first (rows on the hub keep it, lines of a file do not).
        drop_empty: Whether rows without a visible character are left out.

    Returns:
        The joined text.
    """
    kept = [text.removesuffix("\n") if strip_newline else text for text in texts]
    return separator.join(text for text in kept if text.strip() or not drop_empty)


def encode(text: str, tokenizer: Any, *, add_bos: bool | Literal["auto"], max_tokens: int | None) -> EncodedText:
    """Token ids of a text and the characters that the scored ones spell.

    Args:
        text: The document.
        tokenizer: A Hugging Face fast tokenizer.
        add_bos: Put the bos token in front; ``auto`` does so where the tokenizer itself would.
        max_tokens: Keep at most so many tokens, bos included; ``None`` for all.

    Returns:
        Ids and characters.

    Raises:
        ValueError: When a bos token is asked for and the tokenizer has none.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    if _wants_bos(tokenizer, add_bos):
        ids, offsets = [tokenizer.bos_token_id, *ids], [(0, 0), *offsets]
    ids, offsets = ids[:max_tokens], offsets[:max_tokens]
    characters = offsets[-1][1] - offsets[1][0] if len(ids) > 1 else 0
    return EncodedText(torch.tensor(ids, dtype=torch.long), characters)


def fingerprint(texts: Sequence[str]) -> str:
    """Sha256 of the texts that a probe reads, independent of where they lie.

    Args:
        texts: The documents in order.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode()
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()


def _wants_bos(tokenizer: Any, add_bos: bool | Literal["auto"]) -> bool:
    if add_bos == "auto":
        with_special = tokenizer("a")["input_ids"]
        return tokenizer.bos_token_id is not None and with_special[:1] == [tokenizer.bos_token_id]
    if add_bos and tokenizer.bos_token_id is None:
        raise ValueError("add_bos=true, but the tokenizer has no bos token; set add_bos to auto or false")
    return add_bos
