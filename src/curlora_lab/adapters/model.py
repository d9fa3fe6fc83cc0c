"""CURLoRA as a PEFT tuner: which modules it adapts, and what a model with several adapters can do with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from curlora_lab.adapters.compact import fingerprint_of
from curlora_lab.adapters.config import CurLoraConfig
from curlora_lab.adapters.layer import CurLoraLinear
from curlora_lab.adapters.mixed import BASE, share_basis
from curlora_lab.adapters.quantisation import keep_trainable
from curlora_lab.adapters.standing import require_basis


class CurLoraModel(BaseTuner):
    """CURLoRA in a whole model; made by `peft.get_peft_model(model, CurLoraConfig(...))`.

    Reference:
        Fawi (2024), "CURLoRA: Stable LLM Continual Fine-Tuning and Catastrophic Forgetting Mitigation",
        arXiv 2408.14572.
    """

    prefix = "curlora_"
    tuner_layer_cls = CurLoraLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        keep_trainable(model)

    def _create_and_replace(
        self,
        config: CurLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, CurLoraLinear):
            target.update_layer(adapter_name, config=config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        _check_target(base, current_key)
        layer = CurLoraLinear(
            target, adapter_name, config, module_name=current_key, **get_quantization_kwargs(self.model)
        )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # PEFT: a further adapter is not trained until it is set active
        setattr(parent, target_name, layer)  # the layer made its tensors on the device of its base

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep `U` in float32, or cast it to the dtype of the base; `C` and `R` are always in that of the base."""
        for layer in self._layers():
            if adapter_name in layer.curlora_U:
                U = layer.curlora_U[adapter_name]
                dtype = torch.promote_types(U.dtype, torch.float32) if autocast_adapter_dtype else layer.basis_dtype()
                if U.dtype != dtype:
                    layer.curlora_U[adapter_name] = nn.Parameter(U.data.to(dtype), requires_grad=U.requires_grad)

    def _layers(self) -> Iterator[CurLoraLinear]:
        return (module for module in self.model.modules() if isinstance(module, CurLoraLinear))

    def select_basis(self, adapter_name: str = "default") -> None:
        """Choose the basis of every module from the base weights as they are now, and initialise `U`.

        Needed only where an adapter was added to a model on the meta device whose weights were not loaded by
        `load_state_dict`.

        Raises:
            RuntimeError: A base weight is still on the meta device.
        """
        for layer in self._layers():
            if adapter_name in layer.curlora_U:
                layer.select_basis(adapter_name)

    def add_weighted_adapter(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
        """Add an adapter whose update is the weighted sum of others that share their basis: `U = Σ w_i alpha_i U_i`.

        Args:
            adapters: Names of the adapters to combine.
            weights: One weight for each.
            adapter_name: Name of the new adapter; its alpha is 1.

        Raises:
            ValueError: A name is unknown or taken, the numbers do not match, or the bases differ.
        """
        self._check_combination(adapters, weights, adapter_name)
        holding = [layer for layer in self._layers() if any(name in layer.curlora_U for name in adapters)]
        for layer in holding:
            present = [name for name in adapters if name in layer.curlora_U]
            if any(not share_basis(layer, present[0], name) for name in present[1:]):
                raise ValueError(
                    f"adapters {', '.join(present)} have different bases at {layer.module_name!r}, so no single U gives "
                    f"their sum; combine adapters trained with the same seed, rank and basis, or export them to LoRA."
                )
        first = self.peft_config[adapters[0]]
        self.peft_config[adapter_name] = replace(first, alpha=1.0, init_weights=True)
        self.inject_adapter(self.model, adapter_name)
        with torch.no_grad():
            for layer in holding:
                terms = [
                    weight * layer.alpha[name] * layer.curlora_U[name]
                    for name, weight in zip(adapters, weights, strict=True)
                    if name in layer.curlora_U
                ]
                source = next(name for name in adapters if name in layer.curlora_U)
                layer.copy_basis(source, adapter_name)
                layer.curlora_U[adapter_name].copy_(torch.stack(terms).sum(0))

    def _check_combination(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
        unknown = [name for name in adapters if name not in self.peft_config]
        if unknown or not adapters:
            raise ValueError(f"unknown adapters {unknown}; there are {', '.join(self.peft_config)}.")
        if len(adapters) != len(weights):
            raise ValueError(f"{len(weights)} weights for {len(adapters)} adapters; give one for each.")
        if adapter_name in self.peft_config:
            raise ValueError(f"there is already an adapter {adapter_name!r}; choose another name or delete it first.")
        for module in self.model.modules():
            if (
                isinstance(module, ModulesToSaveWrapper)
                and sum(name in module.modules_to_save for name in adapters) > 1
            ):
                raise ValueError(
                    "adapters that each have their own modules_to_save cannot be combined; switch between them with "
                    "set_adapter, or train them without modules_to_save."
                )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's entry for `adapter_names` (mixed batches): hand them to every adapted layer for one call."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        self._check_adapter_names(names)
        beams = kwargs.get("num_beams") or 1
        encoder = (
            self.model.get_encoder() if beams > 1 and getattr(self.model.config, "is_encoder_decoder", False) else None
        )
        in_encoder = set() if encoder is None else set(encoder.modules())
        repeated = [name for name in names for _ in range(beams)]
        handles = []
        for module in self.modules():
            if isinstance(module, (CurLoraLinear, AuxiliaryTrainingWrapper)):
                given = list(names) if module in in_encoder else repeated
                handles.append(
                    module.register_forward_pre_hook(
                        partial(_with_adapter_names, adapter_names=given), with_kwargs=True
                    )
                )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_adapter_names(self, names: Sequence[str]) -> None:
        if self.training:
            raise ValueError("adapter_names is for inference; call model.eval() first, or train one adapter at a time.")
        unknown = set(names) - set(self.peft_config) - {BASE}
        if unknown:
            raise ValueError(
                f"adapter_names has unknown adapters {', '.join(sorted(unknown))}; there are "
                f"{', '.join(self.peft_config)}, and {BASE} for none."
            )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        chosen = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        for name, layer in model.named_modules():
            if isinstance(layer, CurLoraLinear) and adapter_name in layer.curlora_fingerprint:
                key = f"{name}.curlora_fingerprint.{adapter_name}"
                if key in chosen:
                    require_basis(layer, adapter_name)
                    chosen[key] = fingerprint_of(layer, adapter_name)
        return chosen


def _with_adapter_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": adapter_names}


def _check_target(base: nn.Module, name: str) -> None:
    """Refuse what is not a linear layer whose forward is really called."""
    if isinstance(base, NonDynamicallyQuantizableLinear):
        raise TypeError(
            f"{name!r} is the output projection of nn.MultiheadAttention, which reads its weight and never calls it, so "
            f"an adapter there would do nothing; exclude it."
        )
    if isinstance(base, (nn.Linear, Conv1D)):
        return
    backend = resolve_quantization_backend(base)
    if backend is None or backend.layer_type != "linear":
        raise TypeError(
            f"{name!r} is a {type(base).__name__}; CURLoRA adapts nn.Linear, transformers' Conv1D and quantised linear "
            f"layers. Change target_modules, or train it as a whole through modules_to_save."
        )
