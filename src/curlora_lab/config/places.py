"""Files and folders that a configuration names: whether they are there, before anything is loaded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from curlora_lab.config.combinations import task_nodes
from curlora_lab.config.signatures import meant


def place_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """Folders that must exist: data, model, an adapter to continue from, and where runs go.

    Args:
        plain: the resolved configuration.
    """
    yield from _model_faults(plain.get("model"))
    adapter = plain.get("adapter")
    init_from = adapter.get("init_from") if isinstance(adapter, dict) else None
    if isinstance(init_from, str) and not Path(init_from).expanduser().is_dir():
        yield f"adapter.init_from={init_from!r}: there is no such folder (from {Path.cwd()}); name a run or a PEFT folder."
    output_dir = plain.get("output_dir")
    if isinstance(output_dir, str) and Path(output_dir).expanduser().is_file():
        yield f"output_dir={output_dir!r} is a file; give a folder."
    yield from _tuned_faults(plain.get("tuned"))
    data_dir = plain.get("data_dir")
    if isinstance(data_dir, str) and not Path(data_dir).expanduser().is_dir():
        yield f"data_dir={data_dir!r}: there is no such folder (from {Path.cwd()})."
    for path, node in _sources(plain):
        yield from _source_faults(path, node, common=data_dir)
    yield from _text_file_faults(plain.get("strategy"))


def _tuned_faults(tuned: Any) -> Iterator[str]:
    """What a tuning sweep left is there: its file, or a folder."""
    paths = tuned if isinstance(tuned, list) else [tuned]
    for path in paths if tuned is not None else ():
        if not isinstance(path, str) or not path:
            yield f"tuned={tuned!r:.80}: name the tuned.json of a tuning sweep, its folder, or a list of such paths."
        elif not Path(path).expanduser().exists():
            yield f"tuned={path!r}: there is no such file or folder (from {Path.cwd()}); sweep=tune writes one."


def _model_faults(model: Any) -> Iterator[str]:
    """A path that can only be a folder is one, and holds a model; hub names are left to the hub."""
    path = model.get("path") if isinstance(model, dict) else None
    if not isinstance(path, str):
        return
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            yield f"model.path={path!r}: there is no such folder (from {Path.cwd()})."
        return
    needed = {
        "config.json": ["config.json"],
        "*.safetensors": ["*.safetensors"],
        "tokenizer.json": ["tokenizer*", "vocab*"],
    }
    missing = [name for name, patterns in needed.items() if not any(any(folder.glob(p)) for p in patterns)]
    if missing:
        yield f"model.path={path!r} holds no {', no '.join(missing)}, so it is no model in Hugging Face format."


def _sources(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where the rows of tasks and probes, and a strategy's text, come from."""
    owners = [(f"{path}.data", node.get("data")) for path, node in task_nodes(plain)]
    probe = plain.get("probe")
    probes = probe.get("probes") if isinstance(probe, dict) else None
    if isinstance(probes, dict):
        owners += [(f"probe.probes.{key}", node) for key, node in probes.items()]
    strategy = plain.get("strategy")
    owners += [("strategy.text", strategy.get("text"))] if isinstance(strategy, dict) else []
    for path, owner in owners:
        source = owner.get("source") if isinstance(owner, dict) else None
        if isinstance(owner, dict) and isinstance(source, dict) and isinstance(source.get("name"), str):
            role, splits = owner.get("role"), source.get("splits")
            if role is not None and isinstance(splits, dict):  # a probe reads one role; the rest need not be there
                source = {**source, "splits": {key: split for key, split in splits.items() if key == role}}
            yield f"{path}.source", source


def _text_file_faults(strategy: Any) -> Iterator[str]:
    """A text file that a strategy reads is there."""
    text = strategy.get("text") if isinstance(strategy, dict) else None
    source = text.get("source") if isinstance(text, dict) else None
    path = source.get("path") if isinstance(source, dict) else None
    if isinstance(path, str) and not Path(path).expanduser().exists():
        yield f"strategy.text.source.path={path!r}: there is no such file (from {Path.cwd()})."


def _source_faults(path: str, source: Mapping[str, Any], *, common: Any) -> Iterator[str]:
    """A local source has its folder and files; one that is neither local nor generated is on the hub."""
    name, data_dir = source["name"], source.get("data_dir")
    if source.get("generator"):
        return
    if data_dir is None:
        if not source.get("hub"):
            yield f"{path}: {name!r} is not on the hub; name the folder that holds it: data_dir=<folder with {name}/>."
        return
    if not isinstance(data_dir, str):
        return
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        if data_dir != common:
            yield f"{path}.data_dir={data_dir!r}: there is no such folder (from {Path.cwd()})."
        return
    if not (root / name).is_dir():
        there = sorted(child.name for child in root.iterdir() if child.is_dir())
        yield f"{path}: data_dir={data_dir!r} has no folder {name!r}.{meant(name, there)} It has {_some(there)}."
        return
    files = sorted(file.name for file in (root / name).iterdir())
    splits = source.get("splits") if isinstance(source.get("splits"), dict) else {}
    for role, split in (splits or {}).items():
        if isinstance(split, str) and not any(file.startswith(f"{split}.") for file in files):
            yield (
                f"{path}.splits.{role}={split!r}: {root / name} has no {split}.jsonl.gz or the like; "
                f"it has {_some(files)}."
            )


def _some(names: list[str], most: int = 12) -> str:
    """A list short enough for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}" if names else "nothing"
