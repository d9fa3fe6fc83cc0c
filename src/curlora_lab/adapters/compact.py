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

    Does nothing for an adapter that was saved with its basis, was never saved, or was checked before.

    Args:
        layer: The adapted layer.
        name: The adapter.

    Raises:
        ValueError: This is not the base weight that the adapter belongs to.
    """
    if name not in layer.curlora_fingerprint or layer.stored_weight().is_meta:
        return
    standing, stored = layer.standing[name], layer.curlora_fingerprint[name]
    if stored is standing.checked or stored.is_meta:
        return
    if not is_taken(stored):
        standing.checked = stored
        return
    W, columns, rows = layer.oriented_weight(), layer.curlora_columns[name], layer.curlora_rows[name]
    check_fingerprint(stored, W, columns, rows, dtype=weight_kind(layer), name=layer.module_name)
    layer.set_basis(name, from_indices(W, columns, rows, options=basis_options(layer, name)))
    standing.checked, standing.pending = stored, False


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
    W, columns, rows = layer.oriented_weight(), layer.curlora_columns[name], layer.curlora_rows[name]
    rebuilt = from_indices(W, columns, rows, options=basis_options(layer, name))
    same = torch.equal(rebuilt.C, layer.curlora_C[name]) and torch.equal(rebuilt.R, layer.curlora_R[name])
    if layer.merged or not same:
        raise ValueError(
            f"adapter {name!r} of {layer.module_name!r} cannot be saved with save_basis=False: its base weight was "
            f"merged or changed after C and R were chosen, so they could not be rebuilt; unmerge it, or set "
            f"save_basis=True."
        )
    return take_fingerprint(W, columns, rows, dtype=weight_kind(layer))


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
