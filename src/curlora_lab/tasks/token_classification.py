"""Classification of each word of a text with a linear head on the hidden state of one of its pieces."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from curlora_lab.data import TokenData
from curlora_lab.data.loading import IGNORED
from curlora_lab.metrics import Finding, constant_tag, entities, score_findings, token_interval, token_scores
from curlora_lab.tasks.base import Batch, Outcome, Record, TaskModule
from curlora_lab.tasks.outputs import Outputs, of_tokens


class TokenClassification(TaskModule):
    """A linear head (with bias) on the last hidden states, trained with cross-entropy on one piece of each word.

    Words that were cut off, or that have no piece of their own, are given no tag: they count as wrong.

    Args:
        data: rows of words with tags.
        **arguments: see :class:`~curlora_lab.tasks.base.TaskModule`.

    Raises:
        ValueError: a metric of entities is asked for where the tags are none of entities.
    """

    def __init__(self, *, data: TokenData, **arguments: Any) -> None:
        of_entities = [metric for metric in arguments["metrics"] if metric.startswith("entity")]
        if data.scheme == "none" and of_entities:
            raise ValueError(
                f"task.{arguments['name']}: {of_entities[0]} needs tags of entities, but data.scheme is none; "
                "use metrics=[token_accuracy], or scheme=iob2 with tags O, B-<type> and I-<type>."
            )
        super().__init__(data=data, **arguments)

    @property
    def labels(self) -> Sequence[str]:
        """Tag names, in index order."""
        return cast(TokenData, self.data).labels

    def build_head(self) -> nn.Module:
        """Linear layer (hidden → labels)."""
        return nn.Linear(self.backbone.hidden_size, len(self.labels))

    def logits(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch seq labels"]:
        """Tag logits of every token, in float32."""
        hidden = self.backbone.hidden_states(batch["input_ids"], batch["attention_mask"])
        return cast(Tensor, cast(nn.Module, self.head)(hidden.float()))

    def batch_loss(self, batch: Batch) -> Tensor:
        """Mean over rows of each row's mean cross-entropy a word, in nats, so that every text weighs the same."""
        targets = batch["labels"]
        losses = F.cross_entropy(self.logits(batch).transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
        return (losses.sum(dim=1) / (targets != IGNORED).sum(dim=1).clamp(min=1)).mean()

    def outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """One distribution over the tags for each token that is read; of another task's batch, for every token."""
        targets = batch.get("labels")
        scored = batch["attention_mask"] == 1 if targets is None else targets != IGNORED
        return of_tokens(self.logits(batch), scored, targets)

    def predict(self, batch: Batch) -> list[Record]:
        """Tags of the words that are read, with their log-probabilities."""
        best = torch.log_softmax(self.logits(batch), dim=-1).max(dim=-1)
        read = (batch["labels"] != IGNORED).cpu()
        return [
            {"row": row, "prediction": tags[mask].tolist(), "log_probabilities": values[mask].tolist()}
            for row, tags, values, mask in zip(
                batch["row"].tolist(), best.indices.cpu(), best.values.cpu(), read, strict=True
            )
        ]

    def finish(self, records: Sequence[Record], role: str) -> list[Record]:
        """Names of the tags of all words of each row, true and predicted; ``None`` where a word was not read."""
        data = cast(TokenData, self.data)
        examples, words_read = data.examples(role), data.words_read(role)
        finished = []
        for record in sorted(records, key=lambda record: record["row"]):
            example, words = examples[record["row"]], words_read[record["row"]].tolist()
            named: dict[str, list[Any]] = {}
            for key, names in (("prediction", self.labels), ("log_probabilities", None)):
                named[key] = [None] * len(example.texts)
                for word, value in zip(words, record[key], strict=True):
                    named[key][word] = value if names is None else names[value]
            label = None if example.target is None else [self.labels[tag] for tag in example.target]
            finished.append({"row": example.row_id, "label": label, **named})
        return finished

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The task's metrics over all rows."""
        return token_scores(self.metrics, *_columns(records))

    def constant_baseline(self, role: str | None = None) -> tuple[float | None, str | None]:
        """Giving every word of a role (None: the reported rows) the tag that is most frequent there."""
        examples = self.data.examples(role or self.data.evaluated)
        return constant_tag(self.metric, [[self.labels[tag] for tag in example.target] for example in examples])

    def findings(
        self, outcome: Outcome, *, stage: int, learnt_in: int, before: Mapping[str, float] | None
    ) -> list[Finding]:
        """Constant predictions, scores below a constant predictor, a task that was not learnt."""
        predictions, labels = _columns(outcome.records)
        given = {tag for tags in predictions for tag in tags} - {None}
        is_same = len(given) == 1 and len({tag for tags in labels for tag in tags}) > 1
        return score_findings(
            self.name,
            stage,
            metric=self.metric,
            score=outcome.scores[self.metric],
            rows=len(labels),
            same=next(iter(given)) if is_same else None,
            rival=constant_tag(self.metric, labels),
            interval=lambda: token_interval(self.metric, predictions, labels),
            learnt_in=learnt_in,
        )

    def answer(self, record: Record) -> dict[str, Any]:
        """The tags, and the entities that they say: type, first word and the one after the last, from 0."""
        found = [{"type": kind, "start": start, "end": end} for kind, start, end in entities(record["prediction"])]
        has_entities = cast(TokenData, self.data).scheme != "none"
        return {"tags": record["prediction"], **({"entities": found} if has_entities else {})}

    def about(self) -> dict[str, Any]:
        """How words are put together, which tokens are read, and what the outputs mean."""
        data = cast(TokenData, self.data)
        return {
            "kind": "token classification",
            **data.encoder(self.backbone.tokenizer).recipe,
            "columns": list(data.columns),
            "text": "the words, joined by blanks",
            "reads": f"the hidden state of the {data.piece} token of each word (by offset_mapping)",
            "output": 'logits = hidden @ head["weight"].T + head["bias"]',
            "labels": list(self.labels),
            "scheme": data.scheme,
        }


def _columns(records: Sequence[Record]) -> tuple[list[list[str | None]], list[list[str]]]:
    """Predicted and true tags of each row."""
    return [record["prediction"] for record in records], [record["label"] for record in records]
