"""Methods at the same budget: equal parameters, ‖ΔW‖ or learning, the latter two by interpolating over a swept number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from curlora_lab.report.analysis.quantities import LEARNING, UPDATE_NORM, Quantity, costs, measured_alike
from curlora_lab.report.analysis.samples import Group, Sample
from curlora_lab.report.analysis.statistics import Difference, corrected, paired
from curlora_lab.report.study import Estimate, is_number, mean_of

TOLERANCE = 0.1
LEVELS = (0.25, 0.5, 0.75)
"""Where in the common range is compared; conclusions look at the middle one only, which is fixed before looking."""
MIDDLE = 0.5


@dataclass(frozen=True, kw_only=True)
class Family:
    """Samples that differ in one number only.

    Attributes:
        name: What they share.
        key: The setting that was swept.
        samples: The samples, by ascending number.
    """

    name: str
    key: str
    samples: Sequence[Sample]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What families pay, and at equal ‖ΔW‖ also learn, at the same value of something.

    Attributes:
        at: What is equal.
        level: Its value.
        where: Place in the common range, from 0 to 1.
        quantity: A cost, or learning.
        means: Interpolated quantity of each family: mean over seeds.
        differences: Paired differences between families by their names, first minus second, corrected over this view.
    """

    at: Quantity
    level: float
    where: float
    quantity: Quantity
    means: Mapping[str, Estimate]
    differences: Mapping[tuple[str, str], Difference | None]


@dataclass(frozen=True, kw_only=True)
class MatchedView:
    """A view at equal budget.

    Attributes:
        at: What is equal.
        found: What was found at each level.
        reasons: Where and why no interpolation was possible.
    """

    at: Quantity
    found: Sequence[Matched] = ()
    reasons: Sequence[str] = field(default=())


def equal_parameters(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples whose adapters have the same number of parameters: the largest at most 10 % above the smallest.

    Args:
        samples: Samples of one group.

    Returns:
        Groups of samples by ascending number.
    """
    groups: list[list[Sample]] = []
    for one in sorted(samples, key=lambda one: one.first["parameters"]["adapter"]):
        smallest = groups[-1][0].first["parameters"]["adapter"] if groups else -1
        if groups and one.first["parameters"]["adapter"] <= (1 + TOLERANCE) * smallest:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def families(samples: Sequence[Sample]) -> tuple[list[Family], list[str]]:
    """Samples that differ in one number only; of several swept numbers the learning rate.

    Args:
        samples: Samples of one group.

    Returns:
        The families of two or more, and the labels of samples that belong to none.
    """
    keys = dict.fromkeys(
        key for one in samples for key, value in one.configuration.settings.items() if is_number(value)
    )
    best: list[Family] = []
    for key in sorted(keys, key=lambda key: (key != "lr", list(keys).index(key))):
        taken = {id(one) for family in best for one in family.samples}
        grouped: dict[str, list[Sample]] = {}
        for one in samples:
            settings = one.configuration.settings
            if id(one) not in taken and is_number(settings.get(key)):
                others = " · ".join(_word(k, v) for k, v in settings.items() if k != key)
                grouped.setdefault(others or one.configuration.method, []).append(one)
        for name, found in grouped.items():
            if len(found) > 1:
                unique = name if all(name != family.name for family in best) else f"{name} by {key.rpartition('.')[2]}"
                found.sort(key=lambda one: float(one.configuration.settings[key]))
                best.append(Family(name=unique, key=key, samples=found))
    taken = {id(one) for family in best for one in family.samples}
    return best, [one.label for one in samples if id(one) not in taken]


def _word(key: str, value: object) -> str:
    return f"{key.rpartition('.')[2]} {value:g}" if isinstance(value, int | float) else str(value)


def looked_at(group: Group, at: Quantity) -> list[Quantity]:
    """What is compared where one quantity is equal: costs, and learning, since what learns nothing costs nothing.

    Args:
        group: Samples that can be compared.
        at: What is made equal.

    Returns:
        The quantities; without those that were not measured on the same text in all runs.
    """
    records = [run.record for run in group.runs]
    quantities = [*([LEARNING] if at.key != LEARNING.key else []), *costs(records)]
    return [one for one in quantities if measured_alike(records, one)]


def matched_view(group: Group, at: Quantity) -> MatchedView:
    """What each family pays at the same value of one quantity, interpolated for each seed and then taken over seeds.

    Only the part of a family's curve that rises with the swept number, up to its highest point, is used; a seed whose curve
    turns before that is left out and named. The levels lie inside the range that all curves reach. Where all families
    together have no common range, pairs that have one are compared.

    Args:
        group: Samples that can be compared.
        at: What is made equal: learning, or ‖ΔW‖.
    """
    found, alone = families(group.samples)
    reasons = [f"one point only, so nothing to interpolate between: {'; '.join(alone)}"] if alone else []
    curves: dict[str, dict[str, list[Sample]]] = {}
    for family in found:
        rising = _rising(family, at, reasons)
        if rising:
            curves[family.name] = rising
    if len(curves) < 2:
        return MatchedView(at=at, reasons=[*reasons, "fewer than two methods were run at several values of a number"])
    quantities = looked_at(group, at)
    sets = [tuple(curves)]
    if _range(curves, at) is None:
        sets = [(a, b) for k, a in enumerate(curves) for b in list(curves)[k + 1 :]]
    made: list[Matched] = []
    for names in sets:
        chosen = {name: curves[name] for name in names}
        span = _range(chosen, at)
        if span is None:
            reasons.append(f"no value of {at.name} that all seeds of {' and '.join(names)} reach")
            continue
        made += [_at_level(chosen, at, span, where, quantity) for quantity in quantities for where in LEVELS]
    return MatchedView(at=at, found=_corrected(made), reasons=reasons)


def views(group: Group) -> list[MatchedView]:
    """The views at equal learning and at equal ‖ΔW‖."""
    return [matched_view(group, LEARNING), matched_view(group, UPDATE_NORM)]


def _rising(family: Family, at: Quantity, reasons: list[str]) -> dict[str, list[Sample]]:
    """By seed the samples on the rising part of the curve."""
    values = [one.values(at.measure) for one in family.samples]
    if any(one is None for one in values):
        reasons.append(f"{family.name}: {at.name} is missing")
        return {}
    there = [one for one in values if one is not None]
    found, turned = {}, []
    for seed in (seed for seed in there[0] if all(seed in one for one in there)):
        curve = [one[seed] for one in there]
        top = curve.index(max(curve))
        if top > 0 and all(a < b for a, b in pairwise(curve[: top + 1])):
            found[seed] = list(family.samples[: top + 1])
        else:
            turned.append(seed)
    short = family.key.rpartition(".")[2]
    if turned:
        reasons.append(
            f"{family.name}: {at.name} does not rise with {short} up to its highest point, seed {', '.join(turned)}"
        )
    return found


def _range(curves: Mapping[str, Mapping[str, Sequence[Sample]]], at: Quantity) -> tuple[float, float] | None:
    """Values that all curves reach."""
    low, high = float("-inf"), float("inf")
    for seeds in curves.values():
        for seed, samples in seeds.items():
            low = max(low, _value(samples[0], at, seed))
            high = min(high, _value(samples[-1], at, seed))
    return (low, high) if low < high else None


def _value(sample: Sample, quantity: Quantity, seed: str) -> float:
    values = sample.values(quantity.measure) or {}
    return values[seed]


def _at_level(
    curves: Mapping[str, Mapping[str, Sequence[Sample]]],
    at: Quantity,
    span: tuple[float, float],
    where: float,
    quantity: Quantity,
) -> Matched:
    level = span[0] + where * (span[1] - span[0])
    paid = {
        name: {seed: _interpolated(samples, seed, at, level, quantity) for seed, samples in seeds.items()}
        for name, seeds in curves.items()
    }
    names = list(paid)
    known = {name: {seed: value for seed, value in seeds.items() if value is not None} for name, seeds in paid.items()}
    return Matched(
        at=at,
        level=level,
        where=where,
        quantity=quantity,
        means={name: mean_of(list(values.values())) for name, values in known.items() if values},
        differences={
            (a, b): paired(known[a], known[b], position=["matched", at.key, quantity.key])
            for k, a in enumerate(names)
            for b in names[k + 1 :]
        },
    )


def _interpolated(samples: Sequence[Sample], seed: str, at: Quantity, level: float, quantity: Quantity) -> float | None:
    """A quantity at a level between the two neighbours on the rising curve, on the straight line between them."""
    x = [_value(one, at, seed) for one in samples]
    y = [one.values(quantity.measure) for one in samples]
    for k in range(1, len(x)):
        before, after = y[k - 1], y[k]
        if x[k - 1] <= level <= x[k] and before is not None and after is not None:
            share = (level - x[k - 1]) / (x[k] - x[k - 1])
            return before[seed] + share * (after[seed] - before[seed])
    return None


def _corrected(made: Sequence[Matched]) -> list[Matched]:
    """Holm over the middle levels, where conclusions are drawn; the other levels are for looking."""
    middle = [one for one in made if one.where == MIDDLE]
    family = corrected([difference for one in middle for difference in one.differences.values()])
    fixed = iter(family)
    return [
        one
        if one.where != MIDDLE
        else Matched(**{**vars(one), "differences": {name: next(fixed) for name in one.differences}})
        for one in made
    ]
