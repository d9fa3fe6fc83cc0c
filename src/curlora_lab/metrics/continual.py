"""Continual-learning metrics as pure functions of the score matrix.

The matrix ``a`` has stages+1 rows and one column a task: ``a[i][j]`` is the score on task j after stage i, higher is
better, row 0 is before any training and ``None`` is a missing entry. Task j is learnt in stage ``trained_at[j]``; in the
sequential scenario that is j+1 and is the default. S is the last stage, T the number of tasks. Every function returns
``(value, None)`` or ``(None, reason)``: a missing entry makes the value missing, it never counts as zero.

Libraries disagree about these numbers (denominators, first against best score), so each docstring carries its formula.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

ScoreMatrix: TypeAlias = Sequence[Sequence[float | None]]
Value: TypeAlias = tuple[float | None, str | None]

ONE_STAGE = "no task was learnt before the last stage; needs at least two stages"


def average(scores: ScoreMatrix, tasks: Sequence[str], trained_at: Sequence[int] | None = None) -> Value:
    """Mean final score over tasks (macro): ``mean_j a[S, j]``.

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        trained_at: Stage in which each task is learnt; only checked here.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the matrix, ``tasks`` and ``trained_at`` do not fit together.

    Reference:
        Lopez-Paz and Ranzato 2017 (ACC); "overall performance" of TRACE.
    """
    _check(scores, tasks, trained_at)
    last = len(scores) - 1
    return _mean([_entry(scores, tasks, last, j) for j in range(len(tasks))])


def average_micro(
    scores: ScoreMatrix,
    tasks: Sequence[str],
    rows: Sequence[float | None],
) -> Value:
    """Final score over all rows, whatever task they are of (micro): ``sum_j n_j a[S, j] / sum_j n_j``.

    For a share of rows that are right (accuracy, matches) it is the share among the rows of all tasks; a small task hardly
    counts. For other scores it is their mean, weighted by rows.

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        rows: Reported rows n_j of each task.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the arguments do not fit together.

    Reference:
        What the code of O-LoRA reports (one exact match over all test rows); equal to :func:`average` where all tasks have as
        many rows.
    """
    _check_shape(scores, tasks)
    _check_length("rows", rows, tasks)
    unknown = [task for task, count in zip(tasks, rows, strict=True) if not count]
    if unknown:
        return None, f"the number of reported rows is not known for {_names(unknown)}"
    entries = [_entry(scores, tasks, len(scores) - 1, j) for j in range(len(tasks))]
    counts = [float(count or 0) for count in rows]
    weighted = [
        (None if value is None else value * count, reason)
        for (value, reason), count in zip(entries, counts, strict=True)
    ]
    mean, reason = _mean(weighted)
    return (None if mean is None else mean * len(tasks) / math.fsum(counts)), reason


def learning(scores: ScoreMatrix, tasks: Sequence[str], trained_at: Sequence[int] | None = None) -> Value:
    """Mean score right after each task was learnt (plasticity): ``mean_j a[t_j, j]``.

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        trained_at: Stage t_j in which each task is learnt.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the matrix, ``tasks`` and ``trained_at`` do not fit together.

    Reference:
        Riemer et al. 2019 (learning accuracy). average = learning + (T-1)/T BWT in the sequential scenario.
    """
    stages = _check(scores, tasks, trained_at)
    return _mean([_entry(scores, tasks, stages[j], j) for j in range(len(tasks))])


def bwt(scores: ScoreMatrix, tasks: Sequence[str], trained_at: Sequence[int] | None = None) -> Value:
    """Backward transfer: ``mean over j with t_j < S of (a[S, j] - a[t_j, j])``.

    Negative when later stages made earlier tasks worse. The denominator is the number of tasks that could be
    forgotten, T-1 in the sequential scenario, as in the paper; its code divides by T (:func:`bwt_gem`).

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        trained_at: Stage t_j in which each task is learnt.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the matrix, ``tasks`` and ``trained_at`` do not fit together.

    Reference:
        Lopez-Paz and Ranzato 2017, equation 3.
    """
    stages = _check(scores, tasks, trained_at)
    last = len(scores) - 1
    earlier = [j for j in range(len(tasks)) if stages[j] < last]
    if not earlier:
        return None, ONE_STAGE
    return _mean([_difference(scores, tasks, j, last, stages[j]) for j in earlier])


def fwt(
    scores: ScoreMatrix,
    tasks: Sequence[str],
    trained_at: Sequence[int] | None = None,
    *,
    defined: Sequence[bool] | None = None,
) -> Value:
    """Forward transfer: ``mean over j with t_j > 1 of (a[t_j - 1, j] - a[0, j])``.

    The baseline of task j is row 0, the pretrained model, not a random initialisation. A stored task head is random
    until its own stage, so what it scores before means nothing: mark such tasks with ``defined[j] = False`` and the
    value is ``None``.

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        trained_at: Stage t_j in which each task is learnt.
        defined: Whether the score of task j before its stage means something (label words, LM head); default all.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the arguments do not fit together.

    Reference:
        Lopez-Paz and Ranzato 2017, equation 4.
    """
    stages = _check(scores, tasks, trained_at)
    _check_length("defined", defined, tasks)
    later = [j for j in range(len(tasks)) if stages[j] > 1]
    if not later:
        return None, "no task was learnt after the first stage; needs at least two stages"
    untrained = [tasks[j] for j in later if defined is not None and not defined[j]]
    if untrained:
        return None, f"the head of {_names(untrained)} is random before its own stage: its score there means nothing"
    return _mean([_difference(scores, tasks, j, stages[j] - 1, 0) for j in later])


def forgetting(scores: ScoreMatrix, tasks: Sequence[str], trained_at: Sequence[int] | None = None) -> Value:
    """Forgetting: ``mean over j with t_j < S of (max over t_j <= l < S of a[l, j], minus a[S, j])``.

    From the best earlier score, so never below -BWT; negative when the last stage set a new best.

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        trained_at: Stage t_j in which each task is learnt.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the matrix, ``tasks`` and ``trained_at`` do not fit together.

    Reference:
        Chaudhry et al. 2018, equation 3. Avalanche's is first minus last (:func:`forgetting_avalanche`).
    """
    stages = _check(scores, tasks, trained_at)
    last = len(scores) - 1
    earlier = [j for j in range(len(tasks)) if stages[j] < last]
    if not earlier:
        return None, ONE_STAGE
    return _mean([_drop_from_best(scores, tasks, j, stages[j]) for j in earlier])


def gain(
    scores: ScoreMatrix,
    tasks: Sequence[str],
    constant: Sequence[float | None],
    best: Sequence[float | None],
) -> Value:
    """Mean share of the way from a constant predictor to the best score: ``mean_j (a[S,j] - k_j) / (best_j - k_j)``.

    The common scale of tasks with different metrics: 0 is what a constant answer gets, 1 the best known.

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        constant: Score k_j of the best constant predictor of each task.
        best: Best achievable score of each task, or that of a reference run.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the arguments do not fit together.
    """
    _check_shape(scores, tasks)
    _check_length("constant", constant, tasks)
    _check_length("best", best, tasks)
    for label, known in (("constant score", constant), ("best achievable score", best)):
        unknown = [task for task, value in zip(tasks, known, strict=True) if value is None]
        if unknown:
            return None, f"no {label} is known for {_names(unknown)}"
    return _mean([_share(scores, tasks, j, constant[j], best[j]) for j in range(len(tasks))])


def bwt_gem(scores: ScoreMatrix, tasks: Sequence[str], trained_at: Sequence[int] | None = None) -> Value:
    """BWT as the code of GEM, and TRACE, compute it: ``(1/T) sum_j (a[S, j] - a[t_j, j])``.

    The structural zero of the last task is in the mean: T-1 over T times :func:`bwt` in the sequential scenario.

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        trained_at: Stage t_j in which each task is learnt.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the matrix, ``tasks`` and ``trained_at`` do not fit together.

    Reference:
        facebookresearch/GradientEpisodicMemory, metrics.py; Wang et al. 2023 (TRACE).
    """
    stages = _check(scores, tasks, trained_at)
    last = len(scores) - 1
    return _mean([_difference(scores, tasks, j, last, stages[j]) for j in range(len(tasks))])


def forgetting_avalanche(scores: ScoreMatrix, tasks: Sequence[str], trained_at: Sequence[int] | None = None) -> Value:
    """Forgetting as Avalanche computes it: ``mean over j with t_j < S of (a[t_j, j] - a[S, j])``, that is -BWT.

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        trained_at: Stage t_j in which each task is learnt.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the matrix, ``tasks`` and ``trained_at`` do not fit together.
    """
    value, reason = bwt(scores, tasks, trained_at)
    return (None if value is None else -value), reason


def average_incremental(scores: ScoreMatrix, tasks: Sequence[str], trained_at: Sequence[int] | None = None) -> Value:
    """Mean over stages of the mean score on the tasks learnt so far: ``(1/S) sum_i mean over t_j <= i of a[i, j]``.

    Early tasks weigh more than late ones.

    Args:
        scores: Score matrix, shape (stages+1, tasks).
        tasks: Names of the columns.
        trained_at: Stage t_j in which each task is learnt.

    Returns:
        The value or ``None``, and the reason when it is ``None``.

    Raises:
        ValueError: When the matrix, ``tasks`` and ``trained_at`` do not fit together.

    Reference:
        Rebuffi et al. 2017 (average incremental accuracy).
    """
    stages = _check(scores, tasks, trained_at)
    rows: list[Value] = []
    for i in range(1, len(scores)):
        seen = [j for j in range(len(tasks)) if stages[j] <= i]
        if seen:
            rows.append(_mean([_entry(scores, tasks, i, j) for j in seen]))
    return _mean(rows)


def _check(scores: ScoreMatrix, tasks: Sequence[str], trained_at: Sequence[int] | None) -> Sequence[int]:
    """Stage of each task, after checking that everything has one consistent size."""
    _check_shape(scores, tasks)
    last = len(scores) - 1
    if trained_at is None:
        if last < len(tasks):
            raise ValueError(
                f"{len(tasks)} tasks in {last} stages: say in trained_at which stage each task is learnt in"
            )
        return range(1, len(tasks) + 1)
    _check_length("trained_at", trained_at, tasks)
    for task, stage in zip(tasks, trained_at, strict=True):
        if not 1 <= stage <= last:
            raise ValueError(f"trained_at says stage {stage} for '{task}': must be between 1 and {last}")
    return trained_at


def _check_shape(scores: ScoreMatrix, tasks: Sequence[str]) -> None:
    if not tasks or len(scores) < 2:
        raise ValueError(
            f"score matrix of {len(scores)} rows for {len(tasks)} tasks: needs row 0 and at least one stage"
        )
    for i, row in enumerate(scores):
        if len(row) != len(tasks):
            raise ValueError(f"row {i} of the score matrix has {len(row)} entries for {len(tasks)} tasks")


def _check_length(name: str, values: Sequence[object] | None, tasks: Sequence[str]) -> None:
    if values is not None and len(values) != len(tasks):
        raise ValueError(f"{name} has {len(values)} entries for {len(tasks)} tasks")


def _entry(scores: ScoreMatrix, tasks: Sequence[str], stage: int, j: int) -> Value:
    value = scores[stage][j]
    if value is None or not math.isfinite(value):
        where = "before training" if stage == 0 else f"after stage {stage}"
        return None, f"no score on '{tasks[j]}' {where}"
    return float(value), None


def _difference(scores: ScoreMatrix, tasks: Sequence[str], j: int, stage: int, reference: int) -> Value:
    now, reason = _entry(scores, tasks, stage, j)
    then, other = _entry(scores, tasks, reference, j)
    if now is None or then is None:
        return None, reason or other
    return now - then, None


def _drop_from_best(scores: ScoreMatrix, tasks: Sequence[str], j: int, learnt: int) -> Value:
    last = len(scores) - 1
    entries = [_entry(scores, tasks, stage, j) for stage in range(learnt, last + 1)]
    numbers = [value for value, _ in entries if value is not None]
    if len(numbers) < len(entries):
        return None, next(reason for _, reason in entries if reason is not None)
    return max(numbers[:-1]) - numbers[-1], None


def _share(scores: ScoreMatrix, tasks: Sequence[str], j: int, low: float | None, high: float | None) -> Value:
    value, reason = _entry(scores, tasks, len(scores) - 1, j)
    if value is None or low is None or high is None:
        return None, reason
    if high <= low:
        return None, f"the best score of '{tasks[j]}' ({high:g}) is not above its constant predictor's ({low:g})"
    return (value - low) / (high - low), None


def _mean(values: Sequence[Value]) -> Value:
    numbers = [value for value, _ in values if value is not None]
    if len(numbers) < len(values) or not values:
        return None, next((reason for value, reason in values if value is None), "nothing to average")
    return math.fsum(numbers) / len(numbers), None


def _names(values: Sequence[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)
