"""Causal language modelling as a task: the LM head serves, nothing is added, and the score before training means something."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from curlora_lab.data import LanguageModelData
from curlora_lab.data.loading import make_loader
from curlora_lab.metrics import Finding, language_findings, unigram_nll
from curlora_lab.tasks.base import Batch, Outcome, Record, TaskModule
from curlora_lab.tasks.next_token import LIKELIHOOD, likelihood_scores
from curlora_lab.tasks.outputs import Outputs, of_tokens


class LanguageModeling(TaskModule):
    """Next-token prediction over the task's text.

    Metrics: ``negative_nll`` = −(nats a token), the loss negated so that higher is better; ``token_accuracy``;
    ``perplexity`` (lower is better, so it can't be the metric of the score matrix).

    Args:
        data: documents.
        **arguments: see :class:`~curlora_lab.tasks.base.TaskModule`.

    Raises:
        ValueError: the backbone has no LM head, or a metric is unknown or can't stand in the matrix.
    """

    zero_shot = True
    can_answer = False

    def __init__(self, *, data: LanguageModelData, **arguments: Any) -> None:
        unknown = set(arguments["metrics"]) - set(LIKELIHOOD)
        if unknown:
            raise ValueError(
                f"Language modelling has no metric {', '.join(sorted(unknown))}; choose from {LIKELIHOOD}."
            )
        if arguments["metric"] == "perplexity":
            raise ValueError("perplexity falls as the model gets better; let metric=negative_nll stand in the matrix.")
        if not arguments["backbone"].is_causal:
            raise ValueError(
                f"Task {arguments['name']!r} needs an LM head; {arguments['backbone'].name!r} is an encoder."
            )
        super().__init__(data=data, **arguments)

    def build_head(self) -> None:
        """No head of its own."""
        return

    def _token_losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Nats, whether right, and whether scored, each (batch, seq - 1)."""
        logits = self.backbone.lm_logits(batch["input_ids"], batch["attention_mask"])[:, :-1].float()
        targets = batch["labels"][:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)
        return losses, logits.argmax(dim=-1) == targets, targets != -100

    def batch_loss(self, batch: Batch) -> Tensor:
        """Mean over rows of each row's mean nats a token, so that every document weighs the same."""
        losses, _, scored = self._token_losses(batch)
        return (losses.sum(dim=1) / scored.sum(dim=1).clamp(min=1)).mean()

    def outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """One distribution over the vocabulary for each token that is predicted."""
        logits = self.backbone.lm_logits(batch["input_ids"], batch["attention_mask"])[:, :-1]
        if "labels" not in batch:
            return of_tokens(logits, batch["attention_mask"][:, 1:] == 1, None)
        targets = batch["labels"][:, 1:]
        return of_tokens(logits, targets != -100, targets)

    def predict(self, batch: Batch) -> list[Record]:
        """Sum of nats, right tokens and scored tokens of each document."""
        losses, right, scored = self._token_losses(batch)
        columns = (batch["row"], losses.double().sum(dim=1), (right & scored).sum(dim=1), scored.sum(dim=1))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [{"row": row, "nll": nll, "right": right, "tokens": tokens} for row, nll, right, tokens in rows]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Over all tokens of all documents."""
        values = likelihood_scores(records)
        return {metric: values[metric] for metric in self.metrics}

    def constant_baseline(self, role: str | None = None) -> tuple[float | None, str | None]:
        """For ``negative_nll`` the training rows' unigram model with add-one smoothing; none for other metrics."""
        data = cast(LanguageModelData, self.data)
        if self.metric != "negative_nll" or "train" not in data.roles:
            return None, None
        train, test = (_tokens(data, each) for each in ("train", role or data.evaluated))
        return -unigram_nll(train, test, vocab_size=self.backbone.vocab_size), "unigram frequencies"

    def findings(
        self, outcome: Outcome, *, stage: int, learnt_in: int, before: Mapping[str, float] | None
    ) -> list[Finding]:
        """A perplexity above that of word frequencies, or not lower after its stage than before."""
        if before is None or "negative_nll" not in outcome.scores or self.metric != "negative_nll":
            return []
        baseline, _ = self.constant_baseline()
        return language_findings(
            self.name,
            stage,
            math.exp(min(-outcome.scores["negative_nll"], 700.0)),
            before=math.exp(min(-before["negative_nll"], 700.0)),
            unigram=None if baseline is None else math.exp(-baseline),
            learnt_in=learnt_in,
        )


def _tokens(data: LanguageModelData, role: str) -> Tensor:
    """All real tokens of a role, in order."""
    batches = make_loader(data.rows(role), batch_size=256, shuffle=False)
    return torch.cat([batch["input_ids"][batch["labels"] != -100] for batch in batches])
