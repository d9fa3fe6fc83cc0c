"""Output shift: how far the next-token distribution has moved from the base model's."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from curlora_lab.probes.windows import LanguageModel, Window, scored_logits

POSITIONS_PER_CHUNK = 256


class OutputShift:
    """Mean KL(base ‖ now) over the first positions of a text, in nats a token.

    ``1/n sum_t sum_v p_t(v) (ln p_t(v) - ln q_t(v))``, p of the base model as stored at row 0 and q of the model as it is
    now. The stored log-probabilities are float32 on the CPU: positions × vocab × 4 bytes (200 MB for GPT-2 and 1,024).

    Args:
        positions: Number n of scored positions, from the start of the text; 0 measures nothing.
        batch_size: Windows a forward pass; ``None`` lets the size of the vocabulary decide.
    """

    def __init__(self, positions: int, *, batch_size: int | None = None) -> None:
        self.positions = positions
        self.batch_size = batch_size
        self._windows: list[Window] = []
        self._base: list[Float[Tensor, "scored vocab"]] = []

    def prepare_reference(self, backbone: LanguageModel, windows: Sequence[Window]) -> None:
        """Store the base model's log-probabilities.

        Args:
            backbone: The language model before any training.
            windows: The text; the first of them that hold enough positions are used.
        """
        self._windows = _first_positions(windows, self.positions)
        self._base = [torch.empty(0)] * len(self._windows)
        for index, logits, _ in scored_logits(backbone, self._windows, batch_size=self.batch_size):
            self._base[index] = logits.float().log_softmax(-1).cpu()

    def measure(self, backbone: LanguageModel) -> tuple[float | None, str | None]:
        """Compare the model as it is now with the reference.

        Args:
            backbone: The language model as it is now.

        Returns:
            Nats a token, at least 0, or ``None``; and the reason when it is ``None``.
        """
        if not self.positions:
            return None, "not measured: shift_positions is 0"
        if not self._windows:
            return None, "no reference: the base model's distributions were not stored at row 0"
        sums = [0.0] * len(self._windows)
        for index, logits, _ in scored_logits(backbone, self._windows, batch_size=self.batch_size):
            sums[index] = _summed_kl(self._base[index], logits)
        mean = math.fsum(sums) / sum(window.scored for window in self._windows)
        if not math.isfinite(mean):
            return None, f"the divergence is {mean}: the model is destroyed"
        return max(0.0, mean), None  # equal distributions may come out at minus a rounding error


def _first_positions(windows: Sequence[Window], positions: int) -> list[Window]:
    """The first windows, the last of them cut short, so that exactly ``positions`` targets are scored (if there are)."""
    chosen: list[Window] = []
    missing = positions
    for window in windows:
        if missing <= 0:
            break
        end = window.skip + min(window.scored, missing)
        chosen.append(Window(window.inputs[:end], window.targets[:end], window.skip))
        missing -= window.scored
    return chosen


def _summed_kl(base: Float[Tensor, "scored vocab"], logits: Float[Tensor, "scored vocab"]) -> float:
    """KL summed over positions, in nats; a chunk of positions at a time."""
    total = 0.0
    for p, z in zip(base.split(POSITIONS_PER_CHUNK), logits.split(POSITIONS_PER_CHUNK), strict=True):
        p = p.to(z.device)
        q = z.float().log_softmax(-1)
        # 0 ln 0 is 0: a token that the base model rules out adds nothing.
        terms = torch.where(p == -math.inf, 0.0, p.exp() * (p - q))
        total += float(terms.double().sum())
    return total
