"""Classification by label words: the LM head says how likely each label's words are behind the text, and no head is added."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from curlora_lab.data import ClassificationData
from curlora_lab.data.label_words import Prompt, WordEncoder
from curlora_lab.metrics import METRICS as LABEL_METRICS
from curlora_lab.metrics import (
    Finding,
    classification_findings,
    classification_scores,
    constant_baseline,
    generation_scores,
    normalized,
)
from curlora_lab.tasks.base import Batch, Outcome, Record, TaskModule
from curlora_lab.tasks.next_token import (
    continuation_scores,
    greedy_texts,
    mean_row_loss,
    prompts_of,
    token_losses,
    token_outputs,
)
from curlora_lab.tasks.outputs import Outputs

MADE = ("exact_match", "normalized_match")
METRICS = (*LABEL_METRICS, *MADE)
NO_LABEL = "(none of the labels)"


class LabelWords(TaskModule):
    """Each label's words are scored as the continuation of a prompt; trained as language modelling of the right ones.

    The score of a label is the sum (or mean) of the log-probabilities of its tokens, with the end token; calibrated, less
    the score of the same words behind a prompt without content. The label with the highest score is predicted. Candidates
    are the task's own labels, or those of every label-word task in :attr:`seen` too: then nothing tells the task, and a word
    of another task is wrong whatever it is.

    Metrics are those of classification, and of the text that the model makes itself, greedily: ``exact_match``,
    ``normalized_match`` (without case and punctuation, as O-LoRA's code scores). FWT is defined: the score before training
    means something.

    Args:
        data: rows with a label and a prompt that asks for it.
        **arguments: see :class:`~curlora_lab.tasks.base.TaskModule`.

    Attributes:
        seen: the tasks learnt so far, whose words are candidates with ``candidates: all``.

    Raises:
        ValueError: the data have no prompt, the backbone no LM head, or a metric is unknown.

    Reference:
        Wang et al. 2023 (O-LoRA); Zhao et al. 2021 (calibration).
    """

    zero_shot = True

    def __init__(self, *, data: ClassificationData, **arguments: Any) -> None:
        name, backbone = arguments["name"], arguments["backbone"]
        unknown = sorted(set(arguments["metrics"]) - set(METRICS))
        if unknown:
            raise ValueError(
                f"Task {name!r}: there is no metric {unknown[0]!r} of labels; choose from {', '.join(METRICS)}."
            )
        if data.prompt is None:
            raise ValueError(f"Task {name!r} has no prompt that asks for the label's words; set heads=label_words.")
        if not backbone.is_causal:
            raise ValueError(f"Task {name!r} needs an LM head; {backbone.name!r} is an encoder.")

        self._encoder: WordEncoder = data.word_encoder(backbone.tokenizer)
        super().__init__(data=data, **arguments)

    @property
    def labels(self) -> Sequence[str]:
        """Label names, in index order."""
        return self._data.labels

    @property
    def candidates(self) -> dict[str, list[int]]:
        """Token ids of each candidate by its words: the task's own in the order of labels, then those of other tasks."""
        found = self._answers
        if self._prompt.candidates == "all":
            for task in self.seen:
                others = task._answers if isinstance(task, LabelWords) else {}
                found |= {words: ids for words, ids in others.items() if words not in found}
        return found

    def build_head(self) -> None:
        """No head of its own."""
        return

    def batch_loss(self, batch: Batch) -> Tensor:
        """Mean over rows of the mean nats a token of the right label's words."""
        losses, _, scored = token_losses(self.backbone, batch)
        return mean_row_loss(losses, scored)

    def outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """One distribution over the vocabulary for each token of the right label's words."""
        return token_outputs(self.backbone, batch)

    def label_scores(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch candidates"]:
        """Score of each of :attr:`candidates`, in nats."""
        prompt, pad = self._prompt, self.backbone.tokenizer.pad_token_id
        prompts, answers = prompts_of(batch), list(self.candidates.values())
        self._check_context(max(map(len, prompts)), max(map(len, answers)))
        if prompt.calibrated:  # one more row of the same batch, so that it is always this model's own score
            prompts.append(torch.from_numpy(self._encoder.content_free()).to(prompts[0]))
        scores = continuation_scores(self.backbone, prompts, answers, pad=pad)
        if prompt.reduction == "mean":
            scores = scores / scores.new_tensor([len(answer) for answer in answers])
        return scores[:-1] - scores[-1:] if prompt.calibrated else scores

    def predict(self, batch: Batch) -> list[Record]:
        """Label, prediction and log-probabilities over the candidates of each row; the text made, where a metric needs it."""
        log_probabilities = self.label_scores(batch).log_softmax(dim=-1).cpu()
        columns = (batch["row"], batch["label"], log_probabilities.argmax(dim=-1), log_probabilities)
        records: list[Record] = [
            {"row": row, "label": label, "prediction": prediction, "log_probabilities": values}
            for row, label, prediction, values in zip(*(column.tolist() for column in columns), strict=True)
        ]
        words = list(self.candidates)
        if len(words) > len(self.labels):
            for record in records:
                record["words"] = words[record["prediction"]]
        if set(self.metrics).isdisjoint(MADE):
            return records
        longest = max(len(answer) for answer in self.candidates.values())
        texts = greedy_texts(self.backbone, prompts_of(batch), max_new_tokens=longest)
        return [{**record, "text": text} for record, text in zip(records, texts, strict=True)]

    def answer(self, record: Record) -> dict[str, Any]:
        """The predicted label, its probability among the candidates, and those of all."""
        words = list(self.candidates)
        names = [*self.labels, *words[len(self.labels) :]]
        probabilities = [float(value) for value in torch.tensor(record["log_probabilities"]).exp()]
        return {
            "label": names[record["prediction"]],
            "probability": probabilities[record["prediction"]],
            "probabilities": dict(zip(names, probabilities, strict=True)),
        }

    def about(self) -> dict[str, Any]:
        """How a text is asked for its label; the LM head needs nothing else."""
        return {**self._encoder.recipe, "labels": list(self.labels), "reduction": self._prompt.reduction}

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The task's metrics over all rows; a word of another task is a wrong prediction, of no label of this one."""
        labels = torch.tensor([record["label"] for record in records])
        predictions, others = self._own(torch.tensor([record["prediction"] for record in records]))
        values: dict[str, float] = {}
        for metric in self.metrics:
            if metric in MADE:
                right = [self._encoder.words[label] for label in labels.tolist()]
                made = [str(record["text"]) for record in records]
                values |= generation_scores([metric], right, made, right)
            elif metric == "f1" and len(self.labels) == 2:
                # What is no label of the task is no find of the last label, and nothing else counts in its F1.
                within = torch.where(predictions < 2, predictions, torch.zeros_like(predictions))
                values |= classification_scores([metric], within, labels, 2)
            else:
                values |= classification_scores([metric], predictions, labels, len(self.labels) + others)
        return values

    def constant_baseline(self, role: str | None = None) -> tuple[float | None, str | None]:
        """Best constant label on the rows of a role (None: those reported) under the task's metric."""
        labels = [example.label for example in self._data.examples(role or self.data.evaluated)]
        if self.metric in MADE:
            label, rows = max(Counter(labels).items(), key=lambda item: (item[1], -item[0]))
            return rows / len(labels), self.labels[label]
        score, label = constant_baseline(self.metric, torch.tensor(labels), len(self.labels))
        return score, self.labels[label]

    def findings(
        self, outcome: Outcome, *, stage: int, learnt_in: int, before: Mapping[str, float] | None
    ) -> list[Finding]:
        """Constant predictions, scores below a constant predictor, a task that was not learnt."""
        labels = torch.tensor([record["label"] for record in outcome.records])
        names, metric = list(self.labels), self.metric
        if metric in MADE:
            by_words = {normalized(words): index for index, words in enumerate(self._encoder.words)}
            made = [by_words.get(normalized(record["text"]), len(names)) for record in outcome.records]
            predictions, others, metric = torch.tensor(made), 1, "accuracy"
        else:
            predictions, others = self._own(torch.tensor([record["prediction"] for record in outcome.records]))
        if others and metric == "f1" and len(names) == 2:
            predictions, others = torch.where(predictions < 2, predictions, torch.zeros_like(predictions)), 0
        return classification_findings(
            self.name,
            stage,
            predictions,
            labels,
            label_names=[*names, *[NO_LABEL] * others],
            metric=metric,
            learnt_in=learnt_in,
        )

    @property
    def _data(self) -> ClassificationData:
        return cast(ClassificationData, self.data)

    @property
    def _prompt(self) -> Prompt:
        return cast(Prompt, self._data.prompt)

    @property
    def _answers(self) -> dict[str, list[int]]:
        """Token ids by words, in the order of labels."""
        answers = (ids.tolist() for ids in self._encoder.answers)
        return dict(zip(self._encoder.words, answers, strict=True))

    def _check_context(self, prompt: int, answer: int) -> None:
        """The words of another task may be longer than those for which prompts were cut."""
        if prompt + answer > self.backbone.context:
            raise ValueError(
                f"Task {self.name!r}: a prompt of {prompt} tokens and words of {answer} do not fit into the "
                f"{self.backbone.context} tokens that {self.backbone.name!r} reads; lower max_length, or use candidates=task."
            )

    def _own(self, predictions: Tensor) -> tuple[Tensor, int]:
        """Predictions with one index for all that is no label of the task, and 1 if there is such a thing, else 0."""
        limit = len(self.labels)
        return predictions.clamp(max=limit), int(bool((predictions >= limit).any()))
