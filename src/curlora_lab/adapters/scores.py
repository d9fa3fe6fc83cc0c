"""Importance scores of the columns and rows of a weight, and the distributions from which a basis is drawn."""

import torch
from jaxtyping import Float
from torch import Tensor

EXACT_SVD_SIDE = 1024  # up to this smaller side the singular vectors are exact; above it, randomised
_OVERSAMPLING = 10
_PIECE, _PIECE_ON_DEVICE = 2**18, 2**26  # entries
_POWER_STEPS = 10  # as many as scikit-learn's TruncatedSVD is given by the LoRA-XS code


def norm_scores(W: Float[Tensor, "out in"]) -> tuple[Float[Tensor, " in"], Float[Tensor, " out"]]:
    """Share of each column and each row in the squared Frobenius norm of `W`.

    `p_j = ‖W[:, j]‖² / ‖W‖_F²` and `q_i = ‖W[i, :]‖² / ‖W‖_F²`. A matrix of zeros has no such shares; it gets uniform ones.

    Args:
        W: Weight, in any floating dtype; squares are summed in float32 or wider.

    Returns:
        Scores of the columns and of the rows, each summing to 1, float64 on the CPU.

    Reference:
        Fawi (2024), arXiv 2408.14572, section 3 (there called leverage scores, which they are not).
    """
    columns, rows = _squared_norms(W)
    return _normalised(columns), _normalised(rows)


def leverage_scores(
    W: Float[Tensor, "out in"], *, rank: int, generator: torch.Generator
) -> tuple[Float[Tensor, " in"], Float[Tensor, " out"]]:
    """Rank-k leverage scores: how much of the top-k singular subspace a column or row carries.

    Columns: `ℓ_j = ‖V_k[j, :]‖² / k` with the top-k right singular vectors; rows: the same with `U_k`. The rank matters:
    with the full rank of a wide matrix every row has leverage 1.

    Args:
        W: Weight.
        rank: The rank k.
        generator: Source of chance of the randomised SVD of large matrices.

    Returns:
        Scores of the columns and of the rows, each summing to 1, float64 on the CPU.

    Reference:
        Mahoney & Drineas (2009), "CUR matrix decompositions for improved data analysis", eq. 3.
    """
    left, _, right = truncated_svd(W, rank, generator=generator)
    columns, rows = (_normalised(vectors.double().cpu().square().sum(1)) for vectors in (right, left))
    return columns, rows


def inverted(
    scores: Float[Tensor, " n"], *, floor: float = 1e-3, floor_absolute: float | None = None
) -> Float[Tensor, " n"]:
    """Distribution that prefers low scores: `p̃_j ∝ 1 / (p_j + floor / n)`.

    Without a floor a single column of tiny norm takes nearly all the mass, and a column of zeros has no probability at
    all. With `floor_absolute` the floor is the same for every n, as in the published code, whose 0.001 exceeds the mean
    score of every matrix it was used on and makes the draw almost uniform.

    Args:
        scores: Scores that sum to 1.
        floor: Floor in units of the mean score `1 / n`.
        floor_absolute: Floor in units of the scores; replaces `floor`.

    Returns:
        Probabilities that sum to 1.

    Raises:
        ValueError: A score is zero and so is the floor.

    Reference:
        Fawi (2024), arXiv 2408.14572, section 3 (floor 0) and its code (floor_absolute 0.001).
    """
    shifted = scores + (floor / len(scores) if floor_absolute is None else floor_absolute)
    zeros = int((shifted == 0).sum())
    if zeros:
        raise ValueError(
            f"{zeros} of {len(scores)} scores are zero, and with floor 0 their inverse has no value; "
            f"set floor (or floor_absolute) above 0."
        )
    return _normalised(1 / shifted)


def truncated_svd(
    W: Float[Tensor, "out in"], k: int, *, generator: torch.Generator
) -> tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "in k"]]:
    """Top-k singular triplets, with the sign fixed so that the largest entry of each left vector is positive.

    Exact up to a smaller side of `EXACT_SVD_SIDE`; above, randomised subspace iteration.

    Args:
        W: Weight.
        k: Number of triplets.
        generator: Source of chance of the randomised form; the global one is never used.

    Returns:
        Left vectors, singular values in descending order, right vectors; float32 on the device of `W`.

    Reference:
        Halko, Martinsson & Tropp (2011), "Finding structure with randomness", algorithm 4.4.
    """
    W = W.float()
    if min(W.shape) <= max(EXACT_SVD_SIDE, k + _OVERSAMPLING):
        left, values, right_t = torch.linalg.svd(W, full_matrices=False)
    else:
        start = torch.randn(W.shape[1], k + _OVERSAMPLING, generator=generator).to(W.device)
        frame, _ = torch.linalg.qr(W @ start)
        for _ in range(_POWER_STEPS):
            frame, _ = torch.linalg.qr(W.T @ frame)
            frame, _ = torch.linalg.qr(W @ frame)
        small, values, right_t = torch.linalg.svd(frame.T @ W, full_matrices=False)
        left = frame @ small
    return fix_signs(left[:, :k], values[:k], right_t[:k].T)


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which norms of such a weight are taken: squares of half-precision numbers overflow."""
    return torch.promote_types(dtype, torch.float32)


def fix_signs(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the sign of each singular pair so that the largest entry of the left vector is positive."""
    peaks = left.gather(0, left.abs().argmax(0, keepdim=True))
    signs = torch.where(peaks < 0, -1.0, 1.0).to(left.dtype)
    return left * signs, values, right * signs


def _squared_norms(W: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms of columns and rows in one pass, in pieces that stay in the cache of a processor.

    Sums are in float64 and rounded to float32 at the end: equal columns then have equal norms wherever they stand, whatever
    the order in which a processor adds them.
    """
    if W.stride(0) < W.stride(1):  # a transposed view: go along its memory
        of_rows, of_columns = _squared_norms(W.T)
        return of_columns, of_rows
    exact = torch.float32 if W.device.type == "mps" else torch.float64  # MPS has no float64
    lines = max(1, (_PIECE if W.device.type == "cpu" else _PIECE_ON_DEVICE) // W.shape[1])
    buffer = torch.empty(min(lines, W.shape[0]), W.shape[1], dtype=exact, device=W.device)
    across = torch.ones(max(buffer.shape), dtype=exact, device=W.device)
    columns, rows = torch.zeros_like(across[: W.shape[1]]), []
    for piece in W.detach().split(lines):
        squares = buffer[: len(piece)].copy_(piece).square_()
        columns += across[: len(piece)] @ squares
        rows.append(squares @ across[: W.shape[1]])
    return columns.float().cpu().double(), torch.cat(rows).float().cpu().double()


def _normalised(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else torch.full_like(values, 1 / len(values))
