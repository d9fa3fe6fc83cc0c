"""Laws of the continual metrics that hold for every score matrix."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curlora_lab.metrics.continual import average, average_incremental, bwt, bwt_gem, forgetting, fwt, gain, learning


@st.composite
def sequential_matrices(draw: st.DrawFn) -> tuple[list[list[float]], list[str]]:
    tasks = draw(st.integers(2, 6))
    scores = draw(
        st.lists(st.lists(st.floats(0, 1), min_size=tasks, max_size=tasks), min_size=tasks + 1, max_size=tasks + 1)
    )
    return scores, [f"task{j}" for j in range(tasks)]


@settings(max_examples=60)
@given(sequential_matrices())
def test_average_is_learning_plus_transfer(matrix) -> None:
    scores, tasks = matrix
    share = (len(tasks) - 1) / len(tasks)
    assert average(scores, tasks)[0] == pytest.approx(learning(scores, tasks)[0] + share * bwt(scores, tasks)[0])
    assert bwt_gem(scores, tasks)[0] == pytest.approx(share * bwt(scores, tasks)[0])


@settings(max_examples=60)
@given(sequential_matrices())
def test_forgetting_is_at_least_minus_bwt(matrix) -> None:
    scores, tasks = matrix
    assert forgetting(scores, tasks)[0] >= -bwt(scores, tasks)[0] - 1e-12


@settings(max_examples=60)
@given(sequential_matrices(), st.floats(-1, 1))
def test_a_constant_added_to_all_scores_changes_levels_only(matrix, shift) -> None:
    scores, tasks = matrix
    moved = [[value + shift for value in row] for row in scores]
    for level in (average, learning, average_incremental):
        assert level(moved, tasks)[0] == pytest.approx(level(scores, tasks)[0] + shift, abs=1e-9)
    for difference in (bwt, fwt, forgetting, bwt_gem):
        assert difference(moved, tasks)[0] == pytest.approx(difference(scores, tasks)[0], abs=1e-9)


@settings(max_examples=60)
@given(sequential_matrices(), st.randoms(use_true_random=False))
def test_the_order_of_columns_does_not_matter(matrix, random) -> None:
    scores, tasks = matrix
    order = list(range(len(tasks)))
    random.shuffle(order)
    moved = [[row[j] for j in order] for row in scores]
    names, trained_at = [tasks[j] for j in order], [j + 1 for j in order]
    for metric in (average, learning, bwt, fwt, forgetting, bwt_gem, average_incremental):
        assert metric(moved, names, trained_at)[0] == pytest.approx(metric(scores, tasks)[0], abs=1e-12)


@settings(max_examples=60)
@given(sequential_matrices())
def test_a_frozen_model_neither_forgets_nor_transfers(matrix) -> None:
    scores, tasks = matrix
    frozen = [scores[0]] * len(scores)
    assert bwt(frozen, tasks)[0] == fwt(frozen, tasks)[0] == forgetting(frozen, tasks)[0] == 0
    assert average(frozen, tasks) == learning(frozen, tasks)


@settings(max_examples=60)
@given(sequential_matrices(), st.floats(0.1, 10), st.floats(-5, 5))
def test_gain_does_not_depend_on_the_unit(matrix, scale, shift) -> None:
    scores, tasks = matrix
    low, high = [0.1] * len(tasks), [0.9] * len(tasks)

    def convert(values):
        return [scale * value + shift for value in values]

    moved = gain([convert(row) for row in scores], tasks, convert(low), convert(high))[0]
    assert moved == pytest.approx(gain(scores, tasks, low, high)[0], abs=1e-6)
    assert gain([low] * len(scores), tasks, low, high)[0] == 0
    assert gain([high] * len(scores), tasks, low, high)[0] == pytest.approx(1)
