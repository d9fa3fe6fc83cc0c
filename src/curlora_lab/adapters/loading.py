"""What one adapted layer does before and after tensors are loaded into it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from curlora_lab.adapters.basis import Basis
from curlora_lab.adapters.compact import rebuild_basis
from curlora_lab.adapters.fingerprint import is_taken
from curlora_lab.adapters.standing import settle

if TYPE_CHECKING:
    from curlora_lab.adapters.layer import CurLoraLinear


def before_load(layer: "CurLoraLinear", state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Note which adapters a state dict brings to a layer, and make room for their shapes.

    Args:
        layer: The layer about to be loaded.
        state_dict: What is being loaded.
        prefix: Name of the layer in it, with a dot at the end.

    Raises:
        ValueError: Indices arrive without the factors that are made of them, and without what is needed to rebuild those.
    """
    for name, standing in layer.standing.items():
        standing.R = None
        if any(f"{prefix}curlora_{part}.{name}" in state_dict for part in ("R", "rows", "fingerprint")):
            _require_factors(layer, name, state_dict, prefix)
            standing.pending, standing.checked = False, None
            _fit_shapes(layer, name, state_dict, prefix)
        standing.arriving = standing.pending and f"{prefix}base_layer.weight" in state_dict


def after_load(layer: "CurLoraLinear") -> None:
    """Choose the bases that were waiting for weights, and check what else was loaded.

    Args:
        layer: The layer that was loaded.

    Raises:
        ValueError: An adapter was saved without its basis and this is not the base it belongs to.
    """
    for name, standing in layer.standing.items():
        if standing.arriving and not layer.stored_weight().is_meta:
            layer.select_basis(name)
        standing.arriving = False
        rebuild_basis(layer, name)
        # loading onto the meta device without assign=True leaves no values
        standing.pending = standing.pending or layer.curlora_U[name].is_meta or layer.curlora_R[name].is_meta
        settle(layer, name)


def _require_factors(layer: "CurLoraLinear", name: str, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Refuse indices without `C` and `R`, unless a fingerprint allows to rebuild them or those here can be compared."""
    C, R, rows, fingerprint = (
        state_dict.get(f"{prefix}curlora_{part}.{name}") for part in ("C", "R", "rows", "fingerprint")
    )
    if rows is None:
        return
    if layer.configs[name].save_basis:
        complete = C is not None and R is not None
    else:
        complete = fingerprint is not None and (fingerprint.is_meta or is_taken(fingerprint))
        complete = complete or not layer.standing[name].pending  # then rebuild_basis compares those here after loading
    if complete:
        return
    raise ValueError(
        f"adapter {name!r} of {layer.module_name!r} arrives as columns and rows without C and R, and without a fingerprint "
        f"of the base from which those could be rebuilt (save_basis={layer.configs[name].save_basis}): a damaged file, or "
        f"the state of an adapter that was never saved; load a folder that save_pretrained wrote."
    )


def empty_basis(layer: "CurLoraLinear", name: str, *, from_rows: bool) -> Basis:
    """A basis of tensors without values (meta device), in the shapes that the real one will have."""
    config, dtype, meta = layer.configs[name], layer.basis_dtype(), torch.device("meta")
    indices = torch.zeros(config.r, dtype=torch.int64, device=meta) if from_rows else None
    mixed = from_rows and (config.orthonormal or config.duplicates == "merge")
    return Basis(
        C=torch.empty(layer.out_features, config.r, dtype=dtype, device=meta),
        R=torch.empty(config.r, layer.in_features, dtype=dtype, device=meta),
        columns=indices,
        rows=indices,
        mix=torch.empty(config.r, config.r, device=meta) if mixed else None,
    )


def follow_base(layer: "CurLoraLinear", name: str, device: torch.device) -> None:
    """Move an adapter to where its base layer is, with `C` and `R` in the dtype of a base that is not quantised.

    Args:
        layer: The adapted layer.
        name: The adapter; nothing happens if the layer does not have it.
        device: Device of the base layer; nothing happens for the meta device.
    """
    if name not in layer.curlora_U or device.type == "meta":
        return
    U = layer.curlora_U[name]
    if not U.is_meta:
        layer.curlora_U[name] = nn.Parameter(U.data.to(device), requires_grad=U.requires_grad)
    for holder in (layer.curlora_C, layer.curlora_R, layer.curlora_mix, layer.curlora_columns, layer.curlora_rows):
        tensor = holder._buffers.get(name)
        if tensor is not None and not tensor.is_meta:
            plain = layer.quantization_backend is None  # a dequantised weight need not have the dtype of the product
            in_base_dtype = plain and (holder is layer.curlora_C or holder is layer.curlora_R)
            holder._buffers[name] = tensor.to(device, layer.basis_dtype() if in_base_dtype else tensor.dtype)
    rebuild_basis(layer, name)
    settle(layer, name)


def _fit_shapes(layer: "CurLoraLinear", name: str, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """With merged duplicates the shape of `U` depends on the draw, which may have been made on another base."""
    if layer.configs[name].duplicates != "merge":
        return
    for part in ("curlora_U", "curlora_C", "curlora_R", "curlora_mix"):
        holder, new = getattr(layer, part), state_dict.get(f"{prefix}{part}.{name}")
        if new is None or name not in holder or new.shape == holder[name].shape:
            continue
        old = holder[name]
        empty = torch.empty(new.shape, dtype=old.dtype, device=old.device)
        if part == "curlora_U":
            holder[name] = nn.Parameter(empty, requires_grad=old.requires_grad)
        else:
            holder._buffers[name] = empty
