"""What a sceptic asks of a comparison of small adapters, answered by numbers of these runs or not at all."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from curlora_lab.report import wording
from curlora_lab.report.analysis.comparisons import Comparison
from curlora_lab.report.analysis.matched import MIDDLE, MatchedView
from curlora_lab.report.analysis.phrases import clause, difference_text, estimate_text
from curlora_lab.report.analysis.quantities import LEARNING, UPDATE_NORM, UPDATE_RATIO, constant_mean, flags
from curlora_lab.report.analysis.samples import Group, Sample, by_seed
from curlora_lab.report.study import Estimate, mean_of

NOT_ASKED = "not asked by these runs"
CURLORA = "CurLoraConfig"
#: Fields of ``diagnostics.json`` by where they stand and what they are called there.
BASIS_FIELDS = ("column_norm_spread", "row_norm_spread", "column_kl", "row_kl", "reconstruction_error")
ENERGY_FIELDS = ("captured", "ceiling", "expected")


@dataclass(frozen=True, kw_only=True)
class Doubts:
    """What a sceptic wants to know of one sample; means over seeds, stages and modules.

    Attributes:
        sample: The sample.
        numbers: By name; ``None`` where the runs do not hold it.
        head_share: Share of what was learnt above a constant answer that training the heads alone reaches too.
    """

    sample: Sample
    numbers: dict[str, Estimate | None]
    head_share: Estimate | None


@dataclass(frozen=True)
class Answer:
    """A sceptic's question and what these runs say to it."""

    question: str
    answers: Sequence[str]


def doubts(group: Group) -> list[Doubts]:
    """The sceptic's table.

    Args:
        group: Samples that can be compared.
    """
    head = next((one for one in group.samples if one.head_only), None)
    return [_doubts(one, head) for one in group.samples]


def _doubts(sample: Sample, head: Sample | None) -> Doubts:
    measured = [(run, _diagnostics(run.folder)) for run in sample.runs.values()]
    by_field = {
        name: by_seed((run, found.get(name)) for run, found in measured) for name in (*BASIS_FIELDS, *ENERGY_FIELDS)
    }
    numbers: dict[str, Estimate | None] = {
        **{name: None if values is None else mean_of(list(values.values())) for name, values in by_field.items()},
        "update_ratio": sample.estimate(UPDATE_RATIO.measure),
        "update_norm": sample.estimate(UPDATE_NORM.measure),
        "stable_rank": sample.estimate(_stable_rank),
        "constant_predictions": sample.estimate(flags("constant_prediction")),
        "below_constant": sample.estimate(flags("below_constant")),
        "not_learnt": sample.estimate(flags("not_learnt")),
    }
    return Doubts(sample=sample, numbers=numbers, head_share=_head_share(sample, head))


def _diagnostics(folder: Path) -> dict[str, float]:
    """Means over modules, and of what is measured in every stage over stages too."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("stage_*/diagnostics.json")):
        stage = _object(path)
        for section, fields in (("basis", BASIS_FIELDS), ("gradient_energy", ENERGY_FIELDS)):
            modules = stage.get(section)
            for module in modules.values() if isinstance(modules, dict) else ():
                for name in fields:
                    value = module.get(name) if isinstance(module, dict) else None
                    if isinstance(value, int | float):
                        found.setdefault(name, []).append(float(value))
    return {name: fmean(values) for name, values in found.items()}


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _stable_rank(record: Any) -> float | None:
    value = (record["shift"]["weight"][wording.last_row(record)] or {}).get("stable_rank")
    return float(value) if isinstance(value, int | float) else None


def _head_share(sample: Sample, head: Sample | None) -> Estimate | None:
    """Mean over seeds of (learning of the heads alone − constant) / (learning − constant), where something was learnt."""
    constant = constant_mean(sample.first)
    own, alone = sample.values(LEARNING.measure), None if head is None else head.values(LEARNING.measure)
    if head is None or head is sample or constant is None or own is None or alone is None:
        return None
    shares = [
        (alone[seed] - constant) / (own[seed] - constant) for seed in own if seed in alone and own[seed] > constant
    ]
    return mean_of(shares) if shares and len(shares) == len(own) else None


def questions(group: Group, pairs: Sequence[Comparison], views: Sequence[MatchedView]) -> list[Answer]:
    """Questions 1 to 5 that any claim for such a method has to answer.

    Args:
        group: Samples that can be compared.
        pairs: All pairs of samples.
        views: The views at equal learning and at equal ‖ΔW‖.
    """
    found = [
        Answer("1. How far are C and R from W?", _reconstruction(group)),
        Answer("2. Do inverted probabilities matter?", _between(group, pairs, _inverse, _other_basis)),
        Answer("3. Is it only the low rank, or the few parameters?", _between(group, pairs, _inverse, _other_method)),
        Answer("4. Is it only a small step?", _at_equal_step(views)),
        Answer("5. Is it only the stored heads?", _heads(group, pairs)),
    ]
    return [one if one.answers else Answer(one.question, [NOT_ASKED]) for one in found]


def _curlora(sample: Sample) -> bool:
    return str(sample.setting("adapter", "_target_")).rpartition(".")[2] == CURLORA


def _inverse(sample: Sample) -> bool:
    return _curlora(sample) and sample.setting("adapter", "basis") == "inverse_norm"


def _other_basis(sample: Sample) -> bool:
    return _curlora(sample) and not _inverse(sample)


def _other_method(sample: Sample) -> bool:
    """Rivals that differ in more than which columns and rows are drawn: singular vectors, LoRA and its kin."""
    trains = not sample.head_only and sample.setting("adapter", "name") != "full"
    return trains and (not _curlora(sample) or sample.setting("adapter", "basis") == "svd_top")


def _reconstruction(group: Group) -> list[str]:
    lines = []
    for one in group.samples:
        error = _doubts(one, None).numbers["reconstruction_error"] if _curlora(one) else None
        if error is not None:
            lines.append(f"{one.label}: ‖W − C U* R‖ / ‖W‖ = {estimate_text(error)} with the best core U*")
    return lines


def _between(
    group: Group, pairs: Sequence[Comparison], left: Callable[[Sample], bool], right: Callable[[Sample], bool]
) -> list[str]:
    """What the pairs of two kinds of samples say."""
    lines = []
    for a in filter(left, group.samples):
        for b in filter(right, group.samples):
            found = [oriented for one in pairs if (oriented := _oriented(one, a, b)) is not None]
            said = [clause(one) for one in found if one.difference is not None]
            if said and b is not a:
                sizes = [wording.count(one.first["parameters"]["adapter"]) for one in (a, b)]
                lines.append(f"{a.label} ({sizes[0]} parameters) against {b.label} ({sizes[1]}): {'; '.join(said)}")
    return lines


def _oriented(one: Comparison, a: Sample, b: Sample) -> Comparison | None:
    """The comparison as a minus b."""
    if one.first is a and one.second is b:
        return one
    if one.first is b and one.second is a:
        difference = one.difference.mirrored() if one.difference else None
        return Comparison(first=a, second=b, quantity=one.quantity, difference=difference, reason=one.reason)
    return None


def _at_equal_step(views: Sequence[MatchedView]) -> list[str]:
    lines = []
    for view in views:
        for one in view.found:
            for (a, b), difference in one.differences.items():
                if one.where == MIDDLE and difference is not None and view.at.key == UPDATE_NORM.key:
                    text = difference_text(difference)
                    lines.append(
                        f"at ‖ΔW‖ = {wording.number(one.level)}: {one.quantity.name} of {a} minus that of {b}: {text}"
                    )
    return lines


def _heads(group: Group, pairs: Sequence[Comparison]) -> list[str]:
    head = next((one for one in group.samples if one.head_only), None)
    lines = []
    if head is not None:
        for one in group.samples:
            share = _head_share(one, head)
            found = [o for pair in pairs if pair.quantity.key == LEARNING.key and (o := _oriented(pair, one, head))]
            said = [clause(pair) for pair in found if pair.difference is not None]
            if one is not head and said:
                reached = f"; the heads alone reach {100 * share.mean:.0f} % of what it learns" if share else ""
                lines.append(f"{one.label} against heads alone: {said[0]}{reached}")
    shared = [
        one for one in group.samples if "LabelWords" in json.dumps(one.setting("sequence") or one.setting("task"))
    ]
    lines += [f"{one.label} has no heads of its own: the LM head answers" for one in shared]
    return lines
