"""Mutations of every key of the composed configuration: each is refused before a model is loaded, with its key."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tests.faults import cases
from tests.faults.tally import Tally

from curlora_lab import config
from curlora_lab.config import ConfigError

LAW = "refused before a model is loaded, in one message with the key, no traceback"

#: Choices of groups whose keys are mutated.
BASES: tuple[tuple[str, ...], ...] = (
    (),
    ("adapter=lora", "optimizer=sgd", "scheduler=cosine", "callbacks=early_stopping", "task=builtin_topic"),
    ("adapter=vera", "logger=wandb_offline", "trainer=cpu", "probe=none", "task=builtin_sentiment3"),
)

#: Keys whose value may be nearly anything: a text of the user's, or what only the library behind them can judge.
FREE = re.compile(
    r"(^|\.)(name|output_dir|_target_|_partial_|_convert_|template|path|revision|notes|project|group|tags|entity|job_type|label_map|"
    r"laws|tuned_on|hub|generator|description)(\.|$|\[)"
)


def mutations(plain: Mapping[str, Any], chance: random.Random) -> Iterator[tuple[str, str]]:
    """Overrides that are wrong whatever else is set: (the override, the key that the message must name)."""
    for path, value in _leaves(plain):
        key = path.rpartition(".")[2]
        misspelt = _misspelt(key, chance)
        parent = path.rpartition(".")[0]
        if parent and "." not in misspelt and not FREE.search(f"{parent}."):
            yield f"++{parent}.{misspelt}=1", misspelt
        elif not parent:
            yield f"{misspelt}=1", misspelt
        if FREE.search(path):
            continue
        if isinstance(value, bool):
            yield f"{path}=perhaps", key
        elif isinstance(value, int | float):
            yield f"{path}=some", key
            yield f"{path}=[1,2]", key
            yield f"{path}={{a: 1}}", key
        elif isinstance(value, str):
            yield f"{path}={{a: 1}}", key
            yield f"{path}=[[]]", key


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif not isinstance(node, list) and path:
        yield path, node


def _misspelt(key: str, chance: random.Random) -> str:
    """A key with one letter changed, lost, doubled or swapped."""
    place = chance.randrange(len(key))
    kind = chance.choice(("lost", "doubled", "changed")) if len(key) > 3 else "doubled"
    if kind == "lost":
        wrong = key[:place] + key[place + 1 :]
    elif kind == "doubled":
        wrong = key[:place] + key[place] + key[place:]
    else:
        wrong = key[:place] + chance.choice("qxz") + key[place + 1 :]
    return wrong if wrong != key and wrong.isidentifier() else f"{key}q"


def mutated(tally: Tally, workplace: Path, *, seed: int, count: int, bases: Sequence[tuple[str, ...]] = BASES) -> Tally:
    """Try ``count`` mutations, spread over the bases."""
    import os

    chance = random.Random(seed)
    before = Path.cwd()
    workplace.mkdir(parents=True, exist_ok=True)
    os.chdir(workplace)  # output_dir is relative, and nothing may be written
    try:
        with tally.timed():
            for base in bases:
                plain: Any = OmegaConf.to_container(cases.composed(base), resolve=False)
                if plain["task"]:
                    del plain["sequence"]  # it is not used then, and not checked
                known = set(plain)
                found = [pair for pair in mutations(plain, chance) if pair[1] not in known]
                found += [pair for pair in mutations(plain, chance) if pair[1] in known and "=" in pair[0]]
                found = [pair for pair in dict(found).items() if _is_wrong(*pair, plain)]
                chance.shuffle(found)
                for override, key in found[: -(-count // len(bases))]:
                    _try((*base, override), key, tally)
            if any(workplace.iterdir()):
                tally.failed(f"something was written: {list(workplace.iterdir())}")
    finally:
        os.chdir(before)
    return tally


def _is_wrong(override: str, key: str, plain: Mapping[str, Any]) -> bool:
    """Whether an override misspells a key; a misspelling may happen to be a key of its own."""
    path = override.lstrip("+").partition("=")[0]
    parent: Any = plain
    for part in path.split(".")[:-1]:
        parent = parent.get(part) if isinstance(parent, dict) else None
    return not (override.startswith("++") and isinstance(parent, dict) and key in parent)


def _try(overrides: tuple[str, ...], key: str, tally: Tally) -> None:
    try:
        config.check_overrides(
            [override.lstrip("+") if override.startswith("++") else override for override in overrides]
        )
        config.validate(cases.composed(overrides))
    except ConfigError as error:
        _judge(tally, overrides, key, str(error), "refused by the check of the configuration")
    except (HydraException, OmegaConfBaseException) as error:
        causes = f"{error} {error.__cause__ or ''}"
        _judge(tally, overrides, key, causes, "refused while it is composed")
    except Exception as error:
        tally.failed(f"{overrides[-1]}: {type(error).__name__}: {error}")
    else:
        tally.failed(f"{overrides[-1]} {overrides[:-1]} was taken without a word")


def _judge(tally: Tally, overrides: tuple[str, ...], key: str, message: str, how: str) -> None:
    if key in message:
        tally.ended(how)
    else:
        tally.failed(f"{overrides[-1]}: the message does not name {key!r}: {message[:200]}")
