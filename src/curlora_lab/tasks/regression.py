"""Regression of a text, a pair or any number of fields with a linear head on the pooled features."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from curlora_lab.data import RegressionData
from curlora_lab.metrics import (
    Finding,
    constant_number,
    regression_interval,
    regression_scores,
    score_findings,
)
from curlora_lab.metrics.regression import is_constant
from curlora_lab.tasks.base import Batch, Outcome, Record, StageHooks, TaskModule
from curlora_lab.tasks.outputs import Outputs


class ScaledLinear(nn.Linear):
    """``mean + scale · (W h + b)``: a linear head that works on standardised labels and speaks in their unit.

    ``mean`` and ``scale`` are buffers, stored with the weights: 0 and 1 before the task's own stage.

    Args:
        hidden_size: width of the features.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, features: Float[Tensor, "batch hidden"]) -> Float[Tensor, " batch"]:
        """Numbers in the label's unit."""
        mean, scale = cast(Tensor, self.mean), cast(Tensor, self.scale)
        return mean + scale * super().forward(features).squeeze(-1)


class Regression(TaskModule):
    """A linear head on :meth:`curlora_lab.backbone.Backbone.features`, trained with the squared error.

    The loss is the mean squared error divided by the variance of the train labels, so that learning rates do not depend on
    the label's unit; predictions and ``negative_mse`` are in that unit. Where predictions are constant, no correlation is
    defined: it counts as 0, with the finding ``constant_prediction``.

    Args:
        data: rows with a number.
        **arguments: see :class:`~curlora_lab.tasks.base.TaskModule`.
    """

    def __init__(self, *, data: RegressionData, **arguments: Any) -> None:
        super().__init__(data=data, **arguments)

    def build_head(self) -> nn.Module:
        """Linear layer (hidden → 1) with the scale of the labels."""
        return ScaledLinear(self.backbone.hidden_size)

    def start_stage(self, stage: int, hooks: StageHooks) -> None:
        """Take mean and spread of the train labels into the head before it learns."""
        super().start_stage(stage, hooks)
        head = cast(ScaledLinear, self.head)
        mean, scale = cast(RegressionData, self.data).statistics()
        cast(Tensor, head.mean).fill_(mean)
        cast(Tensor, head.scale).fill_(scale)

    def numbers(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Predicted numbers in the label's unit, (batch,), in float32."""
        features = self.backbone.features(batch["input_ids"], batch["attention_mask"])
        return cast(Tensor, cast(nn.Module, self.head)(features.float()))

    def batch_loss(self, batch: Batch) -> Tensor:
        """Mean squared error over the variance of the train labels; has no unit."""
        scale = cast(Tensor, cast(ScaledLinear, self.head).scale)
        return F.mse_loss(self.numbers(batch) / scale, batch["labels"].float() / scale)

    def outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """The standardised number of each row, for which the loss takes an error of variance one."""
        head, targets = cast(ScaledLinear, self.head), batch.get("labels")
        mean, scale = cast(Tensor, head.mean), cast(Tensor, head.scale)
        values = (self.numbers(batch) - mean) / scale
        rows = torch.arange(len(values), device=values.device)
        targets = None if targets is None else (targets.float() - mean) / scale
        return Outputs(values=values[:, None], rows=rows, targets=targets)

    def predict(self, batch: Batch) -> list[Record]:
        """Label and prediction of each row, in the label's unit."""
        columns = (batch["row"], batch["labels"].double(), self.numbers(batch).double())
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [{"row": row, "label": label, "prediction": prediction} for row, label, prediction in rows]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The task's metrics over all rows."""
        return regression_scores(self.metrics, *_columns(records))

    def constant_baseline(self, role: str | None = None) -> tuple[float | None, str | None]:
        """Best constant predictor on the rows of a role (None: those reported): the mean of their labels."""
        examples = self.data.examples(role or self.data.evaluated)
        labels = torch.tensor([example.target for example in examples], dtype=torch.double)
        score, number = constant_number(self.metric, labels)
        return score, f"{number:.4g}"

    def findings(
        self, outcome: Outcome, *, stage: int, learnt_in: int, before: Mapping[str, float] | None
    ) -> list[Finding]:
        """Constant predictions, scores below a constant predictor, a task that was not learnt."""
        predictions, labels = _columns(outcome.records)
        is_same = is_constant(predictions, labels) and not is_constant(labels, labels)
        constant, number = constant_number(self.metric, labels)
        return score_findings(
            self.name,
            stage,
            metric=self.metric,
            score=outcome.scores[self.metric],
            rows=len(labels),
            same=f"{float(predictions[0]):.4g}" if is_same else None,
            rival=(constant, f"{number:.4g}"),
            interval=lambda: regression_interval(self.metric, predictions, labels),
            learnt_in=learnt_in,
        )

    def answer(self, record: Record) -> dict[str, Any]:
        """The number."""
        return {"prediction": record["prediction"]}

    def about(self) -> dict[str, Any]:
        """How a text is put together, and what the head's tensors mean."""
        return {
            "kind": "regression",
            **cast(RegressionData, self.data).encoder(self.backbone.tokenizer).recipe,
            "reads": "the pooled features",
            "output": 'number = head["mean"] + head["scale"] * (pooled @ head["weight"].T + head["bias"])',
            "label_range": cast(RegressionData, self.data).label_range,
        }


def _columns(records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """Predictions and labels, each (rows,), in double precision."""
    names = ("prediction", "label")
    predictions, labels = (torch.tensor([record[name] for record in records], dtype=torch.double) for name in names)
    return predictions, labels
