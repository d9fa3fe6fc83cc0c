"""Build the parts that a configuration names: backbone, adapter, tasks, probes, strategy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from curlora_lab import config as configuration
from curlora_lab.adapters.attach import Adapter, attach, find_adapter
from curlora_lab.backbone import Backbone
from curlora_lab.continual import files, identity
from curlora_lab.continual.strategies import Strategy
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Training


@dataclass
class Parts:
    """What a configuration names, built."""

    config: dict[str, Any]
    backbone: Backbone
    tasks: list[TaskModule]
    probes: dict[str, PerplexityProbe]
    strategy: Strategy
    common: dict[str, Any]
    task_identities: list[dict[str, Any]]

    @property
    def learnt_in(self) -> dict[str, int]:
        """The stage in which each task is learnt."""
        return {task.name: stage for stage, task in enumerate(self.tasks, start=1)}


def build(config: dict[str, Any]) -> Parts:
    """Load the backbone, attach the adapter, prepare data and probes.

    Raises:
        ValueError, OSError: a part does not fit the others, or its files are not there or not right.
    """
    try:
        return _build(config)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):  # Hydra wraps what a part says of its arguments
            raise error.__cause__ from error
        raise


def _build(config: dict[str, Any]) -> Parts:
    """Each part in the order in which the next needs it."""
    L.seed_everything(config["seed"], verbose=False)
    backbone: Backbone = instantiate(config["model"], _convert_="all")
    init_from = config["adapter"]["init_from"]
    attach(backbone, make_adapter(config["adapter"]), seed=config["seed"], init_from=init_from)
    cache = Path(config["output_dir"]).expanduser() / ".cache"
    training = Training(
        optimizer=instantiate(config["optimizer"], _convert_="all"),
        scheduler=instantiate(config["scheduler"], _convert_="all") if config["scheduler"] else None,
        **{key: config[key] for key in ("lr", "head_lr", "batch_size", "eval_batch_size", "num_workers", "seed")},
    )
    nodes = configuration.tasks_of(config)
    tasks: list[TaskModule] = []
    for node in nodes.values():
        task = instantiate(node, _convert_="all")(backbone=backbone, training=training)
        task.data.prepare(backbone.tokenizer, seed=config["seed"], cache_dir=cache)
        tasks.append(task)
    probes: dict[str, PerplexityProbe] = instantiate(config["probe"], _convert_="all").get("probes") or {}
    for probe in probes.values():
        probe.prepare(backbone)
    common = identity.common_identity(
        config,
        model=backbone.fingerprint,
        init_from=_content(find_adapter(init_from)) if init_from else None,
        probes={name: probe.fingerprint or "" for name, probe in probes.items()},
    )
    identities = [
        identity.task_identity(node, rows=task.data.fingerprint)
        for node, task in zip(nodes.values(), tasks, strict=True)
    ]
    strategy: Strategy = instantiate(config["strategy"], _convert_="all")
    return Parts(config, backbone, tasks, probes, strategy, common, identities)


def make_adapter(node: Mapping[str, Any]) -> Adapter:
    """Build the adapter's configuration from its node, without the lab's own keys."""
    return instantiate({k: v for k, v in node.items() if k not in configuration.ADAPTER_KEYS}, _convert_="all")


def _content(folder: Path) -> str:
    """Hash of the weights and configuration of an adapter folder."""
    parts = sorted(file for file in folder.iterdir() if file.suffix in {".safetensors", ".json"})
    return files.digest({file.name: files.hash_file(file) for file in parts})
