"""The settings of CURLoRA as a ``PeftConfig``, checked when they are made."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from peft.config import PeftConfig
from peft.utils import PeftType

from curlora_lab.adapters.basis import BASES, REBUILDABLE_BASES


@dataclass
class CurLoraConfig(PeftConfig):
    """How CURLoRA adapts a model: `ΔW = alpha · C U R` with frozen `C`, `R` taken from `W` and a trained `U` (r x r).

    Every adapted matrix has exactly r² trainable numbers (fewer with `duplicates="merge"`).

    Args:
        r: Columns of `C` and rows of `R`; at most the smaller side of every adapted matrix.
        alpha: Multiplier of the update. It is not divided by `r`, unlike PEFT's `lora_alpha`.
        target_modules: Names (suffixes) of the modules to adapt, a regular expression, or "all-linear".
        exclude_modules: Names or a regular expression of modules to leave out.
        layers_to_transform: Index or indices of the layers to adapt; None adapts all.
        layers_pattern: Name of the list of layers, if `layers_to_transform` cannot find it by itself.
        modules_to_save: Modules that are trained as a whole and saved, such as a classification head.
        basis: How `C` and `R` are chosen, one of `curlora_lab.adapters.basis.BASES`.
        floor: Relative floor of the inverted scores, `1 / (p + floor / n)`; 0 is the paper's formula, which has no
            value for a column of zeros.
        floor_absolute: Absolute floor, `1 / (p + floor_absolute)`, in place of the relative one. 0.001 with
            `replacement=True` is the distribution of the published code.
        replacement: Draw with replacement, so that a column may be chosen more than once.
        duplicates: What becomes of columns drawn more than once: "keep" leaves them (as the published code does),
            "merge" keeps one of each, scaled by the square root of its count, and makes `U` smaller.
        leverage_rank: Rank k of the subspaces for leverage scores; None takes `r`.
        orthonormal: Make the columns of `C` and the rows of `R` orthonormal (thin QR), so that `‖ΔW‖ = alpha ‖U‖` and a
            gradient step on `U` is the projected step `P_C G P_R` on `W`.
        u_init: "zero" leaves the model unchanged at the start; "gaussian" draws `U` from N(0, u_std²).
        u_std: Standard deviation for `u_init="gaussian"`; 1e-5 is that of LoRA-XS.
        dropout: Probability of dropping an entry of the adapter's input in training. Needs a second pass over the
            input, so it costs time.
        save_basis: Save `C` and `R` (loads on any base). False saves the indices and a fingerprint of the base, a file
            of kilobytes that loads only on the same base. In the same dtype that is checked to the bit; in another one only
            norms are (3 % in bfloat16), so the same base slightly fine-tuned since would pass, with a warning.
        seed: Seed of the selection; each module derives its own from it and its name.
        init_weights: Set `U` by `u_init`. False draws it from N(0, 1 / r), for tests that need an update at once.

    Raises:
        ValueError: A value out of its range, or a combination without meaning.

    Reference:
        Fawi (2024), "CURLoRA: Stable LLM Continual Fine-Tuning and Catastrophic Forgetting Mitigation",
        arXiv 2408.14572.
    """

    r: int = 16
    alpha: float = 1.0
    target_modules: Collection[str] | str | None = None
    exclude_modules: Collection[str] | str | None = None
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None
    modules_to_save: Sequence[str] | None = None
    basis: str = "inverse_norm"
    floor: float = 1e-3
    floor_absolute: float | None = None
    replacement: bool = False
    duplicates: str = "keep"
    leverage_rank: int | None = None
    orthonormal: bool = False
    u_init: str = "zero"
    u_std: float = 1e-5
    dropout: float = 0.0
    save_basis: bool = True
    seed: int = 0
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.CURLORA
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        if self.layers_to_transform is not None and not isinstance(self.layers_to_transform, int):
            self.layers_to_transform = list(self.layers_to_transform)
        if self.modules_to_save is not None:
            self.modules_to_save = list(self.modules_to_save)
        self._check_numbers()
        self._check_choices()

    def _check_numbers(self) -> None:
        ranges: list[tuple[str, Any, bool, str]] = [
            ("r", self.r, isinstance(self.r, int) and self.r > 0, "a positive integer"),
            ("alpha", self.alpha, _is_number(self.alpha), "a finite number"),
            ("floor", self.floor, _is_number(self.floor) and self.floor >= 0, "a number, at least 0"),
            ("u_std", self.u_std, _is_number(self.u_std) and self.u_std >= 0, "a number, at least 0"),
            ("dropout", self.dropout, _is_number(self.dropout) and 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("seed", self.seed, isinstance(self.seed, int), "an integer"),
        ]
        if self.floor_absolute is not None:
            good = _is_number(self.floor_absolute) and self.floor_absolute >= 0
            ranges.append(("floor_absolute", self.floor_absolute, good, "a number, at least 0, or None"))
        if self.leverage_rank is not None:
            good = isinstance(self.leverage_rank, int) and self.leverage_rank > 0
            ranges.append(("leverage_rank", self.leverage_rank, good, "a positive integer, or None"))
        for name, value, good, allowed in ranges:
            if not good:
                raise ValueError(f"CurLoraConfig: {name}={value!r} is not allowed; it must be {allowed}.")

    def _check_choices(self) -> None:
        choices: list[tuple[str, str, Sequence[str]]] = [
            ("basis", self.basis, tuple(BASES)),
            ("duplicates", self.duplicates, ("keep", "merge")),
            ("u_init", self.u_init, ("zero", "gaussian")),
        ]
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"CurLoraConfig: {name}={value!r} is unknown; choose one of {', '.join(allowed)}.")
        if self.replacement and not BASES[self.basis].drawn:
            drawn = ", ".join(name for name, basis in BASES.items() if basis.drawn)
            raise ValueError(
                f"CurLoraConfig: replacement=True has no effect on basis={self.basis!r}, which draws no indices; "
                f"use it with one of {drawn}, or leave it out."
            )
        if self.duplicates == "merge" and not self.replacement:
            raise ValueError(
                "CurLoraConfig: duplicates='merge' has no effect without replacement=True; set both or none."
            )
        if not self.save_basis and self.basis not in REBUILDABLE_BASES:
            raise ValueError(
                f"CurLoraConfig: save_basis=False needs a basis that can be rebuilt from indices "
                f"({', '.join(REBUILDABLE_BASES)}), and {self.basis!r} cannot; leave save_basis=True."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("CurLoraConfig: layers_pattern needs layers_to_transform; set both or none.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _as_set(names: Any) -> Any:
    """PEFT keeps lists of module names as sets; a string (a regular expression) stays as it is."""
    return names if names is None or isinstance(names, str) else set(names)
