"""The update over random shapes: values and gradients are those of `x (W + C K R)ᵀ + b` by plain autograd."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from curlora_lab.adapters.update import factored_update, output_update, wide_update


@st.composite
def problems(draw):
    n, wide, out = draw(st.integers(0, 6)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    r = draw(st.integers(1, min(wide, out)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    rows = torch.randint(0, out, (r,), generator=generator)
    columns = torch.randint(0, wide, (draw(st.integers(1, r)),), generator=generator)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(n, wide), normal(out, wide), normal(out) if draw(st.booleans()) else None, rows, columns, normal


@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans(), st.sampled_from(["output", "factored", "wide", "transposed"]))
def test_every_form_is_the_effective_weight(problem, in_place, form):
    x, W, b, rows, columns, normal = problem
    C, R = W[:, columns], W[rows]
    K, g = normal(len(columns), len(rows)).requires_grad_(), normal(len(x), len(W))
    x.requires_grad_()
    y0 = F.linear(x, W, b)
    if form in ("wide", "transposed"):
        weight = W.T.contiguous() if form == "transposed" else W
        y = wide_update(x, weight, b, K, C=C, rows=rows, transposed=form == "transposed")
    elif form == "output":
        bias_rows = None if b is None else b[rows]
        y = output_update(y0, K, C=C, rows=rows, bias_rows=bias_rows, in_place=in_place)
    else:
        y = factored_update(y0, F.linear(x, R), K, C=C, in_place=in_place)
    expected = F.linear(x, W + C @ K @ R, b)
    torch.testing.assert_close(y, expected, atol=1e-9, rtol=1e-9)
    found, wanted = (torch.autograd.grad(output, (x, K), g, retain_graph=True) for output in (y, expected))
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
