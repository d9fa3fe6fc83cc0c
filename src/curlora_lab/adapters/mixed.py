"""A different adapter for each row of a batch.

Adapters with the same basis share `C` and `R`, so a mixed batch costs them one gather, one product with `C`, and one
small `U` for each row; adapters with different bases are run in groups.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
        cores = torch.stack([layer._core(name, by_output=False) for name in group])
        which = torch.tensor([group.index(adapter_names[row]) for row in batch_rows], device=x.device)
        index = torch.tensor(batch_rows, device=x.device)
        y = _add_group(layer, x, y, group[0], cores[which], index)
    return y


def _add_group(layer: "CurLoraLinear", x: Tensor, y: Tensor, name: str, cores: Tensor, index: Tensor) -> Tensor:
    """Add `(x Rᵀ) Kᵀ Cᵀ` to the rows `index` of `y`, with a core for each of them."""
    part = x.index_select(0, index)
    z = layer._seen_through_R(part, name).unflatten(0, (len(index), -1))
    with torch.autocast(x.device.type, enabled=False):
        h = torch.bmm(z.to(cores.dtype), cores.transpose(1, 2)).to(y.dtype)
        update = h @ layer.curlora_C[name].to(y.dtype).T
    return y.index_add(0, index, update.view(len(index), *y.shape[1:]))


def _same_basis(layer: "CurLoraLinear", names: list[str]) -> list[list[str]]:
    """Adapters in groups that share `C` and `R`."""
    groups: list[list[str]] = []
    for name in names:
        layer._require_basis(name)
        for group in groups:
            if share_basis(layer, group[0], name):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def share_basis(layer: "CurLoraLinear", first: str, second: str) -> bool:
    """Whether two adapters of a layer have the same `C` and `R`."""
    pairs = ((holder[first], holder[second]) for holder in (layer.curlora_C, layer.curlora_R))
    return all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs)
