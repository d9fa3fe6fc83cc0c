"""The Hugging Face hub when it can't be reached: found out in seconds, then only what is in the cache is used.

Left to themselves, the libraries ask five times with growing pauses before they say so (24 to 29 s were measured), for each
file anew.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets.config
from huggingface_hub import constants, is_offline_mode

from curlora_lab.backbone import BUILTIN
from curlora_lab.loggers.connection import fault_of

logger = logging.getLogger(__name__)


@contextmanager
def answering_or_offline(config: Mapping[str, Any]) -> Iterator[None]:
    """Ask the hub once, if the configuration needs it; if it does not answer, work from the cache inside the block.

    Args:
        config: The resolved configuration of a run.
    """
    needed = list(dict.fromkeys(needs(config)))
    fault = fault_of(constants.ENDPOINT) if needed and not is_offline_mode() else None
    if fault is None:
        yield
        return
    logger.warning(
        "%s can't be reached (%s). What comes from there (%s) is taken from the cache, %s. HF_HUB_OFFLINE=1 does not ask; "
        "without hub and cache use model=local model.path=<folder> and data_dir=<folder>.",
        constants.ENDPOINT,
        fault,
        ", ".join(needed),
        constants.HF_HUB_CACHE,
    )
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def needs(config: Mapping[str, Any]) -> Iterator[str]:
    """What of a configuration is on the hub, as ``model gpt2`` or ``data nyu-mll/glue``.

    Args:
        config: The resolved configuration of a run.
    """
    model = config.get("model")
    path = model.get("path") if isinstance(model, Mapping) else None
    if isinstance(path, str) and path != BUILTIN and not Path(path).expanduser().is_dir():
        yield f"model {path}"
    unused = "sequence" if config.get("task") else None
    yield from _sources({key: node for key, node in config.items() if key != unused})


def _sources(node: Any) -> Iterator[str]:
    """Sources of rows that are neither local nor generated."""
    if isinstance(node, Mapping):
        hub = node.get("hub")
        if isinstance(hub, Mapping) and not node.get("data_dir") and not node.get("generator"):
            yield f"data {hub.get('path')}"
        for child in node.values():
            yield from _sources(child)
    elif isinstance(node, list):
        for child in node:
            yield from _sources(child)
