import math

import pytest
import torch

from curlora_lab.adapters import scores
from curlora_lab.adapters.scores import inverted, leverage_scores, norm_scores, truncated_svd


def generator():
    return torch.Generator().manual_seed(0)


def test_norm_scores_by_hand():
    W = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(norm_scores(W)[0], torch.tensor([0.9, 0.1], dtype=torch.float64))
    torch.testing.assert_close(norm_scores(W)[1], torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64))


def test_norm_scores_of_zeros_are_uniform():
    torch.testing.assert_close(norm_scores(torch.zeros(3, 4))[0], torch.full((4,), 0.25, dtype=torch.float64))


def test_norm_scores_in_half_precision_do_not_overflow():
    W = torch.full((4, 8), 3e4, dtype=torch.float16)
    torch.testing.assert_close(norm_scores(W)[0], torch.full((8,), 1 / 8, dtype=torch.float64))


def test_full_rank_leverage_of_a_wide_matrix_is_uniform_over_rows():
    W = torch.randn(4, 9, generator=generator())
    torch.testing.assert_close(
        leverage_scores(W, rank=4, generator=generator())[1], torch.full((4,), 0.25, dtype=torch.float64)
    )


def test_leverage_differs_from_norms_where_a_small_column_is_the_only_carrier_of_a_direction():
    W = torch.zeros(4, 4)
    W[0, 0], W[0, 1], W[1, 2] = 10.0, 10.0, 1.0
    leverage = leverage_scores(W, rank=2, generator=generator())[0]
    torch.testing.assert_close(leverage, torch.tensor([0.25, 0.25, 0.5, 0.0], dtype=torch.float64))
    assert norm_scores(W)[0][2] < 0.01


def test_without_floor_the_inverted_distribution_is_the_papers():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    expected = (1 / p) / (1 / p).sum()
    torch.testing.assert_close(inverted(p, floor=0.0), expected)


def test_the_floor_is_relative_to_the_mean_score():
    """A column of zeros is drawn (1 + floor) / floor times as often as a mean one, whatever the width."""
    for n in (10, 1000):
        p = torch.full((n,), 1 / (n - 1), dtype=torch.float64)
        p[0] = 0
        q = inverted(p, floor=0.1)
        assert q[0] / q[1] == pytest.approx((n / (n - 1) + 0.1) / 0.1)


def test_the_absolute_floor_of_the_published_code_makes_wide_layers_nearly_uniform():
    """At n = 4096 a column of no norm is drawn 1.24 times as often as a mean one; the paper's formula says infinitely."""
    n = 4096
    p = torch.full((n,), 1 / (n - 1), dtype=torch.float64)
    p[0] = 0
    q = inverted(p, floor_absolute=0.001)
    assert float(q[0] / q[1]) == pytest.approx(1.24, abs=0.01)
    torch.testing.assert_close(q, (1 / (p + 0.001)) / (1 / (p + 0.001)).sum())


def test_zero_scores_without_floor_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are zero, and with floor 0 their inverse has no value"):
        inverted(torch.tensor([0.0, 1.0], dtype=torch.float64), floor=0.0)


def test_truncated_svd_is_exact_for_small_matrices_and_fixes_signs():
    W = torch.randn(12, 9, generator=generator())
    left, values, right = truncated_svd(W, 9, generator=generator())
    torch.testing.assert_close(left @ torch.diag(values) @ right.T, W, atol=1e-5, rtol=1e-5)
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(truncated_svd(W, 3, generator=generator())[0], left[:, :3])


def test_the_randomised_svd_agrees_with_the_exact_one(monkeypatch):
    basis, _ = torch.linalg.qr(torch.randn(80, 60, generator=generator()))
    W = basis * torch.logspace(0, -3, 60)
    exact = truncated_svd(W, 5, generator=generator())
    monkeypatch.setattr(scores, "EXACT_SVD_SIDE", 10)
    for found, expected in zip(truncated_svd(W, 5, generator=generator()), exact, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_scores_are_distributions():
    W = torch.randn(6, 8, generator=generator())
    for pair in (norm_scores(W), leverage_scores(W, rank=3, generator=generator())):
        for values, n in zip(pair, (8, 6), strict=True):
            assert values.shape == (n,)
            assert values.dtype == torch.float64
            assert math.isclose(values.sum(), 1)


@pytest.mark.parametrize("shape", [(700, 900), (3, 300_000), (300_000, 3)])
def test_norms_are_summed_in_pieces_without_loss_and_along_the_memory(shape):
    W = torch.randn(shape, generator=generator())
    squares = W.double().square()
    for view in (W, W.T.contiguous().T):
        columns, rows = norm_scores(view)
        torch.testing.assert_close(columns, squares.sum(0) / squares.sum(), rtol=1e-5, atol=0)
        torch.testing.assert_close(rows, squares.sum(1) / squares.sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_equal_columns_and_rows_have_equal_scores_wherever_they_stand(seed: int) -> None:
    W = torch.randn(1000, 777, generator=torch.Generator().manual_seed(seed))
    W[:, 776] = W[:, 5]
    W[999] = W[7]
    for weight in (W, W.T.contiguous().T):
        columns, rows = norm_scores(weight)
        assert columns[776] == columns[5]
        assert rows[999] == rows[7]
