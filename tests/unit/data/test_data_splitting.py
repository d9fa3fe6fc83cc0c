"""Laws of the samples that are drawn from the rows."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curlora_lab.data.chance import generator_at
from curlora_lab.data.checks import Example
from curlora_lab.data.splitting import carve, few_shot, split_train, stratified_sample, take_evaluation

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80)


def examples(labels: list[int]) -> list[Example]:
    return [Example(f"toy:{i}", str(i), (f"text {i}",), label, {}) for i, label in enumerate(labels)]


@given(LABELS, st.data())
def test_a_stratified_sample_keeps_shares_to_within_one(labels: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, len(labels)))
    seed = data.draw(st.integers(0, 5))
    chosen = stratified_sample(labels, n, generator_at("x", seed))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == n
    counted = Counter(labels[position] for position in chosen)
    for label, size in Counter(labels).items():
        assert abs(counted[label] - n * size / len(labels)) < 1
    assert chosen == stratified_sample(labels, n, generator_at("x", seed))


def test_a_stratified_sample_is_uniform_within_a_label() -> None:
    # 2 of 5 rows of one label, 6000 draws: each row is expected 2400 times, standard deviation 38.
    generator = torch.Generator().manual_seed(0)
    counted = Counter(position for _ in range(6000) for position in stratified_sample([0] * 5, 2, generator))
    assert all(abs(count - 2400) < 4 * 38 for count in counted.values())


@pytest.mark.parametrize("n", [-1, 4])
def test_a_sample_larger_than_its_rows_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n is {n}: 3 rows can give 0 to 3"):
        stratified_sample([0, 1, 0], n, generator_at("x"))


@given(LABELS, st.data())
def test_carve_divides(labels: list[int], data: st.DataObject) -> None:
    rows = examples(labels)
    inside, outside = carve(rows, data.draw(st.integers(0, len(rows))), generator_at("x"))
    assert sorted([*inside, *outside], key=lambda example: int(example.row_id)) == rows
    assert [int(example.row_id) for example in outside] == sorted(int(example.row_id) for example in outside)


@given(
    LABELS,
    st.none() | st.integers(1, 100),
    st.floats(0, 0.6),
    st.integers(0, 3),
    st.sampled_from(["random", "first"]),
    st.booleans(),
)
def test_train_and_choose_are_disjoint_and_of_the_stated_size(
    labels: list[int], rows: int | None, fraction: float, seed: int, subset: str, own: bool
) -> None:
    train, choose = split_train(
        examples(labels), rows=rows, fraction=fraction, seed=seed, subset=subset, own_choose=own
    )
    ids = [example.row_id for example in [*train, *choose]]
    assert len(set(ids)) == len(ids) <= len(labels)
    if own or fraction == 0:
        assert not choose
        assert len(train) == min(rows or len(labels), len(labels))
    if rows is not None and rows + round(fraction * rows) <= len(labels) and not own:
        assert len(train) == rows
        assert len(choose) == round(fraction * rows)
    if rows is None:
        assert len(ids) == len(labels)


def test_first_takes_the_first_rows() -> None:
    rows = examples([0, 1] * 10)
    train, choose = split_train(rows, rows=6, fraction=0.5, seed=0, subset="first", own_choose=False)
    assert train == rows[:6]
    assert not {example.row_id for example in choose} & {str(i) for i in range(6)}
    assert take_evaluation(rows, rows=3, subset="first") == rows[:3]


def test_train_follows_the_seed_and_evaluation_does_not() -> None:
    rows = examples([0, 1] * 50)
    drawn = [
        split_train(rows, rows=20, fraction=0.1, seed=seed, subset="random", own_choose=False) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(take_evaluation(rows, rows=10, subset="random")) == 10
    assert take_evaluation(rows, rows=None, subset="random") == take_evaluation(rows, rows=500, subset="random") == rows


@given(st.integers(1, 4), st.integers(0, 5), st.data())
def test_few_shots_are_so_many_of_each_label(shots: int, seed: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(shots, 9), min_size=1, max_size=5))
    labels = data.draw(st.permutations([label for label, size in enumerate(sizes) for _ in range(size)]))
    rows = examples(labels)
    used, rest = few_shot(rows, shots, generator_at("shots", seed))
    assert Counter(example.label for example in used) == dict.fromkeys(range(len(sizes)), shots)
    assert sorted([*used, *rest], key=lambda example: int(example.row_id)) == rows
    assert few_shot(rows, shots, generator_at("shots", seed)) == (used, rest)
