"""How the two frozen factors are chosen: pure functions from a weight `W` (out, in) to `C` (out, c) and `R` (r, in).

Most bases pick columns and rows of `W`; three take their factors from elsewhere. Every choice depends on `W`, the options
and an explicit generator only. Ties go to the lower index.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from curlora_lab.adapters.scores import fix_signs, inverted, leverage_scores, norm_dtype, norm_scores, truncated_svd

_NEW_DIRECTION = 1e-7  # smallest part of a column outside the earlier ones, relative to its length, that counts


@dataclass(frozen=True, kw_only=True)
class BasisOptions:
    """What a basis may depend on besides the weight.

    Args:
        r: Number of columns and of rows.
        floor: Relative floor of inverted scores; see `scores.inverted`.
        floor_absolute: Absolute floor of inverted scores, in place of the relative one.
        replacement: Draw with replacement.
        duplicates: "keep" or "merge"; see `from_indices`.
        leverage_rank: Rank of leverage scores; None takes `r`.
        orthonormal: Orthonormalise both factors.
    """

    r: int
    floor: float = 1e-3
    floor_absolute: float | None = None
    replacement: bool = False
    duplicates: str = "keep"
    leverage_rank: int | None = None
    orthonormal: bool = False


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The two frozen factors of one weight.

    Args:
        C: Left factor.
        R: Right factor.
        columns: Indices of the columns that `C` was made of; None for a basis that is not made of columns of `W`.
        rows: Indices of the rows that `R` was made of, in pairs with `columns`.
        mix: `M` in `R = M W[rows]`; None where `R` is `W[rows]` itself, or not made of rows of `W`.
    """

    C: Float[Tensor, "out c"]
    R: Float[Tensor, "r in"]
    columns: Int[Tensor, " drawn"] | None = None
    rows: Int[Tensor, " drawn"] | None = None
    mix: Float[Tensor, "r drawn"] | None = None


Distributions = tuple[Tensor, Tensor]  # over columns, over rows
Indices = tuple[Tensor, Tensor]  # columns, rows
Factors = tuple[Tensor, Tensor]  # C, R


@dataclass(frozen=True)
class BasisRule:
    """One entry of `BASES`.

    Args:
        probabilities: Distributions over the columns and over the rows, for a basis that is drawn.
        indices: Columns and rows, for a basis that picks them without chance.
        factors: `C` and `R`, for a basis that is not made of columns and rows.
    """

    probabilities: Callable[[Tensor, BasisOptions, torch.Generator], Distributions] | None = None
    indices: Callable[[Tensor, BasisOptions, torch.Generator], Indices] | None = None
    factors: Callable[[Tensor, BasisOptions, torch.Generator], Factors] | None = None

    @property
    def drawn(self) -> bool:
        """Whether chance decides which columns and rows are taken."""
        return self.probabilities is not None

    @property
    def from_rows(self) -> bool:
        """Whether `C` and `R` are made of columns and rows of the weight."""
        return self.factors is None


def choose_basis(
    W: Float[Tensor, "out in"], *, basis: str, options: BasisOptions, generator: torch.Generator, name: str = "weight"
) -> Basis:
    """Choose `C` and `R` for one weight.

    Args:
        W: Weight in (out, in) orientation, on any device.
        basis: A key of `BASES`.
        options: Rank, floor, and so on.
        generator: CPU generator; the only source of chance.
        name: What the weight is called in errors.

    Returns:
        The factors in the dtype and on the device of `W`.

    Raises:
        ValueError: The rank is larger than the weight allows, or the weight is not finite.
    """
    check_rank(options.r, W.shape, name)
    rule = BASES[basis]
    try:
        if rule.factors is not None:
            C, R = rule.factors(W, options, generator)
            return _finished(Basis(C=C, R=R), W, options)
        if rule.probabilities is not None:
            columns, rows = (
                draw(distribution, options.r, options.replacement, generator)
                for distribution in rule.probabilities(W, options, generator)
            )
        elif rule.indices is not None:
            columns, rows = rule.indices(W, options, generator)
    except ValueError as error:
        raise ValueError(f"basis {basis!r} of {name!r}: {error}") from error
    return from_indices(W, columns.to(W.device), rows.to(W.device), options=options)


def module_seed(seed: int, module_name: str) -> int:
    """Seed of one module, from the adapter's seed and the module's name, so that the order of modules does not matter.

    Args:
        seed: Seed of the adapter.
        module_name: Name of the module in the model.

    Returns:
        A seed below 2^63.
    """
    digest = hashlib.sha256(f"{seed}:{module_name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def check_rank(r: int, shape: torch.Size | tuple[int, int], name: str) -> None:
    """Refuse a rank that the weight cannot hold.

    Raises:
        ValueError: `r` is larger than the smaller side.
    """
    if r > min(shape):
        raise ValueError(
            f"rank {r} is larger than {name!r} allows (shape {shape[0]} x {shape[1]}, at most {min(shape)}); "
            f"lower rank or exclude the module."
        )


def from_indices(
    W: Float[Tensor, "out in"], columns: Int[Tensor, " drawn"], rows: Int[Tensor, " drawn"], *, options: BasisOptions
) -> Basis:
    """Build the factors from chosen columns and rows; a pure function, so that indices are enough to rebuild them.

    With `duplicates="merge"` a column drawn `n` times appears once, times `√n`, which keeps `C Cᵀ` as it was and makes
    `C` narrower. With `orthonormal` the factors are those of the thin QR decompositions; directions that duplicate
    others, or have no length, become zero, so that `ΔW` never leaves the spans of the chosen columns and rows.

    Args:
        W: Weight in (out, in) orientation.
        columns: Chosen columns, as drawn.
        rows: Chosen rows, as drawn.
        options: `duplicates` and `orthonormal` are read.

    Returns:
        The basis, with `mix` where `R` is not simply `W[rows]`.
    """
    C, R = W.index_select(1, columns), W.index_select(0, rows)
    mix = None
    if options.duplicates == "merge":
        C = C @ merge_matrix(columns).to(C).T
        mix = merge_matrix(rows).to(R.device)
        R = mix.to(R) @ R
    return _finished(Basis(C=C, R=R, columns=columns, rows=rows, mix=mix), W, options)


def merge_matrix(indices: Int[Tensor, " drawn"]) -> Float[Tensor, "unique drawn"]:
    """Matrix that keeps the first of equal indices, times the square root of their number.

    Reference:
        Drineas, Kannan & Mahoney (2006), "Fast Monte Carlo algorithms for matrices III"; `adjust_duplicates` in the
        published CURLoRA code, which never calls it.
    """
    first: dict[int, int] = {}
    counts: dict[int, int] = {}
    for position, index in enumerate(indices.tolist()):
        first.setdefault(index, position)
        counts[index] = counts.get(index, 0) + 1
    matrix = torch.zeros(len(first), len(indices))
    for line, (index, position) in enumerate(first.items()):
        matrix[line, position] = counts[index] ** 0.5
    return matrix


def _finished(basis: Basis, W: Tensor, options: BasisOptions) -> Basis:
    """Orthonormalise if asked, and return the factors in the dtype of `W`."""
    C, R, mix = basis.C, basis.R, basis.mix
    if options.orthonormal:
        before = R.double()
        C, R = orthonormal_columns(C.double()), orthonormal_columns(R.double().T).T
        if basis.rows is not None:
            onto = (R @ torch.linalg.pinv(before, rtol=1e-9)).float()
            mix = onto if mix is None else onto @ mix
    return Basis(
        C=C.to(W.dtype).contiguous(), R=R.to(W.dtype).contiguous(), columns=basis.columns, rows=basis.rows, mix=mix
    )


def orthonormal_columns(A: Float[Tensor, "n r"]) -> Float[Tensor, "n r"]:
    """Thin QR factor `Q` with a positive diagonal of `T` in `A = Q T`, zero where a column adds no direction.

    Gram-Schmidt, each projection done twice, rather than a library's QR: that fills in directions of its own for columns
    of zeros and duplicates, and makes later columns orthogonal to them.

    Args:
        A: Columns to orthonormalise, first to last.

    Returns:
        `Q`; its non-zero columns are orthonormal and span what the columns of `A` span.

    Reference:
        Giraud, Langou & Rozložník (2005), "The loss of orthogonality in the Gram-Schmidt process".
    """
    Q = torch.zeros_like(A)
    for j in range(A.shape[1]):
        residual, earlier = A[:, j], Q[:, :j]
        for _ in range(2):
            residual = residual - earlier @ (earlier.T @ residual)
        length = residual.norm()
        if length > _NEW_DIRECTION * A[:, j].norm():
            Q[:, j] = residual / length
    return Q


def draw(
    probabilities: Float[Tensor, " n"], r: int, replacement: bool, generator: torch.Generator
) -> Int[Tensor, " r"]:
    """Draw indices, with replacement or one after the other without.

    Without replacement: the r largest of `log p + Gumbel noise`, which has the distribution of drawing one index at a
    time from what is left. Indices of probability 0 come last, in their own order.

    Args:
        probabilities: Float64 on the CPU, summing to 1.
        r: Number of indices.
        replacement: Whether an index may come twice.
        generator: CPU generator.

    Returns:
        Indices in the order drawn.

    Reference:
        Efraimidis & Spirakis (2006), "Weighted random sampling with a reservoir".
    """
    if replacement:
        return torch.multinomial(probabilities, r, replacement=True, generator=generator)
    uniform = torch.rand(len(probabilities), generator=generator, dtype=torch.float64)
    keys = probabilities.log() - (-uniform.log()).log()
    return torch.sort(keys, descending=True, stable=True).indices[:r]


def pivoted_columns(A: Float[Tensor, "m n"], r: int) -> Int[Tensor, " r"]:
    """The first r pivots of QR with column pivoting: each the column with the largest part outside the earlier ones.

    Reference:
        Businger & Golub (1965); Drmač & Gugercin (2016) for its use in selection.
    """
    residual = A.double().clone()
    pivots: list[int] = []
    for _ in range(r):
        lengths = residual.square().sum(0)
        lengths[pivots] = -1.0
        pivot = int(lengths.argmax())
        pivots.append(pivot)
        direction = residual[:, pivot] / residual[:, pivot].norm().clamp_min(torch.finfo(residual.dtype).tiny)
        residual -= torch.outer(direction, direction @ residual)
    return torch.tensor(pivots)


def deim_indices(V: Float[Tensor, "n k"]) -> Int[Tensor, " k"]:
    """Discrete empirical interpolation: `q_1 = argmax |v_1|`, then the largest entry of each interpolation residual.

    For j = 2 … k: solve `V[q, :j-1] c = v_j[q]`, then `q_j = argmax |v_j - V[:, :j-1] c|`.

    Reference:
        Sorensen & Embree (2016), "A DEIM induced CUR factorization", algorithm 1.
    """
    V = V.double()
    chosen = [int(V[:, 0].abs().argmax())]
    for j in range(1, V.shape[1]):
        coefficients = torch.linalg.solve(V[chosen, :j], V[chosen, j])
        residual = (V[:, j] - V[:, :j] @ coefficients).abs()
        residual[chosen] = -1.0
        chosen.append(int(residual.argmax()))
    return torch.tensor(chosen)


def _inverse_norm(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Distributions:
    return _both_inverted(norm_scores(W), options)


def _norm(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Distributions:
    return norm_scores(W)


def _uniform(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Distributions:
    columns, rows = (torch.full((side,), 1 / side, dtype=torch.float64) for side in (W.shape[1], W.shape[0]))
    return columns, rows


def _leverage(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Distributions:
    return leverage_scores(W, rank=options.leverage_rank or options.r, generator=generator)


def _inverse_leverage(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Distributions:
    return _both_inverted(_leverage(W, options, generator), options)


def _both_inverted(scores: Distributions, options: BasisOptions) -> Distributions:
    columns, rows = (inverted(one, floor=options.floor, floor_absolute=options.floor_absolute) for one in scores)
    return columns, rows


def _lowest_norm(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Indices:
    columns, rows = (torch.sort(one, stable=True).indices[: options.r] for one in norm_scores(W))
    return columns, rows


def _highest_norm(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Indices:
    columns, rows = (torch.sort(one, descending=True, stable=True).indices[: options.r] for one in norm_scores(W))
    return columns, rows


def _deim(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Indices:
    left, _, right = truncated_svd(W, options.r, generator=generator)
    return deim_indices(right), deim_indices(left)


def _pivoted_qr(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Indices:
    return pivoted_columns(W, options.r), pivoted_columns(W.T, options.r)


def _svd_top(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Factors:
    left, values, right = truncated_svd(W, options.r, generator=generator)
    return left, (right * values).T


def _svd_bottom(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Factors:
    left, values, right_t = torch.linalg.svd(W.float(), full_matrices=False)
    left, values, right = fix_signs(left[:, -options.r :], values[-options.r :], right_t[-options.r :].T)
    return left, (right * values).T


def _gaussian(W: Tensor, options: BasisOptions, generator: torch.Generator) -> Factors:
    scale = torch.linalg.vector_norm(W, dtype=norm_dtype(W.dtype)).item() / W.numel() ** 0.5
    C = torch.randn(W.shape[0], options.r, generator=generator)
    R = torch.randn(options.r, W.shape[1], generator=generator)
    return (scale * C).to(W.device), (scale * R).to(W.device)


BASES: dict[str, BasisRule] = {
    "inverse_norm": BasisRule(probabilities=_inverse_norm),
    "norm": BasisRule(probabilities=_norm),
    "uniform": BasisRule(probabilities=_uniform),
    "lowest_norm": BasisRule(indices=_lowest_norm),
    "highest_norm": BasisRule(indices=_highest_norm),
    "leverage": BasisRule(probabilities=_leverage),
    "inverse_leverage": BasisRule(probabilities=_inverse_leverage),
    "deim": BasisRule(indices=_deim),
    "pivoted_qr": BasisRule(indices=_pivoted_qr),
    "svd_top": BasisRule(factors=_svd_top),
    "svd_bottom": BasisRule(factors=_svd_bottom),
    "gaussian": BasisRule(factors=_gaussian),
}
REBUILDABLE_BASES = tuple(name for name, rule in BASES.items() if rule.from_rows)
