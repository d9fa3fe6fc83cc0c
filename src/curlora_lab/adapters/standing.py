"""Which form of the update an adapter may use: read from the output of its layer, or computed from the input.

The output holds `x Rᵀ` as long as `R = M W[rows]` for the weight that the layer multiplies with. That is established by
comparing r rows, once for each state of the tensors; in the forward pass only identities and a version are compared.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from curlora_lab.adapters.compact import check_indices, is_unchecked, rebuild_basis
from curlora_lab.adapters.quantisation import is_exact, product_dtype

if TYPE_CHECKING:
    from curlora_lab.adapters.layer import CurLoraLinear

_SAME = 1e-5  # largest difference between R and M W[rows], relative to the largest entry, to count as equal
_LARGEST_CONDITION = {torch.float32: 32.0, torch.float64: 1e6}  # of M; in half precision only M = 1 is by output


@dataclass
class Standing:
    """What is known of one adapter beside its tensors.

    Args:
        pending: There is no basis yet, since the base weight has no values.
        arriving: The base weight is being loaded, so a pending basis is to be chosen afterwards.
        R: The right factor for which `by_output` was established.
        weight: The base weight for which it was established.
        version: Version of that weight; writing into it counts up.
        by_output: Whether `R = M W[rows]`.
        condition: Condition number of `M`: how far it magnifies rounding errors of the output.
        checked: Of an adapter saved without `C` and `R`: the fingerprint, columns and rows that those belong to.
    """

    pending: bool = True
    arriving: bool = False
    R: Tensor | None = None
    weight: Tensor | None = None
    version: int = -1
    by_output: bool = False
    condition: float = 1.0
    checked: tuple[Tensor, Tensor, Tensor] | None = None


def reads_output(layer: "CurLoraLinear", name: str, dtype: torch.dtype) -> bool:
    """Whether an adapter may read `x Rᵀ` from its layer's output without losing digits.

    In a compiled model the answer is that of the time of compiling: a base weight that is written into or exchanged
    afterwards is not noticed (merging and unmerging are), so change it before compiling, or call `torch.compiler.reset()`
    and run one eager forward first.

    Args:
        layer: The adapted layer.
        name: The adapter.
        dtype: Dtype of the output.

    Returns:
        False where the factored form must be used: the base weight is trained or is not the one that `R` was taken
        from, another tuner sits in between, the adapter drops inputs, the quantised product rounds its input, or
        digits would cancel (`y0 - b` in half precision; an ill-conditioned mix of rows).

    Raises:
        RuntimeError: The adapter has no basis yet, or has to be checked against the base, which cannot be compiled.
        ValueError: The adapter was saved without its basis, and this is not the base that it belongs to.
    """
    standing = require_basis(layer, name)
    weight = layer.stored_weight()
    if torch.compiler.is_compiling():
        _require_checked(layer, name)
    else:
        refresh(layer, name, weight)
    if weight.requires_grad or isinstance(layer.base_layer, BaseTunerLayer):
        return False
    if layer.training and layer.configs[name].dropout > 0:
        return False
    if not standing.by_output:
        return False
    if layer.quantization_backend is not None:
        dtype = product_dtype(layer.base_layer, dtype)
    if dtype in _LARGEST_CONDITION:
        return standing.condition <= _LARGEST_CONDITION[dtype]
    return layer.stored_bias() is None and standing.condition == 1.0


def require_basis(layer: "CurLoraLinear", name: str) -> Standing:
    """The standing of an adapter that can be used.

    Raises:
        RuntimeError: The adapter has no basis, or no values, yet.
    """
    standing = layer.standing[name]
    if standing.pending:
        raise RuntimeError(
            f"adapter {name!r} of {layer.module_name!r} has no basis yet, because there were no weights (meta device) "
            f"when it was added; load the weights with load_state_dict, or call select_basis({name!r}) on the tuner "
            f"once those of the base are there."
        )
    return standing


def refresh(layer: "CurLoraLinear", name: str, weight: Tensor) -> None:
    """Establish what has become unknown since the last forward pass; nothing, as a rule.

    Args:
        layer: The adapted layer.
        name: The adapter.
        weight: The base weight as it is stored.
    """
    standing = layer.standing[name]
    if is_unchecked(layer, name):  # loaded past PEFT, as transformers does
        rebuild_basis(layer, name)
        settle(layer, name)
        return
    others = standing.R is not layer.curlora_R[name] or standing.weight is not weight
    written = not weight.requires_grad and not weight.is_inference() and standing.version != weight._version
    if others or written:
        settle(layer, name)


def _require_checked(layer: "CurLoraLinear", name: str) -> None:
    """Refuse to compile an adapter whose base is yet to be compared: comparing hashes the weight, and is not compiled."""
    if is_unchecked(layer, name):
        raise RuntimeError(
            f"adapter {name!r} of {layer.module_name!r} was loaded without its basis and not yet checked against this "
            f"base; run one eager forward first, then compile."
        )


@torch.no_grad()
def settle(layer: "CurLoraLinear", name: str, W: Tensor | None = None) -> None:
    """Establish for the tensors as they are now whether `R = M W[rows]`.

    Args:
        layer: The adapted layer.
        name: The adapter.
        W: The base weight as (out, in), if the caller has it; spares dequantising it again.

    Raises:
        ValueError: The adapter names rows or columns that the weight does not have.
    """
    standing, weight, R = layer.standing[name], layer.stored_weight(), layer.curlora_R[name]
    if standing.pending or weight.is_meta or R.is_meta:
        return
    standing.R, standing.weight = R, weight
    standing.version = -1 if weight.is_inference() else weight._version
    standing.by_output, standing.condition = False, 1.0
    layer.shared_bases.clear()
    if name not in layer.curlora_rows or type(weight).__name__ == "DTensor":
        return
    check_indices(layer, name)
    if not is_exact(layer.quantization_backend):
        return
    W = layer.oriented_weight() if W is None else W
    rows = W.index_select(0, layer.curlora_rows[name]).float()
    tolerance = _SAME
    if name in layer.curlora_mix:
        mix = layer.curlora_mix[name].float()
        standing.condition = _condition(mix)
        tolerance = max(_SAME, torch.finfo(R.dtype).eps)
        rows = mix @ rows
    standing.by_output = bool((rows - R.float()).abs().max() <= tolerance * R.float().abs().max())


def _condition(mix: Tensor) -> float:
    values = torch.linalg.svdvals(mix.double().cpu())
    return float(values[0] / values[-1]) if values[-1] > 0 else float("inf")
