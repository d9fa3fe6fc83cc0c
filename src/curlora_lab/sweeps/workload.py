"""What a run will have to do, counted before it begins: the tokens that it trains on and those that it evaluates."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Self

from curlora_lab.build import Parts, build
from curlora_lab.continual.joint import JointTask
from curlora_lab.data.preparation import evaluated_role
from curlora_lab.tasks import TaskModule


@dataclass(frozen=True)
class Workload:
    """Tokens that pass through the model, padding not counted.

    Attributes:
        trained: forward and backward; ``cost.tokens`` of the record.
        scored: of the tasks' evaluated rows, before any training and after each stage.
        watched: of the rows set aside for choosing, after each epoch.
        probed: of the probes' texts that are scored, before any training and after each stage.
    """

    trained: int = 0
    scored: int = 0
    watched: int = 0
    probed: int = 0

    @property
    def evaluated(self) -> int:
        """All tokens that pass without being trained on."""
        return self.scored + self.watched + self.probed

    def __add__(self, other: Self) -> "Workload":
        return Workload(*(getattr(self, key.name) + getattr(other, key.name) for key in fields(self)))


def total(workloads: Iterable[Workload]) -> Workload:
    """The work of several runs.

    Args:
        workloads: one a run.
    """
    return sum(workloads, Workload())


def workload(config: dict[str, Any]) -> Workload:
    """Count the tokens of a run, from the rows that it would use.

    Args:
        config: a validated configuration.

    Returns:
        The counts, exact: which rows are used follows from the seed. Rows that callbacks or strategies add or leave out
        (early stopping, replay, anchoring) are not in them.

    Raises:
        ValueError, OSError: model or data are not there or not right.
    """
    parts = build(config)
    trained = scored = watched = 0
    for plan in parts.plans:
        for task in plan.learnt if isinstance(plan.task, JointTask) else (plan.task,):
            epochs = plan.task.training_plan.epochs
            trained += epochs * _tokens(task, "train")
            watched += epochs * _tokens(task, "choose")
        scored += _scored(parts, plan.scored)
    scored += _scored(parts, [task.name for task in parts.tasks])
    probed = sum(int(probe.details().get("tokens", 0)) for probe in parts.probes.values())
    return Workload(trained, scored, watched, probed * (len(parts.plans) + 1))


def _scored(parts: Parts, names: Iterable[str]) -> int:
    wanted = set(names)
    return sum(_tokens(task, evaluated_role(task.data.counts)) for task in parts.tasks if task.name in wanted)


def _tokens(task: TaskModule, role: str) -> int:
    """Tokens of all rows of a role; none where the task has no such rows."""
    return len(task.data.rows(role).encoded.ids) if role in task.data.counts else 0
