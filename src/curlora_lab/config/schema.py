"""The root keys with their types, where the YAML files are, and what a wrong configuration raises."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException
from omegaconf import MISSING, OmegaConf

PACKAGED_CONF = Path(__file__).parents[1] / "conf"
SOURCE_CONF = Path(__file__).parents[3] / "conf"

#: Groups of the Defaults List that have no node of their own: what they set stands at the root.
GLOBAL_GROUPS = ("experiment", "debug", "sweep", "launch")

Node = dict[str, Any]


class ConfigError(CompactHydraException):
    """The configuration is wrong; shown without a traceback, and a sweep goes on with its next job."""


class RunError(CompactHydraException):
    """A run had to stop for a reason that its message says in full; shown without a traceback."""


@dataclass
class CheckpointConfig:
    """When a running stage writes checkpoints; null: never for that reason."""

    every_seconds: float | None = 60.0
    every_steps: int | None = None
    every_epochs: int | None = 1


@dataclass
class RootConfig:
    """Types of the root keys. What they mean stands beside them in ``conf/train.yaml``."""

    seed: int = 0
    scenario: str = "sequential"
    order: Any = None
    repeats: int = 1
    rank: int = 16
    alpha: float = 1.0
    budget: int | None = None
    lr: float = 1e-3
    head_lr: float = 5e-3
    tuned: Any = None
    tune_tolerance: float = 0.01
    epochs: int = 5
    batch_size: int = 32
    eval_batch_size: int = 64
    max_length: int = 128
    train_rows: int | None = None
    shots: int | None = None
    draw: int = 0
    eval_rows: int | None = None
    evaluate_on: str = "test"
    num_workers: int = 0
    gradient_batches: int = 2
    shuffle: bool = True
    head_seed: int | None = None
    data_dir: str | None = None
    output_dir: str = "runs"
    name: str | None = None
    fresh: bool = False
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    on_nonfinite: str = "stop"
    nonfinite_limit: int = 10
    objectives: list[str] = field(default_factory=lambda: ["continual/average"])
    isolate: bool | None = None
    display: str = "auto"
    model: Node = MISSING
    adapter: Node = MISSING
    task: Node | None = None
    sequence: Node = MISSING
    heads: Node = MISSING
    strategy: Node = MISSING
    optimizer: Node = MISSING
    scheduler: Node | None = None
    trainer: Node = MISSING
    callbacks: Node = field(default_factory=dict)
    logger: Node = field(default_factory=dict)
    probe: Node = field(default_factory=dict)


ROOT_KEYS = tuple(key.name for key in fields(RootConfig))
#: Root keys that hold a part of the run (a group's choice), not a plain value.
PARTS = tuple(key.name for key in fields(RootConfig) if "dict" in str(key.type))


def register() -> None:
    """Make the root schema and the ``mul`` resolver known to Hydra; may be called more than once.

    Below the parts Hydra's own check for unknown keys is off: it stops at the first, and knows neither what is allowed nor
    what was meant. :func:`curlora_lab.config.validate` holds every key against the signature that takes it. So any argument
    of a part can be given without ``+``.
    """
    schema = OmegaConf.structured(RootConfig)
    for part in PARTS:
        schema._get_node(part)._set_flag("struct", False)
    ConfigStore.instance().store(name="root_schema", node=schema)
    resolvers: dict[str, Callable[..., Any]] = {"mul": lambda a, b: a * b}
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed package, or beside ``src`` in a source tree."""
    return PACKAGED_CONF if PACKAGED_CONF.is_dir() else SOURCE_CONF
