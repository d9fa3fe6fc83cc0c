"""Anchoring on generic text: what keeps the language model intact while tasks are learnt."""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F

from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.generic_text import GenericText, padded
from curlora_lab.continual.strategies.gradients import (
    device_of,
    shared_parameters,
    warn_if_nothing_is_shared,
    without_adapter,
)
from curlora_lab.probes import PerplexityProbe
from curlora_lab.probes.windows import evaluating
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch
from curlora_lab.tasks.outputs import Outputs, of_tokens

logger = logging.getLogger(__name__)

Mode = Literal["distil", "replay"]

EXACT = 1e-4
"""Largest difference of log-probabilities at which a model without its adapter counts as the model before training, in nats."""
LARGEST_STORE = 4 * 2**30
"""Most bytes of stored log-probabilities."""


class Anchor(Strategy):
    """A loss on generic text beside the task's own, from the first stage on.

    With each training batch, ``batch_size`` windows of text are drawn by the batch's position::

        mode=distil   loss = L_t + weight · T² · mean over tokens of KL(p_base ‖ p)      both softened: softmax(logits / T)
        mode=replay   loss = L_t + weight · mean over tokens of −ln p(token)

    p_base is the next-token distribution of the model before any training. It comes from the same model with its adapter
    disabled where that gives the same, which is tried out when the run begins; otherwise (PiSSA and OSF change the base weight,
    full fine-tuning has no adapter, a continued adapter is not the base) its log-probabilities on the text are stored then:
    tokens × vocabulary × 4 bytes. The text is never what a probe reports on, see :class:`GenericText`.

    Args:
        text: the generic text.
        weight: λ.
        mode: ``distil`` or ``replay``.
        temperature: T of ``distil``.
        batch_size: windows drawn with each training batch (on each device).

    Raises:
        ValueError: an argument is out of range or unknown.
    """

    def __init__(
        self,
        text: GenericText,
        *,
        weight: float = 1.0,
        mode: Mode = "distil",
        temperature: float = 1.0,
        batch_size: int = 16,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"strategy.weight={weight} must be a number from 0.")
        if mode not in get_args(Mode):
            raise ValueError(f"strategy.mode={mode!r} is unknown; choose one of {', '.join(get_args(Mode))}.")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"strategy.temperature={temperature} must be a positive number.")
        if batch_size < 1:
            raise ValueError(f"strategy.batch_size={batch_size} must be at least 1.")
        self.text = text
        self.weight = weight
        self.mode = mode
        self.temperature = temperature
        self.batch_size = batch_size
        self._base: list[Tensor] | None = None  # logits of the base model, a window each; None: disable the adapter

    def prepare(self, backbone: Backbone, probes: Mapping[str, PerplexityProbe]) -> str:
        """Read the text."""
        if not backbone.is_causal:
            raise ValueError(
                f"strategy: anchoring on text needs a next-token LM head; {backbone.name!r} is an encoder. Choose a causal model."
            )
        self.text.prepare(backbone.tokenizer, context=backbone.context, probes=probes)
        return self.text.fingerprint

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """Find out how the base model is to be had, and store what it says if there is no other way."""
        warn_if_nothing_is_shared(self, backbone)
        self._base = None
        if self.mode == "distil" and shared_parameters(backbone) and not self._is_base_without_adapter(backbone):
            self._base = self._store(backbone)

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """The loss on windows that are drawn by the position of this batch."""
        backbone = task.backbone
        if not shared_parameters(backbone):
            return None
        where = (task.training_plan.seed, task.stage, task.current_epoch, *batch["row"].tolist())
        drawn, ids, mask = self.text.batch(self.batch_size, *where)
        ids, mask = ids.to(device_of(backbone)), mask.to(device_of(backbone))
        now = _next_tokens(backbone, ids, mask)
        if self.mode == "replay":
            return self.weight * now.nll(ids[:, 1:][mask[:, 1:] == 1]).mean()
        base = self._teacher(backbone, drawn, ids, mask)
        return self.weight * self.temperature**2 * now.divergence(base, temperature=self.temperature).mean()

    def cost(self) -> dict[str, float]:
        """Windows and bytes of the text, and of the base model's log-probabilities where they are stored."""
        stored = [*self.text.windows, *(self._base or [])]
        return {
            "stored_rows": float(len(self.text.windows)),
            "stored_bytes": float(sum(tensor.nbytes for tensor in stored)),
        }

    def _teacher(self, backbone: Backbone, drawn: Sequence[int], ids: Tensor, mask: Tensor) -> Outputs:
        if self._base is None:
            with without_adapter(backbone):
                return _next_tokens(backbone, ids, mask)
        values = torch.cat([self._base[index] for index in drawn]).to(ids.device)
        return Outputs(values=values, rows=(mask[:, 1:] == 1).nonzero()[:, 0])

    def _is_base_without_adapter(self, backbone: Backbone) -> bool:
        """Whether the model with its adapter disabled is the model as it is now, tried on a few windows."""
        if not isinstance(backbone.model, PeftModel):
            return False
        ids, mask = (tensor.to(device_of(backbone)) for tensor in padded(self.text.windows[:4]))
        with torch.no_grad(), evaluating(backbone):
            now = _next_tokens(backbone, ids, mask).values.log_softmax(-1)
        with without_adapter(backbone):
            base = _next_tokens(backbone, ids, mask).values.log_softmax(-1)
        return bool((now - base).abs().max() <= EXACT)

    def _store(self, backbone: Backbone) -> list[Tensor]:
        """Log-probabilities of the model as it is now on every window, each (seq - 1, vocab), on the CPU."""
        size = sum(len(window) - 1 for window in self.text.windows) * backbone.vocab_size * 4
        if size > LARGEST_STORE:
            raise ValueError(
                f"strategy.mode=distil would store {size / 2**30:.1f} GiB of log-probabilities, because this adapter can't be "
                "disabled to give the base model; lower strategy.text.max_documents or max_length, or use strategy.mode=replay."
            )
        logger.info("Anchoring: log-probabilities of the base model are stored (%.1f MiB).", size / 2**20)
        stored = []
        for window in self.text.windows:
            ids, mask = (tensor.to(device_of(backbone)) for tensor in padded([window]))
            with torch.no_grad(), evaluating(backbone):
                stored.append(F.log_softmax(_next_tokens(backbone, ids, mask).values, dim=-1).cpu())
        return stored


def _next_tokens(backbone: Backbone, ids: Tensor, mask: Tensor) -> Outputs:
    """Next-token distributions at every position whose next token is real, row by row."""
    return of_tokens(backbone.lm_logits(ids, mask)[:, :-1], mask[:, 1:] == 1, None)
