"""Go through the stages of a run: each row of the score matrix is found finished, reused from another run, or made."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from curlora_lab.backbone import Backbone
from curlora_lab.continual.loggers import JsonLinesLogger
from curlora_lab.continual.processes import is_main
from curlora_lab.continual.record import peak_memory
from curlora_lab.continual.store import Row, StageStore
from curlora_lab.continual.strategies import Strategy
from curlora_lab.continual.trainer import ContinualTrainer, logged
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import TaskModule

logger = logging.getLogger(__name__)

#: What every ``Trainer`` of the lab has: checkpoints are the store's affair, shards the data's.
FIXED: Mapping[str, Any] = {
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}


class Stages:
    """The sequential scenario: one stage a task, in order.

    Args:
        tasks: all tasks, in order.
        backbone: the backbone they share, adapter attached, untrained.
        probes: what is measured of the language model.
        strategy: what is done against forgetting.
        store: where finished stages lie.
        loggers: take metrics; a :class:`JsonLinesLogger` among them is told which stage begins.
        make_trainer: makes a Lightning ``Trainer`` as configured, with further arguments.
        make_callbacks: makes the callbacks of one stage, new for each.
        epochs: passes over the training rows in each stage.
        progress: whether to show progress bars.
        adopt: whether stages that another run has finished may be reused.

    Attributes:
        reused: where reused stages came from, by stage.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[TaskModule],
        backbone: Backbone,
        probes: Mapping[str, PerplexityProbe],
        strategy: Strategy,
        store: StageStore,
        loggers: Sequence[Logger],
        make_trainer: Callable[..., L.Trainer],
        make_callbacks: Callable[[], list[L.Callback]],
        epochs: int,
        progress: bool,
        adopt: bool,
    ) -> None:
        self.tasks = list(tasks)
        self.backbone = backbone
        self.strategy = strategy
        self.store = store
        self.loggers = list(loggers)
        self.reused: dict[int, str] = {}
        self._adopted: set[int] = set()
        self._make_trainer = make_trainer
        self._make_callbacks = make_callbacks
        self._epochs = epochs
        self._progress = progress
        self._adopt = adopt
        self._measure = ContinualTrainer(
            tasks=tasks,
            backbone=backbone,
            probes=probes,
            strategy=strategy,
            evaluator=lambda: self._trainer(logger=False, enable_progress_bar=False),
            learnt_in={task.name: stage for stage, task in enumerate(tasks, start=1)},
        )

    def rows(self) -> Iterator[Row]:
        """Each row of the score matrix in order, as soon as it is there and on disk."""
        known = [self._known(stage) for stage in range(len(self.tasks) + 1)]
        if any(row is None or self._unscored(row) for row in known):
            self._measure.take_references()
        position = 0  # the stage whose weights the backbone has now
        for stage, row in enumerate(known):
            if row is None or self._unscored(row):
                needed = stage - 1 if row is None else stage
                if position < needed:
                    self._restore(needed)
                row = self._make(stage) if row is None else self._complete(row)
                position = stage
            if stage == 0:
                self._measure.remember_before(row)
            if stage in self._adopted:
                self._log(row)
            yield row

    def _known(self, stage: int) -> Row | None:
        """A row that this run or another has finished."""
        row = self.store.finished(stage)
        if row is None and self._adopt and is_main():
            origin = self.store.adopt(stage)
            if origin is not None:
                logger.info("Stage %d is reused from %s.", stage, origin)
                self._adopted.add(stage)
                row = self.store.finished(stage)
        if row is not None and (name := self.store.reused_from(stage)):
            self.reused[stage] = name
        return row

    def _make(self, stage: int) -> Row:
        """Measure the untrained model, or train one stage; save it."""
        self._start_log(stage)
        row = self._train(stage) if stage > 0 else self._untrained()
        row.cost["peak_memory_bytes"] = peak_memory()
        if is_main():
            self.store.write(
                row,
                self._measure.predictions,
                backbone=self.backbone,
                learnt=self.tasks[:stage],
                strategy=self.strategy,
            )
        return row

    def _untrained(self) -> Row:
        """Row 0."""
        row = self._measure.measure(0)
        for sink in self.loggers:
            sink.log_metrics(logged(row), step=0)
        return row

    def _train(self, stage: int) -> Row:
        """One ``fit``; the ``ContinualTrainer`` callback measures when it ends."""
        task = self.tasks[stage - 1]
        task.start_stage(stage, self.strategy)
        self.strategy.before_stage(task, stage=stage)
        trainer = self._trainer(
            logger=self.loggers,
            callbacks=[*self._make_callbacks(), self._measure],
            max_epochs=self._epochs,
            enable_progress_bar=self._progress,
        )
        began = time.perf_counter()
        trainer.fit(task)
        row = self._measure.measured
        seconds = time.perf_counter() - began - row.cost["evaluation_seconds"]
        row.task = task.name
        row.choose = task.chosen_scores[-1] if task.chosen_scores else None
        row.cost |= {
            "seconds": seconds,
            "tokens": task.tokens,
            "tokens_per_second": task.tokens / max(seconds, 1e-9),
        }
        self.strategy.after_stage(task, stage=stage)
        return row

    def _complete(self, row: Row) -> Row:
        """Score the tasks that a reused row does not know yet."""
        predictions = self._measure.score(row, self._unscored(row))
        if is_main():
            self.store.extend(row, predictions)
        return row

    def _start_log(self, stage: int) -> None:
        """Tell the run folder's log which stage its lines belong to."""
        for sink in self.loggers:
            if isinstance(sink, JsonLinesLogger):
                sink.start_stage(stage)

    def _log(self, row: Row) -> None:
        """A row that was reused belongs in this run's logs too."""
        self._start_log(row.stage)
        for sink in self.loggers:
            sink.log_metrics(logged(row), step=row.stage)

    def _restore(self, stage: int) -> None:
        """Bring backbone, heads and strategy to the end of a finished stage."""
        self.store.restore(stage, backbone=self.backbone, learnt=self.tasks[:stage], strategy=self.strategy)

    def _unscored(self, row: Row) -> list[str]:
        return [task.name for task in self.tasks if task.name not in row.metrics]

    def _trainer(self, **arguments: Any) -> L.Trainer:
        return self._make_trainer(**{**FIXED, "default_root_dir": str(self.store.folder), **arguments})
