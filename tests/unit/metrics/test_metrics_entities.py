"""Entities and tag scores: known answers, what seqeval says of the same tags, and laws."""

import json
from pathlib import Path

import numpy as np
import pytest

from curlora_lab.metrics import constant_tag, entities, token_interval, token_scores
from curlora_lab.metrics.intervals import bootstrap_interval

RECORDED = json.loads((Path(__file__).parent / "seqeval_1_2_2.json").read_text())
ALL = ["entity_f1", "entity_precision", "entity_recall", "token_accuracy"]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-a I-a O", [("a", 0, 2)]),
        ("B-a B-a", [("a", 0, 1), ("a", 1, 2)]),
        ("O I-a I-a", [("a", 1, 3)]),  # an I-a without its B-a begins one
        ("B-a I-b I-b", [("a", 0, 1), ("b", 1, 3)]),  # and so does another type
        ("I-a B-a I-a", [("a", 0, 1), ("a", 1, 3)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)]),
        ("NOUN VERB", []),
    ],
)
def test_known_entities(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def test_a_word_without_a_tag_ends_an_entity_and_is_wrong() -> None:
    assert entities(["B-a", None, "I-a"]) == [("a", 0, 1), ("a", 2, 3)]
    assert token_scores(["token_accuracy"], [["O", None]], [["O", "O"]])["token_accuracy"] == 0.5


def test_scores_are_those_of_seqeval() -> None:
    assert len(RECORDED["cases"]) >= 200
    for case in RECORDED["cases"]:
        labels, predictions = ([text.split() for text in case[key]] for key in ("labels", "predictions"))
        scores = token_scores(ALL, predictions, labels)
        assert scores == pytest.approx(dict(zip(ALL, case["scores"], strict=True)), abs=1e-12), case


def test_nothing_found_and_nothing_there_is_0() -> None:
    assert token_scores(ALL[:3], [["O"]], [["O"]]) == dict.fromkeys(ALL[:3], 0.0)


def test_the_most_frequent_tag_is_the_constant() -> None:
    labels = [["O", "O", "B-a"], ["B-a", "I-a", "O", "O"]]
    assert constant_tag("entity_f1", labels) == (0.0, "O")
    assert constant_tag("token_accuracy", labels) == (4 / 7, "O")
    assert constant_tag("token_accuracy", [["b", "a"]]) == (0.5, "a")


def test_intervals_hold_the_score_and_repeat() -> None:
    case = max(RECORDED["cases"], key=lambda case: len(case["labels"]))
    labels, predictions = ([text.split() for text in case[key]] for key in ("labels", "predictions"))
    for metric in ALL:
        low, high = token_interval(metric, predictions, labels)
        assert low <= token_scores([metric], predictions, labels)[metric] <= high
        assert (low, high) == token_interval(metric, predictions, labels)


def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.repeat([0.0, 1.0], 200)[:, None]
    low, high = bootstrap_interval(values, lambda sums: sums[:, 0] / 400)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.01)
    with pytest.raises(ValueError, match="no rows"):
        bootstrap_interval(values[:0], lambda sums: sums[:, 0])


@pytest.mark.parametrize(
    ("names", "predictions", "labels", "message"),
    [
        (["f1"], [["O"]], [["O"]], "metric 'f1' is not known for token classification; choose from: entity_f1"),
        (["entity_f1"], [], [], "0 texts with predictions, 0 with labels"),
        (["entity_f1"], [["O"]], [["O", "O"]], "text 1 has 1 predicted and 2 true tags"),
    ],
)
def test_what_cannot_be_scored_is_said(names, predictions, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        token_scores(names, predictions, labels)
