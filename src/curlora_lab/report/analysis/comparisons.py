"""Every pair of configurations held against each other, and which are dominated in what they pay for what they learn."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from curlora_lab.report.analysis.quantities import LEARNING, Quantity, compared, costs, measured_alike
from curlora_lab.report.analysis.rows import RowScores, row_intervals
from curlora_lab.report.analysis.samples import Group, Replicate, Sample
from curlora_lab.report.analysis.statistics import LEVEL, Difference, corrected, holm, paired
from curlora_lab.report.figures import dominates, pareto_front


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


def against_reference(group: Group, reader: RowScores) -> list[Comparison]:
    """All samples against the reference in every compared quantity; Holm's correction over all of these comparisons.

    Args:
        group: Samples that can be compared.
        reader: Reads predictions, for the intervals over rows.
    """
    quantities = compared(run.record for run in group.runs)
    return _family([(one, group.reference, quantity) for one in group.others for quantity in quantities], reader)


def all_pairs(group: Group, reader: RowScores) -> list[Comparison]:
    """Every pair of samples in every compared quantity; Holm's correction over all of them.

    Args:
        group: Samples that can be compared.
        reader: Reads predictions, for the intervals over rows.
    """
    quantities = compared(run.record for run in group.runs)
    return _family([(a, b, q) for a, b in itertools.combinations(group.samples, 2) for q in quantities], reader)


def by_order(group: Group, reader: RowScores) -> list[tuple[str, Comparison]]:
    """The comparisons with the reference for each order of the tasks alone; none where there is only one order.

    Args:
        group: Samples that can be compared.
        reader: Reads predictions, for the intervals over rows.
    """
    if len(group.orders) < 2:
        return []
    quantities = [LEARNING, *costs(run.record for run in group.runs)]
    asked = [(order, one, quantity) for order in group.orders for one in group.others for quantity in quantities]
    made = _family([(_in(order, one), _in(order, group.reference), quantity) for order, one, quantity in asked], reader)
    return [
        (order, replace(found, first=one, second=group.reference))
        for (order, one, _), found in zip(asked, made, strict=True)
    ]


def _in(order: str, one: Sample) -> Sample:
    return one.only(name for name, run in one.runs.items() if run.order == order)


def _family(asked: Sequence[tuple[Sample, Sample, Quantity]], reader: RowScores) -> list[Comparison]:
    """First minus second in each quantity, with intervals over rows and with Holm's correction over everything asked."""
    paired_runs = [_paired_runs(*one) for one in asked]
    over_rows = row_intervals([(a, b, q.key) for (a, b, _), (_, _, q) in zip(paired_runs, asked, strict=True)], reader)
    made: list[Comparison] = []
    for (first, second, quantity), (a, b, reason), intervals in zip(asked, paired_runs, over_rows, strict=True):
        difference, without = _difference(a, b, quantity)
        if difference is not None and intervals is not None:
            difference = replace(difference, rows=intervals.rows, crossed=intervals.crossed)
        said = "; ".join(filter(None, (without, reason)))
        made.append(Comparison(first=first, second=second, quantity=quantity, difference=difference, reason=said))
    family = corrected([one.difference for one in made])
    return [replace(one, difference=difference) for one, difference in zip(made, family, strict=True)]


def _paired_runs(first: Sample, second: Sample, quantity: Quantity) -> tuple[Sample, Sample, str]:
    """The samples with the runs that make pairs, and in words which do not.

    A pair has the same seed, draw and order, was scored on the same test rows, and the quantity is of the same text.
    """
    both = [name for name in first.runs if name in second.runs]
    rows = [name for name in both if first.runs[name].test_rows == second.runs[name].test_rows]
    same = [name for name in rows if measured_alike([one.runs[name].record for one in (first, second)], quantity)]
    several = len({order for *_, order in (*first.runs, *second.runs)}) > 1
    left_out = [
        *((f"{one.label} without a pair", [name for name in one.runs if name not in both]) for one in (first, second)),
        ("other test rows", [name for name in both if name not in rows]),
        (f"{quantity.name} is of another text", [name for name in rows if name not in same]),
    ]
    reasons = [f"{why}: {', '.join(_name(name, several) for name in names)}" for why, names in left_out if names]
    return first.only(same), second.only(same), "; ".join(reasons)


def _name(name: Replicate, several: bool) -> str:
    seed, draw, order = name
    return f"seed {seed}" + (f" draw {draw}" if draw != "0" else "") + (f" ({order})" if several else "")


def _difference(first: Sample, second: Sample, quantity: Quantity) -> tuple[Difference | None, str]:
    """Of samples whose runs are all paired; with the reason where there is none."""
    values = first.values(quantity.measure), second.values(quantity.measure)
    if values[0] is not None and values[1] is not None:
        return paired(values[0], values[1], position=[quantity.key]), ""
    without = [said for one in (first, second) if (said := without_value(one, quantity))]
    return None, "; ".join(without)


def without_value(sample: Sample, quantity: Quantity) -> str:
    """That a sample has no value in a quantity, in how many of its runs and why; empty where all have one.

    Args:
        sample: The sample.
        quantity: The quantity.
    """
    absent = [run.record for run in sample.runs.values() if quantity.measure(run.record) is None]
    if not absent:
        return ""
    reasons = "; ".join(dict.fromkeys(filter(None, map(quantity.absent, absent))))
    where = f"no {quantity.name} in {len(absent)} of {len(sample.runs)} runs of {sample.label}"
    return where + (f" ({reasons})" if reasons else "")


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
        One standing a sample that has both means; none where the cost was not measured on the same text everywhere.
    """
    if not measured_alike((run.record for run in group.runs), cost):
        return []
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
