"""Every basis, over random shapes and options."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curlora_lab.adapters.basis import BASES, BasisOptions, choose_basis, from_indices, orthonormal_columns
from curlora_lab.adapters.diagnostics import captured_energy


@st.composite
def choices(draw):
    out, wide = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    W = torch.randn(out, wide, generator=generator)
    if draw(st.booleans()):
        W[:, draw(st.integers(0, wide - 1))] = 0
        W[draw(st.integers(0, out - 1))] = 0
    basis = draw(st.sampled_from(sorted(BASES)))
    replacement = BASES[basis].drawn and draw(st.booleans())
    options = BasisOptions(
        r=draw(st.integers(1, min(out, wide))),
        replacement=replacement,
        duplicates="merge" if replacement and draw(st.booleans()) else "keep",
        orthonormal=draw(st.booleans()),
    )
    return W, basis, options, generator


@settings(max_examples=150, deadline=None)
@given(choices())
def test_shapes_span_and_rebuilding(drawn):
    W, basis, options, generator = drawn
    chosen = choose_basis(W, basis=basis, options=options, generator=generator)
    assert chosen.C.shape[0] == W.shape[0]
    assert chosen.R.shape[1] == W.shape[1]
    assert chosen.C.isfinite().all()
    assert chosen.R.isfinite().all()
    if options.duplicates == "keep":
        assert chosen.C.shape[1] == chosen.R.shape[0] == options.r
    if chosen.rows is None:
        return
    again = from_indices(W, chosen.columns, chosen.rows, options=options)
    assert torch.equal(again.C, chosen.C)
    assert torch.equal(again.R, chosen.R)
    picked = W[chosen.rows]
    mixed = picked if chosen.mix is None else chosen.mix @ picked
    condition = 1.0 if chosen.mix is None else float(chosen.mix.norm() * picked.norm()) + 1
    torch.testing.assert_close(mixed, chosen.R, atol=1e-5 * condition, rtol=0)


@settings(max_examples=60, deadline=None)
@given(choices())
def test_captured_energy_is_a_share_below_its_ceiling(drawn):
    W, basis, options, generator = drawn
    chosen = choose_basis(W, basis=basis, options=options, generator=generator)
    energy = captured_energy(torch.randn(W.shape, generator=generator), chosen.C, chosen.R)
    assert -1e-9 <= energy.captured <= energy.ceiling + 1e-9 <= 1 + 2e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10), st.integers(1, 6), st.integers(0, 2**16))
def test_orthonormal_columns_span_what_they_are_made_of(n, r, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randint(-1, 2, (n, r), generator=generator).double()  # often dependent columns
    Q = orthonormal_columns(A)
    alive = Q.norm(dim=0) > 0
    assert int(alive.sum()) == int(torch.linalg.matrix_rank(A))
    torch.testing.assert_close(Q[:, alive].T @ Q[:, alive], torch.eye(int(alive.sum())).double())
    torch.testing.assert_close(Q @ (Q.T @ A), A)
