"""Weight shift: how far adaptation has moved the weights, ‖ΔW‖_F / ‖W‖_F by module and overall, since row 0."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from curlora_lab.probes.weights import WeightError, base_weight, effective_weight, weight_update

POWER_STEPS = 50
WRAPPERS = ("base_model.model.", "model.base_model.model.", "_orig_mod.")


@dataclass(frozen=True)
class WeightShift:
    """One measurement.

    Attributes:
        overall: ``sqrt(sum ‖ΔW‖²) / sqrt(sum ‖W‖²)`` over the measured modules; ``None`` when one is unknown.
        absolute: ``sqrt(sum ‖ΔW‖²)``, which compares between methods that adapt different modules.
        modules: ``‖ΔW‖_F / ‖W‖_F`` by module or parameter name; ``None`` where unknown.
        reasons: Why a value is ``None``, by module name or ``overall``.
        stable_rank: Mean of ``‖ΔW‖_F² / ‖ΔW‖_2²`` over the matrices that moved; ``None`` where none did or one is unknown.
    """

    overall: float | None
    absolute: float | None
    modules: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    stable_rank: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``shift.weight`` in the record."""
        return {
            "overall": self.overall,
            "absolute": self.absolute,
            "modules": dict(self.modules),
            "reasons": dict(self.reasons),
            "stable_rank": self.stable_rank,
        }


@dataclass(frozen=True)
class _Reference:
    """What row 0 left of one module.

    Attributes:
        norm: ‖W‖_F of the effective weight (of the base weight, where an adapter starts off it).
        start: What is subtracted later: ΔW of an adapter (``None`` for zero), or the whole weight where that trains.
        checksum: Sum of a frozen base weight, to notice when it changes all the same; ``None`` where the weight trains.
    """

    norm: float
    start: Tensor | None
    checksum: float | None


class WeightReference:
    """Weights as they are before training, and the measurement of how far they have moved since.

    For a frozen base layer with an adapter only ΔW is computed, one module at a time, and nothing is stored unless the
    adapter does not start at zero (PiSSA, an adapter continued from an earlier run): then ΔW at row 0 is kept. Weights
    that train themselves (full fine-tuning) are kept whole. Copies lie on the CPU. What cannot be measured is ``None``
    with a reason.

    Args:
        model: The backbone with its adapter, before any training. Task heads do not belong in it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._references: dict[str, _Reference | str] = {}
        for name, module in adapted_modules(model).items():
            self._references[name] = _module_reference(module)
        for name, parameter in _trainable_parameters(model).items():
            if isinstance(model, PeftModel) and name.startswith("prompt_encoder"):
                self._references[name] = "prompt parameters are inputs, not weights of the model"
                continue
            start = parameter.detach().to("cpu", copy=True)
            self._references[name] = _Reference(_norm(start), start, None)

    def shift(self, model: nn.Module, *, ranks: bool = True) -> WeightShift:
        """Measure the shift since the reference was taken.

        Args:
            model: The same model, trained.
            ranks: Whether stable ranks are measured too, which takes longer than all else.

        Returns:
            Shift by module and overall; zero everywhere right after the reference was taken.
        """
        modules, parameters = adapted_modules(model), _trainable_parameters(model)
        moved: dict[str, float] = {}
        found: list[float] = []
        reasons: dict[str, str] = {}
        for name, reference in self._references.items():
            try:
                if isinstance(reference, str):
                    raise WeightError(reference)
                if name in modules:
                    change = _module_change(modules[name], reference)
                elif name in parameters and reference.start is not None:
                    change = parameters[name].detach().cpu().float() - reference.start.float()
                else:
                    raise WeightError("the module is no longer part of the model or no longer trainable")
                moved[name] = _norm(change)
                if ranks and change.dim() == 2 and 0 < moved[name] < math.inf:
                    found.append(stable_rank(change))
            except WeightError as error:
                reasons[name] = str(error)
        return self._result(moved, reasons, math.fsum(found) / len(found) if found else None)

    def _result(self, moved: Mapping[str, float], reasons: dict[str, str], rank: float | None) -> WeightShift:
        norms = {name: ref.norm for name, ref in self._references.items() if isinstance(ref, _Reference)}
        modules = {name: _ratio(moved[name], norms[name]) if name in moved else None for name in self._references}
        if not self._references:
            return WeightShift(0.0, 0.0, {}, {})
        if reasons:
            reasons = {**reasons, "overall": f"unknown for {len(reasons)} of {len(modules)} modules"}
            return WeightShift(None, None, modules, reasons)
        absolute = math.sqrt(math.fsum(value**2 for value in moved.values()))
        total = math.sqrt(math.fsum(norms[name] ** 2 for name in moved))
        return WeightShift(_ratio(absolute, total), absolute, modules, {}, rank)


def stable_rank(A: Float[Tensor, "out in"]) -> float:
    """``‖A‖_F² / ‖A‖_2²``: 1 for a single direction, at most the rank.

    The spectral norm is found by power iteration from the longest row, which a full decomposition of every layer after every
    stage would be too slow for; close singular values leave it a few per cent too small at worst.

    Args:
        A: A matrix that is not zero.

    Returns:
        The stable rank.
    """
    A = A.detach().double() / _norm(A)
    x = A[A.square().sum(dim=1).argmax()]
    for _ in range(POWER_STEPS):
        x = A.T @ (A @ (x / torch.linalg.vector_norm(x)))
    return float(1 / torch.linalg.vector_norm(x))  # of A' A with unit Frobenius norm, x is the largest eigenvalue long


def adapted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that carry an adapter, by their name in the base model.

    Args:
        model: Any model, with or without PEFT.

    Returns:
        Name without PEFT's prefixes -> tuner layer.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        # A tuner layer may wrap another one: the outer one's effective weight covers both.
        if isinstance(module, BaseTunerLayer) and ".base_layer" not in name:
            found[_plain(name)] = module
    return found


def _trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters that belong to no adapter, by plain name; a shared parameter once."""
    inside = {id(parameter) for module in adapted_modules(model).values() for parameter in module.parameters()}
    return {
        _plain(name).removesuffix(".weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in inside
    }


def _plain(name: str) -> str:
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    return name


def _module_reference(module: nn.Module) -> _Reference | str:
    """What to keep of one adapted module, or why it cannot be measured."""
    try:
        if _base_trains(module):
            start = effective_weight(module).cpu()
            return _Reference(_norm(start), start, None)
        base, update = base_weight(module), weight_update(module)
        kept = update.cpu().clone() if bool(update.any()) else None
        return _Reference(_norm(base + update), kept, _checksum(base))
    except WeightError as error:
        return str(error)


def _module_change(module: nn.Module, reference: _Reference) -> Tensor:
    """W_now - W_start of one adapted module."""
    if reference.checksum is None:
        now = effective_weight(module)
    else:
        base = base_weight(module)
        # Sums of the same numbers on another device differ by rounding only.
        if abs(_checksum(base) - reference.checksum) > 1e-9 * _norm(base) * math.sqrt(base.numel()):
            raise WeightError("its base weight was changed although it is frozen")
        now = weight_update(module)
    return now if reference.start is None else now - reference.start.to(now.device)


def _base_trains(module: nn.Module) -> bool:
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return any(parameter.requires_grad for parameter in base.parameters())


def _checksum(weight: Tensor) -> float:
    return float(weight.double().sum())


def _norm(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64))


def _ratio(moved: float, norm: float) -> float | None:
    if norm == 0:
        return 0.0 if moved == 0 else None
    return moved / norm
