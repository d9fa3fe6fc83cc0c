"""What a basis can and cannot express: the numbers a sceptic asks for before believing in a choice of `C` and `R`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curlora_lab.adapters.basis import BASES, BasisOptions, module_seed, orthonormal_columns
from curlora_lab.adapters.compact import basis_options
from curlora_lab.adapters.layer import CurLoraLinear
from curlora_lab.adapters.scores import norm_scores
from curlora_lab.adapters.standing import require_basis

#: Shorter side from which on not all singular values of a gradient are computed.
LARGE = 2048


@dataclass(frozen=True, kw_only=True)
class BasisDiagnostics:
    """Quality of one basis.

    Args:
        reconstruction_error: `‖W - C U* R‖_F / ‖W‖_F` with the best core `U* = C⁺ W R⁺`.
        column_norm_spread: Standard deviation over mean of the squared norms of the columns of `W`.
        row_norm_spread: The same for the rows.
        column_kl: KL divergence in nats of the distribution over columns from the uniform one; None where columns are
            not drawn. 0 means that the draw is uniform in all but name.
        row_kl: The same for the rows.
        column_condition: Largest over smallest singular value of `C`; infinite where a column adds no direction.
        row_condition: The same for `R`.
    """

    reconstruction_error: float
    column_norm_spread: float
    row_norm_spread: float
    column_kl: float | None
    row_kl: float | None
    column_condition: float
    row_condition: float


@dataclass(frozen=True, kw_only=True)
class CapturedEnergy:
    """How much of a gradient a basis lets through.

    Args:
        captured: `‖P_C G P_R‖_F² / ‖G‖_F²`, with the orthogonal projectors onto the spans of `C` and `R`.
        ceiling: The same for the best basis of that rank, the top singular vectors of `G` itself.
        expected: What spans of these dimensions in random directions capture on average, `(c / out)(r / in)`.
        gradient_norm: `‖G‖_F`.
    """

    captured: float
    ceiling: float
    expected: float
    gradient_norm: float


def diagnose_basis(
    W: Float[Tensor, "out in"],
    C: Float[Tensor, "out c"],
    R: Float[Tensor, "r in"],
    *,
    basis: str,
    options: BasisOptions,
    generator: torch.Generator,
) -> BasisDiagnostics:
    """Measure one basis against its weight.

    Args:
        W: Weight.
        C: Left factor.
        R: Right factor.
        basis: The rule that chose them, a key of `BASES`.
        options: Its options.
        generator: Source of chance for the scores of large matrices.

    Returns:
        The measurements.

    Reference:
        Mahoney & Drineas (2009), "CUR matrix decompositions for improved data analysis", for `U*`.
    """
    W = W.double()
    kept = _projected(W, C, R).square().sum() / W.square().sum().clamp_min(torch.finfo(W.dtype).tiny)
    spread_of_columns, spread_of_rows = (float(one.std(correction=0) / one.mean()) for one in norm_scores(W))
    rule = BASES[basis].probabilities
    drawn_from = (None, None) if rule is None else rule(W, options, generator)
    kl_of_columns, kl_of_rows = (None if one is None else kl_to_uniform(one) for one in drawn_from)
    return BasisDiagnostics(
        reconstruction_error=float((1 - kept).clamp_min(0).sqrt()),
        column_norm_spread=spread_of_columns,
        row_norm_spread=spread_of_rows,
        column_kl=kl_of_columns,
        row_kl=kl_of_rows,
        column_condition=_condition(C),
        row_condition=_condition(R),
    )


def kl_to_uniform(probabilities: Float[Tensor, " n"]) -> float:
    """`KL(p ‖ uniform) = Σ p_j log(n p_j)` in nats, with `0 log 0 = 0`.

    Args:
        probabilities: A distribution over n indices.
    """
    return float(torch.special.xlogy(probabilities, len(probabilities) * probabilities).sum().clamp_min(0))


def captured_energy(G: Float[Tensor, "out in"], C: Float[Tensor, "out c"], R: Float[Tensor, "r in"]) -> CapturedEnergy:
    """Share of a gradient's energy that lies in what `C` and `R` span.

    `‖P_C G P_R‖² / ‖G‖²`, with `P_C = Q_C Q_Cᵀ` and `P_R = Q_Rᵀ Q_R` from thin QR decompositions.

    Args:
        G: Gradient of a loss with respect to the effective weight.
        C: Left factor.
        R: Right factor.

    Returns:
        Captured share, ceiling, what random spans capture, and norm. The shares are 0 for a gradient of zeros.
    """
    G = G.double()
    total, expected = G.square().sum(), C.shape[1] * R.shape[0] / (C.shape[0] * R.shape[1])
    if total == 0:
        return CapturedEnergy(captured=0.0, ceiling=0.0, expected=expected, gradient_norm=0.0)
    values = _largest_singular_values(G, min(C.shape[1], R.shape[0]))
    return CapturedEnergy(
        captured=float(_projected(G, C, R).square().sum() / total),
        ceiling=float(values.square().sum() / total),
        expected=expected,
        gradient_norm=float(total.sqrt()),
    )


@torch.no_grad()
def diagnose_model(model: nn.Module, adapter_name: str = "default") -> dict[str, BasisDiagnostics]:
    """`diagnose_basis` for every adapted module, one weight at a time.

    Args:
        model: Model with a CURLoRA adapter.
        adapter_name: The adapter.

    Returns:
        Diagnostics by module name.
    """
    return {
        layer.module_name: diagnose_basis(
            layer.oriented_weight(),
            layer.curlora_C[adapter_name],
            layer.curlora_R[adapter_name],
            basis=layer.configs[adapter_name].basis,
            options=basis_options(layer, adapter_name),
            generator=torch.Generator().manual_seed(module_seed(layer.configs[adapter_name].seed, layer.module_name)),
        )
        for layer in _adapted(model, adapter_name)
    }


def gradient_energy(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    loss: Callable[[nn.Module, Mapping[str, Any]], Tensor],
    *,
    adapter_name: str = "default",
    at_once: int = 8,
) -> dict[str, CapturedEnergy]:
    """Captured energy of the loss gradient for every adapted module, summed over the batches.

    The gradient of a module's effective weight is `G = Σ gᵀ x` over the tokens, from its input `x` and the gradient `g` of
    its output. Only `at_once` of these matrices are held at a time; the batches are run once for each such group.

    Args:
        model: Model with an active CURLoRA adapter.
        batches: Batches; gone through several times.
        loss: Loss of the model on a batch; a sum over examples gives the gradient of the sum.
        adapter_name: The adapter.
        at_once: Number of modules measured in one pass over the batches.

    Returns:
        Energies by module name.
    """
    batches, layers, energies = list(batches), list(_adapted(model, adapter_name)), {}
    for start in range(0, len(layers), at_once):
        group = layers[start : start + at_once]
        gradients = [
            torch.zeros(layer.out_features, layer.in_features, device=layer.stored_weight().device) for layer in group
        ]
        with _recording(group, gradients), torch.enable_grad():
            for batch in batches:
                loss(model, batch).backward()
                model.zero_grad(set_to_none=True)
        for layer, G in zip(group, gradients, strict=True):
            C, R = layer.curlora_C[adapter_name], layer.curlora_R[adapter_name]
            energies[layer.module_name] = captured_energy(G, C, R)
    return energies


@contextmanager
def _recording(layers: list[CurLoraLinear], gradients: list[Tensor]) -> Iterator[None]:
    """Add `gᵀ x` of each backward pass to the gradients."""

    def hook(x: Tensor, y: Tensor, G: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1])

        def add(g: Tensor) -> None:
            G.addmm_(g.reshape(-1, g.shape[-1]).T.to(G.dtype), flat.to(G.dtype))

        if y.requires_grad:
            y.register_hook(add)

    handles = [
        layer.register_forward_hook(lambda _, args, output, into=G: hook(args[0], output, into))
        for layer, G in zip(layers, gradients, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adapted(model: nn.Module, adapter_name: str) -> Iterator[CurLoraLinear]:
    for module in model.modules():
        if isinstance(module, CurLoraLinear) and adapter_name in module.curlora_U:
            require_basis(module, adapter_name)
            yield module


def _projected(A: Tensor, C: Tensor, R: Tensor) -> Tensor:
    """`Q_Cᵀ A Q_Rᵀ`, which has the norm of `P_C A P_R`."""
    return orthonormal_columns(C.to(A.dtype)).T @ A @ orthonormal_columns(R.to(A.dtype).T)


def _largest_singular_values(G: Tensor, r: int) -> Tensor:
    """The r largest; of a large matrix by a randomised method, whose error is far below what is read off here."""
    if min(G.shape) <= LARGE:
        return torch.linalg.svdvals(G)[:r]
    return torch.svd_lowrank(G, q=r + 10, niter=4)[1][:r]


def _condition(A: Tensor) -> float:
    values = torch.linalg.svdvals(A.double())
    return float(values[0] / values[-1]) if values[-1] > 1e-12 * values[0] else float("inf")
