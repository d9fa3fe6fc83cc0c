"""Put an adapter on a backbone, and save and restore what it has learnt.

Every adapter is a ``PeftConfig``. Two declared exceptions are not adapters at all but what adapters are held against:
:class:`FullFineTuning` and :class:`HeadOnly`.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from curlora_lab.adapters.basis import check_rank
from curlora_lab.adapters.foreign import check_source
from curlora_lab.adapters.several import FIRST, activate, add_adapter
from curlora_lab.adapters.start import start_adapter
from curlora_lab.backbone import Backbone, linear_names

FULL_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class FullFineTuning:
    """Train every weight of the backbone."""


@dataclass(frozen=True)
class HeadOnly:
    """Train no weight of the backbone: the linear probe that every adapter must beat."""


Adapter: TypeAlias = PeftConfig | FullFineTuning | HeadOnly


def attach(
    backbone: Backbone,
    adapter: Adapter,
    *,
    seed: int,
    start: str | None = None,
    init_from: str | Path | None = None,
) -> None:
    """Patch the backbone in place; afterwards exactly the adapter's parameters require gradients.

    Args:
        backbone: a backbone without an adapter.
        adapter: what to attach.
        seed: seed of the adapter's random initialisation.
        start: a way to start the adapter that PEFT does not have, see :func:`curlora_lab.adapters.start.start_adapter`.
        init_from: a run folder or a PEFT folder to continue from; its weights replace the initial ones.

    Raises:
        ValueError: there is an adapter already, a target matches no module, the rank is larger than a module allows, or
            ``init_from`` does not fit the adapter.
    """
    if isinstance(backbone.model, PeftModel):
        raise ValueError(
            f"Backbone {backbone.name!r} has an adapter already; load the backbone anew to attach another."
        )
    backbone.model.requires_grad_(False)
    if isinstance(adapter, PeftConfig):
        config = _complete(copy.deepcopy(adapter), backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone.model = get_peft_model(backbone.model, config)
        _refuse_nothing_adapted(backbone, config)
        if start is not None:
            start_adapter(backbone.model, start, seed=seed)
    elif isinstance(adapter, FullFineTuning):
        backbone.model.requires_grad_(True)
    if init_from is not None:
        folder = _only_adapter(find_adapter(init_from), init_from)
        check_source(folder, full_weights=FULL_WEIGHTS)
        load_adapter(backbone, folder)


def trainable_state(backbone: Backbone) -> dict[str, Tensor]:
    """The backbone's trainable parameters by name (references, not copies)."""
    return {name: parameter.data for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def save_adapter(backbone: Backbone, folder: Path) -> None:
    """Write the adapter: a PEFT folder, the trained weights of full fine-tuning, or an empty folder for a head alone.

    Of several adapters the first lies in the folder itself and each other in a folder of its name, as PEFT has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(backbone.model, PeftModel):
        backbone.model.save_pretrained(str(folder), save_embedding_layers=False)
    elif state := trainable_state(backbone):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / FULL_WEIGHTS)


def load_adapter(backbone: Backbone, folder: Path) -> None:
    """Restore what :func:`save_adapter` wrote into a backbone with the same adapter attached.

    Further adapters of the folder are added, and those that it does not have are taken away; which ones are active and trained is
    for the caller to say where there are several (:func:`curlora_lab.adapters.several.activate`).

    Raises:
        ValueError: the folder holds another kind of adapter, or its shapes or targets differ.
    """
    if isinstance(backbone.model, PeftModel):
        _load_adapters(backbone, backbone.model, folder)
        return
    expected = trainable_state(backbone)
    stored = load_file(folder / FULL_WEIGHTS) if (folder / FULL_WEIGHTS).is_file() else {}
    _compare(_shapes(expected), _shapes(stored), folder)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(stored[name])


def find_adapter(source: str | Path) -> Path:
    """The adapter folder that ``init_from`` means: a PEFT folder itself, or the last stage of a run.

    Raises:
        ValueError: neither is there.
    """
    folder = Path(source).expanduser()
    if (folder / "adapter_config.json").is_file() or (folder / FULL_WEIGHTS).is_file():
        return folder
    stages = [stage for stage in sorted(folder.glob("stage_*")) if (stage / "MANIFEST.json").is_file()]
    trained = [stage / "adapter" for stage in stages if (stage / "adapter").is_dir()]
    if not trained:
        raise ValueError(
            f"adapter.init_from={str(source)!r} is neither a PEFT folder (adapter_config.json) nor a run folder with a "
            "finished stage (stage_01/MANIFEST.json)."
        )
    return trained[-1]


def stored_adapters(folder: Path) -> dict[str, Path]:
    """The adapters of a PEFT folder by name, in order: the first in the folder itself, those of later stages below it."""
    further = [path.parent for path in folder.glob("stage_*/adapter_config.json") if path.parent.name[6:].isdecimal()]
    return {FIRST: folder, **{place.name: place for place in sorted(further, key=lambda place: int(place.name[6:]))}}


def _only_adapter(folder: Path, source: str | Path) -> Path:
    """Refuse a folder with several adapters: which of them would be continued, or their sum, nobody has said."""
    stored = stored_adapters(folder)
    if len(stored) > 1:
        one = folder / list(stored)[-1]
        raise ValueError(
            f"adapter.init_from={str(source)!r} has {len(stored)} adapters, one for each stage ({', '.join(stored)}), and a run "
            f"continues from one. Name one ({str(one)!r}), or export the run to a single LoRA (scripts/export.py) and name that."
        )
    return folder


def _complete(config: PeftConfig, backbone: Backbone) -> PeftConfig:
    """Fill in what follows from the backbone: targets, task type and the layout of ``Conv1D``."""
    if getattr(config, "target_modules", None) is None:
        config.target_modules = backbone.target_modules
    if config.task_type is None:
        config.task_type = TaskType.CAUSAL_LM if backbone.is_causal else TaskType.FEATURE_EXTRACTION
    matched = _matched_modules(backbone.model, config.target_modules)
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in matched.values())
    if _starts_from_base(config):
        for name, module in matched.items():
            if not _is_named(name, config.exclude_modules):
                check_rank(int(config.r), tuple(module.weight.shape), name)
    return config


def _refuse_nothing_adapted(backbone: Backbone, config: PeftConfig) -> None:
    """PEFT's methods pass over modules of a type they do not know, some without a word."""
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        return
    matched = _matched_modules(backbone.transformers_model, config.target_modules)
    kinds = ", ".join(sorted({type(module).__name__ for module in matched.values()}))
    raise ValueError(
        f"{config.peft_type.value} adapts none of the {len(matched)} modules that adapter.target_modules names: it does not know "
        f"their type ({kinds}). Name others, or choose another adapter."
    )


def _is_named(name: str, targets: Any) -> bool:
    """Whether a module is meant by a regular expression for its whole name, or by a list of the ends of names."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(f".{name}".endswith(f".{target}") for target in targets or ())


def _starts_from_base(config: PeftConfig) -> bool:
    """Whether a LoRA takes its first factors out of the base weight, whose smaller side then bounds the rank."""
    start = getattr(config, "init_lora_weights", None)
    return isinstance(start, str) and start.startswith(("pissa", "olora", "corda", "loftq"))


def _matched_modules(model: nn.Module, targets: Any) -> dict[str, Any]:
    """Modules that the targets name, by their own names; each name of a list must match at least one."""
    modules = dict(model.named_modules())
    if targets == "all-linear":
        known = set(linear_names(model))
        return {name: module for name, module in modules.items() if name.rpartition(".")[2] in known}
    by_target = {
        str(target): {name: module for name, module in modules.items() if _is_named(name, kind)}
        for target, kind in ([(targets, targets)] if isinstance(targets, str) else [(one, [one]) for one in targets])
    }
    missing = [target for target, found in by_target.items() if not found]
    if missing:
        raise ValueError(
            f"adapter.target_modules: {', '.join(map(repr, missing))} matches no module of {type(model).__name__}. "
            f"Linear modules there are: {', '.join(linear_names(model))}."
        )
    return {name: module for found in by_target.values() for name, module in found.items()}


def _load_adapters(backbone: Backbone, model: PeftModel, folder: Path) -> None:
    stored = stored_adapters(folder)
    surplus = [name for name in model.peft_config if name not in stored]
    if surplus:
        activate(backbone, [FIRST], train=None)  # PEFT would choose another one to be active, with a warning
    for name in surplus:
        model.delete_adapter(name)
    for name, place in stored.items():
        if name not in model.peft_config:
            add_adapter(backbone, name, seed=0)
        _load_peft(model, name, place)


def _load_peft(model: PeftModel, name: str, folder: Path) -> None:
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} is no PEFT folder (no adapter_config.json), but the run's adapter is a PEFT adapter."
        )
    stored, active = PeftConfig.from_pretrained(str(folder)), model.peft_config[name]
    if stored.peft_type != active.peft_type:
        raise ValueError(
            f"{folder} holds a {stored.peft_type.value} adapter, but this run's is {active.peft_type.value}; choose that adapter."
        )
    weights = load_peft_weights(str(folder), device="cpu")
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    _compare(_shapes(expected), _shapes(weights), folder)
    there, here = _meaning(stored), _meaning(active)
    differing = [f"{key}={there[key]!r} (here {here[key]!r})" for key in here if there[key] != here[key]]
    if differing:
        raise ValueError(
            f"{folder} was trained with {', '.join(differing)}: the same tensors would mean another update here. "
            "Use the same values as it was trained with."
        )
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _meaning(config: PeftConfig) -> dict[str, Any]:
    """What decides, beside the tensors, which update an adapter is."""
    keys = ("alpha", "lora_alpha", "use_rslora", "use_dora", "bias")
    taken = getattr(config, "init_lora_weights", None) if _starts_from_base(config) else None
    return {**{key: getattr(config, key, None) for key in keys}, "init_lora_weights": taken}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _compare(expected: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Refuse weights of other names or shapes, naming the first few differences."""
    differing = [name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name)]
    if differing:
        shown = "; ".join(
            f"{name}: here {expected.get(name, 'absent')}, there {stored.get(name, 'absent')}"
            for name in sorted(differing)[:3]
        )
        raise ValueError(
            f"{folder} does not fit this run's adapter in {len(differing)} tensors ({shown}). "
            "Use the same rank and target modules as it was trained with."
        )
