"""State as tensors and JSON: what an optimiser, a schedule or a callback keeps, without a pickle."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

Plain = None | bool | int | float | str | list[Any] | dict[str, Any]


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors; those that share memory are written as if they did not. No file where there are none."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if memory in seen else value
        seen.add(memory)
    if apart:
        save_file(apart, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote."""
    return load_file(path) if path.is_file() else {}


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Plain:
    """Turn nested state into JSON, with its tensors put aside.

    Args:
        value: numbers, texts, tensors, and lists, tuples and dicts of them; keys may be numbers. A tuple comes back as a list.
        path: where the value stands; names its tensors.
        tensors: takes them.

    Returns:
        What :func:`unpack` understands; floats that JSON has not (infinities, NaN) included.

    Raises:
        TypeError: there is something else in it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        items = [[pack(k, path, tensors), pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"items": items}
    if isinstance(value, list | tuple):
        return [pack(part, f"{path}/{index}", tensors) for index, part in enumerate(value)]
    raise TypeError(
        f"{path} holds a {type(value).__name__}, which can be kept neither as JSON nor as a tensor, so this run can't be "
        "checkpointed inside a stage; use another part, or switch that off with checkpoint.every_seconds=null "
        "checkpoint.every_steps=null checkpoint.every_epochs=null."
    )


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`pack`."""
    if isinstance(value, list):
        return [unpack(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "float" in value:
        return float(value["float"])
    return {unpack(k, tensors): unpack(v, tensors) for k, v in value["items"]}
