"""What a configuration may be: types of the root keys, the ``mul`` resolver, and one check of everything before work starts.

:func:`validate` resolves all values, locates every ``_target_``, holds its arguments against the signature and collects
all faults into one :class:`ConfigError`. It takes seconds and loads no model.
"""

import difflib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

PACKAGED_CONF = Path(__file__).parent / "conf"
SOURCE_CONF = Path(__file__).parents[2] / "conf"

#: Keys of the adapter node that are the lab's and not arguments of its ``_target_``.
ADAPTER_KEYS = ("name", "init_from", "laws", "tuned_on")

#: Arguments that the run supplies where a part is built and nobody else may, by the path of the part ("*": any element).
SUPPLIED: dict[str, tuple[str, ...]] = {
    "sequence.tasks.*": ("backbone", "training"),
    "task": ("backbone", "training"),
    "optimizer": ("params",),
    "scheduler": ("optimizer", "steps"),
    "logger.*": ("save_dir",),
}


class ConfigError(CompactHydraException):
    """The configuration is wrong; shown without a traceback, and a sweep goes on with its next job."""


class RunError(CompactHydraException):
    """A run had to stop for a reason that its message says in full; shown without a traceback."""


@dataclass
class RootConfig:
    """Types of the root keys. What they mean stands beside them in ``conf/train.yaml``."""

    seed: int = 0
    rank: int = 16
    alpha: float = 1.0
    lr: float = 1e-3
    head_lr: float = 5e-3
    epochs: int = 3
    batch_size: int = 32
    eval_batch_size: int = 64
    max_length: int = 128
    train_rows: int | None = None
    eval_rows: int | None = None
    num_workers: int = 0
    data_dir: str | None = None
    output_dir: str = "runs"
    name: str | None = None
    fresh: bool = False
    model: Any = MISSING
    adapter: Any = MISSING
    task: Any = None
    sequence: Any = MISSING
    strategy: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = None
    trainer: Any = MISSING
    callbacks: Any = field(default_factory=dict)
    logger: Any = field(default_factory=dict)
    probe: Any = field(default_factory=dict)


def register() -> None:
    """Make the root schema and the ``mul`` resolver known to Hydra; may be called more than once."""
    ConfigStore.instance().store(name="root_schema", node=RootConfig)
    OmegaConf.register_new_resolver("mul", lambda a, b: a * b, replace=True)


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed package, or beside ``src`` in a source tree."""
    return PACKAGED_CONF if PACKAGED_CONF.is_dir() else SOURCE_CONF


def validate(cfg: DictConfig) -> dict[str, Any]:
    """Resolve and check a composed configuration.

    Args:
        cfg: as Hydra composed it; not changed.

    Returns:
        The resolved configuration as plain dicts and lists.

    Raises:
        ConfigError: lists every fault found, each with its key, what is allowed and what to do.
    """
    faults = list(_unresolved(cfg))
    if not faults:
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        faults = [*_root_faults(plain), *_sequence_faults(plain), *_target_faults(plain), *_path_faults(plain)]
        if not faults:
            faults = list(_adapter_faults(plain))
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"The configuration has {count}:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return plain


def tasks_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The task nodes of a run in order: the one of ``task=...`` if given, else those of the sequence."""
    if plain["task"]:
        return {plain["task"]["name"]: plain["task"]}
    return {node["name"]: node for node in plain["sequence"]["tasks"].values()}


def _unresolved(node: Any, path: str = "") -> Iterator[str]:
    """Values that are missing (``???``) or whose interpolation does not resolve."""
    if not isinstance(node, DictConfig | ListConfig):
        return
    if node._is_none():
        return
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        where = f"{path}.{key}" if path else str(key)
        if OmegaConf.is_missing(node, key):
            yield f"{where} has no value; set it with {where}=..."
            continue
        try:
            child = node[key]
        except OmegaConfBaseException as error:
            yield f"{where}: {str(error).splitlines()[0]}"
            continue
        yield from _unresolved(child, where)


def _root_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """Ranges of the root keys."""
    at_least_one = ("rank", "batch_size", "eval_batch_size", "train_rows", "eval_rows")
    for key in at_least_one:
        if plain[key] is not None and plain[key] < 1:
            yield f"{key}={plain[key]} must be at least 1."
    for key in ("seed", "epochs", "num_workers"):
        if plain[key] < 0:
            yield f"{key}={plain[key]} must not be negative."
    for key in ("lr", "head_lr"):
        if not 0 < plain[key] < float("inf"):
            yield f"{key}={plain[key]} must be a positive number; to train no adapter use adapter=none."
    if plain["alpha"] == 0 or plain["alpha"] != plain["alpha"]:
        yield f"alpha={plain['alpha']} switches the adapter off; use adapter=none for a head alone."
    if plain["max_length"] < 4:
        yield f"max_length={plain['max_length']} leaves no room for a text beside its special tokens; at least 4."
    if plain["name"] is not None and ("/" in plain["name"] or plain["name"] in {"", ".", ".."}):
        yield f"name={plain['name']!r} names a folder inside output_dir/<sequence>: no slashes, not empty."


def _sequence_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """There is something to train on, and every task has a name of its own."""
    if plain["task"]:
        if not isinstance(plain["task"], dict) or "name" not in plain["task"]:
            yield f"task={plain['task']!r} is no task; choose one of conf/task, for example task=sst2."
        return
    sequence = plain["sequence"]
    if not isinstance(sequence, dict) or not sequence.get("tasks"):
        yield "sequence.tasks is empty: add a task with +task@sequence.tasks.sst2=sst2 or choose one with task=sst2."
        return
    names = [node["name"] if isinstance(node, dict) and "name" in node else None for node in sequence["tasks"].values()]
    for key, name in zip(sequence["tasks"], names, strict=True):
        if name is None:
            yield f"sequence.tasks.{key} is no task; choose one of conf/task with task@sequence.tasks.{key}=<task>."
    for name in {name for name in names if name is not None and names.count(name) > 1}:
        yield f"sequence.tasks: {name!r} stands there {names.count(name)} times; give each its own name with ...<key>.name=."


def _path_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """Folders that must exist before anything is loaded."""
    data_dir = plain["data_dir"]
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        if not folder.is_dir():
            yield f"data_dir={data_dir!r}: there is no such folder (from {Path.cwd()})."
        else:
            yield from _missing_task_folders(plain, folder)
    output = Path(plain["output_dir"]).expanduser()
    if output.exists() and not output.is_dir():
        yield f"output_dir={plain['output_dir']!r} is a file; give a folder."


def _missing_task_folders(plain: Mapping[str, Any], folder: Path) -> Iterator[str]:
    for key, node in _task_nodes(plain):
        source = node.get("data", {}).get("source", {}) if isinstance(node, dict) else {}
        name = source.get("name")
        if source.get("data_dir") and not source.get("generator") and name and not (folder / name).is_dir():
            there = ", ".join(sorted(child.name for child in folder.iterdir() if child.is_dir())) or "none"
            yield f"{key}.data.source: data_dir={str(folder)!r} has no folder {name!r}. Folders there: {there}."


def _task_nodes(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if plain["task"]:
        yield "task", plain["task"]
    else:
        yield from ((f"sequence.tasks.{key}", node) for key, node in plain["sequence"]["tasks"].items())


def _adapter_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """What the adapter's own configuration says of its arguments (ranges, options that exclude each other)."""
    node = {key: value for key, value in plain["adapter"].items() if key not in (*ADAPTER_KEYS, "_target_")}
    try:
        get_object(plain["adapter"]["_target_"])(**node)
    except (ValueError, TypeError) as error:
        yield f"adapter: {error}"
    if plain["adapter"].get("init_from") and plain["adapter"].get("name") == "none":
        yield "adapter.init_from is set, but adapter=none has nothing to continue."


def _target_faults(node: Any, path: str = "") -> Iterator[str]:
    """Every ``_target_`` exists, knows its arguments, gets those it needs, and gets them in the right type."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from _target_faults(child, f"{path}[{index}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node and not (path == "task" and not node):
        yield from _call_faults(node, path)
    for key, child in node.items():
        if path == "" and key == "sequence" and node.get("task"):
            continue  # task=... stands in for the sequence
        yield from _target_faults(child, f"{path}.{key}" if path else str(key))


def _call_faults(node: Mapping[str, Any], path: str) -> Iterator[str]:
    """Faults of one ``_target_`` node."""
    try:
        target = get_object(node["_target_"])
        signature = inspect.signature(target)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        yield f"{path}._target_={node['_target_']!r} can't be found: {str(error).splitlines()[0]}"
        return
    reserved = {"_target_", "_partial_", "_convert_", "_recursive_", *(ADAPTER_KEYS if path == "adapter" else ())}
    arguments = {key: value for key, value in node.items() if key not in reserved}
    parameters = _parameters(target, signature)
    accepts_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    supplied = _supplied(path)
    for key in arguments:
        if key not in named and not accepts_any:
            yield _unknown(path, key, sorted(set(named) - set(supplied)))
    for name, parameter in named.items():
        if node.get("_partial_"):
            break  # whoever calls it supplies the rest
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            yield f"{path}.{name} has no value, but {node['_target_']} needs it."
    hints = _hints(target)
    for key, value in arguments.items():
        fault = _type_fault(value, hints.get(key))
        if fault:
            yield f"{path}.{key}={value!r}: {fault}."


def _parameters(target: Any, signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    """Parameters of a callable; a class that passes ``**arguments`` on is read together with its bases' ``__init__``."""
    parameters = dict(signature.parameters)
    if not inspect.isclass(target):
        return parameters
    for base in inspect.getmro(target)[1:]:
        catch_all = [name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD]
        if not catch_all or "__init__" not in vars(base) or base is object:
            continue
        del parameters[catch_all[0]]
        inherited = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        parameters = {**{name: p for name, p in inherited.items() if name != "self"}, **parameters}
    return parameters


def _supplied(path: str) -> tuple[str, ...]:
    """Arguments that the run supplies to the part at this path."""
    for pattern, names in SUPPLIED.items():
        wanted, got = pattern.split("."), path.split(".")
        if len(wanted) == len(got) and all(w in ("*", g) for w, g in zip(wanted, got, strict=True)):
            return names
    return ()


def _unknown(path: str, key: str, allowed: list[str]) -> str:
    """The message for a key that the target does not know."""
    close = difflib.get_close_matches(key, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{path}.{key} is unknown.{hint} Allowed: {', '.join(allowed) or 'nothing'}."


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a callable's parameters; empty where they can't be read."""
    owners = [target]
    if inspect.isclass(target):
        owners = [base.__init__ for base in reversed(inspect.getmro(target)) if "__init__" in vars(base)]  # type: ignore[misc]
    hints: dict[str, Any] = {}
    for owner in owners:
        try:
            hints |= typing.get_type_hints(owner)
        except (NameError, TypeError, AttributeError):
            continue
    return hints


def _type_fault(value: Any, hint: Any) -> str | None:
    """Why a plain value does not fit an annotation; ``None`` if it does or if that can't be told."""
    if hint is None or (isinstance(value, dict) and "_target_" in value):
        return None
    try:
        adapter = pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
    except (pydantic.errors.PydanticUserError, TypeError, NameError):
        return None
    try:
        adapter.validate_python(value, strict=isinstance(value, str | bool | int | float))
    except pydantic.ValidationError as error:
        found = error.errors()
        if isinstance(value, list | dict) and any(e["type"] in {"is_instance_of", "callable_type"} for e in found):
            return None  # built from this node at run time
        return " or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in found[:4]))
    return None
