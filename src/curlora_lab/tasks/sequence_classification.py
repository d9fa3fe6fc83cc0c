"""Classification of a text, a pair or any number of fields with a linear head on the pooled features."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curlora_lab.data import ClassificationData
from curlora_lab.metrics import Finding, classification_findings, classification_scores, constant_baseline
from curlora_lab.tasks.base import Batch, Outcome, Record, TaskModule
from curlora_lab.tasks.outputs import Outputs


class SequenceClassification(TaskModule):
    """A linear head (with bias) on :meth:`curlora_lab.backbone.Backbone.features`, trained with cross-entropy.

    Args:
        data: rows with a label.
        **arguments: see :class:`~curlora_lab.tasks.base.TaskModule`.
    """

    def __init__(self, *, data: ClassificationData, **arguments: Any) -> None:
        super().__init__(data=data, **arguments)

    @property
    def labels(self) -> Sequence[str]:
        """Label names, in index order."""
        return cast(ClassificationData, self.data).labels

    def build_head(self) -> nn.Module:
        """Linear layer (hidden → labels)."""
        return nn.Linear(self.backbone.hidden_size, len(self.labels))

    def logits(self, batch: Batch) -> Tensor:
        """Class logits, (batch, labels), in float32."""
        features = self.backbone.features(batch["input_ids"], batch["attention_mask"])
        return cast(nn.Module, self.head)(features.float())

    def batch_loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats."""
        return F.cross_entropy(self.logits(batch), batch["labels"])

    def outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """One distribution over the labels a row."""
        values = self.logits(dict(batch))
        rows = torch.arange(len(values), device=values.device)
        return Outputs(values=values, rows=rows, targets=batch.get("labels"))

    def predict(self, batch: Batch) -> list[Record]:
        """Label, prediction and log-probabilities of each row."""
        log_probabilities = torch.log_softmax(self.logits(batch), dim=-1).cpu()
        predictions = log_probabilities.argmax(dim=-1)
        return [
            {"row": row, "label": label, "prediction": prediction, "log_probabilities": values}
            for row, label, prediction, values in zip(
                batch["row"].tolist(),
                batch["labels"].tolist(),
                predictions.tolist(),
                log_probabilities.tolist(),
                strict=True,
            )
        ]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The task's metrics over all rows."""
        labels = torch.tensor([record["label"] for record in records])
        predictions = torch.tensor([record["prediction"] for record in records])
        return classification_scores(self.metrics, predictions, labels, len(self.labels))

    def constant_baseline(self, role: str | None = None) -> tuple[float | None, str | None]:
        """Best constant predictor on the rows of a role (None: those reported) under the task's metric."""
        examples = cast(ClassificationData, self.data).examples(role or self.data.evaluated)
        labels = torch.tensor([example.label for example in examples])
        score, label = constant_baseline(self.metric, labels, len(self.labels))
        return score, self.labels[label]

    def findings(
        self, outcome: Outcome, *, stage: int, learnt_in: int, before: Mapping[str, float] | None
    ) -> list[Finding]:
        """Constant predictions, scores below a constant predictor, a task that was not learnt."""
        return classification_findings(
            self.name,
            stage,
            torch.tensor([record["prediction"] for record in outcome.records]),
            torch.tensor([record["label"] for record in outcome.records]),
            label_names=self.labels,
            metric=self.metric,
            learnt_in=learnt_in,
        )

    def answer(self, record: Record) -> dict[str, Any]:
        """The label, and how probable the head finds it and the others."""
        probabilities = [math.exp(value) for value in record["log_probabilities"]]
        return {
            "label": self.labels[record["prediction"]],
            "probability": probabilities[record["prediction"]],
            "probabilities": dict(zip(self.labels, probabilities, strict=True)),
        }

    def about(self) -> dict[str, Any]:
        """How a text is put together, and the label names."""
        return {
            "kind": "sequence classification",
            **cast(ClassificationData, self.data).encoder(self.backbone.tokenizer).recipe,
            "reads": "the pooled features",
            "output": 'logits = pooled @ head["weight"].T + head["bias"]',
            "labels": list(self.labels),
        }
