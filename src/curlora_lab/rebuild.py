"""The parts of a finished run, built again from named fields of its record.

A record is data that somebody may have sent. Nothing in it is imported, looked up or called by its name, but for the
names that stand here: task and data classes of this package and its generators of built-in rows.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from curlora_lab import data, tasks
from curlora_lab.backbone import Backbone, load_backbone
from curlora_lab.config.signatures import argument_faults
from curlora_lab.data import (
    ClassificationData,
    DataSource,
    InstructionData,
    LanguageModelData,
    QuestionData,
    RegressionData,
    TokenData,
)
from curlora_lab.data import builtin as builtin_data
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Training

#: Names that a record may use, and what they mean here.
TASKS: dict[str, type[TaskModule]] = {
    f"curlora_lab.tasks.{name}": found
    for name in tasks.__all__
    if inspect.isclass(found := getattr(tasks, name))
    and issubclass(found, TaskModule)
    and not inspect.isabstract(found)
}
DATA: dict[str, type[Any]] = {
    f"curlora_lab.data.{kind.__name__}": getattr(data, kind.__name__)
    for kind in (ClassificationData, InstructionData, LanguageModelData, QuestionData, RegressionData, TokenData)
}
SOURCES: dict[str, type[DataSource]] = {"curlora_lab.data.DataSource": DataSource}
GENERATORS = "curlora_lab.data.builtin"

#: What Hydra reads in a node beside the arguments.
_HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")

#: Fields of the recorded model that say what to load; whether to run code from a repository is never among them.
_MODEL_FIELDS = ("name", "revision", "kind", "dtype", "pooling", "target_modules", "quantization")

#: Numbers beyond these are no rows, batches or seeds of a run, but take memory or time without end.
MOST_ROWS, LARGEST_NUMBER = 10_000_000, 2**32 - 1

_PLAIN = (str, int, float, list, dict, type(None))

_Builder = Callable[[Any, str], Any]


class RunFolderError(ValueError):
    """A run folder that is not what a run wrote, or holds what is not allowed; the message says which file and why."""


def task_nodes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The recorded configuration of each task, by name, in order.

    Args:
        config: ``config`` of a record.

    Raises:
        RunFolderError: There is none, or a name could not be a file's.
    """
    single, sequence = config.get("task"), config.get("sequence")
    nodes = (
        [single] if single else list(_mapping(_mapping(sequence, "sequence").get("tasks"), "sequence.tasks").values())
    )
    found = {}
    for node in nodes:
        name = _mapping(node, "a task").get("name")
        if not isinstance(name, str) or not name or Path(name).name != name or name.startswith("."):
            raise RunFolderError(f"config: a task is named {name!r}; a name is a text that could be a file's.")
        found[name] = dict(node)
    return found


def build_task(node: Mapping[str, Any], *, backbone: Backbone, training: Training) -> TaskModule:
    """A task with an untrained head and rows that are not read yet.

    Args:
        node: Its recorded configuration, see :func:`task_nodes`.
        backbone: The backbone that it reads.
        training: See :func:`evaluation_plan`.

    Raises:
        RunFolderError: The node names what is not allowed, or does not fit the class.
    """
    where = f"config of task {node['name']!r}"
    arguments = _arguments(node, where, {"data": lambda child, _: build_data(child, where=f"{where}, data")})
    kind = _allowed(TASKS, node, where)
    return _call(kind, {**arguments, "backbone": backbone, "training": training}, where)


def build_data(node: Any, *, where: str = "data") -> Any:
    """The data of a task, of one of the classes in :data:`DATA`; nothing is read before ``prepare``.

    Args:
        node: The recorded ``data`` of a task.
        where: What the node is, for messages.

    Raises:
        RunFolderError: The node names what is not allowed, or does not fit the class.
    """
    node = _mapping(node, where)
    return _call(_allowed(DATA, node, where), _arguments(node, where, {"source": _source}), where)


def evaluation_plan(config: Mapping[str, Any]) -> Training:
    """What a task must know to be scored as in the run; nothing is trained with it.

    Raises:
        RunFolderError: Seed or batch size are missing or no whole numbers.
    """
    return Training(
        optimizer=torch.optim.SGD,
        scheduler=None,
        lr=0.0,
        head_lr=0.0,
        batch_size=whole_number(config, "batch_size"),
        eval_batch_size=whole_number(config, "eval_batch_size"),
        num_workers=0,
        seed=whole_number(config, "seed", least=0),
    )


def build_backbone(config: Mapping[str, Any], *, path: str | None = None, trust_remote_code: bool = False) -> Backbone:
    """Load the recorded backbone.

    Args:
        config: ``config`` of a record.
        path: Where the model lies now; ``None`` for where it lay in the run.
        trust_remote_code: Run code from the model's repository. What the record says about it does not count.

    Raises:
        RunFolderError: The record does not say which model it was, or the model needs code from its repository.
        ValueError: There is no such model.
    """
    node = _mapping(config.get("model"), "config.model")
    _arguments(node, "config.model", {})  # a nested target would be refused here
    if node.get("trust_remote_code") and not trust_remote_code:
        raise RunFolderError(
            f"config.model: the run used a model that brings its own code ({node.get('path')!r}); if you trust that "
            "repository, say so with --trust-remote-code."
        )
    given = {key: node[key] for key in _MODEL_FIELDS if key in node}
    place = path if path is not None else node.get("path")
    if not isinstance(place, str):
        raise RunFolderError(f"config.model.path is {place!r}; name the model with --model-path.")
    return _call(load_backbone, {**given, "path": place, "trust_remote_code": trust_remote_code}, "config.model")


def whole_number(config: Mapping[str, Any], key: str, *, least: int = 1) -> int:
    """A root key that must be a whole number.

    Raises:
        RunFolderError: It is not there, or is none.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST_NUMBER:
        raise RunFolderError(
            f"config.{key} is {value!r:.40}; it must be a whole number from {least} to {LARGEST_NUMBER}."
        )
    return value


def _source(node: Any, where: str) -> DataSource:
    node = _mapping(node, where)
    arguments = _arguments(node, where, {"generator": _generator})
    for role, rows in _mapping(node.get("sizes") or {}, f"{where}, sizes").items():
        if not isinstance(rows, int) or not 0 <= rows <= MOST_ROWS:
            raise RunFolderError(
                f"{where}, sizes: {role} is {rows!r:.40}; it must be a whole number up to {MOST_ROWS}."
            )
    return _call(_allowed(SOURCES, node, where), arguments, where)


def _generator(node: Any, where: str) -> Any:
    """A generator of built-in rows; functions that its module merely imports do not count."""
    if node is None:
        return None
    node = _mapping(node, where)
    target = node.get("_target_")
    found = _built_in(target) if isinstance(target, str) else None
    if found is None:
        names = ", ".join(f"{GENERATORS}.{name}" for name in builtin_data.__all__)
        raise _refusal(target, where, names)
    arguments = _arguments(node, where, {})
    unknown = set(arguments) - set(list(inspect.signature(found).parameters)[3:])
    if unknown:
        raise RunFolderError(f"{where}: {sorted(unknown)[0]} is no argument that {target} takes from a configuration.")
    return functools.partial(found, **arguments)


def _built_in(target: str) -> Callable[..., Any] | None:
    """The public function of ``curlora_lab.data.builtin``, or of a module in it, that a name stands for."""
    package, _, rest = target.removeprefix(f"{GENERATORS}.").rpartition(".")
    if not target.startswith(f"{GENERATORS}.") or rest.startswith("_") or not rest.isidentifier():
        return None
    if not package:
        found = getattr(builtin_data, rest) if rest in builtin_data.__all__ else None
    else:
        here = Path(builtin_data.__file__ or "").parent
        if package not in {file.stem for file in here.glob("*.py") if not file.stem.startswith("_")}:
            return None
        module = importlib.import_module(f"{GENERATORS}.{package}")
        found = vars(module).get(rest)
    if not inspect.isfunction(found) or not found.__module__.startswith(f"{GENERATORS}."):
        return None
    return found if list(inspect.signature(found).parameters)[:3] == ["split", "n", "seed"] else None


def _allowed(kinds: Mapping[str, type[Any]], node: Mapping[str, Any], where: str) -> type[Any]:
    target = node.get("_target_")
    if not isinstance(target, str) or target not in kinds:
        raise _refusal(target, where, ", ".join(kinds))
    return kinds[target]


def _refusal(target: Any, where: str, allowed: str) -> RunFolderError:
    return RunFolderError(
        f"{where}: _target_ is {target!r}. A run folder is data, and only these names are built from it: {allowed}. "
        "A run with parts of your own is scored in the code that made it."
    )


def _arguments(node: Mapping[str, Any], where: str, builders: Mapping[str, _Builder]) -> dict[str, Any]:
    """The node's arguments, with those parts built that may be; a target anywhere else is refused."""
    arguments = {}
    for key, value in node.items():
        if key in _HYDRA_KEYS:
            continue
        if key in builders:
            arguments[key] = builders[key](value, f"{where}, {key}")
            continue
        target = next(_targets(value), None)
        if target is not None:
            raise RunFolderError(f"{where}: {key} holds the _target_ {target!r}, where plain values belong.")
        arguments[key] = value
    return arguments


def _targets(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield value["_target_"]
        for child in value.values():
            yield from _targets(child)
    elif isinstance(value, list):
        for child in value:
            yield from _targets(child)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RunFolderError(f"{where} is a {type(value).__name__} in the record; it must be an object.")
    return value


def _call(kind: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:
    """Call with what a record says, which may be anything; its values must be of the kinds that the signature names."""
    plain = {key: value for key, value in arguments.items() if isinstance(value, _PLAIN)}
    faults = argument_faults(where, kind, plain, supplied={}, partial=True)
    if faults:
        raise RunFolderError(f"{faults[0]:.500} The record does not fit the code.")
    try:
        return kind(**arguments)
    except (TypeError, AttributeError, KeyError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise RunFolderError(f"{where} does not fit {name} ({type(error).__name__}: {error}).") from error
