"""Parts that cost nothing to build are built on trial, so that they can check their own arguments before a model is loaded."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from curlora_lab.config.combinations import task_nodes


def trial_faults(
    plain: Mapping[str, Any], *, broken: set[str], numbers_fit: bool, own_keys: tuple[str, ...]
) -> list[str]:
    """Build what is cheap and say what it objects to.

    Args:
        plain: the resolved configuration.
        broken: paths of keys and nodes that are known to have faults; what holds one of them is not built.
        numbers_fit: whether the root keys are in their ranges; if not, parts that read them are not built.
        own_keys: keys of the adapter node that are no arguments.
    """
    found: list[str] = []
    for path, node in _cheap(plain):
        reads_numbers = path.endswith(".data") or path in {"adapter", "optimizer"}
        if (reads_numbers and not numbers_fit) or any(f"{key}.".startswith((f"{path}.", f"{path}[")) for key in broken):
            continue
        try:
            with _quiet():
                _built(path, node, plain, own_keys)
        except Exception as error:  # noqa: BLE001  each library has errors of its own
            reason = _reason(error)
            found.append(reason if reason.startswith(path) else f"{path}: {reason}{_given(path, node, _cause(error))}")
    return found


def _built(path: str, node: dict[str, Any], plain: Mapping[str, Any], own_keys: tuple[str, ...]) -> None:
    """Build one part, with stand-ins for what the run gives it."""
    if path == "adapter":
        node = {key: value for key, value in node.items() if key not in own_keys}
    part = instantiate(node, _convert_="all")
    if path == "optimizer":
        part([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": plain["lr"]}])
    elif path == "scheduler":
        part(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), steps=10, examples=10)
    elif path == "trainer":
        part(logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False)


def _cheap(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Nodes whose building reads no file, opens no connection and takes no memory."""
    nodes = {part: plain.get(part) for part in ("adapter", "optimizer", "scheduler", "strategy", "trainer")}
    nodes |= {f"{path}.data": node.get("data") for path, node in task_nodes(plain)}
    callbacks, probe = plain.get("callbacks"), plain.get("probe")
    nodes |= {f"callbacks.{k}": v for k, v in callbacks.items()} if isinstance(callbacks, dict) else {}
    probes = probe.get("probes") if isinstance(probe, dict) else None
    nodes |= {f"probe.probes.{k}": v for k, v in probes.items()} if isinstance(probes, dict) else {}
    yield from ((path, node) for path, node in nodes.items() if isinstance(node, dict) and "_target_" in node)


def _given(path: str, node: Mapping[str, Any], error: BaseException) -> str:
    """What messages leave out: Lightning's on devices, and those of comparisons with a value of the wrong kind."""
    if path != "trainer":
        values = {key: value for key, value in node.items() if not key.startswith("_")}
        return "" if not isinstance(error, TypeError) else f" Given: {values!r:.300}."
    given = ", ".join(
        f"{key}={node[key]}" for key in ("accelerator", "devices", "strategy", "precision") if key in node
    )
    return f" Given: {given}; trainer=cpu works anywhere."


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries say when a part is really built, and with the global switches as they were."""
    sayers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [sayer.level for sayer in sayers]
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    for sayer in sayers:
        sayer.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for sayer, level in zip(sayers, levels, strict=True):
            sayer.setLevel(level)


def _cause(error: BaseException) -> BaseException:
    """The error of the part itself, without what Hydra puts around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    """What the part itself says."""
    error = _cause(error)
    return " ".join(str(error).split()) or type(error).__name__
