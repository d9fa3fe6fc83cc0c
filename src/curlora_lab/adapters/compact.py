"""Adapters without `C` and `R` in their file: they are rebuilt from the base weight, after a check of that weight."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curlora_lab.adapters.basis import BasisOptions, from_indices
from curlora_lab.adapters.fingerprint import check_fingerprint, is_taken, take_fingerprint

if TYPE_CHECKING:
    from curlora_lab.adapters.layer import CurLoraLinear


@torch.no_grad()
def rebuild_basis(layer: "CurLoraLinear", name: str) -> None:
    """Rebuild `C` and `R` of an adapter that was loaded without them, after checking the base weight.

    Does nothing for an adapter that was saved with its basis, was chosen here, or was checked before. Without a
    fingerprint (zeros: the state of an adapter that was never saved as a folder) nothing is rebuilt, and `C` and `R` must
    already be those of the indices that were loaded.

    Args:
        layer: The adapted layer.
        name: The adapter.

    Raises:
        ValueError: This is not the base weight that the adapter belongs to.
    """
    if layer.stored_weight().is_meta or not is_unchecked(layer, name):
        return
    stored = layer.curlora_fingerprint[name]
    if stored.is_meta:
        return
    if is_taken(stored):
        W, columns, rows = layer.oriented_weight(), layer.curlora_columns[name], layer.curlora_rows[name]
        check_fingerprint(stored, W, columns, rows, dtype=weight_kind(layer), name=layer.module_name)
        layer.set_basis(name, from_indices(W, columns, rows, options=basis_options(layer, name)))
        layer.standing[name].pending = False
    elif layer.standing[name].pending:
        return
    else:
        check_indices(layer, name)
        if not _follows_indices(layer, name, layer.oriented_weight()):
            raise ValueError(
                f"adapter {name!r} of {layer.module_name!r} was loaded as columns and rows without C and R and without a "
                f"fingerprint of the base they were taken from, and C and R here are not made of them: the state of an "
                f"adapter with save_basis=False on another base, or a damaged file; load a folder that save_pretrained "
                f"wrote, or keep C and R with save_basis=True."
            )
    mark_checked(layer, name)


def is_unchecked(layer: "CurLoraLinear", name: str) -> bool:
    """Whether an adapter is saved without `C` and `R`, and those here are not known to belong to its present indices."""
    fingerprint = layer.curlora_fingerprint._buffers.get(name)
    if fingerprint is None:
        return False
    known = layer.standing[name].checked
    return (
        known is None
        or known[0] is not fingerprint
        or known[1] is not layer.curlora_columns._buffers[name]
        or known[2] is not layer.curlora_rows._buffers[name]
    )


def mark_checked(layer: "CurLoraLinear", name: str) -> None:
    """Note that `C` and `R` of an adapter saved without them belong to its indices and fingerprint."""
    if name in layer.curlora_fingerprint:
        layer.standing[name].checked = (
            layer.curlora_fingerprint[name],
            layer.curlora_columns[name],
            layer.curlora_rows[name],
        )


def check_indices(layer: "CurLoraLinear", name: str) -> None:
    """Refuse columns and rows that a weight does not have.

    Raises:
        ValueError: An index is negative or beyond the weight.
    """
    sides = (("columns", layer.curlora_columns, layer.in_features), ("rows", layer.curlora_rows, layer.out_features))
    for what, holder, side in sides:
        low, high = int(holder[name].min()), int(holder[name].max())
        if low < 0 or high >= side:
            raise ValueError(
                f"adapter {name!r} names {what} {low} to {high} of {layer.module_name!r}, which has {side}: the file "
                f"is damaged, or belongs to another model."
            )


@torch.no_grad()
def fingerprint_of(layer: "CurLoraLinear", name: str) -> Tensor:
    """Fingerprint of the base weight of a layer, for a file without `C` and `R`.

    Args:
        layer: The adapted layer.
        name: The adapter.

    Returns:
        Bytes; see `fingerprint.take_fingerprint`.

    Raises:
        ValueError: The basis could not be rebuilt from the base weight as it is now.
    """
    W = layer.oriented_weight()
    if layer.merged or not _follows_indices(layer, name, W):
        raise ValueError(
            f"adapter {name!r} of {layer.module_name!r} cannot be saved with save_basis=False: its base weight was "
            f"merged or changed after C and R were chosen, so they could not be rebuilt; unmerge it, or set "
            f"save_basis=True."
        )
    return take_fingerprint(W, layer.curlora_columns[name], layer.curlora_rows[name], dtype=weight_kind(layer))


def _follows_indices(layer: "CurLoraLinear", name: str, W: Tensor) -> bool:
    """Whether `C` and `R` are, bit for bit, what the indices and the base weight give."""
    C, R = layer.curlora_C[name], layer.curlora_R[name]
    columns, rows = layer.curlora_columns[name], layer.curlora_rows[name]
    rebuilt = from_indices(W, columns, rows, options=basis_options(layer, name))
    return not C.is_meta and not R.is_meta and torch.equal(rebuilt.C, C) and torch.equal(rebuilt.R, R)


def basis_options(layer: "CurLoraLinear", name: str) -> BasisOptions:
    """The part of an adapter's configuration that decides over its basis."""
    config = layer.configs[name]
    return BasisOptions(
        r=config.r,
        floor=config.floor,
        floor_absolute=config.floor_absolute,
        replacement=config.replacement,
        duplicates=config.duplicates,
        leverage_rank=config.leverage_rank,
        orthonormal=config.orthonormal,
    )


def weight_kind(layer: "CurLoraLinear") -> str:
    """Name of the dtype of the base weight, with its quantisation."""
    dtype = str(layer.stored_weight().dtype).removeprefix("torch.")
    backend = layer.quantization_backend
    return dtype if backend is None else f"{backend.backend_name} {dtype}"
