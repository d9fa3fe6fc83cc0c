"""How tasks become stages: one after the other, all at once, or each on its own.

=============  =====================================================================================================
sequential     stage i goes on with task i from where stage i - 1 ended; what continual learning is about
joint          one stage trains all tasks: the upper bound
independent    each stage trains one task from the untrained model: what a task reaches when nothing came before it
=============  =====================================================================================================

With ``repeats`` the sequence is gone through several times. A task counts as learnt in the first stage that trains it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from curlora_lab.continual.joint import JointTask
from curlora_lab.tasks import TaskModule

Scenario = Literal["sequential", "joint", "independent"]
SCENARIOS: tuple[str, ...] = get_args(Scenario)


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage, before it is trained.

    Args:
        task: What is trained: a task, or several at once.
        learnt: Tasks whose heads are saved with it, in order.
        since: The stage whose end it starts from; 0: the untrained model.
        scored: Names of the tasks that are scored after it.
    """

    task: TaskModule
    learnt: tuple[TaskModule, ...]
    since: int
    scored: tuple[str, ...]


def plan_stages(tasks: Sequence[TaskModule], *, scenario: Scenario = "sequential", repeats: int = 1) -> list[StagePlan]:
    """The stages of a run, in order.

    Args:
        tasks: All tasks, in order.
        scenario: See the table above.
        repeats: How often the sequence is gone through.

    Raises:
        ValueError: The scenario is unknown, or repeats what is not a sequence.
    """
    names = tuple(task.name for task in tasks)
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario={scenario!r} is unknown; choose one of {', '.join(SCENARIOS)}.")
    if repeats != 1 and scenario != "sequential":
        raise ValueError(
            f"repeats={repeats} goes through a sequence again, but scenario={scenario} is none; set repeats=1."
        )
    if scenario == "joint":
        joint = JointTask(tasks, training=tasks[0].training_plan)
        return [StagePlan(task=joint, learnt=tuple(tasks), since=0, scored=names)]
    plans = []
    for stage, task in enumerate([*tasks] * repeats, start=1):
        alone = scenario == "independent"
        plans.append(
            StagePlan(
                task=task,
                learnt=tuple(tasks[:stage]),
                since=0 if alone else stage - 1,
                scored=(task.name,) if alone else names,
            )
        )
    return plans


def learnt_in(names: Sequence[str], *, scenario: Scenario) -> dict[str, int]:
    """The stage in which each task is learnt first."""
    return {name: 1 if scenario == "joint" else stage for stage, name in enumerate(names, start=1)}
