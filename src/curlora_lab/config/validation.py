"""One check of a composed configuration: everything that is wrong, at once, in seconds, before a model is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from curlora_lab.config.combinations import combination_faults
from curlora_lab.config.order import ordered
from curlora_lab.config.places import place_faults
from curlora_lab.config.schema import GLOBAL_GROUPS, ROOT_KEYS, CheckpointConfig, ConfigError
from curlora_lab.config.signatures import UNSET, argument_faults, locate, unknown_key
from curlora_lab.config.trials import trial_faults

#: Keys of the adapter node that are the lab's and not arguments of its ``_target_``.
ADAPTER_KEYS = ("name", "init_from", "start", "laws", "tuned_on")

_BY_RUN = "the run supplies it"
_BY_STORE = "stages are saved in the run folder"
#: Arguments that the run supplies itself and nobody else may, by the path of the part ("*": any one key).
SUPPLIED: dict[str, dict[str, str]] = {
    "sequence.tasks.*": {"backbone": _BY_RUN, "training": _BY_RUN},
    "task": {"backbone": _BY_RUN, "training": _BY_RUN},
    "adapter": {
        **dict.fromkeys(("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"), _BY_RUN),
        "inference_mode": "a run trains",
        "fan_in_fan_out": "the layout is read from each module's type",
    },
    "optimizer": {"params": _BY_RUN, "lr": "set lr (adapter) and head_lr (heads)"},
    "scheduler": {"optimizer": _BY_RUN, "steps": _BY_RUN, "examples": _BY_RUN},
    "logger.*": {"save_dir": "it is the run folder"},
    "trainer": {
        "max_epochs": "set epochs",
        "logger": "choose one with logger=",
        "callbacks": "choose them with callbacks=",
        "default_root_dir": "set output_dir",
        "enable_checkpointing": _BY_STORE,
        "enable_model_summary": "parameters are counted in results.json",
        "use_distributed_sampler": "the data have their own",
        "num_sanity_val_steps": "row 0 scores everything before training",
    },
}

#: What may happen to an optimiser step whose numbers are not finite.
ON_NONFINITE = ("stop", "skip", "rollback")
DISPLAYS = ("auto", "plain", "quiet")

#: Parts of the root that are no ``_target_``: the keys they have.
OWN_PARTS = {
    "checkpoint": tuple(field.name for field in fields(CheckpointConfig)),
    "heads": ("task", "metrics", "metric", "prompt"),
}

#: Keys of a sequence: its name, its tasks, those of a benchmark that it lacks, or the benchmark's own tasks in their order.
SEQUENCE_KEYS = ("name", "tasks", "missing", "benchmark")

#: Keys of a node that tell how it is built and are no arguments.
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")


def validate(cfg: DictConfig) -> dict[str, Any]:
    """Resolve and check a composed configuration.

    Args:
        cfg: as Hydra composed it; not changed.

    Returns:
        The resolved configuration as plain dicts and lists.

    Raises:
        ConfigError: lists every fault found, each with its key, what is allowed and what to do.
    """
    unresolved: dict[str, str] = {}
    plain: dict[str, Any] = _plain(cfg, "", unresolved)
    if plain.get("task"):  # stands in for the sequence
        unresolved = {path: text for path, text in unresolved.items() if not path.startswith("sequence.")}
    numbers = list(_root_faults(plain))
    calls = {path: faults for path, node in _nodes(plain) if (faults := list(_call_faults(node, path)))}
    faults = [*unresolved.values(), *numbers, *_shape_faults(plain), *(f for found in calls.values() for f in found)]
    faults += [*combination_faults(plain), *place_faults(plain)]
    faults += trial_faults(plain, broken={*unresolved, *calls}, numbers_fit=not numbers, own_keys=ADAPTER_KEYS)
    if faults:
        raise ConfigError(_listed(list(dict.fromkeys(faults))))
    return plain


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse unknown root keys on the command line, which Hydra would refuse without saying what was meant.

    Args:
        overrides: the arguments after the script's name.

    Raises:
        ConfigError: lists every unknown key with what is close to it and what there is.
    """
    known = {*ROOT_KEYS, *GLOBAL_GROUPS, "hydra"}
    faults = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        root = key.lstrip("+~").split("@")[0].split(".")[0].split("/")[0]
        if not equals or override.startswith("-") or root in known or not root.isidentifier():
            continue  # a flag, or something that Hydra's grammar itself has to judge
        faults.append(unknown_key(f"{root} (in {override!r})", root, known - {"hydra"}))
    if faults:
        raise ConfigError(_listed(faults))


def tasks_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The task nodes of a run: the one of ``task=...`` if given, else those of the sequence, in the ``order`` asked for."""
    if plain["task"]:
        return {plain["task"]["name"]: plain["task"]}
    nodes = {node["name"]: node for node in plain["sequence"]["tasks"].values()}
    return {name: nodes[name] for name in ordered(list(nodes), plain["order"])}


def _listed(faults: Sequence[str]) -> str:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return f"The configuration has {count}:\n" + "\n".join(f"  - {fault}" for fault in faults)


def _plain(node: Any, path: str, faults: dict[str, str]) -> Any:
    """Plain containers; what is missing (``???``) or does not resolve becomes ``UNSET`` and a fault."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    if node._is_none():
        return None
    if node._is_missing():
        return UNSET
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    found: list[Any] = []
    for key in keys:
        where = f"{path}.{key}" if path else str(key)
        found.append(UNSET)
        if OmegaConf.is_missing(node, key):
            faults[where] = f"{where} has no value; set it with {where}=..."
            continue
        try:
            found[-1] = _plain(node[key], where, faults)
        except OmegaConfBaseException as error:
            faults[where] = f"{where}: {str(error).splitlines()[0]}."
    return found if isinstance(node, ListConfig) else dict(zip(keys, found, strict=True))


def _root_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """Root keys that do not exist, are gone, or are out of range."""
    for key in plain:
        if key not in ROOT_KEYS:
            yield unknown_key(str(key), str(key), ROOT_KEYS)
    for key in ROOT_KEYS:
        if key not in plain:
            yield f"{key} was removed, and nothing works without it; set {key}=..."
    value: dict[str, Any] = {key: None if plain.get(key) is UNSET else plain.get(key) for key in ROOT_KEYS}
    for key in ("rank", "budget", "shots", "batch_size", "eval_batch_size", "train_rows", "eval_rows"):
        if value[key] is not None and value[key] < 1:
            yield f"{key}={value[key]} must be at least 1."
    for key in ("epochs", "num_workers", "draw", "gradient_batches"):
        if value[key] is not None and value[key] < 0:
            yield f"{key}={value[key]} must not be negative."
    for part, known in OWN_PARTS.items():
        node = value[part] if isinstance(value[part], dict) else {}
        yield from (unknown_key(f"{part}.{key}", str(key), known) for key in node if key not in known)
    for key, number in (value["checkpoint"] or {}).items():
        if number is not None and number is not UNSET and not 0 < number < float("inf"):
            yield f"checkpoint.{key}={number} must be positive, or null for never."
    if value["on_nonfinite"] not in (None, *ON_NONFINITE):
        yield f"on_nonfinite={value['on_nonfinite']!r} is unknown; choose one of {', '.join(ON_NONFINITE)}."
    if value["display"] not in (None, *DISPLAYS):
        yield f"display={value['display']!r} is unknown; choose one of {', '.join(DISPLAYS)}."
    if value["nonfinite_limit"] is not None and value["nonfinite_limit"] < 0:
        yield f"nonfinite_limit={value['nonfinite_limit']} must not be negative."
    if value["seed"] is not None and not 0 <= value["seed"] < 2**32:
        yield f"seed={value['seed']} must be a whole number from 0 to 4294967295 (numpy takes no other)."
    if value["evaluate_on"] not in (None, "test", "choose"):
        yield f"evaluate_on={value['evaluate_on']!r} is unknown; choose test or choose (the rows set aside for choosing)."
    if value["tune_tolerance"] is not None and not 0 <= value["tune_tolerance"] < float("inf"):
        yield f"tune_tolerance={value['tune_tolerance']} must be a number from 0: how far below the best score counts as equal."
    for key in ("lr", "head_lr"):
        if value[key] is not None and not 0 < value[key] < float("inf"):
            yield f"{key}={value[key]} must be a positive number; to train no adapter use adapter=none."
    if value["alpha"] is not None and not 0 < abs(value["alpha"]) < float("inf"):
        yield f"alpha={value['alpha']} must be a number other than 0, which switches the adapter off; for that use adapter=none."
    if value["max_length"] is not None and value["max_length"] < 4:
        yield f"max_length={value['max_length']} leaves no room for a text beside its special tokens; at least 4."
    if value["name"] is not None and ("/" in value["name"] or value["name"] in {"", ".", ".."}):
        yield f"name={value['name']!r} names a folder inside output_dir/<sequence>: no slashes, not empty."


def _shape_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """Every part is something that can be built, and every task has a name of its own."""
    for part in (
        "model",
        "adapter",
        "strategy",
        "optimizer",
        "trainer",
        *(["scheduler"] if plain.get("scheduler") else []),
    ):
        if part in plain and plain[part] is not UNSET and not _is_buildable(plain[part]):
            yield f"{part} has no _target_, so it can't be built; choose one of conf/{part} with {part}=<option>."
    for group in ("callbacks", "logger"):
        for key, node in (plain.get(group) or {}).items():
            if not _is_buildable(node):
                yield (
                    f"{group}.{key} has no _target_, so it can't be built; "
                    f"choose one of conf/{group} with {group}=<option> first."
                )
    probe = plain.get("probe") or {}
    for key in set(probe) - {"probes"}:
        yield unknown_key(f"probe.{key}", key, ["probes"])
    for key, node in (probe.get("probes") or {}).items():
        if not _is_buildable(node):
            yield f"probe.probes.{key} has no _target_, so it can't be built; choose one of conf/probe with probe={key} first."
    yield from _task_faults(plain)


def _task_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """There is something to train on, and every task has a name of its own."""
    if plain.get("task"):
        if not _is_task(plain["task"]):
            yield "task is no task (no _target_, no name); choose one of conf/task, for example task=sst2."
            return
        yield from _name_faults([plain["task"]["name"]])
        return
    sequence = plain.get("sequence")
    sequence = sequence if isinstance(sequence, dict) else {}
    for key in set(sequence) - set(SEQUENCE_KEYS):
        yield unknown_key(f"sequence.{key}", str(key), SEQUENCE_KEYS)
    for key in ("missing", "benchmark"):
        if not isinstance(sequence.get(key) or [], list):
            yield f"sequence.{key}={sequence[key]!r:.80} must be a list of names of tasks."
    tasks = sequence.get("tasks")
    if not tasks or not isinstance(tasks, dict):
        yield "sequence.tasks is empty: add a task with +task@sequence.tasks.sst2=sst2 or choose one with task=sst2."
        return
    for key, node in tasks.items():
        if not _is_task(node) and isinstance(node, dict) and node:
            yield (
                f"sequence.tasks.{key} is no task, only settings ({', '.join(map(str, node))}) that another part, such as an "
                f"experiment, makes for one; leave them out with '~sequence.tasks.{key}', or add the task with "
                f"+task@sequence.tasks.{key}=<task>."
            )
        elif not _is_task(node):
            yield f"sequence.tasks.{key} is no task; choose one of conf/task with +task@sequence.tasks.{key}=<task>."
    yield from _name_faults([node["name"] for node in tasks.values() if _is_task(node)])
    yield from _name_faults([sequence.get("name", "sequence")])


def _name_faults(names: Sequence[Any]) -> Iterator[str]:
    """Names are unique and can be those of files and folders."""
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"sequence.tasks: {name!r} stands there {names.count(name)} times; give each a name: sequence.tasks.<key>.name=..."
    for name in names:
        if name is not UNSET and (not isinstance(name, str) or not name or "/" in name or name.startswith(".")):
            yield f"{name!r} can't be the name of a task or sequence: it names files, so no slashes, no leading dot, not empty."


def _is_buildable(node: Any) -> bool:
    return isinstance(node, dict) and "_target_" in node


def _is_task(node: Any) -> bool:
    return _is_buildable(node) and "name" in node


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a ``_target_``, with its path; without the sequence where ``task`` stands in for it."""
    children: list[tuple[str, Any]] = []
    if isinstance(node, list):
        children = [(f"{path}[{index}]", child) for index, child in enumerate(node)]
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        hidden = "sequence" if path == "" and node.get("task") else None
        children = [(f"{path}.{key}" if path else str(key), child) for key, child in node.items() if key != hidden]
    for where, child in children:
        yield from _nodes(child, where)


def _call_faults(node: Mapping[str, Any], path: str) -> Iterator[str]:
    """The node's ``_target_`` exists, knows its arguments, gets those it needs, and gets them in the right type."""
    name = node["_target_"]
    if name is UNSET:
        return
    reserved = {*HYDRA_KEYS, *(ADAPTER_KEYS if path == "adapter" else ())}
    arguments = {key: value for key, value in node.items() if key not in reserved}
    try:
        yield from argument_faults(
            path, locate(name), arguments, supplied=_supplied(path), partial=bool(node.get("_partial_"))
        )
    except (ImportError, ValueError, TypeError) as error:
        yield f"{path}._target_={name!r}: {error}"


def _supplied(path: str) -> Mapping[str, str]:
    """Arguments that the run supplies to the part at this path."""
    for pattern, names in SUPPLIED.items():
        wanted, got = pattern.split("."), path.split(".")
        if len(wanted) == len(got) and all(w in ("*", g) for w, g in zip(wanted, got, strict=True)):
            return names
    return {}
