"""Every pair of configurations held against each other, and which are dominated in what they pay for what they learn."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from curlora_lab.report.analysis.quantities import LEARNING, Quantity, compared, costs
from curlora_lab.report.analysis.rows import RowIntervals, RowScores, row_intervals
from curlora_lab.report.analysis.samples import Group, Sample, Unit
from curlora_lab.report.analysis.statistics import LEVEL, Difference, corrected, holm, paired
from curlora_lab.report.figures import dominates, pareto_front

ROW_KEYS = ("learning", "average")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One quantity of two samples.

    Attributes:
        first: A sample.
        second: Another; the difference is first minus second.
        quantity: What is compared.
        difference: The paired difference; ``None`` where none can be made.
        reason: Why there is none, or what was left out of it.
    """

    first: Sample
    second: Sample
    quantity: Quantity
    difference: Difference | None
    reason: str = ""

    @property
    def advantage(self) -> int:
        """1 where the first is surely better, -1 where it is surely worse, 0 where they can't be told apart."""
        if self.difference is None or not self.difference.sure:
            return 0
        sign = 1 if self.difference.mean > 0 else -1
        return -sign if self.quantity.better == "lower" else sign


def compare_samples(first: Sample, second: Sample, quantity: Quantity, *, order: str | None = None) -> Comparison:
    """Paired difference of two samples in one quantity: same seed, same draw, same order, same test rows.

    Args:
        first: A sample.
        second: Another.
        quantity: What is compared.
        order: Only runs with this order of tasks.
    """
    shared, reason = _shared(first, second)
    if not shared:
        return Comparison(first=first, second=second, quantity=quantity, difference=None, reason=reason)
    values = [
        replace(one, runs={name: one.runs[name] for name in shared}).values(quantity.measure, order=order)
        for one in (first, second)
    ]
    if values[0] is None or values[1] is None:
        missing = "; ".join(one.label for one, found in zip((first, second), values, strict=True) if found is None)
        reason = f"no {quantity.name} in {missing}"
        return Comparison(first=first, second=second, quantity=quantity, difference=None, reason=reason)
    difference = paired(values[0], values[1], position=[quantity.key])
    return Comparison(first=first, second=second, quantity=quantity, difference=difference, reason=reason)


def _shared(first: Sample, second: Sample) -> tuple[list[tuple[Unit, str]], str]:
    """Names of the runs that make pairs, and in words which do not."""
    both = [name for name in first.runs if name in second.runs]
    same = [name for name in both if first.runs[name].test_rows == second.runs[name].test_rows]
    several = len({order for _, order in (*first.runs, *second.runs)}) > 1
    reasons = []
    for one, other in ((first, second), (second, first)):
        alone = [_name(name, several) for name in one.runs if name not in other.runs]
        reasons += [f"{one.label} without a pair: {', '.join(alone)}"] if alone else []
    if len(same) < len(both):
        reasons.append(f"other test rows: {', '.join(_name(name, several) for name in both if name not in same)}")
    return same, "; ".join(reasons)


def _name(name: tuple[Unit, str], several: bool) -> str:
    (seed, draw), order = name
    return f"seed {seed}" + (f" draw {draw}" if draw != "0" else "") + (f" ({order})" if several else "")


def against_reference(group: Group, reader: RowScores) -> list[Comparison]:
    """All samples against the reference, with intervals over rows; Holm's correction over all of these comparisons.

    Args:
        group: Samples that can be compared.
        reader: Reads predictions.
    """
    quantities = compared(run.record for run in group.runs)
    made = [compare_samples(one, group.reference, quantity) for one in group.others for quantity in quantities]
    pairs = {(one.label, group.reference.label): (one, group.reference) for one in group.others}
    over_rows = row_intervals(pairs, ROW_KEYS, reader)
    return _corrected([_with_rows(one, over_rows) for one in made])


def _with_rows(one: Comparison, found: Mapping[tuple[str, str, str], RowIntervals]) -> Comparison:
    intervals = found.get((one.first.label, one.second.label, one.quantity.key))
    if intervals is None or one.difference is None:
        return one
    return replace(one, difference=replace(one.difference, rows=intervals.rows, crossed=intervals.crossed))


def all_pairs(group: Group) -> list[Comparison]:
    """Every pair of samples in every compared quantity; Holm's correction over all of them."""
    quantities = compared(run.record for run in group.runs)
    return _corrected(
        [compare_samples(a, b, q) for a, b in itertools.combinations(group.samples, 2) for q in quantities]
    )


def _corrected(made: Sequence[Comparison]) -> list[Comparison]:
    family = corrected([one.difference for one in made])
    return [replace(one, difference=difference) for one, difference in zip(made, family, strict=True)]


def by_order(group: Group) -> list[tuple[str, Comparison]]:
    """The comparisons with the reference for each order of the tasks alone; none where there is only one order."""
    if len(group.orders) < 2:
        return []
    quantities = [LEARNING, *costs(run.record for run in group.runs)]
    made = [
        (order, compare_samples(one, group.reference, quantity, order=order))
        for order in group.orders
        for one in group.others
        for quantity in quantities
    ]
    fixed = _corrected([one for _, one in made])
    return [(order, one) for (order, _), one in zip(made, fixed, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a sample stands in one trade between learning and a cost.

    Attributes:
        sample: The sample.
        cost: What is paid.
        on_front: Whether no other has a mean that is at least as good in both and better in one.
        dominated_by: Labels of those whose means are.
        surely_by: Labels of those that are better in both beyond chance.
    """

    sample: Sample
    cost: Quantity
    on_front: bool
    dominated_by: Sequence[str]
    surely_by: Sequence[str]


def standings(group: Group, cost: Quantity, pairs: Sequence[Comparison]) -> list[Standing]:
    """Who is dominated in learning against one cost.

    By the means; and surely where in both quantities the widest interval of the paired difference excludes zero and the
    larger of the two p values is below 5 % after Holm's correction over all pairs (both must hold, so the larger p tests it).

    Args:
        group: The samples.
        cost: Forgetting, or drift on a probe.
        pairs: What :func:`all_pairs` found.

    Returns:
        One standing a sample that has both means.
    """
    means = {one.label: (one.estimate(cost.measure), one.estimate(LEARNING.measure)) for one in group.samples}
    points = {label: (x.mean, y.mean) for label, (x, y) in means.items() if x is not None and y is not None}
    front = {list(points)[k] for k in pareto_front(list(points.values()))}
    sure = set(_sure(cost, pairs))
    return [
        Standing(
            sample=one,
            cost=cost,
            on_front=one.label in front,
            dominated_by=[name for name in points if dominates(points[name], points[one.label])],
            surely_by=[name for name in points if (name, one.label) in sure],
        )
        for one in group.samples
        if one.label in points
    ]


def _sure(cost: Quantity, pairs: Sequence[Comparison]) -> Iterator[tuple[str, str]]:
    """(winner, loser) of all pairs in which both differences are beyond chance and point the same way."""
    found: dict[tuple[str, str], dict[str, Comparison]] = {}
    for one in pairs:
        if one.quantity.key in (LEARNING.key, cost.key):
            found.setdefault((one.first.label, one.second.label), {})[one.quantity.key] = one
    both = {name: (two[LEARNING.key], two[cost.key]) for name, two in found.items() if len(two) == 2}
    larger = [_larger_p(two) for two in both.values()]
    for ((first, second), two), p in zip(both.items(), holm(larger), strict=True):
        if p is None or p >= LEVEL or not all(_excludes_zero(one) for one in two):
            continue
        better = {_direction(one) for one in two}
        if better == {1}:
            yield first, second
        elif better == {-1}:
            yield second, first


def _larger_p(two: tuple[Comparison, Comparison]) -> float | None:
    values = [None if one.difference is None else one.difference.p for one in two]
    return None if None in values else max(value for value in values if value is not None)


def _excludes_zero(one: Comparison) -> bool:
    interval = one.difference.widest if one.difference else None
    return interval is not None and interval.excludes(0)


def _direction(one: Comparison) -> int:
    sign = 1 if one.difference is not None and one.difference.mean > 0 else -1
    return -sign if one.quantity.better == "lower" else sign
