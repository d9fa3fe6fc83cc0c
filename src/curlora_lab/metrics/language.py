"""Perplexity and its relatives from summed negative log-likelihoods. Natural logarithms: nats unless a name says bits."""

import math

import torch
from jaxtyping import Int
from torch import Tensor


def perplexity(nll: float, tokens: int) -> float:
    """Perplexity a token: ``exp(nll / tokens)``.

    Args:
        nll: Negative log-likelihood summed over the scored tokens, in nats.
        tokens: Number of scored tokens.

    Returns:
        Perplexity; infinite when it exceeds the range of a float.

    Raises:
        ValueError: When ``tokens`` is not positive.
    """
    mean = nats_per_token(nll, tokens)
    # exp overflows at 709.78; a destroyed model may get there and "infinite" is the true answer.
    return math.exp(mean) if mean < 709.0 else math.inf


def nats_per_token(nll: float, tokens: int) -> float:
    """Mean negative log-likelihood: ``nll / tokens``, in nats a token.

    Args:
        nll: Negative log-likelihood summed over the scored tokens, in nats.
        tokens: Number of scored tokens.

    Returns:
        Nats a token.

    Raises:
        ValueError: When ``tokens`` is not positive.
    """
    if tokens < 1:
        raise ValueError(f"{tokens} scored tokens: a perplexity of nothing is not defined")
    return nll / tokens


def bits_per_character(nll: float, characters: int) -> float:
    """Bits a character: ``nll / (characters ln 2)``; unlike perplexity it compares across tokenizers.

    Args:
        nll: Negative log-likelihood summed over the scored tokens, in nats.
        characters: Number of characters that the scored tokens spell.

    Returns:
        Bits a character.

    Raises:
        ValueError: When ``characters`` is not positive.
    """
    if characters < 1:
        raise ValueError(f"{characters} scored characters: bits a character are not defined")
    return nll / (characters * math.log(2))


def log_ratio(before: float, after: float) -> float:
    """Drift of a perplexity: ``ln(after / before)``, in nats a token; additive over stages.

    Args:
        before: Perplexity before, positive.
        after: Perplexity after, positive.

    Returns:
        Nats a token; positive when the model got worse.

    Raises:
        ValueError: When either perplexity is not positive.
    """
    if before <= 0 or after <= 0:
        raise ValueError(f"perplexities {before:g} and {after:g}: both must be positive")
    return math.log(after) - math.log(before)


def unigram_nll(train: Int[Tensor, " train_tokens"], test: Int[Tensor, " test_tokens"], *, vocab_size: int) -> float:
    """Nats a token of the best model that ignores the context: the constant predictor of language.

    ``-mean over test tokens v of ln((n_v + 1) / (n + V))`` with n_v counted in the training text (add-one smoothing).

    Args:
        train: Token ids to count, shape (train_tokens,).
        test: Token ids to score, shape (test_tokens,).
        vocab_size: Size V of the vocabulary.

    Returns:
        Nats a token; ``ln V`` without training text.

    Raises:
        ValueError: When there are no test tokens, or an id is not below ``vocab_size``.
    """
    if not len(test):
        raise ValueError("no tokens to score: a likelihood of nothing is not defined")
    highest = max(int(tokens.max()) for tokens in (train, test) if len(tokens))
    if highest >= vocab_size:
        raise ValueError(f"token id {highest} is outside a vocabulary of {vocab_size}")
    counts = torch.bincount(train, minlength=vocab_size).double() + 1
    return float(-(counts / counts.sum()).log()[test].mean())
