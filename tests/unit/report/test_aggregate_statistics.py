import math

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_1samp, ttest_rel

from curlora_lab.report.analysis.statistics import (
    Difference,
    Interval,
    bootstrap_mean,
    corrected,
    generator_at,
    holm,
    paired,
)


def named(values) -> dict[str, float]:
    return {str(k): value for k, value in enumerate(values)}


def test_paired_difference_by_hand() -> None:
    # Differences 0.1, 0.2, 0.3: mean 0.2, s = 0.1, t(0.975, 2) = 4.302653, half = 4.302653 * 0.1 / sqrt(3) = 0.248414.
    found = paired(named([0.6, 0.8, 1.0]), named([0.5, 0.6, 0.7]), position=["x"])
    assert found.n == 3
    assert found.mean == pytest.approx(0.2)
    assert found.student.low == pytest.approx(0.2 - 0.248414, abs=1e-6)
    assert found.student.high == pytest.approx(0.2 + 0.248414, abs=1e-6)
    assert found.p == pytest.approx(ttest_rel([0.6, 0.8, 1.0], [0.5, 0.6, 0.7]).pvalue)
    assert 0.1 - 1e-12 <= found.bootstrap.low < found.bootstrap.high <= 0.3 + 1e-12
    assert found.bootstrap.width < found.student.width


def test_only_common_units_make_pairs() -> None:
    first, second = {"0": 1.0, "1": 5.0}, {"0": 0.5, "7": 9.0}
    found = paired(first, second, position=["x"])
    assert (found.n, found.mean, found.widest) == (1, 0.5, None)
    assert not found.sure
    assert paired({"0": 1.0}, {"1": 1.0}, position=["x"]) is None


def test_two_pairs_have_no_interval_and_are_never_sure() -> None:
    found = corrected([paired(named([1.0, 1.0]), named([0.0, 0.0]), position=["x"])])[0]
    assert (found.student, found.bootstrap, found.widest, found.sure) == (None, None, None, False)


def test_against_itself_nothing_is_distinguishable() -> None:
    values = named([0.7, 0.8, 0.75, 0.71])
    (found,) = corrected([paired(values, values, position=["x"])])
    assert (found.mean, found.p, found.sure) == (0.0, 1.0, False)
    assert found.widest == Interval(0.0, 0.0)


def test_rounding_errors_are_no_difference() -> None:
    first = named([0.1 + 0.2] * 4)
    (found,) = corrected([paired(first, named([0.3] * 4), position=["x"])])
    assert (found.mean, found.sure) == (0.0, False)


@pytest.mark.parametrize(("pairs", "sure"), [(3, False), (5, False), (6, True)])
def test_the_same_difference_in_every_pair_is_as_sure_as_signs_can_make_it(pairs: int, sure: bool) -> None:
    """All signs alike has a chance of 2 in 2^n under the null hypothesis: no spread over three seeds is no certainty."""
    base = np.arange(pairs) / 4
    (found,) = corrected([paired(named(base + 1 / 64), named(base), position=["x"])])
    exact = permutation_test((np.full(pairs, 1 / 64),), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.p == pytest.approx(exact.pvalue)
    assert found.sure is sure


def test_bootstrap_is_reproducible_and_depends_on_its_place() -> None:
    values = [0.1, 0.4, 0.2, 0.7, 0.35]
    assert bootstrap_mean(values, position=["a"]) == bootstrap_mean(values, position=["a"])
    assert bootstrap_mean(values, position=["a"]) != bootstrap_mean(values, position=["b"])


def test_bootstrap_of_many_values_is_the_normal_interval() -> None:
    values = generator_at("test").normal(3.0, 2.0, size=400)
    found, half = bootstrap_mean(list(values), position=["a"]), 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_interval_and_p_are_those_of_scipy() -> None:
    generator = generator_at("scipy")
    for n in (3, 5, 20):
        first, second = generator.normal(size=(2, n))
        found, test = paired(named(first), named(second), position=["x"]), ttest_1samp(first - second, 0.0)
        assert found.p == pytest.approx(test.pvalue)
        ends = test.confidence_interval(0.95)
        assert (found.student.low, found.student.high) == pytest.approx((ends.low, ends.high))


def test_coverage_of_the_interval_over_five_pairs() -> None:
    """Student holds what it promises with five pairs, the bootstrap does not: why both are given and the wider counts."""
    generator, covered, too_narrow, trials = generator_at("coverage"), 0, 0, 600
    for trial in range(trials):
        values = generator.normal(0.3, 1.0, size=5)
        found = paired(named(values), named(np.zeros(5)), position=[trial])
        covered += not found.widest.excludes(0.3)
        too_narrow += found.bootstrap.excludes(0.3)
    assert covered / trials == pytest.approx(0.95, abs=0.025)
    assert too_narrow / trials > 0.1


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.04: times 3, 2, 1 and never falling.
    assert holm([0.04, None, 0.01, 0.02]) == pytest.approx([0.04, None, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_false_discoveries_rare() -> None:
    generator = generator_at("family")
    wrong = sum(min(holm(list(generator.uniform(size=20)))) < 0.05 for _ in range(1000))
    assert wrong / 1000 == pytest.approx(0.05, abs=0.02)


def test_widest_interval_and_correction_both_have_to_agree() -> None:
    narrow, wide = Interval(0.1, 0.2), Interval(-0.1, 0.4)
    assert Difference(mean=0.15, n=5, student=narrow, bootstrap=narrow, p=0.01, adjusted=0.01).sure
    assert not Difference(mean=0.15, n=5, student=narrow, bootstrap=narrow, p=0.01, adjusted=0.2).sure
    assert not Difference(mean=0.15, n=5, student=narrow, bootstrap=narrow, crossed=wide, p=0.01, adjusted=0.01).sure
    assert Difference(mean=0.15, n=5, student=narrow, bootstrap=narrow, rows=wide, p=0.01, adjusted=0.01).sure


def test_mirrored_twice_is_the_same() -> None:
    found = paired(named([0.6, 0.8, 1.1]), named([0.5, 0.6, 0.7]), position=["x"])
    assert found.mirrored().mirrored() == found
    assert found.mirrored().student == Interval(-found.student.high, -found.student.low)
