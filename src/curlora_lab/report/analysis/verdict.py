"""What may be concluded, in plain words: only what the intervals support."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from curlora_lab.report import wording
from curlora_lab.report.analysis.comparisons import Comparison, Standing, without_value
from curlora_lab.report.analysis.matched import MIDDLE, MatchedView, families
from curlora_lab.report.analysis.phrases import clause, interval_text, pairs_text, signed
from curlora_lab.report.analysis.quantities import LEARNING, Quantity, above_constant, costs, measured_alike
from curlora_lab.report.analysis.samples import Group, Sample, Study
from curlora_lab.report.analysis.statistics import FEW_PAIRS, FEWEST_PAIRS, Difference

#: Warnings of runs that bear on a comparison.
DOUBTFUL = {
    "untuned_learning_rate": "no search that it knows of found its learning rate for this model and these settings",
    "budget_not_met": "the budget of parameters could not be met",
    "target_not_met": "a stage did not end at the size or score asked for",
    "steps_left_out": "training steps were left out because a number was not finite",
    "environment_changed": "parts of it were computed with other versions or on another device",
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything that is known of a group.

    Attributes:
        group: The samples.
        against: Comparisons with the reference.
        pairs: All comparisons.
        standings: Who is dominated, by trade.
        views: The views at equal learning and at equal ‖ΔW‖.
        orders: Comparisons with the reference for each order of the tasks alone.
    """

    group: Group
    against: Sequence[Comparison]
    pairs: Sequence[Comparison]
    standings: Sequence[Standing]
    views: Sequence[MatchedView]
    orders: Sequence[tuple[str, Comparison]]


@dataclass(frozen=True)
class Part:
    """A heading and what is said under it."""

    heading: str
    sentences: Sequence[str]


def verdict(study: Study, found: Sequence[Found]) -> list[Part]:
    """The whole verdict.

    Args:
        study: All runs.
        found: What is known of each group.
    """
    parts = []
    if study.choosing:
        parts.append(
            Part("Not to be reported", ["All scores are of rows set aside for choosing settings (evaluate_on=choose)."])
        )
    for one in found:
        prefix = f"{one.group.name}: " if len(found) > 1 else ""
        parts += [
            Part(f"{prefix}{heading}", sentences)
            for heading, sentences in (
                ("In short", list(_short(one))),
                ("Basis", _basis(one)),
                ("Was anything learnt?", list(_learnt(one.group))),
                (f"Against {one.group.reference.label}", list(_against(one))),
                ("What is paid for what is learnt", list(_fronts(one))),
                ("At equal budget", list(_matched(one))),
                ("What would make this worthless", list(_worthless(one))),
            )
            if sentences
        ]
    return parts


def _short(found: Found) -> Iterator[str]:
    """One line a quantity: who is better and worse than the reference beyond chance, and of whom nothing can be said."""
    reference = found.group.reference.label
    for quantity in dict.fromkeys(one.quantity for one in found.against):
        said: dict[str, list[str]] = {}
        for one in found.against:
            if one.quantity == quantity:
                said.setdefault(_standing(one), []).append(one.first.label)
        words = [f"{word} {_few(said[word])}" for word in WORDS if word in said]
        yield f"{quantity.name}, against {reference}: {'. '.join(words)}."


MOST_NAMES = 6
WORDS = (
    "better beyond chance:", "worse beyond chance:", "not distinguishable:", "too few pairs to say:", "no comparison:"
)  # fmt: skip


def _standing(one: Comparison) -> str:
    better, worse, same, few, none = WORDS
    if one.difference is None:
        return none
    if one.difference.widest is None:
        return few
    return {1: better, -1: worse, 0: same}[one.advantage]


def _basis(found: Found) -> list[str]:
    group = found.group
    sizes = sorted({len(one.seeds) for one in group.samples})
    noun = "configuration" if len(group.samples) == 1 else "configurations"
    seeds = ", ".join(map(str, sizes))
    lines = [f"{len(group.samples)} {noun}, {len(group.runs)} runs; seeds of each: {seeds}."]
    if len(group.draws) * len(group.orders) > 1:
        lines.append(
            "A seed counts once, with its mean over draws of rows and orders of the tasks: they share columns, initial values "
            "and batches, so they are no repetitions of their own."
        )
    if max(sizes) < FEWEST_PAIRS:
        lines.append(
            f"With fewer than {FEWEST_PAIRS} seeds nothing is said about which is better: a difference may be chance."
        )
        return lines
    family = sum(one.difference is not None and one.difference.p is not None for one in found.against)
    pairs = sum(one.difference is not None and one.difference.p is not None for one in found.pairs)
    if family:
        lines.append(
            f"{family} comparisons with the reference and {pairs} of all pairs, each family corrected by Holm for looking at so "
            "many. A difference is called one when zero is outside the widest of its 95 % intervals (Student over pairs, "
            "bootstrap over pairs, bootstrap over seeds and test rows) and its corrected p is below 0.05."
        )
        lines.append(_basis_of_rows(found))
    if min(sizes) < FEW_PAIRS:
        lines.append(
            "With so few seeds a bootstrap over them is too narrow (by a factor of √((n − 1) / n) and more in the tails), so "
            "Student's interval stands beside it; that one assumes differences that are roughly normal."
        )
    return lines


def _basis_of_rows(found: Found) -> str:
    """Which differences have an interval over test rows, and that the correction does not reach it."""
    every = [one for one in (*found.against, *found.pairs) if one.difference is not None]
    over_rows = {one.quantity.name for one in every if one.difference and one.difference.crossed is not None}
    names = dict.fromkeys(one.quantity.name for one in every)
    without = "; ".join(name for name in names if name not in over_rows)
    said = f"There is no interval over seeds and test rows of {without}. " if without else ""
    return said + (
        "The correction is of the p of the paired t test, which knows the seeds only: an interval over seeds and test rows is a "
        "further condition, at 95 % for each comparison by itself."
    )


def _learnt(group: Group) -> Iterator[str]:
    for one in group.samples:
        estimate = one.estimate(above_constant)
        if estimate is None:
            yield f"{one.label}: it is not known what a constant answer gets, or the metrics have no common scale."
        elif estimate.half is None or len(one.seeds) < FEWEST_PAIRS:
            said = f"learning is {signed(estimate.mean)} above a constant answer"
            yield f"{one.label}: {said}; {len(one.seeds)} of at least {FEWEST_PAIRS} seeds, too few to say more."
        elif estimate.mean - estimate.half <= 0:
            yield (
                f"{one.label} did not demonstrably learn: learning is {signed(estimate.mean)} ± {estimate.half:.2g} above a "
                "constant answer. That it forgets or drifts little means nothing."
            )
        else:
            yield f"{one.label} learnt: {signed(estimate.mean)} ± {estimate.half:.2g} above a constant answer."
    yield from _not_learnt(group)


def _not_learnt(group: Group) -> Iterator[str]:
    """Tasks whose score right after their own stage is not above a constant answer's, by how many runs."""
    for one in group.samples:
        runs = list(one.runs.values())
        for task in one.first["tasks"]:
            times = sum(
                any(w["code"] == "not_learnt" and w["task"] == task for w in run.record["warnings"]) for run in runs
            )
            if times:
                said = f"{task} was not learnt in {times} of {len(runs)} runs"
                yield f"{one.label}: {said} (its score is not above a constant answer's)."


def _against(found: Found) -> Iterator[str]:
    for one in found.group.others:
        said = [clause(pair) for pair in found.against if pair.first is one]
        if said:
            yield f"{one.label}: {'; '.join(said)}."
    for one in found.group.others:
        pairs = [pair for _, pair in found.orders if pair.first is one]
        for quantity in dict.fromkeys(pair.quantity for pair in pairs):
            yield f"{one.label}, {quantity.name}: {_orders([pair for pair in pairs if pair.quantity == quantity])}."


def _orders(pairs: Sequence[Comparison]) -> str:
    """In how many orders a sample is better and worse, of those that say something: three pairs and more."""
    told = [pair.advantage for pair in pairs if pair.difference is not None and pair.difference.widest is not None]
    rest = len(pairs) - len(told)
    if not told:
        return "no order of the tasks has pairs enough to say anything by itself"
    times = f"better in {told.count(1)}, worse in {told.count(-1)} of {len(told)} orders of the tasks, each order alone"
    return times + (f"; nothing to be said of {rest} more" if rest else "")


def _fronts(found: Found) -> Iterator[str]:
    yield from _off_fronts(found.group)
    for cost in dict.fromkeys(one.cost for one in found.standings):
        here = [one for one in found.standings if one.cost == cost]
        front = [one.sample.label for one in here if one.on_front]
        yield f"Learning against {cost.name}, by the means alone: nothing dominates {_list(front)}."
        beaten = [one for one in here if one.surely_by]
        for standing in beaten:
            yield (
                f"{standing.sample.label} is dominated beyond chance in learning and {cost.name} by {_list(standing.surely_by)}."
            )
        if not beaten and len(here) > 1:
            yield f"Learning against {cost.name}: nothing is dominated beyond chance, so no trade is shown to be better."


def _off_fronts(group: Group) -> Iterator[str]:
    """What cannot stand on a front, and why."""
    without = [one.label for one in group.samples if one.estimate(LEARNING.measure) is None]
    if len(without) == len(group.samples):
        yield "Learning has no value in these runs (metrics without a common scale), so there is no front."
    elif without:
        yield f"No learning, so on no front: {_list(without)}."
    for cost in costs(run.record for run in group.runs):
        absent = [said for one in group.samples if (said := without_value(one, cost))]
        if len(absent) == len(group.samples):
            yield f"No configuration has {cost.name} in all of its runs, so there is no front."
        for said in absent if len(absent) < len(group.samples) else ():
            yield f"{said[0].upper()}{said[1:]}, so it is on no front."
        if not measured_alike((run.record for run in group.runs), cost):
            yield f"{cost.name} was measured on other texts in some runs than in others, so there is no front."


def _matched(found: Found) -> Iterator[str]:
    for view in found.views:
        said = False
        for one in view.found:
            for (a, b), difference in one.differences.items():
                if one.where != MIDDLE or difference is None:
                    continue
                said = True
                yield f"At equal {view.at.name} ({wording.number(one.level)}), {_paid(one.quantity, a, b, difference)}"
        if not said:
            yield f"At equal {view.at.name}: no comparison; {'; '.join(view.reasons)}."


def _paid(quantity: Quantity, a: str, b: str, difference: Difference) -> str:
    name, pairs, interval = quantity.name, pairs_text(difference.n), interval_text(difference.widest)
    if difference.widest is None:
        return f"{name} of {a} and {b}: {pairs}, too few to say anything."
    if not difference.sure:
        return f"{name} of {a} and {b} is not distinguishable (95 % interval of the difference {interval}, {pairs})."
    less, more = (a, b) if difference.mean < 0 else (b, a)
    size = wording.number(abs(difference.mean))
    said = (
        f"{more} has more {name} than {less}" if quantity.better == "higher" else f"{less} has less {name} than {more}"
    )
    return f"{said}, by {size} (95 % interval of {a} minus {b}: {interval}, {pairs})."


def _worthless(found: Found) -> Iterator[str]:
    group = found.group
    sources = {run.record["provenance"].get("source_hash") for run in group.runs}
    if len(sources) > 1:
        yield f"The runs were made by {len(sources)} versions of the package's source; differences may be the code's."
    yield from _edges(group)
    missing = [one for one in found.against if one.reason and one.quantity.key == LEARNING.key]
    for one in missing:
        yield f"{one.first.label} against {one.second.label}: {one.reason}."
    unpaired = [one for one in group.samples if len(one.seeds) < FEWEST_PAIRS]
    if unpaired:
        yield f"Fewer than {FEWEST_PAIRS} seeds, so no statement: {_list([one.label for one in unpaired])}."
    rates = [rate for one in group.samples if (rate := _rate(one)) is not None]
    if len(set(rates)) == 1 and len(rates) > 1:
        yield "All methods ran at the same learning rate: a method at a rate that does not suit it loses for that alone."
    if families(group.samples)[0] and not any(run.chosen_on for run in group.runs):
        yield "Several settings of a method were scored on the reported rows: picking its best afterwards would flatter it."
    if len(group.orders) == 1:
        yield "One order of the tasks only: nothing is known about others."


def _edges(group: Group) -> Iterator[str]:
    """Rates whose best is the first or last that was tried."""
    for family in families(group.samples)[0]:
        means = [one.estimate(LEARNING.measure) for one in family.samples]
        values = [mean.mean for mean in means if mean is not None]
        if len(values) == len(means) and values.index(max(values)) in (0, len(values) - 1):
            best = family.samples[values.index(max(values))]
            where = f"{family.key.rpartition('.')[2]} {best.configuration.settings[family.key]:g}"
            yield f"{family.name}: it learns most at {where}, the edge of what was tried; it may do better beyond."
    for one in group.samples:
        tuned = [run.record["provenance"].get("tuned") or {} for run in one.runs.values()]
        if any(found.get("edge") for found in tuned):
            yield f"{one.label}: its tuned rate is at the edge of what was tried; a better one may lie beyond."
        codes = (
            set()
            if one.head_only
            else {warning["code"] for run in one.runs.values() for warning in run.record["warnings"]}
        )
        for code in sorted(codes & DOUBTFUL.keys()):
            yield f"{one.label}: {DOUBTFUL[code]}."


def _rate(sample: Sample) -> float | None:
    value = sample.setting("lr")
    return float(value) if isinstance(value, int | float) and not sample.head_only else None


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    more = len(names) - MOST_NAMES
    return _list(names) if more <= 0 else f"{_list(names[:MOST_NAMES])} and {more} more"


def _list(names: Sequence[str]) -> str:
    return "; ".join(names) if names else "nobody"
