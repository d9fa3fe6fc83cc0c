"""One adapted linear layer: `y = x (W + alpha · C U R)ᵀ + b` with frozen `W`, `C`, `R` and a trained `U`."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from curlora_lab.adapters.basis import BASES, Basis, check_rank, choose_basis, module_seed
from curlora_lab.adapters.compact import basis_options, is_unchecked, mark_checked
from curlora_lab.adapters.config import CurLoraConfig
from curlora_lab.adapters.fingerprint import fingerprint_bytes
from curlora_lab.adapters.loading import after_load, before_load, empty_basis, follow_base
from curlora_lab.adapters.mixed import mixed_update
from curlora_lab.adapters.product import base_output, wide_product
from curlora_lab.adapters.quantisation import require_readable
from curlora_lab.adapters.standing import Standing, reads_output, require_basis, settle
from curlora_lab.adapters.update import factored_update, output_update, wide_update


class CurLoraLinear(nn.Module, BaseTunerLayer):
    """CURLoRA on one Linear, Conv1D or quantised linear layer.

    The update is read from the output of the base layer wherever `R` is made of rows of `W`
    (`update.output_update`), and computed from the input (`update.factored_update`) where that does not hold: `R`
    comes from elsewhere or from another base, the base weight is trained or changed, another tuner sits in between,
    the adapter drops inputs, or the difference `y0 - b` would lose digits (half precision with a bias, or an
    ill-conditioned mix of rows). PEFT's "all-linear" finds adapted layers by the "Linear" in the name of their class.

    Args:
        base_layer: The layer to adapt; frozen by PEFT.
        adapter_name: Name of the first adapter.
        config: Its configuration.
        module_name: Name of the layer in the model: seeds the choice of the basis, and appears in errors.
        kwargs: What PEFT needs to know of quantised layers.
    """

    if TYPE_CHECKING:  # what comes from BaseTunerLayer, which has no types
        weight: Tensor
        bias: Tensor | None
        merged: bool
        active_adapters: list[str]
        get_base_layer: Callable[[], nn.Module]
        get_base_weight: Callable[[], Tensor]
        set_base_weight: Callable[[Tensor], None]
        set_adapter: Callable[..., None]
        _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]
        _get_base_layer_device_and_dtype: Callable[[nn.Module], tuple[torch.device | None, torch.dtype | None]]

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
        "standing",
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
        self.standing: dict[str, Standing] = {}
        self.shared_bases: dict[tuple[str, str], bool] = {}
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
        self.standing[adapter_name] = Standing()
        self.curlora_U[adapter_name] = nn.Parameter(torch.zeros(config.r, config.r, device=self.stored_weight().device))
        self._clear_fingerprint(adapter_name)
        if self.curlora_U[adapter_name].is_meta:  # so is the base weight, or PEFT loads with low_cpu_mem_usage
            self.set_basis(adapter_name, empty_basis(self, adapter_name, from_rows=BASES[config.basis].from_rows))
        else:
            self.select_basis(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def select_basis(self, adapter_name: str) -> None:
        """Choose `C` and `R` from the base weight as it is now, and initialise `U`.

        Called when an adapter is added; to be called by hand only where the base weights were on the meta device then
        and arrived in a way that this layer cannot notice.

        Raises:
            RuntimeError: The base weight is still on the meta device.
            TypeError: The base layer is quantised in a way that gives no weights.
        """
        if self.stored_weight().is_meta:
            raise RuntimeError(f"the base weight of {self.module_name!r} is on the meta device; load it first.")
        config, device = self.configs[adapter_name], self.stored_weight().device
        generator = torch.Generator().manual_seed(module_seed(config.seed, self.module_name))
        W = self.oriented_weight()
        basis = choose_basis(
            W,
            basis=config.basis,
            options=basis_options(self, adapter_name),
            generator=generator,
            name=self.module_name,
        )
        self.set_basis(adapter_name, basis)
        self._clear_fingerprint(adapter_name)
        std = (config.u_std if config.u_init == "gaussian" else 0.0) if config.init_weights else config.r**-0.5
        U = std * torch.randn(basis.C.shape[1], basis.R.shape[0], generator=generator)
        trained = self.curlora_U[adapter_name].requires_grad
        self.curlora_U[adapter_name] = nn.Parameter(U.to(device), requires_grad=trained)
        self.standing[adapter_name].pending = False
        mark_checked(self, adapter_name)
        settle(self, adapter_name, W)

    def set_basis(self, name: str, basis: Basis) -> None:
        """Store a basis; `C` and `R` are part of the state dict only with `save_basis`."""
        keep = self.configs[name].save_basis
        tensors = {
            self.curlora_C: (basis.C, keep),
            self.curlora_R: (basis.R, keep),
            self.curlora_mix: (basis.mix, keep),
            self.curlora_columns: (basis.columns, True),
            self.curlora_rows: (basis.rows, True),
        }
        for holder, (tensor, persistent) in tensors.items():
            if tensor is not None:
                holder.register_buffer(name, tensor, persistent=persistent)

    def _clear_fingerprint(self, name: str) -> None:
        """Zeros: the fingerprint of a compact adapter is taken when it is saved, and checked when one was loaded."""
        if not self.configs[name].save_basis:
            size = fingerprint_bytes(self.r[name])
            self.curlora_fingerprint[name] = torch.zeros(size, dtype=torch.uint8, device=self.curlora_U[name].device)

    def copy_basis(self, source: str, target: str) -> None:
        """Give one adapter the `C` and `R` of another."""
        for holder_name in ("curlora_C", "curlora_R", "curlora_columns", "curlora_rows", "curlora_mix"):
            holder = getattr(self, holder_name)
            if source in holder:
                holder._buffers[target] = holder[source].clone()
        mark_checked(self, target)
        settle(self, target)

    # --- weights -----------------------------------------------------------------------------------------------------

    @property
    def is_transposed(self) -> bool:
        """Whether the base layer stores its weight as (in, out); told from its type, never from its shape."""
        return isinstance(self.get_base_layer(), Conv1D)

    def stored_weight(self) -> Tensor:
        """The base weight as the base layer stores it, perhaps quantised; without the detours of `weight`."""
        weight = self.base_layer._parameters.get("weight")
        if weight is not None:
            return weight
        base = self.get_base_layer()
        return next(
            tensor for name in ("weight", "qweight", "W_q") if isinstance(tensor := getattr(base, name, None), Tensor)
        )

    def stored_bias(self) -> Tensor | None:
        """The bias of the base layer; without the detours of `bias`."""
        parameters = self.base_layer._parameters
        if "bias" in parameters:
            return parameters["bias"]
        return self.bias

    def oriented_weight(self) -> Float[Tensor, "out in"]:
        """The base weight as (out, in), dequantised where it is quantised.

        Raises:
            TypeError: The base layer is quantised in a way that gives no weights back.
        """
        try:
            require_readable(self.get_base_layer(), self.module_name)
            weight = self.get_base_weight()
        except (TypeError, NotImplementedError) as error:
            raise TypeError(
                f"CURLoRA takes C and R from the weights of {self.module_name!r}, and its {type(self.get_base_layer()).__name__} "
                f"does not give them ({error}); exclude it, or quantise with bitsandbytes or torchao."
            ) from error
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
        require_basis(self, adapter)
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
        for other in self.standing:
            settle(self, other)

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
        wide = None if args or kwargs else wide_product(self.base_layer, x)
        if wide is not None and all(reads_output(self, name, wide[0].dtype) for name in names):
            weight, bias, transposed = wide
            flat = x.reshape(-1, x.shape[-1])
            y = wide_update(flat, weight, bias, **self._factors(names, by_output=True), transposed=transposed)
        else:
            y0, owned = base_output(self.base_layer, x, *args, **kwargs)
            y = self._updated(x, y0, names, owned and not torch.compiler.is_compiling())
        return y.view(*x.shape[:-1], y.shape[-1])

    def _updated(self, x: Tensor, y0: Tensor, names: list[str], in_place: bool) -> Tensor:
        if all(reads_output(self, name, y0.dtype) for name in names):
            factors, bias = self._factors(names, by_output=True), self.stored_bias()
            bias_rows = None if bias is None else bias.index_select(0, factors["rows"])
            return output_update(y0, **factors, bias_rows=bias_rows, in_place=in_place)
        z = _joined([self.seen_by_right_factor(x, name) for name in names], 1)
        return factored_update(y0, z, **self._factors(names, by_output=False), in_place=in_place)

    def _factors(self, names: list[str], *, by_output: bool) -> dict[str, Tensor]:
        """Core, left factor and, by output, rows: of several adapters side by side."""
        cores = [self.core(name, by_output=by_output) for name in names]
        rows = {"rows": _joined([self.curlora_rows[name] for name in names], 0)} if by_output else {}
        core = cores[0] if len(cores) == 1 else torch.block_diag(*cores)
        return {"core": core, "C": _joined([self.curlora_C[name] for name in names], 1), **rows}

    def seen_by_right_factor(self, x: Tensor, name: str) -> Tensor:
        """`x Rᵀ` in two dimensions, with the adapter's own dropout."""
        x = x.reshape(-1, x.shape[-1])
        x = self._cast_input_dtype(x, self.curlora_R[name].dtype)
        return F.linear(F.dropout(x, self.configs[name].dropout, self.training), self.curlora_R[name])

    def core(self, name: str, *, by_output: bool) -> Tensor:
        """`alpha · U`, times the mix of rows where they are read from the output."""
        core = self.curlora_U[name]
        if by_output and name in self.curlora_mix:
            core = core @ self.curlora_mix[name].to(core.dtype)
        return core if self.alpha[name] == 1 else core * self.alpha[name]

    # --- tensors that come and go --------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        before_load(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Any, recurse: bool = True) -> "CurLoraLinear":
        checked = [name for name in self.standing if not is_unchecked(self, name)]
        super()._apply(fn, recurse=recurse)
        for name in checked:  # the same bytes, perhaps elsewhere: no need to hash the base weight again
            mark_checked(self, name)
        for name in self.standing:
            settle(self, name)
        return self

    # --- PEFT --------------------------------------------------------------------------------------------------------

    def basis_dtype(self) -> torch.dtype:
        """Dtype of `C` and `R`: that of the base weight, or the one a quantised layer computes in."""
        _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        return dtype if dtype is not None and dtype.is_floating_point else torch.float32

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's hook after loading on the meta device, and for moving; the dtype of `U` stays."""
        follow_base(self, adapter_name, self.stored_weight().device if device is None else device)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """CURLoRA is additive, so it always converts."""
        return True

    def __repr__(self) -> str:
        return "curlora." + super().__repr__()

    def extra_repr(self) -> str:
        """Quantisation of the base layer, where there is one."""
        return quantization_extra_repr(self)


def _after_load(layer: CurLoraLinear, _: Any) -> None:
    after_load(layer)


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)
