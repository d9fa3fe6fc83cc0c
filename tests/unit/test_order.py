"""Orders of tasks by number or by names."""

from itertools import permutations

import pytest

from curlora_lab.config.order import ordered

NAMES = ["mrpc", "sst2", "agnews", "cola"]


def test_numbers_are_the_permutations_in_lexicographic_order() -> None:
    assert [tuple(ordered(NAMES, number)) for number in range(24)] == list(permutations(NAMES))


def test_no_order_is_the_order_of_the_list() -> None:
    assert ordered(NAMES, None) == ordered(NAMES, 0) == NAMES


def test_names_are_taken_as_they_are() -> None:
    assert ordered(NAMES, ["cola", "sst2", "mrpc", "agnews"]) == ["cola", "sst2", "mrpc", "agnews"]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (24, "4 tasks have the 24 orders 0 to 23"),
        (-1, "4 tasks have the 24 orders 0 to 23"),
        (["mrpc", "sst2"], "must name each task once: mrpc, sst2, agnews, cola"),
        (["mrpc", "mrpc", "sst2", "agnews"], "must name each task once"),
        ("reversed", "neither null, a number nor a list"),
        (True, "neither null, a number nor a list"),
        (1.5, "neither null, a number nor a list"),
    ],
)
def test_what_is_no_order_is_refused(order: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ordered(NAMES, order)  # type: ignore[arg-type]
