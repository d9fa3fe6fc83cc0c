import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from curlora_lab.adapters.basis import (
    BASES,
    BasisOptions,
    choose_basis,
    deim_indices,
    draw,
    from_indices,
    merge_matrix,
    module_seed,
    orthonormal_columns,
    pivoted_columns,
)
from curlora_lab.adapters.scores import inverted, norm_scores


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weight(out=20, wide=14, seed=0):
    W = torch.randn(out, wide, generator=generator(seed))
    return W * torch.linspace(0.2, 2, wide) * torch.linspace(2, 0.2, out)[:, None]


def choose(W, basis, seed=0, **options):
    return choose_basis(W, basis=basis, options=BasisOptions(**({"r": 4} | options)), generator=generator(seed))


@pytest.mark.parametrize("basis", [name for name, rule in BASES.items() if rule.from_rows])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selected_factors_are_columns_and_rows_of_the_weight(basis, dtype):
    W = weight().to(dtype)
    chosen = choose(W, basis)
    assert torch.equal(chosen.C, W[:, chosen.columns])
    assert torch.equal(chosen.R, W[chosen.rows])
    assert chosen.mix is None
    assert len(set(chosen.columns.tolist())) == len(set(chosen.rows.tolist())) == 4


@pytest.mark.parametrize("basis", BASES)
def test_the_same_generator_gives_the_same_basis_and_the_global_one_plays_no_part(basis):
    state = torch.get_rng_state()
    first = choose(weight(), basis)
    torch.manual_seed(123)
    second = choose(weight(), basis)
    torch.set_rng_state(state)
    assert torch.equal(first.C, second.C)
    assert torch.equal(first.R, second.R)
    state = torch.get_rng_state()
    choose(weight(), basis)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("basis", [name for name, rule in BASES.items() if rule.drawn])
@pytest.mark.parametrize("replacement", [False, True])
def test_selection_frequencies_follow_the_distribution(basis, replacement):
    """Chi-squared over 4000 draws of one index (for one index, drawing with and without replacement is the same)."""
    W, draws = weight(), 4000
    options = BasisOptions(r=1, leverage_rank=3, floor=0.1, replacement=replacement)
    probabilities = BASES[basis].probabilities(W, options, generator())[0]
    source = generator(5)
    counts = torch.zeros(W.shape[1])
    for _ in range(draws):
        counts[draw(probabilities, 1, replacement, source)] += 1
    assert scipy.stats.chisquare(counts.numpy(), (probabilities * draws).numpy()).pvalue > 1e-3


def test_drawing_without_replacement_is_drawing_one_after_the_other():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    source, draws = generator(3), 6000
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        pair = tuple(draw(p, 2, False, source).tolist())
        counts[pair] = counts.get(pair, 0) + 1
    expected = {(i, j): float(p[i] * p[j] / (1 - p[i])) * draws for i in range(3) for j in range(3) if i != j}
    found = [counts.get(pair, 0) for pair in expected]
    assert scipy.stats.chisquare(found, list(expected.values())).pvalue > 1e-3


def test_the_published_distribution_and_its_duplicates():
    """floor_absolute=0.001 with replacement: with 768 columns and r = 16 about 14 to 24 % of draws hold a duplicate."""
    W = torch.randn(64, 768, generator=generator())
    p = norm_scores(W)[0]
    options = BasisOptions(r=16, floor_absolute=0.001, replacement=True)
    torch.testing.assert_close(
        BASES["inverse_norm"].probabilities(W, options, generator())[0], inverted(p, floor_absolute=0.001)
    )
    source = generator(1)
    q = inverted(p, floor_absolute=0.001)
    repeated = sum(len(set(draw(q, 16, True, source).tolist())) < 16 for _ in range(1000))
    assert 100 < repeated < 240


def test_lowest_and_highest_norm_take_the_ends_and_ties_go_to_the_lower_index():
    W = torch.eye(6)
    assert choose(W, "lowest_norm").columns.tolist() == choose(W, "highest_norm").columns.tolist() == [0, 1, 2, 3]
    W = torch.diag(torch.tensor([3.0, 1.0, 2.0, 1.0, 0.0]))
    assert choose(W, "lowest_norm", r=3).rows.tolist() == [4, 1, 3]
    assert choose(W, "highest_norm", r=3).rows.tolist() == [0, 2, 1]


def test_columns_of_zeros_are_chosen_last_by_norm_and_readily_by_inverse_norm():
    W = weight()
    W[:, [2, 5]] = 0
    for seed in range(20):
        assert not {2, 5} & set(choose(W, "norm", seed=seed, r=12).columns.tolist())
    assert choose(W, "norm", r=14).columns.tolist()[-2:] == [2, 5]
    hits = sum(2 in choose(W, "inverse_norm", seed=seed, floor=1e-6, r=2).columns.tolist() for seed in range(20))
    assert hits == 20
    with pytest.raises(ValueError, match=r"basis 'inverse_norm' of 'weight': 2 of 14 scores are zero.*floor"):
        choose(W, "inverse_norm", floor=0.0)


def test_a_weight_of_zeros_has_a_basis_of_zeros():
    for basis in BASES:
        chosen = choose(torch.zeros(8, 6), basis, orthonormal=basis == "inverse_norm")
        assert chosen.C.shape == (8, 4)
        assert chosen.R.isfinite().all()


def test_pivoted_qr_is_lapacks():
    W = weight(12, 9)
    _, _, pivots = scipy.linalg.qr(W.double().numpy(), pivoting=True, mode="economic")
    assert pivoted_columns(W, 9).tolist() == pivots.tolist()
    assert choose(W, "pivoted_qr").columns.tolist() == pivots[:4].tolist()


def test_deim_by_hand_and_its_interpolation_property():
    V = torch.tensor([[0.1, 0.7], [0.9, 0.1], [0.3, -0.9]])
    assert deim_indices(V).tolist() == [1, 2]
    V, _ = torch.linalg.qr(torch.randn(30, 6, generator=generator()).double())
    chosen = deim_indices(V)
    assert len(set(chosen.tolist())) == 6
    assert np.linalg.cond(V[chosen].numpy()) < 1e3


def test_ties_of_deim_and_pivoted_qr_go_to_the_lower_index():
    """Wide enough that the search for the largest entry is split among lanes of the processor."""
    V = torch.zeros(1000, 3)
    V[:, 0] = 1.0
    V[[600, 30, 999], 1] = torch.tensor([2.0, -2.0, 2.0])
    V[[700, 40], 2] = 3.0
    assert deim_indices(V).tolist() == [0, 30, 40]
    assert pivoted_columns(torch.ones(4, 1000), 5).tolist() == [0, 1, 2, 3, 4]  # after the first nothing is left
    A = torch.zeros(4, 1000)
    A[0, [900, 17]], A[1, [55, 2]] = 2.0, -2.0
    assert pivoted_columns(A, 2).tolist() == [2, 17]
    chosen = choose(torch.eye(6), "pivoted_qr")
    assert chosen.rows.tolist() == chosen.columns.tolist() == [0, 1, 2, 3]


def test_svd_top_has_the_factors_of_lora_xs():
    W = weight()
    left, values, right_t = torch.linalg.svd(W, full_matrices=False)
    chosen = choose(W, "svd_top")
    torch.testing.assert_close(chosen.C @ chosen.R, left[:, :4] @ torch.diag(values[:4]) @ right_t[:4])
    torch.testing.assert_close(chosen.C.T @ chosen.C, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.linalg.vector_norm(chosen.R, dim=1), values[:4]
    )  # singular values on the input side
    bottom = choose(W, "svd_bottom")
    torch.testing.assert_close(
        bottom.C @ bottom.R, left[:, -4:] @ torch.diag(values[-4:]) @ right_t[-4:], atol=1e-4, rtol=0
    )


def test_gaussian_factors_match_the_weight_in_scale():
    W = torch.randn(300, 200, generator=generator()) * 0.05
    chosen = choose(W, "gaussian", r=64)
    for factor in (chosen.C, chosen.R):
        assert factor.std() == pytest.approx(0.05, rel=0.05)
    assert chosen.rows is chosen.columns is None


@pytest.mark.parametrize("basis", BASES)
def test_orthonormal_factors_span_the_same_and_are_still_a_mix_of_rows(basis):
    W = weight()
    plain, orthonormal = choose(W, basis), choose(W, basis, orthonormal=True)
    for A, Q in ((plain.C, orthonormal.C), (plain.R.T, orthonormal.R.T)):
        torch.testing.assert_close(Q.T @ Q, torch.eye(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(Q @ (Q.T @ A), A, atol=1e-4, rtol=1e-4)
    if orthonormal.rows is not None:
        torch.testing.assert_close(orthonormal.mix @ W[orthonormal.rows], orthonormal.R, atol=1e-5, rtol=0)


def test_orthonormal_columns_that_add_no_direction_become_zero():
    A = torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).double()
    expected = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).double()
    wide = torch.cat([A, torch.zeros(2, 4).double()])
    torch.testing.assert_close(orthonormal_columns(wide)[:3], expected)


def test_one_step_on_an_orthonormal_core_is_the_projected_step_on_the_weight():
    W, G, rate = weight(), torch.randn(20, 14, generator=generator(2)), 0.1
    chosen = choose(W, "inverse_norm", orthonormal=True)
    U = -rate * chosen.C.T @ G @ chosen.R.T  # gradient of the core, alpha 1
    P_C, P_R = chosen.C @ chosen.C.T, chosen.R.T @ chosen.R
    torch.testing.assert_close(chosen.C @ U @ chosen.R, -rate * P_C @ G @ P_R, atol=1e-5, rtol=1e-4)


def test_merged_duplicates_keep_the_gram_matrix_and_shrink_the_factor():
    W, columns, rows = weight(), torch.tensor([3, 1, 3, 3]), torch.tensor([0, 0, 2, 5])
    keep = from_indices(W, columns, rows, options=BasisOptions(r=4))
    merge = from_indices(W, columns, rows, options=BasisOptions(r=4, duplicates="merge"))
    assert merge.C.shape == (20, 2)
    assert merge.R.shape == (3, 14)
    torch.testing.assert_close(merge.C @ merge.C.T, keep.C @ keep.C.T)
    torch.testing.assert_close(merge.R.T @ merge.R, keep.R.T @ keep.R)
    torch.testing.assert_close(merge.mix @ W[rows], merge.R)
    torch.testing.assert_close(merge_matrix(columns), torch.tensor([[3**0.5, 0, 0, 0], [0, 1, 0, 0]]))


def test_a_rank_above_the_shape_is_refused():
    message = (
        r"rank 15 is larger than 'h.0.c_proj' allows \(shape 20 x 14, at most 14\); lower rank or exclude the module."
    )
    with pytest.raises(ValueError, match=message):
        choose_basis(weight(), basis="norm", options=BasisOptions(r=15), generator=generator(), name="h.0.c_proj")


def test_seeds_of_modules_differ_and_do_not_change_between_releases():
    assert module_seed(0, "h.0.attn.c_attn") != module_seed(0, "h.1.attn.c_attn") != module_seed(1, "h.1.attn.c_attn")
    assert 0 <= module_seed(-5, "x") < 2**63
    assert module_seed(0, "h.0.attn.c_attn") == 4622853222850628371
