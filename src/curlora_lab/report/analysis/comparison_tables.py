"""The tables of an analysis that hold configurations against each other."""

from collections.abc import Iterable, Sequence

from curlora_lab.report import wording
from curlora_lab.report.analysis.comparisons import Comparison, Standing
from curlora_lab.report.analysis.matched import MatchedView, equal_parameters
from curlora_lab.report.analysis.phrases import estimate_text, interval_text, p_text, signed
from curlora_lab.report.analysis.quantities import LEARNING, costs
from curlora_lab.report.analysis.samples import Group
from curlora_lab.report.analysis.statistics import Interval
from curlora_lab.report.analysis.tables import Cell, Table, ends

DIFFERENCE_COLUMNS = [
    "group", "order", "first", "second", "quantity", "pairs", "difference", "student_low", "student_high", "bootstrap_low",
    "bootstrap_high", "rows_low", "rows_high", "seeds_and_rows_low", "seeds_and_rows_high", "p", "p_holm", "distinguishable",
    "note",
]  # fmt: skip


def _interval(one: Interval | None) -> list[Cell]:
    return [None, None] if one is None else [one.low, one.high]


def difference_row(group: Group, one: Comparison, order: str = "all") -> list[Cell]:
    """A comparison with all digits."""
    found = one.difference
    start: list[Cell] = [group.name, order, one.first.label, one.second.label, one.quantity.key]
    if found is None:
        return [*start, 0, *[None] * 12, one.reason]
    sides = [end for part in (found.student, found.bootstrap, found.rows, found.crossed) for end in _interval(part)]
    return [*start, found.n, found.mean, *sides, found.p, found.adjusted, "yes" if found.sure else "no", one.reason]


def _difference_texts(one: Comparison) -> list[str]:
    found = one.difference
    if found is None:
        return [one.first.label, one.quantity.name, "0", *[wording.MISSING] * 6, one.reason]
    parts = (found.student, found.bootstrap, found.rows, found.crossed)
    verdict = "too few pairs" if found.widest is None else _word(one) if found.sure else "not distinguishable"
    return [
        one.first.label, one.quantity.name, str(found.n), signed(found.mean), *map(interval_text, parts), p_text(found.adjusted),
        verdict,
    ]  # fmt: skip


def _word(one: Comparison) -> str:
    return {1: "better", -1: "worse"}.get(one.advantage, "different")


def against(groups: Sequence[tuple[Group, Sequence[Comparison]]]) -> list[Table]:
    """The comparisons with the reference, one table a group."""
    return [
        Table(
            name="differences" if len(groups) == 1 else f"differences-{number}",
            title=f"Against {group.reference.label}" + (f" · {group.name}" if len(groups) > 1 else ""),
            note=f"Paired by seed, draw and order, then one pair a seed: configuration minus {group.reference.label}. 95 % "
            "intervals: Student over pairs; bootstrap over pairs (too narrow with few); over test rows with the seeds as they "
            "are; over seeds and rows. p: paired t test, corrected by Holm over this table; where all pairs differ by the same, "
            "2^(1 − pairs) of the exact test that flips signs.",
            columns=["configuration", "quantity", "pairs", "difference", "Student", "bootstrap", "rows", "seeds and rows",
                     "p (Holm)", "verdict"],
            rows=[_difference_texts(one) for one in found],
            data_columns=DIFFERENCE_COLUMNS,
            data=[difference_row(group, one) for one in found],
        )
        for number, (group, found) in enumerate(groups, start=1)
        if found
    ]  # fmt: skip


def pairs(
    groups: Sequence[tuple[Group, Sequence[Comparison]]], orders: Iterable[tuple[Group, str, Comparison]]
) -> Table:
    """All pairs, and the reference order by order: a file only."""
    data = [difference_row(group, one) for group, found in groups for one in found]
    data += [difference_row(group, one, order) for group, order, one in orders]
    return Table(
        name="pairs",
        title="All pairs",
        note="Every pair of configurations, corrected by Holm over all of them; and each order of the tasks alone.",
        columns=[],
        rows=[],
        data_columns=DIFFERENCE_COLUMNS,
        data=data,
    )


def fronts(found: Sequence[tuple[Group, Sequence[Standing]]]) -> Table:
    """Who is dominated in each trade."""
    listed = [(group, one) for group, standings in found for one in standings]
    return Table(
        name="fronts",
        title="Who is dominated",
        note="By the means: another has at least as much learning at no more cost. Surely: in both, the widest 95 % interval of "
        "the paired difference excludes zero, corrected by Holm over all pairs of the trade.",
        columns=["configuration", "learning against", "on the front", "dominated by (means)", "surely dominated by"],
        rows=[
            [one.sample.label, one.cost.name, "yes" if one.on_front else "no", _join(one.dominated_by), _join(one.surely_by)]
            for _, one in listed
        ],
        data_columns=["group", "configuration", "cost", "on_front", "dominated_by_means", "surely_dominated_by"],
        data=[
            [group.name, one.sample.label, one.cost.key, "yes" if one.on_front else "no", "; ".join(one.dominated_by),
             "; ".join(one.surely_by)]
            for group, one in listed
        ],
    )  # fmt: skip


def _join(names: Sequence[str]) -> str:
    return "; ".join(names) or wording.MISSING


def parameters(groups: Sequence[Group]) -> Table:
    """Samples with the same number of adapter parameters beside each other."""
    rows: list[list[str]] = []
    data: list[list[Cell]] = []
    for group in groups:
        quantities = [LEARNING, *costs(run.record for run in group.runs)]
        for number, members in enumerate(equal_parameters(group.samples), start=1):
            alone = "" if len(members) > 1 else "alone in this budget"
            for one in members:
                size, means = one.first["parameters"]["adapter"], [one.estimate(q.measure) for q in quantities]
                found = "; ".join(f"{q.name} {estimate_text(m)}" for q, m in zip(quantities, means, strict=True))
                rows.append([str(number), one.label, wording.count(size), found, alone or wording.MISSING])
                data += [
                    [group.name, number, one.label, size, q.key, *ends(m)]
                    for q, m in zip(quantities, means, strict=True)
                ]
    return Table(
        name="equal_parameters",
        title="At equal parameters",
        note="Configurations of one budget have adapter parameters within 10 % of each other; their differences: pairs.csv.",
        columns=["budget", "configuration", "adapter parameters", "found", "remark"],
        rows=rows,
        data_columns=["group", "budget", "configuration", "adapter_parameters", "quantity", "mean", "half"],
        data=data,
    )


def matched(found: Sequence[tuple[Group, MatchedView]]) -> Table:
    """Interpolated costs and learning at equal learning and at equal ‖ΔW‖."""
    rows: list[list[str]] = []
    data: list[list[Cell]] = []
    for group, view in found:
        for one in view.found:
            place = [view.at.name, wording.number(one.level), f"{one.where:.0%}", one.quantity.name]
            for (a, b), difference in one.differences.items():
                paid = [estimate_text(one.means.get(name)) for name in (a, b)]
                widest = difference.widest if difference else None
                texts = [
                    signed(difference.mean if difference else None),
                    interval_text(widest),
                    str(difference.n if difference else 0),
                ]
                rows.append([*place, a, b, *paid, *texts])
                data.append(
                    [group.name, view.at.key, one.level, one.where, one.quantity.key, a, b,
                     *(ends(one.means.get(a))), *(ends(one.means.get(b))), difference.n if difference else 0,
                     difference.mean if difference else None, *_interval(widest), difference.p if difference else None,
                     difference.adjusted if difference else None]
                )  # fmt: skip
        for reason in view.reasons:
            rows.append([view.at.name, *[wording.MISSING] * 8, reason])
    return Table(
        name="matched",
        title="At equal learning and at equal ‖ΔW‖",
        note="Interpolated for each seed between the values of the setting that was swept, on the rising part of its curve, then "
        "taken over seeds; place 50 % is the middle of what all reach, and conclusions look at no other.",
        columns=["equal", "value", "place", "quantity", "first", "second", "of first", "of second", "difference",
                 "95 % interval",
                 "pairs"],
        rows=[[*row, *[""] * (11 - len(row))] for row in rows],
        data_columns=["group", "equal", "value", "place", "quantity", "first", "second", "first_mean", "first_half",
                      "second_mean", "second_half", "pairs", "difference", "low", "high", "p", "p_holm"],
        data=data,
    )  # fmt: skip
