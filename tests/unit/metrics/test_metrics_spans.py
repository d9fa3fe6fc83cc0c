"""Answers: what SQuAD's scripts say of the same answers, known answers, questions without one."""

import json
from pathlib import Path

import pytest

from curlora_lab.metrics import answer_interval, answer_scores, constant_answer

BOTH = ["exact_match", "f1"]
RECORDED = json.loads((Path(__file__).parent / "squad_scripts.json").read_text())["cases"]


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The cat!", ["cat"], 1, 1),  # articles and punctuation
        ("the  CAT", ["a cat"], 1, 1),  # case and white space
        ("there", ["here"], 0, 0),  # an article only as a word
        ("cat dog", ["cat"], 0, 2 / 3),
        ("cat cat", ["cat"], 0, 2 / 3),  # words are counted, not looked up
        ("dog", ["cat", "a dog", "bird"], 1, 1),  # the best over all answers
        ("u.s. army", ["US Army"], 1, 1),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", [], 1, 1),  # nothing is left of it, as in the script
        ("3.5", ["35"], 1, 1),  # as in the script
        ("", ["the", "cat"], 0, 0),  # a right answer of which nothing is left is none beside another
        ("", ["the", "!"], 1, 1),
    ],
)
def test_known_answers(prediction: str, answers: list[str], exact: float, f1: float) -> None:
    found = answer_scores(BOTH, [prediction], [answers])
    assert found == pytest.approx({"exact_match": exact, "f1": f1}, abs=1e-6)


@pytest.mark.parametrize(("script", "least"), [("v1", 100), ("v2", 200)])
def test_scores_are_those_of_squads_scripts(script: str, least: int) -> None:
    cases = [case for case in RECORDED if script in case]
    assert len(cases) >= least
    for case in cases:
        scores = answer_scores(BOTH, case["predictions"], case["answers"])
        assert [100 * scores[name] for name in BOTH] == pytest.approx(case[script], abs=1e-4), case


def test_the_mean_is_over_questions() -> None:
    found = answer_scores(BOTH, ["cat", "cat dog", "x"], [["cat"], ["cat"], ["y"]])
    assert found == pytest.approx({"exact_match": 1 / 3, "f1": 5 / 9}, abs=1e-6)


def test_constants() -> None:
    assert constant_answer("exact_match", [[], [], ["a b"], ["c"], ["c"]]) == (0.4, "")
    assert constant_answer("exact_match", [["c"], ["b", "c"], ["d"]]) == (pytest.approx(2 / 3), "c")


def test_intervals_hold_the_score_and_repeat() -> None:
    predictions, answers = ["cat", "dog", "x y"] * 20, [["cat"], ["cat"], ["x"]] * 20
    for metric in BOTH:
        low, high = answer_interval(metric, predictions, answers)
        assert 0 < low < answer_scores([metric], predictions, answers)[metric] < high < 1
        assert (low, high) == answer_interval(metric, predictions, answers)


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(ValueError, match="metric 'accuracy' is not known for question answering"):
        answer_scores(["accuracy"], ["a"], [["a"]])
    with pytest.raises(ValueError, match="1 predictions for 2 questions"):
        answer_scores(["f1"], ["a"], [["a"], ["b"]])
