"""Prompt and answer as one row of tokens: where the answer begins, also where the tokenizer would merge the two."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curlora_lab.data.encoding import CHUNK, Encoded
from curlora_lab.data.loading import IGNORED, TokenRows

Ids = NDArray[np.int32]

ASK_AS_IT_IS = "ask with the text as it is, to its last character and no blank behind it"
ASK_WITHOUT_BLANKS = (
    "ask without the blanks at the end of the text: in training they were the beginning of the response, and a prompt that "
    "ends with one makes other tokens"
)
"""What :func:`tokenize_pairs` does to the end of a prompt, for whoever asks a model without this package."""


class Pair(NamedTuple):
    """Token ids of a prompt and of the answer that follows it.

    Args:
        prompt: int32, shape (tokens,); what a model is given before it answers.
        answer: int32, shape (tokens,).
        merged: Whether the tokenizer would have made one token of the prompt's end and the answer's beginning.
    """

    prompt: Ids
    answer: Ids
    merged: bool = False


def tokenize_pairs(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, special: bool = True
) -> list[Pair]:
    """Tokenise prompts and answers so that the boundary lies between two tokens.

    Spaces at the end of a prompt are moved to its answer: most tokenizers write a space into the word that follows. Then
    both are tokenised as one text, and a token is the answer's if it ends behind the prompt. Where one token would hold
    characters of both, the two are tokenised apart, so that the model is always asked with the tokens it was trained with.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        prompts: One text a row.
        answers: One text a row; may be empty.
        special: Whether the tokenizer's special tokens stand before the prompt; those behind a text are left out.

    Returns:
        One pair a row.
    """
    stripped = [prompt.rstrip(" ") for prompt in prompts]
    moved = [prompt[len(bare) :] + answer for prompt, bare, answer in zip(prompts, stripped, answers, strict=True)]
    pairs = []
    for start in range(0, len(stripped), CHUNK):
        first, second = stripped[start : start + CHUNK], moved[start : start + CHUNK]
        texts = [left + right for left, right in zip(first, second, strict=True)]
        for left, right, encoding in zip(first, second, _encodings(tokenizer, texts, special), strict=True):
            pairs.append(_divide(tokenizer, left, right, encoding, special))
    return pairs


def plain_ids(tokenizer: Any, text: str, *, special: bool) -> Ids:
    """Tokens of a text, with the special tokens that the tokenizer puts before it if wanted, and none behind it."""
    encoding = _encodings(tokenizer, [text], special)[0]
    return np.asarray(encoding.ids[: _content_end(encoding)], dtype=np.int32)


def trailing_special_tokens(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts behind a text."""
    encoding = _encodings(tokenizer, ["a"], True)[0]
    return len(encoding.ids) - _content_end(encoding)


def pair_rows(pairs: Sequence[Pair], truncated: NDArray[np.bool_], *, role: str, pad: int, **columns: Any) -> TokenRows:
    """Rows whose targets are the answers' tokens.

    Args:
        pairs: Prompt and answer of each row.
        truncated: bool, shape (rows,).
        role: ``train``, ``choose`` or ``test``.
        pad: Token that fills short rows.
        **columns: Further numbers of each row; ``prompt_length`` is added.

    Returns:
        Rows of prompt and answer; token labels are -100 on the prompt.
    """
    prompts = np.array([len(pair.prompt) for pair in pairs], dtype=np.int64)
    offsets = np.zeros(len(pairs) + 1, dtype=np.int64)
    np.cumsum([len(pair.prompt) + len(pair.answer) for pair in pairs], out=offsets[1:])
    ids = np.concatenate([part for pair in pairs for part in (pair.prompt, pair.answer)])
    labels = ids.astype(np.int64)
    for start, length in zip(offsets[:-1], prompts, strict=True):
        labels[start : start + length] = IGNORED
    encoded = Encoded(ids, offsets, truncated)
    return TokenRows(encoded, role, pad, token_labels=labels, columns={"prompt_length": prompts, **columns})


def _encodings(tokenizer: Any, texts: Sequence[str], special: bool) -> list[Any]:
    # verbose=False: the tokenizer's warning about long rows; they are counted and cut by who asks.
    options = {"add_special_tokens": special, "truncation": False, "padding": False, "verbose": False}
    return list(tokenizer(list(texts), **options).encodings) if texts else []


def _content_end(encoding: Any) -> int:
    """Number of tokens up to the last one that is no special token behind the text."""
    end = len(encoding.ids)
    while (
        end and encoding.special_tokens_mask[end - 1] and encoding.offsets[end - 1][0] == encoding.offsets[end - 1][1]
    ):
        end -= 1
    return end if end else len(encoding.ids)  # an empty text keeps what the tokenizer puts before it


def _divide(tokenizer: Any, prompt: str, answer: str, encoding: Any, special: bool) -> Pair:
    """Divide the tokens of ``prompt + answer``, or tokenise both apart where a token holds characters of both."""
    ids = np.asarray(encoding.ids[: _content_end(encoding)], dtype=np.int32)
    boundary = len(prompt)
    start = next((index for index in range(len(ids)) if encoding.offsets[index][1] > boundary), len(ids))
    if start == len(ids) or encoding.offsets[start][0] >= boundary:
        return Pair(ids[:start], ids[start:])
    return Pair(plain_ids(tokenizer, prompt, special=special), plain_ids(tokenizer, answer, special=False), merged=True)
