"""Go through the stages of a run: each row of the score matrix is found finished, reused from another run, or made."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger

from curlora_lab.adapters.attach import trainable_state
from curlora_lab.backbone import Backbone
from curlora_lab.continual.checkpoint import Checkpoint, CheckpointFolder, CheckpointPlan
from curlora_lab.continual.diagnose import diagnose
from curlora_lab.continual.environment import Environment, environment_on, merged, mixed
from curlora_lab.continual.loggers import JsonLinesLogger
from curlora_lab.continual.processes import is_main
from curlora_lab.continual.record import peak_memory
from curlora_lab.continual.resume import ResumeStage, StageCheckpoints, StageParts, progress_of
from curlora_lab.continual.scenarios import StagePlan
from curlora_lab.continual.shortage import OutOfMemoryError, explain, is_shortage
from curlora_lab.continual.signals import Interruption
from curlora_lab.continual.stopping import targets, unmet
from curlora_lab.continual.store import Row, StageStore
from curlora_lab.continual.strategies import Strategy
from curlora_lab.continual.strategies.timed import Timed
from curlora_lab.continual.trainer import ContinualTrainer, logged
from curlora_lab.metrics import Finding
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import NonFiniteError, TaskModule
from curlora_lab.tasks.finite import first_overflow, nonfinite_in

logger = logging.getLogger(__name__)

#: What every ``Trainer`` of the lab has: checkpoints are the store's affair, shards the data's.
FIXED: Mapping[str, Any] = {
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,  # its place is taken by report.display
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}


class Stages:
    """The stages of a run, in order.

    Args:
        tasks: all tasks, in order.
        plans: what each stage trains, where it starts from and what is scored after it.
        learnt_in: the stage in which each task is learnt first.
        backbone: the backbone they share, adapter attached, untrained.
        probes: what is measured of the language model.
        strategy: what is done against forgetting.
        store: where finished stages lie.
        log: the run folder's own log of numbers; told which stage begins.
        loggers: further ones.
        make_trainer: makes a Lightning ``Trainer`` as configured, with further arguments.
        make_callbacks: makes the callbacks of one stage, new for each.
        reporters: callbacks that watch training and scoring, the same for all stages.
        adopt: whether stages that another run has finished may be reused.
        plan: when a running stage writes checkpoints.
        gradient_batches: training batches on which a stage's gradient is measured before it trains; 0: none.
        interruption: signals that ask the run to stop.

    Raises:
        ValueError: a strategy or a callback asks for what a task or the model does not have.

    Attributes:
        reused: where reused stages came from, by stage.
        environments: versions and devices with which the rows were made, each once; more than one is said.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[TaskModule],
        plans: Sequence[StagePlan],
        learnt_in: Mapping[str, int],
        backbone: Backbone,
        probes: Mapping[str, PerplexityProbe],
        strategy: Strategy,
        store: StageStore,
        log: JsonLinesLogger,
        loggers: Sequence[Logger],
        make_trainer: Callable[..., L.Trainer],
        make_callbacks: Callable[[], list[L.Callback]],
        reporters: Sequence[L.Callback],
        adopt: bool,
        plan: CheckpointPlan,
        gradient_batches: int,
        interruption: Interruption,
    ) -> None:
        self.tasks = list(tasks)
        self.plans = list(plans)
        self.backbone = backbone
        self.strategy = Timed(strategy)
        self.store = store
        self.checkpoints = CheckpointFolder(store.folder / "checkpoints")
        self.log = log
        self.loggers = [log, *loggers]
        self.reused: dict[int, str] = {}
        self.environments: list[Environment] = []
        self._stage_environments: list[Environment] = []
        self._adopted: set[int] = set()
        self._make_trainer = make_trainer
        self._make_callbacks = make_callbacks
        self._reporters = list(reporters)
        self._adopt = adopt
        self._plan = plan
        self._gradient_batches = gradient_batches
        self._diagnostics: dict[str, Any] | None = None
        self._interruption = interruption
        self._accumulate = 1
        self._earlier_peak = 0  # bytes, of the processes that worked on this stage before
        self._unmet: list[Finding] = []
        self._measure = ContinualTrainer(
            tasks=tasks,
            backbone=backbone,
            probes=probes,
            strategy=self.strategy,
            evaluator=lambda: self._trainer(logger=False, callbacks=list(self._reporters)),
            learnt_in=learnt_in,
            scored=self._scored,
        )
        for target in targets(make_callbacks()):
            for stage_plan in self.plans:
                target.check(stage_plan.task)
        starts_over = any(plan.since == 0 for plan in self.plans[1:])
        self._untouched = {k: v.clone() for k, v in trainable_state(backbone).items()} if starts_over else {}
        with self._measure.ready():
            self.strategy.begin(self.tasks, backbone)

    def rows(self) -> Iterator[Row]:
        """Each row of the score matrix in order, as soon as it is there and on disk."""
        known = [self._known(stage) for stage in range(len(self.plans) + 1)]
        if any(row is None or self._unscored(row) for row in known):
            self._stage_environments = [environment_on(self._trainer(logger=False).strategy.root_device)]
            self._meet(self._stage_environments)
            self._measure.take_references()
        position = 0  # the stage whose weights the backbone has now
        for stage, row in enumerate(known):
            if row is None or self._unscored(row):
                needed = self.plans[stage - 1].since if row is None and stage > 0 else stage
                if position != needed:
                    self._restore(needed)
                row = self._make(stage) if row is None else self._complete(row)
                position = stage
            if stage == 0:
                self._measure.remember_before(row)
            unlogged = stage in self.reused and not self.log.has(stage)  # killed after it was taken over
            if stage in self._adopted or unlogged:
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
        if row is not None:
            self._meet(self.store.environments(stage))
            if name := self.store.reused_from(stage):
                self.reused[stage] = name
        return row

    def _meet(self, environments: Sequence[Environment]) -> None:
        """Rows are of these environments; say so where that makes them more than one."""
        known = merged(self.environments, environments)
        if len(known) > max(len(self.environments), 1):
            logger.warning("%s", mixed(known))
        self.environments[:] = known

    def _make(self, stage: int) -> Row:
        """Measure the untrained model, or train one stage; save it."""
        with self._within_memory():
            row = self._train(stage) if stage > 0 else self._untrained()
        _refuse_nonfinite(row)
        row.cost["peak_memory_bytes"] = max(peak_memory(), self._earlier_peak)
        self._earlier_peak = 0
        row.cost["strategy"] = self.strategy.spent()
        if is_main():
            self.store.write(
                row,
                self._measure.predictions,
                backbone=self.backbone,
                learnt=self.plans[stage - 1].learnt if stage > 0 else (),
                strategy=self.strategy,
                diagnostics=self._diagnostics,
                environments=self._stage_environments,
            )
            self._stage_environments = self._stage_environments[-1:]
            self.checkpoints.clear()
        return row

    def _untrained(self) -> Row:
        """Row 0."""
        self.log.start_stage(0)
        row = self._measure.measure(0)
        for sink in self.loggers:
            sink.log_metrics(logged(row), step=0)
        return row

    def _train(self, stage: int) -> Row:
        """Train a stage, from where it was left; the ``ContinualTrainer`` callback measures when training ends."""
        plan = self.plans[stage - 1]
        task = plan.task
        task.start_stage(stage, self.strategy)
        with self._measure.ready():
            self.strategy.before_stage(task, stage=stage)
            self._diagnostics = diagnose(self.backbone, task, stage=stage, batches=self._gradient_batches)
        parts = StageParts(task=task, learnt=plan.learnt, backbone=self.backbone, strategy=self.strategy, log=self.log)
        found = self._checkpoint(parts)
        seconds = self._score(parts, found) if found is not None and found.trained else self._fit(parts, found)
        row = self._measure.measured
        row.task = task.name
        row.choose = task.chosen_scores[-1] if task.chosen_scores else None
        row.findings += [*_left_out(task), *(finding.to_dict() for finding in self._unmet)]
        row.cost |= {
            "seconds": seconds,
            "tokens": task.tokens,
            "tokens_per_second": task.tokens / max(seconds, 1e-9),
        }
        with self._measure.ready():
            self.strategy.after_stage(task, stage=stage)
        self._refuse_overflow(task)
        return row

    def _refuse_overflow(self, task: TaskModule) -> None:
        """What a strategy keeps of a stage must be numbers, or the next stage stops and blames its learning rate.

        Raises:
            NonFiniteError: it has a NaN or an infinity; minus infinity is the logit of a class that is ruled out.
        """
        bad = first_overflow(self.strategy.state())
        if bad is not None:
            name = type(self.strategy.strategy).__name__
            raise NonFiniteError(
                f"Stage {task.stage} (task {task.name!r}): what strategy {name} keeps of it, {bad!r}, is not finite: it "
                "overflowed when it was computed. Use model.dtype=float32 or bfloat16, a lower lr, or another strategy."
            )

    def _checkpoint(self, parts: StageParts) -> Checkpoint | None:
        """The moment that a stage goes on from, if it was interrupted."""
        stage = parts.task.stage
        found = self.checkpoints.latest(key=self.store.keys[stage], stage=stage)
        if found is not None and not parts.fits(found):
            logger.warning("The checkpoint of stage %d at step %d does not fit this model.", stage, found.step)
            found = None
        if found is not None:
            logger.info("Stage %d goes on after optimiser step %d.", stage, found.step)
            self._earlier_peak = found.state.get("peak_memory_bytes", 0)
            self._stage_environments = merged(found.state.get("environments", []), self._stage_environments)
            self._meet(self._stage_environments)
        elif is_main():
            self.checkpoints.clear()
        return found

    def _fit(self, parts: StageParts, found: Checkpoint | None) -> float:
        """Train; with ``on_nonfinite=rollback`` as often as steps may be left out. Returns the seconds it took."""
        if found is not None:
            parts.task.go_to(progress_of(found))
        while True:
            try:
                return self._fit_once(parts, found)
            except NonFiniteError as error:
                if parts.task.guard.policy != "rollback" or error.place is None:
                    raise
                found = self.checkpoints.latest(key=self.store.keys[parts.task.stage], stage=parts.task.stage)
                if found is None:
                    raise
                parts.task.guard.leave_out(error.place, f"{error} Back to step {found.step}.")
                parts.task.go_to(replace(progress_of(found), left_out=list(parts.task.guard.left_out)))

    def _fit_once(self, parts: StageParts, found: Checkpoint | None) -> float:
        """One ``fit``, from the beginning of the stage or from a checkpoint."""
        task = parts.task
        self.log.start_stage(task.stage, keep=found.state["log_lines"] if found is not None else 0)
        keeper = StageCheckpoints(
            parts,
            self.checkpoints,
            plan=self._plan,
            key=self.store.keys[task.stage],
            interruption=self._interruption,
            environments=self._stage_environments,
            start=task.guard.policy == "rollback",
            resumed=found,
        )
        resuming = [ResumeStage(parts, found)] if found is not None else []
        chosen = self._make_callbacks()
        trainer = self._trainer(
            logger=self.loggers,
            callbacks=[keeper, *self._reporters, *chosen, self._measure, *resuming],
            max_epochs=task.training_plan.epochs,
        )
        self._accumulate = trainer.accumulate_grad_batches
        trainer.fit(task)
        self._unmet = unmet(chosen)
        return keeper.seconds - float(self._measure.measured.cost["evaluation_seconds"])

    def _score(self, parts: StageParts, found: Checkpoint) -> float:
        """Measure a stage whose training had ended when the run was interrupted. Returns the seconds training took."""
        aims = targets(self._make_callbacks())
        for target in aims:
            target.start(parts.task)
        parts.restore(found)
        parts.task.go_to(progress_of(found))
        for target in aims:
            target.judge(parts.task)
        self._unmet = unmet(aims)
        self.log.start_stage(found.stage, keep=found.state["log_lines"])
        row = self._measure.measure(found.stage)
        for sink in self.loggers:
            sink.log_metrics(logged(row), step=found.stage)
        return float(found.state["seconds"])

    def _complete(self, row: Row) -> Row:
        """Score the tasks that a reused row does not know yet."""
        with self._within_memory():
            predictions = self._measure.score(row, self._unscored(row))
        _refuse_nonfinite(row)
        if is_main():
            self.store.extend(row, predictions, environments=self._stage_environments)
        return row

    def _log(self, row: Row) -> None:
        """A row that was reused belongs in this run's logs too."""
        self.log.start_stage(row.stage)
        for sink in self.loggers:
            sink.log_metrics(logged(row), step=row.stage)

    def _restore(self, stage: int) -> None:
        """Bring backbone, heads and strategy to the end of a finished stage, or the backbone to where it was untrained."""
        if stage == 0:
            with torch.no_grad():
                for name, parameter in trainable_state(self.backbone).items():
                    parameter.copy_(self._untouched[name])
            return
        self.store.restore(stage, backbone=self.backbone, learnt=self.plans[stage - 1].learnt, strategy=self.strategy)

    def _unscored(self, row: Row) -> list[str]:
        return [name for name in self._scored(row.stage) if name not in row.metrics]

    def _scored(self, stage: int) -> Sequence[str]:
        """Names of the tasks that are scored after a stage."""
        return self.plans[stage - 1].scored if stage > 0 else [task.name for task in self.tasks]

    def _trainer(self, **arguments: Any) -> L.Trainer:
        return self._make_trainer(**{**FIXED, "default_root_dir": str(self.store.folder), **arguments})

    @contextmanager
    def _within_memory(self) -> Iterator[None]:
        """Say what was too large where memory ran out; the error's own trace is let go, with the tensors that it holds."""
        shortage = None
        try:
            yield
        except Exception as error:
            if not is_shortage(error):
                raise
            busy = next((task for task in self.tasks if task.busy_with is not None), None)
            dtype = str(next(self.backbone.parameters()).dtype).removeprefix("torch.")
            shortage = explain(error, busy, accumulate=self._accumulate, dtype=dtype)
        if shortage is not None:
            raise OutOfMemoryError(shortage)


def _refuse_nonfinite(row: Row) -> None:
    """A record has no place for a number that is none.

    Raises:
        NonFiniteError: names it.
    """
    bad = nonfinite_in(asdict(row))
    if bad is not None:
        where = "before any training" if row.stage == 0 else f"after stage {row.stage}"
        raise NonFiniteError(
            f"What was measured {where} is not finite: {bad[0]} is {bad[1]}. Use model.dtype=float32 or bfloat16 (float16 "
            "overflows above 65504), or lower lr."
        )


def _left_out(task: TaskModule) -> list[dict[str, Any]]:
    """What is to be said of a stage in which steps were left out."""
    places = task.guard.left_out
    if not places:
        return []
    where = "; ".join(f"epoch {epoch}, batch {batch}" for epoch, batch in sorted(places))
    message = (
        f"{len(places)} optimiser steps of {task.name} were left out, because their numbers were not finite: {where}"
    )
    return [Finding("steps_left_out", task.name, task.stage, message).to_dict()]
