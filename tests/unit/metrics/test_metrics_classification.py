import math

import pytest
import torch

from curlora_lab.metrics.classification import (
    METRICS,
    classification_scores,
    constant_baseline,
    score_interval,
    scores_from_confusion,
    wilson_interval,
)


def test_hand_worked_binary_scores() -> None:
    labels = torch.tensor([1, 1, 1, 1, 0, 0])
    predictions = torch.tensor([1, 1, 1, 0, 0, 1])  # TP 3, FN 1, TN 1, FP 1
    scores = classification_scores(list(METRICS), predictions, labels, 2)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert scores["f1"] == pytest.approx(6 / 8)  # of the last label
    assert scores["macro_f1"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert scores["mcc"] == pytest.approx((3 * 1 - 1 * 1) / math.sqrt(4 * 4 * 2 * 2))


def test_f1_of_three_labels_is_macro() -> None:
    labels, predictions = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 1])
    scores = classification_scores(["f1", "macro_f1"], predictions, labels, 3)
    assert scores["f1"] == scores["macro_f1"] == pytest.approx((1 + 0 + 1 / 2) / 3)


def test_balanced_accuracy_leaves_out_labels_without_rows() -> None:
    labels, predictions = torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1])
    assert classification_scores(["balanced_accuracy"], predictions, labels, 3)["balanced_accuracy"] == 0.75


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("rows", [5, 408])
def test_mcc_of_a_constant_predictor_is_zero(label: int, rows: int) -> None:
    labels = (torch.arange(rows) % 3 > 0).long()
    assert METRICS["mcc"](torch.full((rows,), label), labels, 2) == 0.0


@pytest.mark.parametrize("metric", list(METRICS))
@pytest.mark.parametrize("num_labels", [2, 4])
def test_reported_scores_equal_those_behind_the_bootstrap(metric: str, num_labels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for rows in (1, 7, 200):
        labels = torch.randint(num_labels, (rows,), generator=generator)
        predictions = torch.randint(num_labels, (rows,), generator=generator)
        confusion = torch.bincount(labels * num_labels + predictions, minlength=num_labels**2).view(1, num_labels, -1)
        expected = METRICS[metric](predictions, labels, num_labels)
        assert float(scores_from_confusion(metric, confusion.double())) == pytest.approx(expected, abs=1e-6)


def test_constant_baseline_of_mrpc() -> None:
    labels = torch.tensor([1] * 279 + [0] * 129)
    assert constant_baseline("accuracy", labels, 2) == (pytest.approx(279 / 408), 1)
    assert constant_baseline("f1", labels, 2) == (pytest.approx(2 * 279 / (408 + 279)), 1)
    assert constant_baseline("balanced_accuracy", labels, 2) == (0.5, 1)
    assert constant_baseline("mcc", labels, 2) == (0.0, 1)


@pytest.mark.parametrize("metric", list(METRICS))
def test_constant_baseline_is_the_best_constant(metric: str) -> None:
    labels = torch.tensor([0, 2, 2, 1, 2, 0])
    score, label = constant_baseline(metric, labels, 3)
    every = [classification_scores([metric], torch.full_like(labels, i), labels, 3)[metric] for i in range(3)]
    assert score == max(every) == every[label]


def test_unknown_metric_lists_the_known() -> None:
    with pytest.raises(ValueError, match="metric 'acc' is not known for classification; choose from: accuracy, "):
        classification_scores(["acc"], torch.tensor([0]), torch.tensor([0]), 2)


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([], [], "no rows to score"),
        ([0, 1], [0], r"predictions of shape \(2,\)"),
        ([0, 2], [0, 1], r"prediction index 2 is outside the task's 2 labels"),
        ([0, 1], [0, -1], r"label index -1 is outside"),
    ],
)
def test_bad_input_is_named(predictions: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_scores(["accuracy"], torch.tensor(predictions).long(), torch.tensor(labels).long(), 2)


def test_wilson_interval_known_values() -> None:
    # Reference: Newcombe 1998, table I, 81/263 and 0/20 without continuity correction.
    assert wilson_interval(81, 263) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert wilson_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=5e-5))
    with pytest.raises(ValueError, match="3 correct of 2 rows"):
        wilson_interval(3, 2)


def test_bootstrap_interval_agrees_with_theory_and_is_repeatable() -> None:
    labels = torch.tensor([0, 1] * 200)
    predictions = torch.where(torch.arange(400) % 5 == 0, 1 - labels, labels)  # 80 % right on both labels
    low, high = score_interval("balanced_accuracy", predictions, labels, 2)
    error = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert low == pytest.approx(0.8 - error, abs=0.01)
    assert high == pytest.approx(0.8 + error, abs=0.01)
    assert (low, high) == score_interval("balanced_accuracy", predictions, labels, 2)
