import pytest

from curlora_lab.metrics.continual import (
    average,
    average_incremental,
    average_micro,
    bwt,
    bwt_gem,
    forgetting,
    forgetting_avalanche,
    fwt,
    gain,
    learning,
)
from curlora_lab.metrics.summary import summarise

TASKS = ("a", "b", "c")
# Worked by hand. Task a is best after stage 2, so forgetting (from the best) and BWT (from right after) differ.
SCORES = [
    [0.50, 0.40, 0.30],
    [0.80, 0.45, 0.30],
    [0.90, 0.70, 0.40],
    [0.60, 0.65, 0.75],
]


def approx(value: float) -> tuple[object, None]:
    return pytest.approx(value), None


def test_hand_worked_matrix() -> None:
    assert average(SCORES, TASKS) == approx((0.60 + 0.65 + 0.75) / 3)
    assert learning(SCORES, TASKS) == approx((0.80 + 0.70 + 0.75) / 3)
    assert bwt(SCORES, TASKS) == approx(((0.60 - 0.80) + (0.65 - 0.70)) / 2)
    assert forgetting(SCORES, TASKS) == approx(((0.90 - 0.60) + (0.70 - 0.65)) / 2)
    assert fwt(SCORES, TASKS) == approx(((0.45 - 0.40) + (0.40 - 0.30)) / 2)
    assert gain(SCORES, TASKS, [0.5, 0.5, 0.5], [1.0, 0.9, 0.75]) == approx((0.1 / 0.5 + 0.15 / 0.4 + 1.0) / 3)


def test_variants_of_other_codes() -> None:
    assert bwt_gem(SCORES, TASKS) == approx(-0.25 / 3)  # denominator T, with the structural zero of the last task
    assert forgetting_avalanche(SCORES, TASKS) == approx(0.25 / 2)  # first minus last
    assert average_incremental(SCORES, TASKS) == approx((0.80 + (0.90 + 0.70) / 2 + (0.60 + 0.65 + 0.75) / 3) / 3)


def test_micro_average_counts_rows_not_tasks() -> None:
    assert average_micro(SCORES, TASKS, [100, 56, 7600]) == approx((60 + 0.65 * 56 + 0.75 * 7600) / 7756)
    assert average_micro(SCORES, TASKS, [7600] * 3) == approx((0.60 + 0.65 + 0.75) / 3)
    assert average_micro(SCORES, TASKS, [1, None, 1]) == (None, "the number of reported rows is not known for 'b'")
    missing = [*SCORES[:3], [0.6, None, 0.75]]
    assert average_micro(missing, TASKS, [1, 1, 1]) == (None, "no score on 'b' after stage 3")
    baselines = {task: {"rows": count} for task, count in zip(TASKS, (100, 56, 7600), strict=True)}
    summary = summarise(SCORES, TASKS, baselines=baselines, fwt_defined=[True] * 3)
    assert summary.variants["average_micro"] == average_micro(SCORES, TASKS, [100, 56, 7600])[0]


def test_published_gpt2_lora_numbers() -> None:
    """CURLoRA paper, Table 2, LoRA-8 on GPT-2 Large."""
    scores = [[None] * 3, [0.79, None, None], [0.76, 0.94, None], [0.49, 0.90, 0.92]]
    assert bwt(scores, TASKS) == approx((-0.30 - 0.04) / 2)
    assert learning(scores, TASKS) == approx((0.79 + 0.94 + 0.92) / 3)
    assert fwt(scores, TASKS) == (None, "no score on 'b' after stage 1")


def test_missing_is_missing_never_zero() -> None:
    scores = [row[:] for row in SCORES]
    scores[3][1] = None
    reason = "no score on 'b' after stage 3"
    for metric in (average, bwt, forgetting, bwt_gem, forgetting_avalanche, average_incremental):
        assert metric(scores, TASKS) == (None, reason)
    assert learning(scores, TASKS)[0] is not None
    scores[3][1] = float("nan")
    assert average(scores, TASKS) == (None, reason)


def test_one_task_has_no_transfer() -> None:
    scores = [[0.5], [0.9]]
    assert average(scores, ("a",)) == approx(0.9)
    for metric in (bwt, forgetting, fwt):
        value, reason = metric(scores, ("a",))
        assert value is None
        assert "needs at least two stages" in reason


def test_joint_scenario_trains_all_tasks_in_one_stage() -> None:
    scores = [[0.5, 0.5], [0.8, 0.9]]
    assert learning(scores, ("a", "b"), [1, 1]) == approx(0.85)
    assert bwt(scores, ("a", "b"), [1, 1])[0] is None
    with pytest.raises(ValueError, match="2 tasks in 1 stages: say in trained_at"):
        learning(scores, ("a", "b"))


def test_more_stages_than_tasks() -> None:
    scores = [[0.1, 0.1], [0.5, 0.1], [0.4, 0.6], [0.7, 0.5]]
    assert bwt(scores, ("a", "b"), [1, 2]) == approx(((0.7 - 0.5) + (0.5 - 0.6)) / 2)
    assert forgetting(scores, ("a", "b"), [1, 2]) == approx(((0.5 - 0.7) + (0.6 - 0.5)) / 2)


def test_random_heads_have_no_forward_transfer() -> None:
    value, reason = fwt(SCORES, TASKS, defined=[False, False, True])
    assert value is None
    assert reason == "the head of 'b' is random before its own stage: its score there means nothing"
    assert fwt(SCORES, TASKS, defined=[False, True, True])[0] is not None


def test_gain_names_what_is_unknown() -> None:
    assert gain(SCORES, TASKS, [0.5, 0.5, 0.5], [1, None, 1]) == (None, "no best achievable score is known for 'b'")
    assert gain(SCORES, TASKS, [None, 0.5, 0.5], [1, 1, 1]) == (None, "no constant score is known for 'a'")
    assert "is not above" in gain(SCORES, TASKS, [0.5, 0.5, 0.5], [1, 0.5, 1])[1]


def test_summary_has_every_key_and_a_reason_for_every_null() -> None:
    summary = summarise(SCORES, TASKS, baselines={"a": {"constant": 0.5}}, fwt_defined=[False] * 3)
    assert list(summary.continual) == ["average", "gain", "bwt", "fwt", "forgetting", "learning"]
    nulls = {f"continual.{k}" for k, v in summary.continual.items() if v is None}
    nulls |= {f"variants.{k}" for k, v in summary.variants.items() if v is None}
    assert nulls == set(summary.reasons) == {"continual.gain", "continual.fwt", "variants.average_micro"}


def test_only_what_has_a_common_scale_is_averaged() -> None:
    bounded = summarise(SCORES, TASKS, baselines={}, fwt_defined=[True] * 3, metrics=["accuracy", "mcc", "accuracy"])
    assert bounded.continual["average"] is not None
    baselines = {task: {"constant": 0.3, "best": 1.0} for task in TASKS}
    mixed = summarise(
        SCORES, TASKS, baselines=baselines, fwt_defined=[True] * 3, metrics=["accuracy", "negative_nll", "accuracy"]
    )
    assert mixed.continual["average"] is mixed.continual["bwt"] is None
    assert mixed.continual["gain"] is not None
    assert "no common scale" in mixed.reasons["continual.average"]


@pytest.mark.parametrize(
    ("scores", "tasks", "trained_at", "message"),
    [
        ([[0.1]], ("a",), None, "score matrix of 1 rows for 1 tasks"),
        ([[0.1], [0.2, 0.3]], ("a",), None, "row 1 of the score matrix has 2 entries for 1 tasks"),
        ([[0.1], [0.2]], ("a",), [2], "trained_at says stage 2 for 'a': must be between 1 and 1"),
        ([[0.1], [0.2]], ("a",), [1, 1], "trained_at has 2 entries for 1 tasks"),
    ],
)
def test_shapes_that_do_not_fit(scores, tasks, trained_at, message) -> None:
    with pytest.raises(ValueError, match=message):
        average(scores, tasks, trained_at)
