"""Text as windows of tokens: which positions a model reads, which of them are scored, and the logits at those."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

LOGITS_PER_BATCH = 2**26
"""Entries of one batch's logits when the batch size is not given: 256 MiB in float32."""


class LanguageModel(Protocol):
    """What a probe needs of a :class:`curlora_lab.backbone.Backbone`."""

    tokenizer: Any

    @property
    def is_causal(self) -> bool:
        """Whether there is a next-token head."""

    @property
    def context(self) -> int:
        """Longest input in tokens."""

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary."""

    @property
    def name(self) -> str:
        """Short name, for messages."""

    def lm_logits(self, input_ids: Tensor, attention_mask: Tensor, /) -> Tensor:
        """Next-token logits, shape (batch, seq, vocab)."""


@dataclass(frozen=True)
class Window:
    """Tokens read together.

    Attributes:
        inputs: What the model reads, shape (seq,).
        targets: The token after each input, shape (seq,).
        skip: How many leading targets were scored by an earlier window and serve as context only.
    """

    inputs: Int[Tensor, " seq"]
    targets: Int[Tensor, " seq"]
    skip: int

    @property
    def scored(self) -> int:
        """Number of targets this window scores."""
        return len(self.targets) - self.skip


def sliding_windows(ids: Int[Tensor, " tokens"], *, window: int, stride: int) -> list[Window]:
    """Cut a text into windows so that each token but the first is scored exactly once.

    Window k reads the tokens from k·stride on, at most ``window`` of them, and scores the targets that no earlier
    window scored: each with at least window - stride tokens of context where the text has so many. With
    ``stride == window`` the windows do not overlap. The first token of the text has no context and is never scored.

    Args:
        ids: Token ids of one text, shape (tokens,).
        window: Tokens read together, at least 1.
        stride: Tokens from one window's start to the next, 1..window.

    Returns:
        The windows in the order of the text; none for a text of fewer than two tokens.

    Raises:
        ValueError: When ``stride`` is not in 1..window.

    Reference:
        transformers documentation, "Perplexity of fixed-length models". There a window counts its last target too.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride {stride} with window {window}: must be between 1 and the window")
    windows: list[Window] = []
    total, done, begin = len(ids) - 1, 0, 0
    while done < total:
        end = min(begin + window, total)
        windows.append(Window(ids[begin:end], ids[begin + 1 : end + 1], skip=done - begin))
        done, begin = end, begin + stride
    return windows


def scored_logits(
    backbone: LanguageModel, windows: Sequence[Window], *, batch_size: int | None = None
) -> Iterator[tuple[int, Float[Tensor, "scored vocab"], Int[Tensor, " scored"]]]:
    """Run windows through the language model, longest first, and yield the logits of the scored positions.

    Without gradients and with dropout off; the modes of all modules are put back afterwards.

    Args:
        backbone: The language model.
        windows: What to read.
        batch_size: Windows a forward pass; ``None`` keeps its logits under :data:`LOGITS_PER_BATCH` entries.

    Yields:
        Index of the window, its logits in the model's dtype, shape (scored, vocab), and its targets, shape (scored,).
    """
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].inputs))
    device = _device(backbone)
    with torch.inference_mode(), evaluating(backbone):
        while order:
            size = batch_size or max(1, LOGITS_PER_BATCH // (len(windows[order[0]].inputs) * backbone.vocab_size))
            batch, order = order[:size], order[size:]
            inputs = [windows[index].inputs for index in batch]
            # Padding on the right: a causal model cannot see it from the scored positions, so its value is free.
            ids = pad_sequence(inputs, batch_first=True, padding_value=0).to(device)
            mask = pad_sequence([torch.ones_like(row) for row in inputs], batch_first=True).to(device)
            logits = backbone.lm_logits(ids, mask)
            for row, index in enumerate(batch):
                window = windows[index]
                yield index, logits[row, window.skip : len(window.inputs)], window.targets[window.skip :].to(device)


def _device(backbone: object) -> torch.device:
    parameter = next(backbone.parameters(), None) if isinstance(backbone, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def evaluating(backbone: object) -> Iterator[None]:
    """Evaluation mode for every module, then back to the mode that each one had.

    Args:
        backbone: A module; anything else is left alone.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in backbone.modules()] if isinstance(backbone, nn.Module) else []
    if isinstance(backbone, nn.Module):
        backbone.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
