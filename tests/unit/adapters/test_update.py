"""The two autograd functions against plain autograd, in every form and dtype."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from curlora_lab.adapters.update import factored_update, output_update, wide_update

N, IN, OUT, R, C_WIDTH = 7, 6, 9, 3, 2


def parts(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    W, b = draw(OUT, IN), draw(OUT) if bias else None
    rows = torch.tensor([4, 0, 7])
    return {
        "x": draw(N, IN),
        "W": W,
        "b": b,
        "rows": rows,
        "R": W[rows],
        "C": draw(OUT, C_WIDTH),
        "K": draw(C_WIDTH, R),
    }


def reference(p, x, K, b=None):
    """`x (W + C K R)ᵀ + b`, by plain autograd."""
    b = p["b"] if b is None else b
    return F.linear(x, p["W"] + p["C"] @ K @ p["R"], b)


def by_output(p, x, K, *, in_place=False, b=None):
    b = p["b"] if b is None else b
    y0 = F.linear(x, p["W"], b)
    bias_rows = None if b is None else b[p["rows"]]
    return output_update(y0, K, C=p["C"], rows=p["rows"], bias_rows=bias_rows, in_place=in_place)


def factored(p, x, K, *, in_place=False):
    y0 = F.linear(x, p["W"], p["b"])
    return factored_update(y0, F.linear(x, p["R"]), K, C=p["C"], in_place=in_place)


def wide(p, x, K, *, in_place=False):
    return wide_update(x, p["W"], p["b"], K, C=p["C"], rows=p["rows"], transposed=False)


def wide_transposed(p, x, K, *, in_place=False):
    return wide_update(x, p["W"].T.contiguous(), p["b"], K, C=p["C"], rows=p["rows"], transposed=True)


WIDE = [wide, wide_transposed]


@pytest.mark.parametrize("form", [by_output, factored, *WIDE])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_those_of_plain_autograd(form, in_place, bias):
    p = parts(bias=bias)
    x, K = (p[key].clone().requires_grad_() for key in ("x", "K"))
    y = form(p, x, K, in_place=in_place)
    expected = reference(p, x, K)
    torch.testing.assert_close(y, expected)
    g = torch.randn(N, OUT, dtype=torch.float64)
    found = torch.autograd.grad(y, (x, K), g)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (x, K), g))


def test_the_gradient_of_the_core_is_alpha_C_transposed_G_R_transposed():
    p, alpha = parts(), 1.7
    x = p["x"]
    U = p["K"].clone().requires_grad_()
    y = by_output(p, x, alpha * U)
    g = torch.randn(N, OUT, dtype=torch.float64)
    G = g.T @ x  # gradient of the effective weight
    (found,) = torch.autograd.grad(y, U, g)
    torch.testing.assert_close(found, alpha * p["C"].T @ G @ p["R"].T)


@pytest.mark.parametrize("form", [by_output, factored, *WIDE])
def test_gradcheck(form):
    p = parts()
    assert gradcheck(lambda x, K: form(p, x, K), (p["x"].requires_grad_(), p["K"].requires_grad_()))


def test_gradcheck_of_a_trained_bias():
    p = parts()
    inputs = tuple(p[key].clone().requires_grad_() for key in ("x", "K", "b"))
    assert gradcheck(lambda x, K, b: by_output(p, x, K, b=b), inputs)


@pytest.mark.parametrize("form", [by_output, *WIDE])
def test_rows_drawn_twice_receive_both_gradients(form):
    p = parts()
    p["rows"] = torch.tensor([4, 4, 7])
    p["R"] = p["W"][p["rows"]]
    x, K = (p[key].clone().requires_grad_() for key in ("x", "K"))
    g = torch.randn(N, OUT, dtype=torch.float64)
    found = torch.autograd.grad(form(p, x, K), (x, K), g)
    torch.testing.assert_close(found, torch.autograd.grad(reference(p, x, K), (x, K), g))


@pytest.mark.parametrize("form", [by_output, factored])
def test_nothing_wider_than_the_rank_is_kept_for_the_backward_pass(form):
    p = parts(torch.float32)
    x, K = p["x"].requires_grad_(), p["K"].requires_grad_()
    y0, z = F.linear(x, p["W"], p["b"]), F.linear(x, p["R"])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        if form is by_output:
            output_update(y0, K, C=p["C"], rows=p["rows"], bias_rows=p["b"][p["rows"]])
        else:
            factored_update(y0, z, K, C=p["C"])
    activations = [tensor for tensor in kept if tensor.dim() == 2 and len(tensor) == N]
    assert [tuple(tensor.shape) for tensor in activations] == [(N, R)]


@pytest.mark.parametrize("form", WIDE)
def test_a_wide_layer_keeps_its_frozen_weight_and_nothing_of_its_input(form):
    p = parts(torch.float32)
    x, K = p["x"].requires_grad_(), p["K"].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        form(p, x, K)
    assert [tuple(tensor.shape) for tensor in kept if len(tensor) == N] == [(N, R)]


def test_in_place_writes_into_the_given_tensor_and_otherwise_not():
    p = parts(torch.float32)
    y0 = F.linear(p["x"], p["W"], p["b"])
    before = y0.clone()
    options = {"C": p["C"], "rows": p["rows"], "bias_rows": p["b"][p["rows"]]}
    y = output_update(y0, p["K"], **options)
    assert torch.equal(y0, before)
    assert output_update(y0, p["K"], in_place=True, **options).data_ptr() == y0.data_ptr()
    assert torch.equal(y0, y)


@pytest.mark.parametrize("form", [by_output, factored, *WIDE])
def test_a_core_of_zeros_changes_no_bit(form):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        p = parts(dtype)
        by_conv1d = torch.addmm(p["b"], p["x"], p["W"].T.contiguous())
        base = by_conv1d if form is wide_transposed else F.linear(p["x"], p["W"], p["b"])
        assert torch.equal(form(p, p["x"], torch.zeros(C_WIDTH, R)), base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_without_bias_reading_the_output_costs_no_digits(dtype):
    """Law: the error against float64 is at most twice that of the factored form."""
    generator = torch.Generator().manual_seed(1)
    W = (torch.randn(96, 64, generator=generator) / 8).to(dtype)
    x = torch.randn(200, 64, generator=generator).to(dtype)
    rows, columns = torch.arange(3, 19), torch.arange(10, 26)
    C, R, K = W[:, columns].contiguous(), W[rows], torch.randn(16, 16, generator=generator)
    y0 = F.linear(x, W)
    exact = x.double() @ (C.double() @ K.double() @ R.double()).T
    errors = []
    for y in (output_update(y0, K, C=C, rows=rows), factored_update(y0, F.linear(x, R), K, C=C)):
        update = y.double() - (x.double() @ W.double().T)
        errors.append((update - exact).norm() / exact.norm())
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("form", [by_output, factored, *WIDE])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_of_the_core_are_float32_and_right(form, dtype):
    p = parts(dtype, bias=False)
    K = p["K"].float().requires_grad_()
    y = form(p, p["x"], K)
    g = torch.randn(N, OUT).to(dtype)
    y.backward(g)
    exact = p["C"].double().T @ (g.double().T @ p["x"].double()) @ p["R"].double().T
    assert K.grad.dtype == torch.float32
    assert (K.grad - exact).norm() <= 0.03 * exact.norm()


@pytest.mark.parametrize("form", [by_output, factored, *WIDE])
def test_autocast_keeps_the_core_in_float32(form):
    p = parts(torch.float32, bias=False)
    K = (p["K"] * 1e-3).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = form(p, p["x"], K)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    exact = p["C"].T @ (torch.ones(N, OUT).T @ p["x"]) @ p["R"].T
    assert K.grad.dtype == torch.float32
    assert (K.grad - exact).norm() <= 0.03 * exact.norm()


@pytest.mark.parametrize("form", [by_output, factored])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(form, reentrant):
    p = parts()
    x, K = p["x"].requires_grad_(), p["K"].requires_grad_()
    g = torch.randn(N, OUT, dtype=torch.float64)
    form(p, x, K, in_place=True).backward(g)
    expected = x.grad.clone(), K.grad.clone()
    x.grad = K.grad = None
    checkpoint(lambda x: form(p, x, K, in_place=True), x, use_reentrant=reentrant).backward(g)
    torch.testing.assert_close((x.grad, K.grad), expected)


def test_a_second_derivative_is_refused_and_not_silently_wrong():
    p = parts()
    K = p["K"].requires_grad_()
    (grad,) = torch.autograd.grad(by_output(p, p["x"], K).square().sum(), K, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
