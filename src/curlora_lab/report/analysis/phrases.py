"""Numbers and differences in words."""

from curlora_lab.report import wording
from curlora_lab.report.analysis.comparisons import Comparison
from curlora_lab.report.analysis.statistics import Difference, Interval
from curlora_lab.report.study import Estimate


def signed(value: float | None) -> str:
    """A difference with three significant digits and its sign, such as ``+0.0213``."""
    if value is None:
        return wording.MISSING
    return "0" if abs(value) < wording.ROUNDING else f"{value:+.3g}".replace("-", wording.MINUS)


def estimate_text(one: Estimate | None) -> str:
    """A mean with half of its interval, such as ``0.813 ± 0.075``."""
    if one is None:
        return wording.MISSING
    mean = wording.number(one.mean)
    return mean if one.half is None else f"{mean} ± {f'{one.half:.2g}' if one.half >= wording.ROUNDING else 0}"


def interval_text(one: Interval | None) -> str:
    """Both ends, such as ``+0.01 to +0.04``."""
    return wording.MISSING if one is None else f"{signed(one.low)} to {signed(one.high)}"


def p_text(p: float | None) -> str:
    """A p value: two significant digits, or below what is worth saying."""
    return wording.MISSING if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def difference_text(one: Difference) -> str:
    """Mean, widest interval, pairs, corrected p."""
    if one.widest is None:
        return f"{signed(one.mean)}, {pairs_text(one.n)}: too few for an interval"
    sure = "" if one.sure else ", not distinguishable"
    return f"{signed(one.mean)} ({interval_text(one.widest)}, {pairs_text(one.n)}, p {p_text(one.adjusted)}){sure}"


def pairs_text(n: int) -> str:
    """How many pairs."""
    return f"{n} pair{'s' if n != 1 else ''}"


def clause(one: Comparison) -> str:
    """A comparison as part of a sentence, such as ``learning higher by 0.05 (…)``, or that nothing can be told apart."""
    name, difference = one.quantity.name, one.difference
    if difference is None:
        return f"{name}: no comparison ({one.reason})"
    if difference.widest is None:
        return f"{name}: {signed(difference.mean)} in {pairs_text(difference.n)}, too few to say anything"
    interval, pairs = interval_text(difference.widest), pairs_text(difference.n)
    detail = f"95 % interval {interval}, {pairs}, corrected p {p_text(difference.adjusted)}"
    if not difference.sure:
        return f"{name} not distinguishable ({signed(difference.mean)}; {detail})"
    way = "higher" if difference.mean > 0 else "lower"
    worth = {1: ", which is better", -1: ", which is worse"}.get(one.advantage, "")
    return f"{name} {way} by {wording.number(abs(difference.mean))}{worth} ({detail})"
