"""The shapes in the annotations of the maths, checked at run time."""

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from curlora_lab.adapters import basis, diagnostics, scores, update

W, X, ROWS = torch.randn(9, 6), torch.randn(5, 6), torch.tensor([1, 4])
C, R, K = W[:, :2], W[:2], torch.randn(2, 2)
P = torch.full((6,), 1 / 6, dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(0)


CALLS = [
    (update.output_update, (X @ W.T, K), {"C": C, "rows": ROWS, "bias_rows": torch.zeros(2)}),
    (update.factored_update, (X @ W.T, X @ R.T, K), {"C": C}),
    (scores.norm_scores, (W,), {}),
    (scores.leverage_scores, (W,), {"rank": 2, "generator": generator()}),
    (scores.inverted, (P,), {}),
    (scores.truncated_svd, (W, 2), {"generator": generator()}),
    (basis.choose_basis, (W,), {"basis": "norm", "options": basis.BasisOptions(r=2), "generator": generator()}),
    (basis.from_indices, (W, ROWS, ROWS), {"options": basis.BasisOptions(r=2)}),
    (basis.merge_matrix, (ROWS,), {}),
    (basis.orthonormal_columns, (W,), {}),
    (basis.draw, (P, 2, False, generator()), {}),
    (basis.pivoted_columns, (W, 2), {}),
    (basis.deim_indices, (torch.linalg.qr(W).Q,), {}),
    (diagnostics.kl_to_uniform, (P,), {}),
    (diagnostics.captured_energy, (W, C, R), {}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS, ids=lambda value: getattr(value, "__name__", ""))
def test_shapes_are_as_annotated(function, args, kwargs):
    jaxtyped(typechecker=beartype)(function)(*args, **kwargs)


def test_wrong_shapes_would_be_noticed():
    checked = jaxtyped(typechecker=beartype)(update.output_update)
    with pytest.raises(TypeCheckError):
        checked(X @ W.T, K, C=torch.randn(8, 2), rows=ROWS)
