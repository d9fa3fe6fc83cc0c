"""Perplexity of the untouched language model on a named text: the probe that tells what fine-tuning did to it."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from curlora_lab.metrics.language import bits_per_character, nats_per_token, perplexity
from curlora_lab.probes.output import OutputShift
from curlora_lab.probes.text import Documents, RowSource, encode, fingerprint, join_texts, read_texts
from curlora_lab.probes.windows import LanguageModel, Window, scored_logits, sliding_windows

DEFAULT_WINDOW = 1024
POSITIONS_PER_CHUNK = 1024


@dataclass(frozen=True)
class ProbeResult:
    """One measurement.

    Attributes:
        name: Name of the probe.
        nats_per_token: Mean negative log-likelihood, in nats a token.
        perplexity: exp of it.
        bits_per_character: Comparable across tokenizers.
        tokens: Scored tokens.
        characters: Characters that they spell.
        window_nll: Summed nats of each window, in the order of the text.
        window_tokens: Scored tokens of each window.
        reasons: Why a value is ``None``, by its name.
    """

    name: str
    nats_per_token: float | None = None
    perplexity: float | None = None
    bits_per_character: float | None = None
    tokens: int = 0
    characters: int = 0
    window_nll: tuple[float, ...] = ()
    window_tokens: tuple[int, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


class PerplexityProbe:
    """Perplexity and bits a character in sliding windows over a text, with the LM head of the backbone.

    Every token but the first of a document is scored exactly once (the first too, after a bos token); a window reads
    ``window`` tokens and starts ``stride`` tokens after the one before. Documents are read one by one (``each``) or as
    one long text (``joined``). See :func:`curlora_lab.probes.windows.sliding_windows`.

    Args:
        name: Name of the probe in the record.
        source: Where the rows come from.
        role: Role of the split that is read.
        column: Name of the text column.
        documents: ``each`` row is a document of its own, or all are ``joined``.
        max_documents: At most so many rows; ``None`` for all.
        max_tokens: At most so many tokens a document (or in all, when joined), bos included; ``None`` for all, ``window``
            for as many as a window holds: a prefix in one forward pass, whatever the model's context.
        window: Tokens read together; ``None`` for the model's context, at most 1,024.
        stride: Tokens from one window to the next; ``None`` for half a window, ``window`` for windows that do not overlap.
        add_bos: Put the bos token in front of each document; ``auto`` where the tokenizer itself would.
        separator: What stands between joined rows.
        strip_newline: Whether a row loses its final newline before joining.
        drop_empty: Whether joined rows without a visible character are left out.
        batch_size: Windows a forward pass; ``None`` lets the size of the vocabulary decide. Does not change results.
        shift_positions: Positions on which the shift of the output distribution is measured; 0 for none.

    Raises:
        ValueError: For an unknown ``documents``, a number out of range or a word that stands for no number.
    """

    def __init__(
        self,
        name: str,
        source: RowSource,
        *,
        role: str = "test",
        column: str = "text",
        documents: Documents = "joined",
        max_documents: int | None = None,
        max_tokens: int | Literal["window"] | None = None,
        window: int | None = None,
        stride: int | Literal["window"] | None = None,
        add_bos: bool | Literal["auto"] = "auto",
        separator: str = "\n",
        strip_newline: bool = True,
        drop_empty: bool = False,
        batch_size: int | None = None,
        shift_positions: int = 1024,
    ) -> None:
        if documents not in ("each", "joined"):
            raise ValueError(f"documents of probe '{name}' is '{documents}'; allowed: each, joined")
        for key, value, low in (
            ("max_documents", max_documents, 1),
            ("max_tokens", max_tokens, 2),
            ("window", window, 1),
            ("stride", stride, 1),
            ("batch_size", batch_size, 1),
            ("shift_positions", shift_positions, 0),
        ):
            if isinstance(value, str) and (key not in ("max_tokens", "stride") or value != "window"):
                words = "a number, window or null" if key in ("max_tokens", "stride") else "a number or null"
                raise ValueError(f"{key} of probe '{name}' is '{value}'; allowed: {words}")
            if isinstance(value, int) and value < low:
                raise ValueError(f"{key} of probe '{name}' is {value}; must be at least {low}")
        if add_bos not in (True, False, "auto"):
            raise ValueError(f"add_bos of probe '{name}' is '{add_bos}'; allowed: auto, true, false")
        self.name = name
        self.source = source
        self.role = role
        self.column = column
        self.documents = documents
        self.max_documents = max_documents
        self.max_tokens = max_tokens
        self.window = window
        self.stride = stride
        self.add_bos: bool | Literal["auto"] = add_bos
        self.separator = separator
        self.strip_newline = strip_newline
        self.drop_empty = drop_empty
        self.batch_size = batch_size
        self.fingerprint: str | None = None
        self._shift = OutputShift(shift_positions, batch_size=batch_size)
        self._windows: list[Window] = []
        self._details: dict[str, str | int] = {}
        self._reason: str | None = "the probe was not prepared"

    def prepare(self, backbone: LanguageModel) -> None:
        """Read, tokenise and cut the text. Call it once, before the first measurement.

        Args:
            backbone: The language model with its tokenizer. Without an LM head every measurement is ``None``.

        Raises:
            ValueError: When a row is no text, the window exceeds the model's context, or there is nothing to score.
        """
        if not backbone.is_causal:
            self._reason = f"backbone '{backbone.name}' is an encoder without a next-token head"
            return
        window, stride, max_tokens = self._sizes(backbone)
        texts = read_texts(self.source, self.role, self.column, limit=self.max_documents)
        rows = len(texts)
        if self.documents == "joined":
            texts = [
                join_texts(
                    texts, separator=self.separator, strip_newline=self.strip_newline, drop_empty=self.drop_empty
                )
            ]
        encoded = [encode(t, backbone.tokenizer, add_bos=self.add_bos, max_tokens=max_tokens) for t in texts]
        self._windows = [w for text in encoded for w in sliding_windows(text.ids, window=window, stride=stride)]
        if not self._windows:
            raise ValueError(f"probe '{self.name}' has no text to score in {rows} rows of column '{self.column}'")
        self.fingerprint = fingerprint(texts)
        self._reason = None
        self._details = {
            "protocol": self._protocol(window, stride, max_tokens),
            "window": window,
            "stride": stride,
            "documents": rows,
            "tokens": sum(w.scored for w in self._windows),
            "characters": sum(text.characters for text in encoded),
            "shift_positions": min(self._shift.positions, sum(w.scored for w in self._windows)),
            "fingerprint": self.fingerprint,
        }

    def details(self) -> dict[str, str | int]:
        """What was measured on, for ``probes.details`` of the record; empty when the probe does not apply."""
        return dict(self._details)

    def measure(self, backbone: LanguageModel) -> ProbeResult:
        """Score the text with the model as it is now, dropout off, adapters as they are set.

        Args:
            backbone: The language model.

        Returns:
            The measurement; values are ``None`` with a reason where the probe does not apply.
        """
        if self._reason is not None:
            return ProbeResult(self.name, reasons=dict.fromkeys(_VALUES, self._reason))
        sums = [0.0] * len(self._windows)
        for index, logits, targets in scored_logits(backbone, self._windows, batch_size=self.batch_size):
            sums[index] = summed_nll(logits, targets)
        tokens, characters = int(self._details["tokens"]), int(self._details["characters"])
        nll = math.fsum(sums)
        values: dict[str, float | None] = {"nats_per_token": nats_per_token(nll, tokens)}
        values["perplexity"] = perplexity(nll, tokens) if math.isfinite(nll) else math.nan
        values["bits_per_character"] = bits_per_character(nll, characters)
        reasons = {
            key: f"{key} is {value}: the model is destroyed" for key, value in values.items() if not _finite(value)
        }
        return ProbeResult(
            self.name,
            **{key: value if _finite(value) else None for key, value in values.items()},
            tokens=tokens,
            characters=characters,
            window_nll=tuple(sums),
            window_tokens=tuple(w.scored for w in self._windows),
            reasons=reasons,
        )

    def prepare_reference(self, backbone: LanguageModel) -> None:
        """Store the next-token distributions of the base model (row 0), against which the shift is measured.

        Args:
            backbone: The language model before any training.
        """
        if self._reason is None:
            self._shift.prepare_reference(backbone, self._windows)

    def measure_shift(self, backbone: LanguageModel) -> tuple[float | None, str | None]:
        """Mean KL(base ‖ now) of the next-token distribution on this text, in nats a token.

        Args:
            backbone: The language model as it is now.

        Returns:
            The value or ``None``, and the reason when it is ``None``.
        """
        return (None, self._reason) if self._reason is not None else self._shift.measure(backbone)

    def _sizes(self, backbone: LanguageModel) -> tuple[int, int, int | None]:
        """Window, stride and ``max_tokens`` on this model, in tokens."""
        window = self.window or min(DEFAULT_WINDOW, backbone.context)
        if window > backbone.context:
            raise ValueError(
                f"window {window} of probe '{self.name}' is longer than the {backbone.context} positions of "
                f"'{backbone.name}'; lower window and stride of probe.probes.{self.name}, or set both to null"
            )
        stride = window if self.stride == "window" else self.stride or max(1, window // 2)
        if stride > window:
            raise ValueError(
                f"stride {stride} of probe '{self.name}' is larger than its window {window}; tokens would be left out"
            )
        return window, stride, window if self.max_tokens == "window" else self.max_tokens

    def _protocol(self, window: int, stride: int, max_tokens: int | None) -> str:
        """The protocol in words, so that the number can be repeated from the record alone."""
        limit = (
            "" if max_tokens is None else f", first {max_tokens} tokens" + (" each" if self.documents == "each" else "")
        )
        rows = "all rows" if self.max_documents is None else f"first {self.max_documents} rows"
        joined = "read one by one" if self.documents == "each" else f"joined with {self.separator!r}"
        return f"{rows} {joined}{limit}; window {window}, stride {stride}, bos {str(self.add_bos).lower()}"


_VALUES = ("nats_per_token", "perplexity", "bits_per_character")


def summed_nll(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]) -> float:
    """Negative log-likelihood of the targets, summed: ``sum_t (logsumexp(z_t) - z_t[target])``, in nats.

    In float32 and a chunk of positions at a time, so that a large vocabulary is never copied as a whole.

    Args:
        logits: Next-token logits, shape (tokens, vocab).
        targets: The tokens that came, shape (tokens,).

    Returns:
        Nats, summed in float64.
    """
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for z, y in zip(logits.split(POSITIONS_PER_CHUNK), targets.split(POSITIONS_PER_CHUNK), strict=True):
        z = z.float()
        total += (z.logsumexp(-1) - z.gather(-1, y[:, None])[:, 0]).double().sum().cpu()
    return float(total)


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
