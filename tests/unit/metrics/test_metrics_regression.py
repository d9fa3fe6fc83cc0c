"""Regression scores: parity with scipy, constant predictors, intervals."""

import pytest
import torch
from scipy import stats

from curlora_lab.metrics import constant_number, regression_interval, regression_scores, summarise

ALL = ["pearson", "spearman", "negative_mse"]


def numbers(seed: int, rows: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 26, (rows,), generator=generator) / 5  # ties, as in STS-B
    return targets + torch.randn(rows, generator=generator), targets


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e6])
def test_parity_with_scipy(scale: float) -> None:
    for seed in range(5):
        predictions, targets = (values.double() * scale for values in numbers(seed))
        found = regression_scores(ALL, predictions, targets)
        assert found["pearson"] == pytest.approx(stats.pearsonr(predictions, targets).statistic, abs=1e-9)
        assert found["spearman"] == pytest.approx(stats.spearmanr(predictions, targets).statistic, abs=1e-6)
        assert found["negative_mse"] == pytest.approx(-float(((predictions - targets) ** 2).mean()))


def test_a_constant_has_no_correlation_and_counts_as_0() -> None:
    _, targets = numbers(0)
    for constant in (torch.full_like(targets, 2.5), 2.5 + 1e-9 * torch.randn(len(targets))):
        found = regression_scores(ALL, constant, targets)
        assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    assert regression_scores(ALL, targets, torch.ones_like(targets))["pearson"] == 0.0


def test_the_best_constant_is_the_mean() -> None:
    _, targets = numbers(1)
    assert constant_number("pearson", targets)[0] == 0.0
    score, number = constant_number("negative_mse", targets)
    assert number == pytest.approx(float(targets.mean()))
    assert score == pytest.approx(-float(targets.var(unbiased=False)))


@pytest.mark.parametrize("metric", ALL)
def test_intervals_cover_what_they_should(metric: str) -> None:
    truth = {"pearson": 0.6, "spearman": 0.5825, "negative_mse": -0.8}[metric]  # of a bivariate normal with r = 0.6
    inside = 0
    for seed in range(200):
        pair = torch.randn(80, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
        predictions = 0.6 * pair[:, 0] + 0.8 * pair[:, 1]
        low, high = regression_interval(metric, predictions, pair[:, 0])
        assert low <= regression_scores([metric], predictions, pair[:, 0])[metric] <= high
        inside += low <= truth <= high
    assert 180 <= inside <= 199


def test_few_rows_say_nothing() -> None:
    three = torch.tensor([1.0, 2.0, 3.0])
    assert regression_interval("pearson", three, three) == (-1.0, 1.0)
    assert regression_interval("negative_mse", three[:1], three[:1])[0] == -float("inf")


def test_what_cannot_be_scored_is_said() -> None:
    values = torch.ones(2)
    with pytest.raises(ValueError, match="metric 'mse' is not known for regression; choose from: pearson"):
        regression_scores(["mse"], values, values)
    with pytest.raises(ValueError, match="equally long and not empty"):
        regression_scores(["pearson"], values, values[:1])


def mixed(*metrics: str) -> object:
    scores = [[0.0, 0.0], [0.5, 0.1], [0.4, 0.6]]
    baselines = {name: {"constant": 0.0, "best": 1.0} for name in ("a", "b")}
    return summarise(scores, ["a", "b"], baselines=baselines, fwt_defined=[True, True], metrics=metrics)


def test_only_what_can_be_averaged_is() -> None:
    assert mixed("accuracy", "entity_f1").continual["average"] == pytest.approx(0.5)
    for metrics in (("pearson", "negative_mse"), ("negative_mse", "negative_mse"), ("accuracy", "negative_nll")):
        found = mixed(*metrics)
        assert found.continual["average"] is found.continual["bwt"] is None
        assert "see continual.gain" in found.reasons["continual.average"]
        assert found.continual["gain"] == pytest.approx(0.5)
