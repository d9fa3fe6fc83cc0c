"""Build the parts that a configuration names: backbone, adapter, tasks, probes, strategy."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from curlora_lab import config as configuration
from curlora_lab.adapters.attach import Adapter, attach, find_adapter
from curlora_lab.backbone import Backbone
from curlora_lab.continual import files, identity
from curlora_lab.continual.scenarios import StagePlan, learnt_in, plan_stages
from curlora_lab.continual.strategies import Strategy
from curlora_lab.hub import answering_or_offline
from curlora_lab.probes import PerplexityProbe
from curlora_lab.sweeps import tuned
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Training

#: Root keys that say how every task is trained.
TRAINING_KEYS = (
    "lr", "head_lr", "batch_size", "eval_batch_size", "epochs", "shuffle", "head_seed", "num_workers", "seed",
    "on_nonfinite", "nonfinite_limit",
)  # fmt: skip


@dataclass
class Parts:
    """What a configuration names, built; ``tuned`` says where its learning rate was found, if by a tuning sweep."""

    config: dict[str, Any]
    backbone: Backbone
    tasks: list[TaskModule]
    probes: dict[str, PerplexityProbe]
    strategy: Strategy
    common: dict[str, Any]
    task_identities: list[dict[str, Any]]
    tuned: dict[str, Any] | None = None

    @property
    def layout(self) -> dict[str, Any]:
        """How tasks become stages: ``scenario`` and ``repeats``."""
        return {key: self.config[key] for key in ("scenario", "repeats")}

    @cached_property
    def plans(self) -> list[StagePlan]:
        """The stages of the run."""
        return plan_stages(self.tasks, **self.layout)

    @property
    def learnt_in(self) -> dict[str, int]:
        """The stage in which each task is learnt first."""
        return learnt_in([task.name for task in self.tasks], scenario=self.config["scenario"])

    @property
    def inputs(self) -> dict[str, Any]:
        """Content of what came from outside: ``model``, and ``rows`` of each task; see ``continual.inputs``."""
        rows = {task.name: task.data.fingerprint for task in self.tasks}
        return {"model": self.backbone.fingerprint, "rows": rows}


def build(config: dict[str, Any]) -> Parts:
    """Load the backbone, attach the adapter, prepare data and probes.

    Raises:
        ValueError, OSError: a part does not fit the others, or its files are not there or not right.
    """
    try:
        with answering_or_offline(config):
            return _build(config)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):  # Hydra wraps what a part says of its arguments
            raise error.__cause__ from error
        raise


def _build(config: dict[str, Any]) -> Parts:
    """Each part in the order in which the next needs it."""
    L.seed_everything(config["seed"], verbose=False)
    backbone: Backbone = instantiate(config["model"], _convert_="all")
    found_by = tuned.provenance(config, fingerprint=backbone.fingerprint)
    node = config["adapter"]
    init_from = node["init_from"]
    if init_from:
        _refuse_damaged(init_from)
    attach(backbone, make_adapter(node), seed=config["seed"], start=node.get("start"), init_from=init_from)
    cache = Path(config["output_dir"]).expanduser() / ".cache"
    training = Training(
        optimizer=instantiate(config["optimizer"], _convert_="all"),
        scheduler=instantiate(config["scheduler"], _convert_="all") if config["scheduler"] else None,
        **{key: config[key] for key in TRAINING_KEYS},
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
    strategy: Strategy = instantiate(config["strategy"], _convert_="all")
    common = identity.common_identity(
        config,
        model=backbone.fingerprint,
        init_from=_content(find_adapter(init_from)) if init_from else None,
        probes={name: probe.fingerprint or "" for name, probe in probes.items()},
        strategy=strategy.prepare(backbone, probes),
    )
    identities = [
        identity.task_identity(node, rows=task.data.fingerprint)
        for node, task in zip(nodes.values(), tasks, strict=True)
    ]
    return Parts(config, backbone, tasks, probes, strategy, common, identities, found_by)


def make_adapter(node: Mapping[str, Any]) -> Adapter:
    """Build the adapter's configuration from its node, without the lab's own keys."""
    return instantiate({k: v for k, v in node.items() if k not in configuration.ADAPTER_KEYS}, _convert_="all")


def _refuse_damaged(init_from: str) -> None:
    """What a run or an export declared whole must still be so before another run continues from it.

    Raises:
        ValueError: A file was changed since, or is a link that leads elsewhere.
    """
    folder = find_adapter(init_from)
    for place in (folder, folder.parent):
        if not (place / files.MANIFEST).exists():
            continue  # a PEFT folder from elsewhere declares nothing
        link = next((path for path in [place, *place.rglob("*")] if path.is_symlink()), None)
        if link is not None or files.read_manifest(place) is None:
            fault = f"{link} is a link" if link else f"its {files.MANIFEST} does not hold"
            raise ValueError(
                f"adapter.init_from={init_from!r}: {place} is not what was written ({fault}); continue from another one."
            )


def _content(folder: Path) -> str:
    """Hash of the weights and configuration of an adapter folder."""
    parts = sorted(file for file in folder.iterdir() if file.suffix in {".safetensors", ".json"})
    return files.digest({file.name: files.hash_file(file) for file in parts})
