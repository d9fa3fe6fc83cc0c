"""Which rows an episodic memory keeps: uniform or balanced, by position, never one that is chosen on or reported."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from curlora_lab.continual.strategies.memory import Memory, even_quotas, share_of
from curlora_lab.data.encoding import Encoded
from curlora_lab.data.loading import TokenRows


def task(name, rows, *, labels=None, seed=0, columns=None, token_labels=None):
    """A task with so many train rows of two tokens each; it has no others, so that asking for them fails."""
    encoded = Encoded(
        np.arange(2 * rows, dtype=np.int32), np.arange(0, 2 * rows + 1, 2), np.zeros(rows, dtype=np.bool_)
    )
    labels = labels if labels is not None or token_labels is not None else [0] * rows
    rest = {"token_labels": token_labels, "columns": columns or {}}
    held = {"train": TokenRows(encoded, "train", 0, labels=labels, **rest)}
    return SimpleNamespace(
        name=name, data=SimpleNamespace(rows=held.__getitem__), training_plan=SimpleNamespace(seed=seed), head=None
    )


def filled(*tasks, **arguments):
    memory = Memory(**arguments)
    memory.begin(tasks)
    for each in tasks:
        memory.insert(each)
    return memory


def test_a_reservoir_over_the_stream_keeps_every_row_with_the_same_probability():
    counts = np.zeros(60)
    runs, kept = 2000, 15
    for seed in range(runs):
        memory = filled(task("a", 20, seed=seed), task("b", 40, seed=seed), total=kept)
        for name, offset in (("a", 0), ("b", 20)):
            counts[[offset + row for row in memory.rows[name]]] += 1
        assert len(memory) == kept
    expected = runs * kept / 60
    # Σ (n - e)² / (e (1 - 15/60)) is about chi-squared with 59 degrees of freedom; its 99.9 % point is 98.3.
    assert ((counts - expected) ** 2).sum() / (expected * (1 - kept / 60)) < 98.3


def test_a_share_for_each_task_does_not_change_when_others_come():
    alone = filled(task("a", 30), rows_per_task=10)
    both = filled(task("a", 30), task("b", 30), rows_per_task=10)
    assert both.rows["a"] == alone.rows["a"]
    assert both.rows["b"] != both.rows["a"], "each task has its own draw"
    assert len(both) == 20


def test_what_was_dropped_never_comes_back():
    first = set(filled(task("a", 50), total=20).rows["a"])
    later = filled(task("a", 50), task("b", 50), total=20).rows
    assert set(later["a"]) < first
    assert len(later["a"]) + len(later["b"]) == 20


def test_classes_are_kept_in_equal_numbers_as_far_as_there_are_so_many():
    labels = [0] * 40 + [1] * 3 + [2] * 40
    rows = filled(task("a", 83, labels=labels), rows_per_task=23, selection="class_balanced").rows["a"]
    assert np.bincount([labels[row] for row in rows]).tolist() == [10, 3, 10]


def test_classes_of_different_tasks_are_different_classes():
    tasks = [task("a", 40, labels=[0, 1] * 20), task("b", 60, labels=[0, 1, 2] * 20)]
    rows = filled(*tasks, total=50, selection="class_balanced").rows
    assert (len(rows["a"]), len(rows["b"])) == (20, 30)
    assert np.bincount([row % 3 for row in rows["b"]]).tolist() == [10, 10, 10]


@pytest.mark.parametrize("labels", [[0.5, 1.5] * 10, [1.0, 2.0] * 10])
def test_numbers_are_no_classes(labels):
    assert len(filled(task("a", 20, labels=labels), rows_per_task=7, selection="class_balanced")) == 7


def test_places_in_a_text_are_no_classes():
    """Where an answer begins: each position would be a class, and the rarest positions would fill the memory."""
    starts = [0] * 30 + list(range(1, 11))
    asked = task("a", 40, labels=starts, columns={"end": np.array(starts)})
    kept = filled(asked, rows_per_task=12, selection="class_balanced").rows["a"]
    assert kept == filled(asked, rows_per_task=12).rows["a"], "one class: as a reservoir"


def test_the_class_of_an_answer_in_words_stands_beside_its_tokens():
    labels = np.array([0] * 30 + [1] * 10)
    answered = task("a", 40, token_labels=np.zeros(80, dtype=np.int64), columns={"label": labels})
    kept = filled(answered, rows_per_task=20, selection="class_balanced").rows["a"]
    assert np.bincount(labels[kept]).tolist() == [10, 10]


def test_quotas_use_up_what_others_cannot():
    sizes = {("a", 0): 2, ("a", 1): 100, ("a", 2): 100}
    assert list(even_quotas(sizes, 50).values()) == [2, 24, 24]
    assert list(even_quotas(sizes, 4).values()) == [2, 1, 1]
    assert list(even_quotas(sizes, 500).values()) == [2, 100, 100]


def test_more_places_than_rows_keep_all():
    memory = filled(task("a", 5), task("b", 6), rows_per_task=100)
    assert {name: sorted(rows) for name, rows in memory.rows.items()} == {"a": [*range(5)], "b": [*range(6)]}


def test_a_draw_follows_from_its_position_and_repeats_no_row():
    memory = filled(task("a", 30), task("b", 30), rows_per_task=20)
    drawn = memory.sample(16, "replay", 2, 0, 7)
    assert drawn == memory.sample(16, "replay", 2, 0, 7)
    assert drawn != memory.sample(16, "replay", 2, 0, 8)
    places = [(name, row) for name, rows in drawn.items() for row in rows]
    assert len(places) == len(set(places)) == 16
    assert all(row in memory.rows[name] for name, row in places)
    assert set(memory.sample(16, 1, without="a")) == {"b"}


def test_draws_are_uniform_over_all_rows():
    memory = filled(task("a", 5), task("b", 15), rows_per_task=15)
    counts = {"a": 0, "b": 0}
    for position in range(1000):
        for name, rows in memory.sample(4, position).items():
            counts[name] += len(rows)
    assert counts["a"] / 4000 == pytest.approx(0.25, abs=0.03)


def test_state_restores_rows_and_draws_and_what_follows():
    tasks = [task("a", 30), task("b", 30), task("c", 30)]
    whole = filled(*tasks, total=20)
    first = Memory(total=20)
    first.begin(tasks)
    first.insert(tasks[0])
    first.insert(tasks[1])
    other = Memory(total=20)
    other.begin(tasks)
    other.load_state({**first.state(), "another/key": torch.zeros(1)})
    assert other.rows == first.rows
    assert other.sample(5, 1) == first.sample(5, 1)
    other.insert(tasks[2])
    assert other.rows == whole.rows
    assert all(torch.equal(value, whole.state()[key]) for key, value in other.state().items())


def test_state_of_another_run_is_refused():
    state = filled(task("a", 30), rows_per_task=10).state()
    other = Memory(rows_per_task=10)
    other.begin([task("b", 30)])
    with pytest.raises(ValueError, match="task 'a', but this run has no such task"):
        other.load_state(state)
    other.begin([task("a", 10)])
    with pytest.raises(ValueError, match="only 10 train rows"):
        other.load_state(state)


def test_rows_and_bytes_are_counted():
    cost = filled(task("a", 30), rows_per_task=10).cost()
    assert cost == {"stored_rows": 10.0, "stored_bytes": 10 * (2 * 4 + 8)}, "two tokens of four bytes, a label of eight"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give exactly one"),
        ({"rows_per_task": 3, "total": 3}, "give exactly one"),
        ({"rows_per_task": 0}, "keeps nothing"),
        ({"total": 3, "selection": "best"}, "choose one of reservoir, class_balanced"),
    ],
)
def test_sizes_and_selections_without_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Memory(**arguments)


def test_nothing_drawn_has_no_loss():
    with pytest.raises(ValueError, match="gave no rows"):
        Memory(total=3).mean_loss({})


@pytest.mark.parametrize(("world", "n"), [(1, 32), (3, 32), (4, 2)])
def test_processes_share_a_draw(world, n, monkeypatch):
    shares = []
    for rank in range(world):
        place = (rank, world)
        monkeypatch.setattr("curlora_lab.continual.strategies.memory.place_among_processes", lambda place=place: place)
        shares.append(share_of(n))
    assert sum(rows for rows, _ in shares) == n
    # Averaging over processes weight x (sum over own rows / own rows) gives (sum over all rows / n).
    assert all(weight / world == pytest.approx(rows / n) for rows, weight in shares)
