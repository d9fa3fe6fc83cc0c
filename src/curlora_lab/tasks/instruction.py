"""Instruction tuning: the LM head answers a prompt, and only the tokens of the response are learnt and scored."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from curlora_lab.data import InstructionData
from curlora_lab.data.answers import ASK_AS_IT_IS, ASK_WITHOUT_BLANKS
from curlora_lab.data.loading import IGNORED
from curlora_lab.metrics import TEXT_METRICS, Finding, generation_scores, language_findings, text_findings, unigram_nll
from curlora_lab.metrics.generation import MATCHES
from curlora_lab.tasks.base import Batch, Outcome, Record, TaskModule
from curlora_lab.tasks.next_token import (
    LIKELIHOOD,
    greedy_texts,
    likelihood_scores,
    mean_row_loss,
    prompts_of,
    token_losses,
    token_outputs,
)
from curlora_lab.tasks.outputs import Outputs

METRICS = (*LIKELIHOOD, *TEXT_METRICS)
RIVALS = 20  # most frequent references that are tried as the constant answer


class Instruction(TaskModule):
    """A response behind a prompt, through the LM head; no layers of its own, and the score before training means something.

    Metrics of the response's tokens: ``negative_nll`` = −(nats a token), ``token_accuracy``, ``perplexity`` (lower is better,
    so it can't be the metric of the score matrix). Metrics of the text that the model makes itself, greedily: those of
    :data:`curlora_lab.metrics.TEXT_METRICS`. Texts are made only where a metric needs them; on the choosing rows only
    where the metric of the score matrix does.

    Args:
        data: prompts with responses.
        max_new_tokens: longest text that is made, in tokens.
        **arguments: see :class:`~curlora_lab.tasks.base.TaskModule`.

    Raises:
        ValueError: the backbone has no LM head or reads fewer tokens than prompt and text may have, or a metric is unknown or
            can't stand in the matrix.
    """

    zero_shot = True

    def __init__(self, *, data: InstructionData, max_new_tokens: int = 64, **arguments: Any) -> None:
        name, backbone = arguments["name"], arguments["backbone"]
        unknown = sorted(set(arguments["metrics"]) - set(METRICS))
        if unknown:
            raise ValueError(
                f"Task {name!r}: there is no metric {unknown[0]!r} of texts; choose from {', '.join(METRICS)}."
            )
        if arguments["metric"] == "perplexity":
            raise ValueError("perplexity falls as the model gets better; let metric=negative_nll stand in the matrix.")
        if not backbone.is_causal:
            raise ValueError(f"Task {name!r} needs an LM head; {backbone.name!r} is an encoder.")
        self.max_new_tokens = max_new_tokens
        self.made = [metric for metric in arguments["metrics"] if metric in TEXT_METRICS]
        prompt = data.prompt_limit or data.max_length
        if max_new_tokens < 1 or (self.made and prompt + max_new_tokens > backbone.context):
            raise ValueError(
                f"Task {name!r}: prompts of up to {prompt} tokens and max_new_tokens={max_new_tokens} do not fit into the "
                f"{backbone.context} tokens that {backbone.name!r} reads; lower max_length, max_prompt or max_new_tokens."
            )
        super().__init__(data=data, **arguments)

    def build_head(self) -> None:
        """No head of its own."""
        return

    def batch_loss(self, batch: Batch) -> Tensor:
        """Mean over rows of each response's mean nats a token."""
        losses, _, scored = token_losses(self.backbone, batch)
        return mean_row_loss(losses, scored)

    def outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """One distribution over the vocabulary for each token of a response."""
        return token_outputs(self.backbone, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect records on the choosing rows."""
        self._records += self._judged(batch, make=self.metric in self.made)

    def predict(self, batch: Batch) -> list[Record]:
        """Nats, right and scored tokens of each response, and the text that the model makes where it is asked for."""
        unanswered = bool((batch["labels"] == IGNORED).all())
        return self._judged(batch, make=bool(self.made) or unanswered)

    def _judged(self, batch: Batch, *, make: bool) -> list[Record]:
        losses, right, scored = token_losses(self.backbone, batch)
        columns = (batch["row"], losses.double().sum(dim=1), right.sum(dim=1), scored.sum(dim=1))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        records: list[Record] = [{"row": row, "nll": nll, "right": hits, "tokens": n} for row, nll, hits, n in rows]
        if not make:
            return records
        texts = greedy_texts(self.backbone, prompts_of(batch), max_new_tokens=self.max_new_tokens)
        return [{**record, "prediction": text} for record, text in zip(records, texts, strict=True)]

    def finish(self, records: Sequence[Record], role: str) -> list[Record]:
        """Records in order, with what should have been said beside what was."""
        examples = {example.row_id: example for example in self._data.examples(role)}
        found = super().finish(records, role)
        for record in found:
            example = examples[record["row"]]
            if "prediction" in record and example.target is not None:
                record["label"] = example.target
            if "prediction" in record and "sari" in self.made:
                record["prompt"] = self._data.prompt(example)
        return found

    def answer(self, record: Record) -> dict[str, Any]:
        """The text that was made."""
        return {"answer": record["prediction"]} if "prediction" in record else super().answer(record)

    def about(self) -> dict[str, Any]:
        """How a prompt is put together; the LM head needs nothing else."""
        data = self._data
        templates = data.templates.templates
        return {
            "columns": list(data.columns),
            "text": None if data.messages else [text for text, _ in templates or ()] or None,
            "chat_template": data.chat,
            "system": data.system,
            "boundary": _boundary(data),
            "max_length": data.max_length,
            "max_new_tokens": self.max_new_tokens,
        }

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Over all tokens of all responses; over rows for texts."""
        values = likelihood_scores(records)
        if all("prediction" in record for record in records):
            sources = [record.get("prompt", "") for record in records]
            texts, references = ([str(record[key]) for record in records] for key in ("prediction", "label"))
            values |= generation_scores(self.made, sources, texts, references)
        return {metric: values[metric] for metric in self.metrics if metric in values}

    def constant_baseline(self, role: str | None = None) -> tuple[float | None, str | None]:
        """For ``negative_nll`` the unigram model of the training responses; for matches the text that is right most often."""
        if self.metric == "negative_nll":
            train, test = (self._tokens(each) for each in ("train", role or self.data.evaluated))
            return -unigram_nll(train, test, vocab_size=self.backbone.vocab_size), "unigram frequencies"
        if self.metric not in MATCHES:
            return None, None
        references = [str(example.target) for example in self._data.examples(role or self.data.evaluated)]
        rivals = [text for text, _ in Counter(references).most_common(RIVALS)]
        score = TEXT_METRICS[self.metric]
        best = max(rivals, key=lambda rival: sum(score("", rival, reference) for reference in references))
        return generation_scores([self.metric], references, [best] * len(references), references)[self.metric], best

    def findings(
        self, outcome: Outcome, *, stage: int, learnt_in: int, before: Mapping[str, float] | None
    ) -> list[Finding]:
        """Always the same text, scores below a constant one, a task that was not learnt."""
        if before is None or self.metric not in before or self.metric not in outcome.scores:
            return []
        baseline, label = self.constant_baseline()
        if self.metric == "negative_nll":
            return language_findings(
                self.name,
                stage,
                math.exp(min(-outcome.scores["negative_nll"], 700.0)),
                before=math.exp(min(-before["negative_nll"], 700.0)),
                unigram=None if baseline is None else math.exp(-baseline),
                learnt_in=learnt_in,
            )
        pairs = [(record["prediction"], record["label"]) for record in outcome.records]
        return text_findings(
            self.name,
            stage,
            pairs,
            metric=self.metric,
            score=outcome.scores[self.metric],
            before=before[self.metric],
            constant=None if baseline is None else (baseline, str(label)),
            learnt_in=learnt_in,
        )

    @property
    def _data(self) -> InstructionData:
        return cast(InstructionData, self.data)

    def _tokens(self, role: str) -> Tensor:
        """All tokens of the responses of a role."""
        labels = self._data.rows(role).token_labels
        return torch.from_numpy(labels[labels != IGNORED]) if labels is not None else torch.zeros(0, dtype=torch.int64)


def _boundary(data: InstructionData) -> str:
    """Where the prompt ends and the response begins, in words."""
    if data.chat:
        return f"what the chat template makes, with its prompt for a response; {ASK_WITHOUT_BLANKS}"
    if data.templates.templates is None:
        return f"the columns that are filled, with blank lines between and a newline behind; {ASK_AS_IT_IS}"
    blank = any(text.endswith(" ") for text, _ in data.templates.templates)
    return ASK_WITHOUT_BLANKS if blank else ASK_AS_IT_IS
