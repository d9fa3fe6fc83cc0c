"""The pictures of an analysis: what is paid for what is learnt, and how far each configuration is from the reference."""

from collections.abc import Sequence

from curlora_lab.report import wording
from curlora_lab.report.analysis.comparisons import Comparison
from curlora_lab.report.analysis.matched import MatchedView, families, looked_at
from curlora_lab.report.analysis.phrases import estimate_text
from curlora_lab.report.analysis.quantities import LEARNING, Quantity
from curlora_lab.report.analysis.samples import Group
from curlora_lab.report.analysis.verdict import Found
from curlora_lab.report.figures import Figure, Lines, Point, Reference, Scatter, Series, slug

MOST_POINTS = 24


def pictures(found: Sequence[Found]) -> dict[str, list[Figure]]:
    """All pictures by section.

    Args:
        found: What is known of each group.

    Returns:
        ``trade``: fronts; ``against``: differences from the reference; ``paths``: what each method pays as its setting grows.
    """
    several = len(found) > 1
    sections: dict[str, list[Figure]] = {"trade": [], "against": [], "paths": []}
    for one in found:
        suffix = f" · {one.group.name}" if several else ""
        sections["trade"] += [_trade(one.group, cost, suffix) for cost in looked_at(one.group, LEARNING)]
        sections["against"] += _differences(one, suffix)
        sections["paths"] += [
            _path(one.group, view, quantity, suffix) for view in one.views for quantity in looked_at(one.group, view.at)
        ]
    return {name: [one for one in figures if not one.empty] for name, figures in sections.items()}


def _trade(group: Group, cost: Quantity, suffix: str) -> Scatter:
    points, methods = [], list(dict.fromkeys(one.configuration.method for one in group.samples))
    for one in group.samples:
        x, y = one.estimate(cost.measure), one.estimate(LEARNING.measure)
        if x is not None and y is not None:
            hover = f"{one.label}\nlearning {estimate_text(y)}\n{cost.name} {estimate_text(x)}\n{len(one.seeds)} seeds"
            points.append(
                Point(
                    name=one.label, group=one.configuration.method, x=x.mean, y=y.mean, x_half=x.half, y_half=y.half, hover=hover,
                    colour=methods.index(one.configuration.method),
                )
            )  # fmt: skip
    title = f"Learning against {cost.name}{suffix}"
    return Scatter(
        name=f"front-{slug(cost.key)}",
        title=title,
        description=f"{title} of {len(points)} configurations; up is more learnt, left is less harm.",
        x_label=cost.name + (" (nats a token)" if cost.key.startswith("drift/") else ""),
        y_label="learning",
        points=points,
    )


def _differences(found: Found, suffix: str) -> list[Figure]:
    """For each quantity a point a configuration with its widest interval; zero is the reference."""
    figures: list[Figure] = []
    for quantity in dict.fromkeys(one.quantity for one in found.against):
        here = [one for one in found.against if one.quantity == quantity and one.difference is not None][:MOST_POINTS]
        series = [_point(one, number) for number, one in enumerate(here)]
        title = f"{quantity.name} minus that of {found.group.reference.label}{suffix}"
        figures.append(
            Lines(
                name=f"difference-{slug(quantity.key)}",
                title=title,
                description=f"{title}: mean and widest 95 % interval, a point a configuration.",
                x_label="configuration",
                y_label=f"Δ {quantity.name}",
                series=series,
                references=[Reference(name=found.group.reference.label, value=0.0)],
            )
        )
    return figures


def _point(one: Comparison, colour: int) -> Series:
    difference = one.difference
    widest = difference.widest if difference else None
    return Series(
        name=f"#{colour + 1} {one.first.label}",
        x=[f"#{colour + 1}"],  # a label would not fit below the axis
        y=[difference.mean if difference else None],
        low=[widest.low] if widest else None,
        high=[widest.high] if widest else None,
        hover=[f"{one.first.label}\n{wording.number(difference.mean) if difference else wording.MISSING}"],
        colour=colour,
    )


def _path(group: Group, view: MatchedView, quantity: Quantity, suffix: str) -> Lines:
    """Means of one quantity against means of what is made equal, a line a method, from its smallest setting to its largest."""
    series = []
    for number, family in enumerate(families(group.samples)[0]):
        points = [(one.estimate(view.at.measure), one.estimate(quantity.measure), one.label) for one in family.samples]
        known = [(x.mean, y, label) for x, y, label in points if x is not None and y is not None]
        if len(known) > 1:
            series.append(
                Series(
                    name=family.name,
                    x=[x for x, _, _ in known],
                    y=[y.mean for _, y, _ in known],
                    low=[y.mean - (y.half or 0) for _, y, _ in known],
                    high=[y.mean + (y.half or 0) for _, y, _ in known],
                    hover=[
                        f"{label}\n{view.at.name} {wording.number(x)}\n{quantity.name} {estimate_text(y)}"
                        for x, y, label in known
                    ],
                    colour=number,
                )
            )
    title = f"{quantity.name} against {view.at.name}{suffix}"
    return Lines(
        name=f"path-{slug(view.at.key)}-{slug(quantity.key)}",
        title=title,
        description=f"{title}, a line a method through the settings that were swept.",
        x_label=view.at.name,
        y_label=quantity.name,
        series=series,
    )
