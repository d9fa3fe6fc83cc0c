"""A different adapter for each row of a batch.

Adapters with the same basis share `C` and `R`, so a mixed batch costs them one gather, one product with `C`, and one
small `U` for each row; adapters with different bases are run in groups.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curlora_lab.adapters.standing import reads_output, refresh, require_basis

if TYPE_CHECKING:
    from curlora_lab.adapters.layer import CurLoraLinear

BASE = "__base__"  # PEFT's name for a row without adapter


def mixed_update(layer: "CurLoraLinear", x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
    """Output of a layer with one adapter for each row of the batch.

    Args:
        layer: The adapted layer.
        x: Input, (batch, ..., in).
        adapter_names: One name for each row; "__base__", and adapters that this layer does not have, leave it as it is.
        args: Further arguments of the base layer.
        kwargs: Further arguments of the base layer.

    Returns:
        Output, (batch, ..., out).

    Raises:
        ValueError: The number of names is not the number of rows, or adapters are merged into the base weight.
    """
    if len(adapter_names) != len(x):
        raise ValueError(
            f"{len(adapter_names)} adapter_names for a batch of {len(x)} rows at {layer.module_name!r}; give one name "
            f"for each row."
        )
    if layer.merged:
        raise ValueError(
            f"adapter_names cannot be used while adapters ({', '.join(layer.merged_adapters)}) are merged into "
            f"{layer.module_name!r}; unmerge them first."
        )
    y = layer.base_layer(x, *args, **kwargs)
    present = [name for name in dict.fromkeys(adapter_names) if name in layer.curlora_U]
    for group in _same_basis(layer, present):
        batch_rows = [row for row, name in enumerate(adapter_names) if name in group]
        which = torch.tensor([group.index(adapter_names[row]) for row in batch_rows], device=x.device)
        y = _add_group(layer, x, y, group, torch.tensor(batch_rows, device=x.device), which)
    return y


def _add_group(layer: "CurLoraLinear", x: Tensor, y: Tensor, group: list[str], index: Tensor, which: Tensor) -> Tensor:
    """Add `z Kᵀ Cᵀ` to the rows `index` of the batch `y`, with the core of adapter `group[which]` for each."""
    name = group[0]
    by_output = all(reads_output(layer, member, y.dtype) for member in group)
    if by_output:
        rows, bias = layer.curlora_rows[name], layer.stored_bias()
        z = y.index_select(0, index).index_select(-1, rows)
        z = z if bias is None else z - bias.index_select(0, rows).to(z.dtype)
    else:
        z = layer.seen_by_right_factor(x.index_select(0, index), name)
    cores = torch.stack([layer.core(member, by_output=by_output) for member in group])[which]
    with torch.autocast(x.device.type, enabled=False):
        h = torch.bmm(z.reshape(len(index), -1, z.shape[-1]).to(cores.dtype), cores.transpose(1, 2))
        update = h.to(y.dtype) @ layer.curlora_C[name].to(y.dtype).T
    return y.index_add(0, index, update.view(len(index), *y.shape[1:]))


def _same_basis(layer: "CurLoraLinear", names: list[str]) -> list[list[str]]:
    """Adapters in groups that share `C` and `R`."""
    groups: list[list[str]] = []
    for name in names:
        group = next((group for group in groups if share_basis(layer, group[0], name)), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def share_basis(layer: "CurLoraLinear", first: str, second: str) -> bool:
    """Whether two adapters of a layer have the same `C` and `R`; compared once for each state of the tensors.

    Args:
        layer: The adapted layer.
        first: One adapter.
        second: The other.
    """
    for name in (first, second):
        require_basis(layer, name)
        refresh(layer, name, layer.stored_weight())
    known = layer.shared_bases.get((first, second))
    if known is None:
        pairs = [(holder[first], holder[second]) for holder in (layer.curlora_C, layer.curlora_R)]
        known = all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs)
        layer.shared_bases[first, second] = known
    return known
