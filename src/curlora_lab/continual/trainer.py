"""After each stage: score every task, probe the language model, measure how far it moved, append a row to the matrix."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import lightning as L

from curlora_lab.backbone import Backbone
from curlora_lab.continual.store import Row
from curlora_lab.continual.strategies import Strategy
from curlora_lab.probes import PerplexityProbe, WeightReference
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Record


class ContinualTrainer(L.Callback):
    """Re-evaluates all tasks when a stage ends (and once before the first).

    Build it before any training: what it measures shifts against is the model as it is then.

    Args:
        tasks: all tasks of the sequence, in order; task j is learnt in stage j + 1.
        backbone: the backbone they share.
        probes: what is measured of the language model, by name.
        strategy: asked before each task is scored.
        evaluator: makes a Lightning ``Trainer`` for evaluation (a ``Trainer`` that has fitted can't test another module).
        learnt_in: the stage in which each task is learnt, by name.
        scored: names of the tasks that are scored after a stage; default all.

    Attributes:
        row: what the last measurement found.
        predictions: the records behind it, by task.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[TaskModule],
        backbone: Backbone,
        probes: Mapping[str, PerplexityProbe],
        strategy: Strategy,
        evaluator: Callable[[], L.Trainer],
        learnt_in: Mapping[str, int],
        scored: Callable[[int], Collection[str]] | None = None,
    ) -> None:
        self.tasks = list(tasks)
        self.backbone = backbone
        self.probes = dict(probes)
        self.strategy = strategy
        self.learnt_in = dict(learnt_in)
        self._scored = scored or (lambda stage: [task.name for task in self.tasks])
        self.row: Row | None = None
        self.predictions: Mapping[str, Sequence[Record]] = {}
        self._evaluator = evaluator
        self._reference: WeightReference | None = None
        self._before: dict[str, dict[str, float]] = {}

    def on_fit_start(self, trainer: L.Trainer, task: Any) -> None:
        """Tell the task which others were learnt before it; it is scored on its choosing rows while it trains."""
        self._tell_seen(task, task.stage)

    def on_fit_end(self, trainer: L.Trainer, task: Any) -> None:
        """The stage has trained: measure."""
        self.measure(task.stage)
        for sink in trainer.loggers:
            sink.log_metrics(logged(self.measured), step=task.stage)

    @property
    def measured(self) -> Row:
        """What the last measurement found.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        if self.row is None:
            raise RuntimeError("Lightning ended a stage without calling on_fit_end, so nothing was measured.")
        return self.row

    def take_references(self) -> None:
        """Remember weights and next-token distributions as they are before any training."""
        with self._on_device(self._evaluator()):
            self._reference = WeightReference(self.backbone.model)
            for probe in self.probes.values():
                probe.prepare_reference(self.backbone)

    def measure(self, stage: int) -> Row:
        """Fill :attr:`row` and :attr:`predictions` with everything that is measured after a stage."""
        began = time.perf_counter()
        self.row = Row(stage=stage)
        self.predictions = self.score(self.row, self._scored(stage))
        self.strategy.before_probes()
        with self._on_device(self._evaluator()):
            self._probe(self.row)
        self.row.cost["evaluation_seconds"] = time.perf_counter() - began
        return self.row

    def score(self, row: Row, names: Collection[str]) -> dict[str, Sequence[Record]]:
        """Score the named tasks into a row, findings included; returns the predictions."""
        predictions: dict[str, Sequence[Record]] = {}
        evaluator = self._evaluator()
        for task in self.tasks:
            if task.name not in names:
                continue
            self.strategy.before_evaluation(task)
            self._tell_seen(task, row.stage)
            evaluator.test(task, verbose=False)
            outcome = task.outcome
            if outcome is None:
                raise RuntimeError(f"Lightning ended the evaluation of task {task.name!r} without scoring it.")
            row.metrics[task.name] = dict(outcome.scores)
            predictions[task.name] = outcome.records
            if row.stage == 0:
                self._before[task.name] = outcome.scores
            findings = task.findings(
                outcome, stage=row.stage, learnt_in=self.learnt_in[task.name], before=self._before.get(task.name)
            )
            row.findings += [finding.to_dict() for finding in findings]
        return predictions

    def ready(self) -> AbstractContextManager[None]:
        """Put the backbone where it is evaluated, in its precision, for work outside training."""
        return self._on_device(self._evaluator())

    def _tell_seen(self, task: TaskModule, stage: int) -> None:
        task.seen = [other for other in self.tasks if self.learnt_in[other.name] <= stage]

    def remember_before(self, row: Row) -> None:
        """Take the untrained scores from a stored row 0."""
        self._before |= {
            name: {k: v for k, v in scores.items() if v is not None} for name, scores in row.metrics.items()
        }

    def _probe(self, row: Row) -> None:
        """Perplexities, output shift and weight shift of the model as it is now."""
        outputs: dict[str, float | None] = {}
        for name, probe in self.probes.items():
            found = probe.measure(self.backbone)
            row.probes[name] = {
                "perplexity": found.perplexity,
                "bits_per_character": found.bits_per_character,
                "nats_per_token": found.nats_per_token,
                "window_nll": list(found.window_nll),
                "window_tokens": list(found.window_tokens),
            }
            row.reasons |= {f"probes.{key}.{name}[{row.stage}]": text for key, text in found.reasons.items()}
            outputs[name], reason = probe.measure_shift(self.backbone)
            if reason:
                row.reasons[f"shift.output.{name}[{row.stage}]"] = reason
        if self._reference is None:
            raise RuntimeError("ContinualTrainer.take_references must be called before training.")
        weight = self._reference.shift(self.backbone.model).to_dict()
        row.shift = {"weight": weight, "output": outputs}

    def _on_device(self, evaluator: L.Trainer) -> AbstractContextManager[None]:
        """Put the backbone where evaluation happens, in its precision; Lightning leaves modules on the CPU."""
        if not getattr(self.backbone.transformers_model, "is_quantized", False):
            self.backbone.to(evaluator.strategy.root_device)
        return evaluator.precision_plugin.forward_context()


def logged(row: Row) -> dict[str, float]:
    """A row as flat metrics for loggers."""
    values: dict[str, float | None] = {"stage": row.stage}
    for task, scores in row.metrics.items():
        values |= {f"eval/{task}/{metric}": value for metric, value in scores.items()}
    for probe, found in row.probes.items():
        values[f"probe/{probe}/perplexity"] = found["perplexity"]
        values[f"probe/{probe}/bits_per_character"] = found["bits_per_character"]
    values["shift/weight"] = row.shift["weight"]["overall"]
    values |= {f"shift/{probe}/output": value for probe, value in row.shift["output"].items()}
    return {name: float(value) for name, value in values.items() if value is not None}
