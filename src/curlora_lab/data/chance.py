"""Chance by position: a generator for each named place, instead of one whose state runs along."""

import hashlib

import torch


def generator_at(*position: int | str) -> torch.Generator:
    """A generator that depends on the position only, e.g. ``generator_at("order", seed, stage, epoch)``.

    Args:
        position: What names the place; numbers and names without ``|``.

    Returns:
        A CPU generator.
    """
    digest = hashlib.sha256("|".join(map(str, position)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
