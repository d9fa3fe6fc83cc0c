"""One adapted linear layer: `y = x (W + alpha · C U R)ᵀ + b` with frozen `W`, `C`, `R` and a trained `U`."""

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from curlora_lab.adapters.basis import BASES, Basis, BasisOptions, check_rank, choose_basis, from_indices
from curlora_lab.adapters.config import CurLoraConfig
from curlora_lab.adapters.fingerprint import check_fingerprint, fingerprint_bytes, is_taken, take_fingerprint
from curlora_lab.adapters.mixed import mixed_update
from curlora_lab.adapters.update import factored_update, output_update

_SAME = 1e-5  # largest difference between R and M W[rows], relative to the largest entry, to count as equal
_LARGEST_CONDITION = {torch.float32: 32.0, torch.float64: 1e6}  # of M; in half precision only M = 1 is by output


@dataclass
class _Standing:
    """What is known of one adapter beside its tensors.

    `R`, `weight` and `version` say for which tensors `by_output` was established: whether `R = M W[rows]` holds, and
    how far `M` magnifies rounding errors.
    """

    pending: bool = False
    R: Tensor | None = None
    weight: Tensor | None = None
    version: int = -1
    by_output: bool = False
    condition: float = 1.0
    checked: Tensor | None = None  # the fingerprint that was found to match


class CurLoraLinear(nn.Module, BaseTunerLayer):  # type: ignore[misc]  # "Linear" in the name: PEFT's "all-linear" looks for it
    """CURLoRA on one Linear, Conv1D or quantised linear layer.

    The update is read from the output of the base layer wherever `R` is made of rows of `W`
    (`update.output_update`), and computed from the input (`update.factored_update`) where that does not hold: `R`
    comes from elsewhere or from another base, the base weight is trained or changed, another tuner sits in between,
    the adapter drops inputs, or the difference `y0 - b` would lose digits (half precision with a bias, or an
    ill-conditioned mix of rows).

    Args:
        base_layer: The layer to adapt; frozen by PEFT.
        adapter_name: Name of the first adapter.
        config: Its configuration.
        module_name: Name of the layer in the model: seeds the choice of the basis, and appears in errors.
        kwargs: What PEFT needs to know of quantised layers.
    """

    adapter_layer_names = ("curlora_U",)
    other_param_names = (
        "curlora_C",
        "curlora_R",
        "curlora_columns",
        "curlora_rows",
        "curlora_mix",
        "curlora_fingerprint",
        "configs",
        "r",
        "alpha",
        "_standing",
    )

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: CurLoraConfig, *, module_name: str, **kwargs: Any
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **kwargs)
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self.curlora_U = nn.ParameterDict()
        self.curlora_C = BufferDict(persistent=True)
        self.curlora_R = BufferDict(persistent=True)
        self.curlora_columns = BufferDict(persistent=True)
        self.curlora_rows = BufferDict(persistent=True)
        self.curlora_mix = BufferDict(persistent=True)
        self.curlora_fingerprint = BufferDict(persistent=True)
        self.configs: dict[str, CurLoraConfig] = {}
        self.r: dict[str, int] = {}
        self.alpha: dict[str, float] = {}
        self._standing: dict[str, _Standing] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.register_load_state_dict_post_hook(_after_load)
        self.update_layer(adapter_name, config=config)

    # --- making an adapter -------------------------------------------------------------------------------------------

    def update_layer(self, adapter_name: str, *, config: CurLoraConfig) -> None:
        """Add an adapter, choosing its basis at once if the weights are there.

        Args:
            adapter_name: Name of the new adapter.
            config: Its configuration.

        Raises:
            ValueError: The rank is larger than the weight allows.
        """
        check_rank(config.r, (self.out_features, self.in_features), self.module_name)
        self.configs[adapter_name] = config
        self.r[adapter_name] = config.r
        self.alpha[adapter_name] = config.alpha
        self._standing[adapter_name] = _Standing(pending=True)
        device = self.weight.device
        self.curlora_U[adapter_name] = nn.Parameter(torch.zeros(config.r, config.r, device=device))
        if device.type == "meta" or self.curlora_U[adapter_name].is_meta:
            self._set_basis(adapter_name, self._empty_basis(config))
        else:
            self.select_basis(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def select_basis(self, adapter_name: str) -> None:
        """Choose `C` and `R` from the base weight as it is now, and initialise `U`.

        Called by PEFT when an adapter is added; to be called by hand only where the base weights were on the meta
        device then and arrived in a way that this layer cannot notice.

        Raises:
            RuntimeError: The base weight is still on the meta device.
        """
        if self.weight.is_meta:
            raise RuntimeError(f"the base weight of {self.module_name!r} is on the meta device; load it first.")
        config = self.configs[adapter_name]
        generator = torch.Generator().manual_seed(module_seed(config.seed, self.module_name))
        basis = choose_basis(
            self.oriented_weight(), basis=config.basis, options=basis_options(config), generator=generator,
            name=self.module_name,
        )  # fmt: skip
        self._set_basis(adapter_name, basis)
        shape = (basis.C.shape[1], basis.R.shape[0])
        std = (config.u_std if config.u_init == "gaussian" else 0.0) if config.init_weights else config.r**-0.5
        U = std * torch.randn(shape, generator=generator) if std else torch.zeros(shape)
        old = self.curlora_U[adapter_name]
        self.curlora_U[adapter_name] = nn.Parameter(U.to(self.weight.device), requires_grad=old.requires_grad)
        self._standing[adapter_name].pending = False
        self._settle(adapter_name)

    def copy_basis(self, source: str, target: str) -> None:
        """Give one adapter the `C` and `R` of another."""
        for holder_name in ("curlora_C", "curlora_R", "curlora_columns", "curlora_rows", "curlora_mix"):
            holder = getattr(self, holder_name)
            if source in holder:
                holder._buffers[target] = holder[source].clone()
        self._settle(target)

    def _empty_basis(self, config: CurLoraConfig) -> Basis:
        """Tensors without values, in the shapes that a basis will have."""
        dtype = self._adapter_dtype()
        rule, r, meta = BASES[config.basis], config.r, torch.device("meta")
        indices = torch.zeros(r, dtype=torch.int64, device=meta) if rule.from_rows else None
        mixed = rule.from_rows and (config.orthonormal or config.duplicates == "merge")
        return Basis(
            C=torch.empty(self.out_features, r, dtype=dtype, device=meta),
            R=torch.empty(r, self.in_features, dtype=dtype, device=meta),
            columns=indices,
            rows=indices,
            mix=torch.empty(r, r, device=meta) if mixed else None,
        )

    def _set_basis(self, name: str, basis: Basis) -> None:
        keep = self.configs[name].save_basis
        parts = {
            self.curlora_C: (basis.C, keep),
            self.curlora_R: (basis.R, keep),
            self.curlora_columns: (basis.columns, True),
            self.curlora_rows: (basis.rows, True),
            self.curlora_mix: (basis.mix, keep),
        }
        if not keep:
            zeros = torch.zeros(fingerprint_bytes(self.r[name]), dtype=torch.uint8, device=basis.C.device)
            if name not in self.curlora_fingerprint:
                parts[self.curlora_fingerprint] = (zeros, True)
        for holder, (tensor, persistent) in parts.items():
            if tensor is not None:
                holder.register_buffer(name, tensor, persistent=persistent)

    # --- weights -----------------------------------------------------------------------------------------------------

    @property
    def is_transposed(self) -> bool:
        """Whether the base layer stores its weight as (in, out); told from its type, never from its shape."""
        return isinstance(self.get_base_layer(), Conv1D)

    def oriented_weight(self) -> Float[Tensor, "out in"]:
        """The base weight as (out, in), dequantised where it is quantised."""
        weight = self.get_base_weight()
        return weight.T if self.is_transposed else weight

    def get_delta_weight(self, adapter: str) -> Tensor:
        """`alpha · C U R` in the orientation and dtype of the base weight.

        The order of the products is that of the LoRA export, so that both give the same bits.

        Args:
            adapter: Name of the adapter.
        """
        delta = self.delta_weight(adapter)
        return (delta.T if self.is_transposed else delta).to(self.curlora_C[adapter].dtype)

    def delta_weight(self, adapter: str) -> Float[Tensor, "out in"]:
        """`alpha · C U R` as (out, in), in float32."""
        self._require_basis(adapter)
        U = self.curlora_U[adapter]
        exact = torch.promote_types(U.dtype, torch.float32)
        B = self.alpha[adapter] * (self.curlora_C[adapter].to(exact) @ U.to(exact))
        return B @ self.curlora_R[adapter].to(exact)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of adapters to the base weight.

        Args:
            safe_merge: Work on a copy and refuse a result that is not finite.
            adapter_names: Adapters to merge; None merges the active ones.

        Raises:
            ValueError: With `safe_merge`, the merged weight would not be finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.curlora_U:
                continue
            self._shift_base_weight(name, 1.0, safe_merge)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged updates out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.curlora_U:
                self._shift_base_weight(name, -1.0, False)

    def _shift_base_weight(self, name: str, sign: float, safe: bool) -> None:
        weight = self.get_base_weight()
        delta = self.delta_weight(name)
        delta = delta.T if self.is_transposed else delta
        shifted = (weight.to(delta.dtype) + sign * delta.to(weight.device)).to(weight.dtype)
        if safe and not torch.isfinite(shifted).all():
            raise ValueError(
                f"merging adapter {name!r} into {self.module_name!r} gives weights that are not finite; "
                f"the adapter seems to be broken."
            )
        self.set_base_weight(shifted)
        self._forget_standing()

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """The adapted output.

        Args:
            x: Input, (..., in).
            args: Further arguments of the base layer.
            adapter_names: One adapter name for each row of the batch ("__base__" for none); inference only.
            kwargs: Further arguments of the base layer.

        Returns:
            Output, (..., out).

        Raises:
            RuntimeError: An active adapter has no basis yet.
        """
        if self._disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return mixed_update(self, x, adapter_names, *args, **kwargs)
        names = [name for name in self.active_adapters if name in self.curlora_U and name not in self.merged_adapters]
        if not names:
            return self.base_layer(x, *args, **kwargs)
        y0, owned = self._base_output(x, *args, **kwargs)
        y = self._updated(x, y0, names, owned and not torch.compiler.is_compiling())
        return y.view(*x.shape[:-1], y.shape[-1])

    def _base_output(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, bool]:
        """Output of the base layer in two dimensions, and whether it may be written into.

        A plain layer is run on the flattened input: the result is then no view, and autograd allows writing into it at
        the price of the write alone (on the view that Linear returns for three dimensions it copies twice).
        """
        base = self.base_layer
        if not args and not kwargs and _is_plain(base):
            flat = x.reshape(-1, x.shape[-1])
            if type(base) is nn.Linear:
                return F.linear(flat, base.weight, base.bias), True
            return torch.addmm(base.bias, flat, base.weight), True
        y0 = base(x, *args, **kwargs)
        return y0.reshape(-1, y0.shape[-1]), False

    def _updated(self, x: Tensor, y0: Tensor, names: list[str], in_place: bool) -> Tensor:
        if all(self._reads_output(name, y0.dtype) for name in names):
            cores = [self._core(name, by_output=True) for name in names]
            rows = _joined([self.curlora_rows[name] for name in names], 0)
            bias = self.bias
            return output_update(
                y0,
                cores[0] if len(cores) == 1 else torch.block_diag(*cores),
                C=_joined([self.curlora_C[name] for name in names], 1),
                rows=rows,
                bias_rows=None if bias is None else bias.index_select(0, rows),
                in_place=in_place,
            )
        cores = [self._core(name, by_output=False) for name in names]
        return factored_update(
            y0,
            _joined([self._seen_through_R(x, name) for name in names], 1),
            cores[0] if len(cores) == 1 else torch.block_diag(*cores),
            C=_joined([self.curlora_C[name] for name in names], 1),
            in_place=in_place,
        )

    def _seen_through_R(self, x: Tensor, name: str) -> Tensor:
        """`x Rᵀ` in two dimensions, with the adapter's own dropout."""
        x = x.reshape(-1, x.shape[-1])
        x = self._cast_input_dtype(x, self.curlora_R[name].dtype)
        return F.linear(F.dropout(x, self.configs[name].dropout, self.training), self.curlora_R[name])

    def _core(self, name: str, *, by_output: bool) -> Tensor:
        """`alpha · U`, times the mix of rows where they are read from the output."""
        core = self.curlora_U[name]
        if by_output and name in self.curlora_mix:
            core = core @ self.curlora_mix[name].to(core.dtype)
        return core if self.alpha[name] == 1 else core * self.alpha[name]

    # --- which form --------------------------------------------------------------------------------------------------

    def _reads_output(self, name: str, dtype: torch.dtype) -> bool:
        """Whether `x Rᵀ` can be read from an output of this dtype without losing digits."""
        standing = self._require_basis(name)
        if not torch.compiler.is_compiling():
            weight = self.weight
            if standing.R is not self.curlora_R[name] or standing.weight is not weight or (
                standing.version != weight._version and not weight.is_inference()
            ):
                self._settle(name)
        if not standing.by_output or self.weight.requires_grad or self.base_layer is not self.get_base_layer():
            return False
        if self.training and self.configs[name].dropout > 0:
            return False
        if dtype in _LARGEST_CONDITION:
            return standing.condition <= _LARGEST_CONDITION[dtype]
        return self.bias is None and standing.condition == 1.0

    def _require_basis(self, name: str) -> _Standing:
        standing = self._standing[name]
        if standing.pending:
            raise RuntimeError(
                f"adapter {name!r} of {self.module_name!r} has no basis yet, because its base weight was on the meta "
                f"device when it was added; load the base weights with load_state_dict, or call "
                f"select_basis({name!r}) on the tuner once they are there."
            )
        return standing

    def _forget_standing(self) -> None:
        for name in self._standing:
            self._standing[name].R = None
            if not torch.compiler.is_compiling():
                self._settle(name)

    @torch.no_grad()
    def _settle(self, name: str) -> None:
        """Find out whether `R = M W[rows]` holds for the tensors as they are now."""
        standing = self._standing[name]
        weight, R = self.weight, self.curlora_R[name]
        if standing.pending or weight.is_meta:
            return
        self._check_and_rebuild(name, standing)
        R = self.curlora_R[name]
        standing.R, standing.weight = R, weight
        standing.version = -1 if weight.is_inference() else weight._version
        standing.by_output, standing.condition = False, 1.0
        if name not in self.curlora_rows or R.is_meta or type(weight).__name__ == "DTensor":
            return
        try:
            rows = self.oriented_weight().index_select(0, self.curlora_rows[name])
        except (TypeError, NotImplementedError):  # a quantised layer that gives no weights: the factored form needs none
            return
        rows = rows.float()
        if name in self.curlora_mix:
            mix = self.curlora_mix[name].float()
            values = torch.linalg.svdvals(mix.cpu())
            standing.condition = float(values[0] / values[-1]) if values[-1] > 0 else float("inf")
            rows = mix @ rows
        tolerance = max(_SAME, torch.finfo(R.dtype).eps if name in self.curlora_mix else 0.0)
        error = (rows - R.float()).abs().max()
        standing.by_output = bool(error <= tolerance * R.float().abs().max())

    # --- files -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fingerprint(self, name: str) -> Tensor:
        """Fingerprint of the base weight, for a file without `C` and `R`.

        Raises:
            ValueError: The basis cannot be rebuilt from the base weight as it is now.
        """
        W, columns, rows = self.oriented_weight(), self.curlora_columns[name], self.curlora_rows[name]
        rebuilt = from_indices(W, columns, rows, options=basis_options(self.configs[name]))
        same = torch.equal(rebuilt.C, self.curlora_C[name]) and torch.equal(rebuilt.R, self.curlora_R[name])
        if self.merged or not same:
            raise ValueError(
                f"adapter {name!r} of {self.module_name!r} cannot be saved with save_basis=False: its base weight has "
                f"been merged or changed since C and R were chosen; unmerge it, or set save_basis=True."
            )
        return take_fingerprint(W, columns, rows, dtype=self._weight_kind())

    def _check_and_rebuild(self, name: str, standing: _Standing) -> None:
        """Rebuild `C` and `R` of an adapter that was loaded without them, after checking the base weight."""
        if name not in self.curlora_fingerprint:
            return
        stored = self.curlora_fingerprint[name]
        if stored is standing.checked or stored.is_meta or self.curlora_rows[name].is_meta or not is_taken(stored):
            return
        W, columns, rows = self.oriented_weight(), self.curlora_columns[name], self.curlora_rows[name]
        check_fingerprint(stored, W, columns, rows, dtype=self._weight_kind(), name=self.module_name)
        self._set_basis(name, from_indices(W, columns, rows, options=basis_options(self.configs[name])))
        standing.checked = self.curlora_fingerprint[name]

    def _weight_kind(self) -> str:
        dtype = str(self.weight.dtype).removeprefix("torch.")
        return dtype if self.quantization_backend is None else f"{self.quantization_backend.backend_name} {dtype}"

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Runs before the parts of this layer are loaded: note what arrives, and make room for it."""
        for name, standing in self._standing.items():
            arrives = f"{prefix}curlora_U.{name}" in state_dict
            with_basis = f"{prefix}curlora_R.{name}" in state_dict or f"{prefix}curlora_fingerprint.{name}" in state_dict
            if arrives:
                self._fit_shapes(name, state_dict, prefix)
                standing.checked = None
            standing.R = None
            if standing.pending and f"{prefix}base_layer.weight" in state_dict and not (arrives and with_basis):
                standing.weight = self.weight  # marks that the weights arrive: the basis is chosen after loading
            if arrives and with_basis:
                standing.pending = False
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _fit_shapes(self, name: str, state_dict: dict[str, Tensor], prefix: str) -> None:
        """With merged duplicates the shape of `U` depends on the draw, which may have been on another base."""
        if self.configs[name].duplicates != "merge":
            return
        for holder_name in ("curlora_U", "curlora_C", "curlora_R", "curlora_mix"):
            holder, new = getattr(self, holder_name), state_dict.get(f"{prefix}{holder_name}.{name}")
            if new is not None and new.shape != holder[name].shape:
                old = holder[name]
                empty = torch.empty(new.shape, dtype=old.dtype, device=old.device)
                holder[name] = nn.Parameter(empty, requires_grad=old.requires_grad) if holder is self.curlora_U else empty

    def _apply(self, fn: Any, recurse: bool = True) -> "CurLoraLinear":
        checked = {name for name, standing in self._standing.items() if standing.checked is not None}
        super()._apply(fn, recurse=recurse)
        for name in checked:
            self._standing[name].checked = self.curlora_fingerprint[name]
        self._forget_standing()
        return self

    # --- PEFT --------------------------------------------------------------------------------------------------------

    def _adapter_dtype(self) -> torch.dtype:
        _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        return dtype if dtype is not None and dtype.is_floating_point else torch.float32

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Follow the base layer: everything to its device, `C` and `R` to its dtype; `U` keeps float32."""
        device = self.weight.device if device is None else device
        if adapter_name not in self.curlora_U or device.type == "meta":
            return
        dtype = self._adapter_dtype()
        U = self.curlora_U[adapter_name]
        if not U.is_meta:
            self.curlora_U[adapter_name] = nn.Parameter(U.data.to(device), requires_grad=U.requires_grad)
        for holder in (self.curlora_C, self.curlora_R, self.curlora_columns, self.curlora_rows, self.curlora_mix):
            tensor = holder._buffers.get(adapter_name)
            if tensor is not None and not tensor.is_meta:
                cast = holder is self.curlora_C or holder is self.curlora_R
                holder._buffers[adapter_name] = tensor.to(device, dtype if cast else tensor.dtype)
        self._settle(adapter_name)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """CURLoRA is additive, so it always converts."""
        return True

    def __repr__(self) -> str:
        return "curlora." + super().__repr__()

    def extra_repr(self) -> str:
        """Quantisation of the base layer, where there is one."""
        return quantization_extra_repr(self)


def module_seed(seed: int, module_name: str) -> int:
    """Seed of one module, from the adapter's seed and the module's name: independent of the order of modules."""
    digest = hashlib.sha256(f"{seed}:{module_name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def basis_options(config: CurLoraConfig) -> BasisOptions:
    """The part of a configuration that decides over the basis."""
    return BasisOptions(
        r=config.r,
        floor=config.floor,
        floor_absolute=config.floor_absolute,
        replacement=config.replacement,
        duplicates=config.duplicates,
        leverage_rank=config.leverage_rank,
        orthonormal=config.orthonormal,
    )


def _after_load(layer: CurLoraLinear, _: Any) -> None:
    """Runs after the parts of a layer were loaded: choose what was waiting for weights, check the rest."""
    for name, standing in layer._standing.items():
        if standing.pending and standing.weight is not None and not layer.weight.is_meta:
            layer.select_basis(name)
        else:
            layer._settle(name)


def _is_plain(base: nn.Module) -> bool:
    """Whether a layer is a Linear or Conv1D whose forward is the product alone, without hooks around it."""
    return (
        (type(base) is nn.Linear or type(base) is Conv1D)
        and "forward" not in base.__dict__
        and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks)
    )


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)
