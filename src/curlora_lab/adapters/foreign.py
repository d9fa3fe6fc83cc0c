"""Adapter folders that may be anyone's: looked at before PEFT reads them.

PEFT reads a pickle where there are no safetensors, imports modules and reads files that a configuration names, and takes its
numbers as they are. None of that happens with a folder that passed here.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

ADAPTER_CONFIG = "adapter_config.json"

#: Fields of a PEFT configuration that make PEFT import a module or read a file of its own choosing.
REACHING_OUT = (
    "auto_mapping",
    "megatron_config",
    "corda_config",
    "lora_ga_config",
    "prompt_tuning_init_state_dict_path",
    "tokenizer_name_or_path",
    "adapters",  # X-LoRA: paths of other adapters
)
#: Fields that are a list of names, or a pattern for names.
NAMES = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
#: Fields that map a pattern for names to a number.
BY_NAME = ("rank_pattern", "alpha_pattern")

LARGEST_CONFIG = 1 << 20  # bytes
LARGEST_RANK = 1 << 16


class AdapterFolderError(ValueError):
    """An adapter folder that is damaged, or holds what is not allowed; the message says which file and why."""


def check_adapter_folder(folder: Path) -> None:
    """Refuse a PEFT folder that is damaged, or that would make PEFT do more than read tensors.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        AdapterFolderError: A file is missing or none of its own, the configuration is no configuration or reaches outside, or
            the weights are no safetensors or not finite.
    """
    for name in (ADAPTER_CONFIG, SAFETENSORS_WEIGHTS_NAME):  # without the second, PEFT would look for a pickle
        if not (folder / name).is_file():
            hint = (
                "; adapter_model.bin is a pickle, which is never read"
                if (folder / "adapter_model.bin").exists()
                else ""
            )
            raise AdapterFolderError(f"{folder} has no {name}, which a PEFT adapter needs{hint}.")
    fault = next(_config_faults(_read_config(folder / ADAPTER_CONFIG)), None)
    if fault is not None:
        raise AdapterFolderError(f"{folder / ADAPTER_CONFIG}: {fault} It is not loaded.")
    check_weights(folder / SAFETENSORS_WEIGHTS_NAME)


def check_source(folder: Path, *, full_weights: str) -> None:
    """Refuse a folder to continue from that is damaged, or that would make a library do more than read tensors.

    Args:
        folder: A PEFT folder, or one with the weights of full fine-tuning.
        full_weights: Name of the file of the latter.

    Raises:
        AdapterFolderError: As :func:`check_adapter_folder`.
    """
    if (folder / full_weights).is_file() and not (folder / ADAPTER_CONFIG).exists():
        check_weights(folder / full_weights)
    else:
        check_adapter_folder(folder)


def check_weights(path: Path) -> None:
    """Refuse a file of weights that is no safetensors file or holds numbers that are not finite.

    Args:
        path: The file.

    Raises:
        AdapterFolderError: It is not what it should be.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dict
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise AdapterFolderError(f"{path}: {name!r} is not finite everywhere; it is not loaded.")
    except (SafetensorError, OSError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise AdapterFolderError(f"{path} cannot be loaded ({type(error).__name__}: {first}).") from error


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise AdapterFolderError(f"{path} has {path.stat().st_size} bytes; at most {LARGEST_CONFIG} are read.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except AdapterFolderError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFolderError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise AdapterFolderError(f"{path} holds a {type(found).__name__}; a configuration is an object.")
    return found


def _config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a configuration, whatever the method is."""
    set_ = [name for name in REACHING_OUT if config.get(name)]
    if set_:
        yield f"{set_[0]} is set, which makes PEFT import or read something outside the folder."
    known = {str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    if not isinstance(config.get("peft_type"), str) or config["peft_type"] not in known:
        yield f"peft_type is {config.get('peft_type')!r:.80}; it must be one of {', '.join(sorted(known))}."
    for name in ("r", *(["lora_alpha"] if isinstance(config.get("lora_alpha"), int | float | str | list) else [])):
        if name in config:
            yield from _number_faults(name, config[name], whole=name == "r")
    for name in NAMES:
        yield from _name_faults(name, config.get(name))
    for name in BY_NAME:
        by_name = config.get(name) or {}
        if not isinstance(by_name, dict):
            yield f"{name} is a {type(by_name).__name__}; it must be an object."
            continue
        for pattern, value in by_name.items():
            yield from _pattern_faults(name, pattern)
            yield from _number_faults(f"{name}.{pattern}", value, whole=name == "rank_pattern")
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{name} is {value}; it must be finite."


def _number_faults(name: str, value: Any, *, whole: bool) -> Iterator[str]:
    kinds: Any = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds):
        yield f"{name} is {value!r:.80}; it must be a {'whole ' if whole else ''}number."
    elif whole and not 0 <= value <= LARGEST_RANK:
        yield f"{name} is {value if abs(value) < 1e12 else 'huge'}; a rank is at most {LARGEST_RANK}."
    elif not abs(value) < 1e12:
        yield f"{name} is not a number that makes sense; it must be below 1e12."


def _name_faults(name: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, str):
        yield from _pattern_faults(name, value)
    elif not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        yield f"{name} is {value!r:.80}; it must be a list of names or a pattern."


def _pattern_faults(name: str, pattern: str) -> Iterator[str]:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        yield f"{name} holds {pattern!r:.80}, which is no pattern ({error})."
