"""Extractive question answering: where in a text the answer begins and ends, or that there is none."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from curlora_lab.backbone import pool
from curlora_lab.data import QuestionData
from curlora_lab.metrics import Finding, answer_interval, answer_scores, constant_answer, score_findings
from curlora_lab.metrics.spans import NO_ANSWER
from curlora_lab.tasks.base import Batch, Outcome, Record, TaskModule
from curlora_lab.tasks.outputs import Outputs


class QuestionAnswering(TaskModule):
    """A linear head (hidden → start, end, none), trained with cross-entropy on where the answer starts and ends.

    In each window the candidates are the context's tokens and "not here", whose logit comes from the pooled features. Over
    the windows of a question the span with the highest start + end logit wins, unless none is allowed and "not here"
    beats it in every window.

    Args:
        data: questions on texts.
        max_answer_tokens: longest answer, in tokens.
        none_threshold: how far "not here" must be above the best span, in nats, to win; where questions may have no answer.
        **arguments: see :class:`~curlora_lab.tasks.base.TaskModule`.

    Raises:
        ValueError: ``max_answer_tokens`` is below 1.
    """

    def __init__(
        self, *, data: QuestionData, max_answer_tokens: int = 30, none_threshold: float = 0.0, **arguments: Any
    ) -> None:
        if max_answer_tokens < 1:
            raise ValueError(f"task.{arguments['name']}.max_answer_tokens={max_answer_tokens} must be at least 1.")
        super().__init__(data=data, **arguments)
        self.max_answer_tokens = max_answer_tokens
        self.none_threshold = none_threshold

    def build_head(self) -> nn.Module:
        """Linear layer (hidden → 3): start, end, none."""
        return nn.Linear(self.backbone.hidden_size, 3)

    def logits(
        self, batch: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "batch places"], Float[Tensor, "batch places"]]:
        """Start and end logits in float32; place 0 is "not here", place i + 1 the i-th token, -inf outside the context.

        In a batch of another task, which says of no context, that is all real tokens.
        """
        mask = batch["attention_mask"]
        hidden = self.backbone.hidden_states(batch["input_ids"], mask)
        head = cast(nn.Module, self.head)
        none = head(pool(hidden, mask, self.backbone.pooling).float())[:, 2:]
        tokens = head(hidden.float())
        outside = mask == 0
        if "context" in batch:
            position = torch.arange(mask.shape[1], device=mask.device)
            outside = (position < batch["context"][:, :1]) | (position >= batch["context"][:, 1:])
        start, end = (
            torch.cat([none, tokens[:, :, column].masked_fill(outside, -torch.inf)], dim=1) for column in (0, 1)
        )
        return start, end

    def batch_loss(self, batch: Batch) -> Tensor:
        """Mean of the cross-entropies of start and end, in nats."""
        start, end = self.logits(batch)
        return (F.cross_entropy(start, batch["labels"]) + F.cross_entropy(end, batch["end"])) / 2

    def outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """Two distributions a row: where the answer starts, and where it ends."""
        start, end = self.logits(batch)
        rows = torch.arange(len(start), device=start.device)
        targets = torch.cat([batch["labels"], batch["end"]]) if "end" in batch else None
        return Outputs(values=torch.cat([start, end]), rows=torch.cat([rows, rows]), targets=targets)

    def predict(self, batch: Batch) -> list[Record]:
        """Best span of each window, in positions, with its score and that of "not here"."""
        start, end = self.logits(batch)
        score, first, last = _best_spans(start[:, 1:], end[:, 1:], self.max_answer_tokens)
        columns = (batch["row"], first, last, score.double(), (start[:, 0] + end[:, 0]).double())
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            {"row": row, "first": first, "last": last, "score": score, "none": none}
            for row, first, last, score, none in rows
        ]

    def finish(self, records: Sequence[Record], role: str) -> list[Record]:
        """One record a question: the best span over its windows as text, or the empty text."""
        data = cast(QuestionData, self.data)
        examples, question = data.examples(role), data.questions(role).tolist()
        windows: dict[int, list[Record]] = {}
        for record in sorted(records, key=lambda record: record["row"]):
            windows.setdefault(question[record["row"]], []).append(record)
        finished = []
        for index, found in windows.items():
            best = max(found, key=lambda record: record["score"])  # the first of equals
            none = min(record["none"] for record in found)
            text, start = data.text_between(role, best["row"], best["first"], best["last"])
            is_none = data.no_answer and none > best["score"] + self.none_threshold
            target = examples[index].target
            finished.append(
                {
                    "row": examples[index].row_id,
                    "label": None if target is None else next(iter(target["text"]), NO_ANSWER),
                    "answers": None if target is None else list(dict.fromkeys(target["text"])),
                    "prediction": NO_ANSWER if is_none else text.strip(),
                    "start": None if is_none else start,
                    "score": best["score"],
                    "none": none,
                }
            )
        return finished

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The task's metrics over all questions."""
        return answer_scores(self.metrics, *_columns(records))

    def constant_baseline(self, role: str | None = None) -> tuple[float | None, str | None]:
        """Answering all questions of a role (None: those reported) with nothing, or with the most frequent answer."""
        examples = self.data.examples(role or self.data.evaluated)
        score, text = constant_answer(self.metric, [example.target["text"] for example in examples])
        return score, text or "(no answer)"

    def findings(
        self, outcome: Outcome, *, stage: int, learnt_in: int, before: Mapping[str, float] | None
    ) -> list[Finding]:
        """Constant predictions, scores below a constant predictor, a task that was not learnt."""
        predictions, answers = _columns(outcome.records)
        is_same = len(set(predictions)) == 1 and len({tuple(right) for right in answers}) > 1
        constant, text = constant_answer(self.metric, answers)
        return score_findings(
            self.name,
            stage,
            metric=self.metric,
            score=outcome.scores[self.metric],
            rows=len(answers),
            same=(predictions[0] or "(no answer)") if is_same else None,
            rival=(constant, text or "(no answer)"),
            interval=lambda: answer_interval(self.metric, predictions, answers),
            learnt_in=learnt_in,
        )

    def answer(self, record: Record) -> dict[str, Any]:
        """The answer, where in the context it begins (in characters), and how far it is above "not here", in nats."""
        start, margin = record["start"], record["score"] - record["none"]
        return {"answer": record["prediction"], "start": start, "above_none": margin}

    def about(self) -> dict[str, Any]:
        """How question and context are put together, and what the outputs mean."""
        data = cast(QuestionData, self.data)
        return {
            "kind": "extractive question answering",
            **data.encoder(self.backbone.tokenizer).recipe,
            "max_length": data.max_length,
            "stride": data.stride,
            "reads": "the hidden state of each token of the context; the pooled features for none",
            "output": """start, end, _ = (hidden @ head["weight"].T + head["bias"]).unbind(-1)
none = (pooled @ head["weight"].T + head["bias"])[:, 2]""",
            "answer": "the span with the highest start + end over all windows; no answer where 2 * none is higher in each",
            "no_answer": data.no_answer,
            "max_answer_tokens": self.max_answer_tokens,
        }


def _best_spans(
    start: Float[Tensor, "batch seq"], end: Float[Tensor, "batch seq"], longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Highest start + end with start <= end < start + longest: score, first and last position, each (batch,)."""
    best, first = start.new_full(start.shape[:1], -torch.inf), torch.zeros(start.shape[0], dtype=torch.int64)
    first = first.to(start.device)
    last = first.clone()
    for more in range(min(longest, start.shape[1])):
        found = (start[:, : start.shape[1] - more] + end[:, more:]).max(dim=1)
        better = (found.values > best) | found.values.isnan()  # on a tie the shorter answer stays; a NaN shows
        best = torch.where(better, found.values, best)
        first = torch.where(better, found.indices, first)
        last = torch.where(better, found.indices + more, last)
    return best, first, last


def _columns(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Predicted answer and right answers of each question."""
    return [record["prediction"] for record in records], [record["answers"] for record in records]
