"""A fingerprint of a base weight, so that a file without `C` and `R` is never combined with another base.

One tensor of bytes per module: the sha256 of the weight, the name of its dtype, and in float32 the norm of the weight
and of the columns and rows that were chosen. In the same dtype the hash decides; in another one the norms do.
"""

import hashlib
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from curlora_lab.adapters.scores import norm_dtype

_DIGEST_BYTES = 32
_DTYPE_BYTES = 32
_TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
_TOLERANCE_QUANTISED = 0.1  # relative error of a norm after rounding to 4 bits, with room


@dataclass(frozen=True)
class _Parts:
    digest: bytes
    dtype: str
    norms: Float[Tensor, " norms"]


def fingerprint_bytes(r: int) -> int:
    """Size of a fingerprint for `r` columns and `r` rows, in bytes."""
    return _DIGEST_BYTES + _DTYPE_BYTES + 4 * (1 + 2 * r)


def take_fingerprint(
    W: Float[Tensor, "out in"], columns: Int[Tensor, " r"], rows: Int[Tensor, " r"], *, dtype: str
) -> UInt8[Tensor, " bytes"]:
    """Fingerprint of a weight and of the columns and rows chosen from it.

    Args:
        W: Weight in (out, in) orientation; a quantised one dequantised.
        columns: Chosen columns.
        rows: Chosen rows.
        dtype: Name of the dtype, or of the quantisation, in which the base holds the weight.

    Returns:
        Bytes on the CPU.
    """
    norms = _norms(W, columns, rows)
    raw = _digest(W) + dtype.encode()[:_DTYPE_BYTES].ljust(_DTYPE_BYTES, b"\0") + norms.numpy().tobytes()
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def is_taken(fingerprint: UInt8[Tensor, " bytes"]) -> bool:
    """Whether the bytes hold a fingerprint, and are not the zeros of an adapter that was never saved."""
    return bool(fingerprint.any())


def check_fingerprint(
    fingerprint: UInt8[Tensor, " bytes"],
    W: Float[Tensor, "out in"],
    columns: Int[Tensor, " r"],
    rows: Int[Tensor, " r"],
    *,
    dtype: str,
    name: str,
) -> None:
    """Make sure that an adapter saved without its basis meets the weight that it was trained on.

    In the dtype in which it was saved, the hash decides and one changed bit is seen. In another dtype only norms can be
    compared, within 0.01 % (float32), 0.5 % (float16), 3 % (bfloat16) or 10 % (quantised). So there the same base after a
    slight fine-tuning is accepted too, with no more than the warning that any change of dtype gets; where that matters,
    save with `save_basis=True`.

    Args:
        fingerprint: What was stored with the adapter.
        W: The weight found, in (out, in) orientation; a quantised one dequantised.
        columns: Columns named by the adapter.
        rows: Rows named by the adapter.
        dtype: Name of the dtype, or of the quantisation, in which the base holds the weight.
        name: Name of the module, for messages.

    Raises:
        ValueError: The weight is another one, or the same one merged or trained since.
    """
    stored = _parts(fingerprint)
    remedy = "load the base it was trained on, unmerged, or save the adapter with save_basis=True"
    lowest = min(int(columns.min()), int(rows.min()))
    if lowest < 0 or int(columns.max()) >= W.shape[1] or int(rows.max()) >= W.shape[0]:
        raise ValueError(
            f"the adapter of {name!r} was saved without its basis and names columns or rows outside the shape "
            f"{tuple(W.shape)} of this base: it belongs to another one, or its file is damaged; {remedy}."
        )
    if stored.dtype == dtype:
        if stored.digest != _digest(W):
            raise ValueError(
                f"the adapter of {name!r} was saved without its basis and the weight of this base is not the one it "
                f"was trained on (sha256 {_digest(W).hex()[:12]}, expected {stored.digest.hex()[:12]}): another model, "
                f"or the same one merged or trained since; {remedy}."
            )
        return
    found = _norms(W, columns, rows)
    tolerance = max(_TOLERANCE.get(kind, _TOLERANCE_QUANTISED) for kind in (stored.dtype, dtype))
    deviation = ((found - stored.norms).abs() / stored.norms.abs().clamp_min(1e-12)).max().item()
    if not deviation <= tolerance:
        raise ValueError(
            f"the adapter of {name!r} was saved without its basis on a base in {stored.dtype}, and the norms of this "
            f"base ({dtype}) differ by up to {deviation:.2g} (relative; {tolerance:.2g} allowed): another model, or "
            f"the same one merged or trained since; {remedy}."
        )
    warnings.warn(
        f"the adapter of {name!r} was saved on a base in {stored.dtype} and is rebuilt from one in {dtype}: norms agree "
        f"within {deviation:.2g}, but C and R are rounded differently, so outputs are close, not equal.",
        stacklevel=2,
    )


def _digest(W: Tensor) -> bytes:
    return hashlib.sha256(W.detach().contiguous().cpu().view(torch.uint8).numpy().data).digest()


def _norms(W: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    exact = norm_dtype(W.dtype)
    whole = torch.linalg.vector_norm(W, dtype=exact).reshape(1)
    of_columns = torch.linalg.vector_norm(W.index_select(1, columns), dim=0, dtype=exact)
    of_rows = torch.linalg.vector_norm(W.index_select(0, rows), dim=1, dtype=exact)
    return torch.cat([whole, of_columns, of_rows]).detach().float().cpu()


def _parts(fingerprint: Tensor) -> _Parts:
    raw = fingerprint.detach().cpu().numpy().tobytes()
    digest, dtype, norms = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES : _DIGEST_BYTES + _DTYPE_BYTES], raw[64:]
    return _Parts(
        digest, dtype.rstrip(b"\0").decode("ascii", "replace"), torch.frombuffer(bytearray(norms), dtype=torch.float32)
    )
