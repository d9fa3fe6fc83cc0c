"""What the last bits of a run depend on beside what names it: the versions of the libraries that compute, and the device.

The same command goes on with other versions or on another device; then the run says so, since its numbers are no longer those
of one environment.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version

import torch

#: Libraries whose version may change a number.
COMPUTING = ("torch", "lightning", "transformers", "peft", "torchmetrics", "numpy")

Environment = dict[str, str]


def environment_on(device: torch.device) -> Environment:
    """Versions of the libraries that compute, and what they compute on.

    Args:
        device: where the model is.

    Returns:
        Versions by library, and under ``device`` the GPU's name, or ``cpu`` with its instruction set.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    else:
        name = device.type
    return {"device": name, **versions(COMPUTING)}


def merged(*groups: Iterable[Mapping[str, str]]) -> list[Environment]:
    """All environments, each once, in the order in which they come."""
    found: list[Environment] = []
    for one in (dict(one) for group in groups for one in group):
        if one not in found:
            found.append(one)
    return found


def mixed(environments: Iterable[Mapping[str, str]]) -> str | None:
    """What is to be said of rows that were made in more than one environment; else ``None``.

    Args:
        environments: of all rows.
    """
    values: dict[str, list[str]] = {}
    for one in environments:
        for key, value in one.items():
            values.setdefault(key, [])
            if value not in values[key]:
                values[key].append(value)
    lines = [f"{key} {' / '.join(found)}" for key, found in values.items() if len(found) > 1]
    if not lines:
        return None
    return (
        f"parts of this run were computed in different environments ({'; '.join(lines)}); its numbers are not bit for bit those "
        "of a run that was never interrupted"
    )


@cache
def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """The installed version of each library, by name."""
    return {library: version(library) for library in libraries}
