"""The root key ``tuned``: a run takes its learning rate from what a tuning sweep found for its method."""

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
from omegaconf import DictConfig, OmegaConf

from curlora_lab.config import ConfigError
from curlora_lab.continual.identity import source_hash
from curlora_lab.integrity import SEAL, is_whole
from curlora_lab.sweeps.methods import Settings, differences, method_settings
from curlora_lab.sweeps.tuning_table import NAME, SCHEMA_VERSION

logger = logging.getLogger(__name__)

MOST_LINES = 8

_RATE = {"type": ["number", "null"], "exclusiveMinimum": 0}
#: What is read of a file; more may stand there.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["schema_version", "methods"],
    "properties": {
        "schema_version": {"const": SCHEMA_VERSION},
        "methods": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "status", "lr", "head_lr", "head_lr_tuned", "edge", "settings", "backbone"],
                "properties": {
                    "name": {"type": "string"},
                    "status": {"enum": ["tuned", "failed", "unfinished"]},
                    "lr": _RATE,
                    "head_lr": _RATE,
                    "head_lr_tuned": {"type": "boolean"},
                    "edge": {"type": "boolean"},
                    "source_hashes": {"type": "array", "items": {"type": "string"}},
                    "settings": {"type": ["object", "null"], "properties": {"adapter": {"type": "object"}}},
                    "backbone": {"type": ["object", "null"]},
                },
                "if": {"properties": {"status": {"const": "tuned"}}},
                "then": {
                    "properties": {
                        "lr": {"type": "number"},
                        "head_lr": {"type": "number"},
                        "settings": {"type": "object"},
                        "backbone": {"type": "object"},
                    }
                },
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a file says of one method.

    Attributes:
        path: the file.
        sha256: hash of its content.
        name: name of the method there.
        status: ``tuned``, ``unfinished`` or ``failed``.
        lr: the value that was taken.
        head_lr: that of the heads: taken too if ``head_lr_tuned``, else the one that all trials had.
        head_lr_tuned: whether ``head_lr`` was varied.
        edge: whether the value is the last that was tried.
        settings: the method, see :func:`curlora_lab.sweeps.methods.method_settings`.
        fingerprint: that of the backbone on which it was found.
        source_hashes: of the code of the runs.
    """

    path: Path
    sha256: str
    name: str
    status: str
    lr: float
    head_lr: float
    head_lr_tuned: bool
    edge: bool
    settings: Settings
    fingerprint: str | None
    source_hashes: tuple[str, ...]


def apply(cfg: DictConfig, plain: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Give a configuration the learning rate that was found for its method.

    Args:
        cfg: as Hydra composed it; not changed.
        plain: the same, validated.
        overrides: what was given on the command line.

    Returns:
        A configuration in which ``lr``, and ``head_lr`` if that was tuned, are set; the same one without ``tuned``.

    Raises:
        ConfigError: the file has no value for this method, or a learning rate is given beside it.
    """
    if plain["tuned"] is None:
        return cfg
    found = find(plain)
    given = {text.lstrip("+").split("=")[0]: text for text in overrides}
    for key in ("lr", "head_lr") if found.head_lr_tuned else ("lr",):
        if key in given:
            raise ConfigError(
                f"{given[key]} is given, and tuned={plain['tuned']} says what {key} is for this method "
                f"({getattr(found, key):g}); leave one of them out."
            )
    if found.edge:
        logger.warning(
            "lr=%g of %s is at the edge of what was tried (%s); a better one may lie beyond.",
            found.lr,
            found.name,
            found.path,
        )
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_readonly(cfg, False)
    cfg.lr = found.lr
    if found.head_lr_tuned:
        cfg.head_lr = found.head_lr
    return cfg


def provenance(plain: Mapping[str, Any], *, fingerprint: str) -> dict[str, Any] | None:
    """Where the learning rate of a run comes from, for its record; ``None`` without ``tuned``.

    Args:
        plain: the configuration, with the learning rate that was found.
        fingerprint: that of the backbone.

    Raises:
        ConfigError: the configuration has another learning rate, or it was found on another backbone.
    """
    if plain["tuned"] is None:
        return None
    found = find(plain)
    if plain["lr"] != found.lr or (found.head_lr_tuned and plain["head_lr"] != found.head_lr):
        raise ConfigError(
            f"lr={plain['lr']:g}, head_lr={plain['head_lr']:g}, but tuned={plain['tuned']} says lr={found.lr:g}, "
            f"head_lr={found.head_lr:g}; leave one of them out."
        )
    if found.fingerprint not in (None, fingerprint):
        raise ConfigError(
            f"tuned={plain['tuned']}: {found.name} was tuned on another model of this name (fingerprint "
            f"{str(found.fingerprint)[:12]}, here {fingerprint[:12]}); tune it on this one."
        )
    return {
        "method": found.name,
        "sha256": found.sha256,
        "edge": found.edge,
        "head_lr_tuned": found.head_lr_tuned,
        "same_source": found.source_hashes == (source_hash(),),
    }


def find(plain: Mapping[str, Any]) -> Tuned:
    """What was found for the method of a configuration.

    A run of another scenario (all tasks at once, each on its own) takes what was found for the sequence, if nothing was
    found for that scenario: the upper bound and the runs alone are held against the sequence at its own learning rate.

    Args:
        plain: a validated configuration that names one or several files.

    Raises:
        ConfigError: nothing was found for it, or several files say different things.
    """
    entries = read(plain["tuned"])
    mine = method_settings(plain)
    sequential = {**mine, "scenario": "sequential", "repeats": 1}
    for settings in (mine, sequential):
        same = [entry for entry in entries if not _unlike(entry, settings, plain["head_lr"])]
        if same:
            return _one(same, plain["tuned"])
    raise ConfigError(_unknown(entries, mine, plain))


def read(tuned: str | Sequence[str]) -> list[Tuned]:
    """Everything that one or several files say.

    Args:
        tuned: a file, a folder with one (or with several anywhere below), or a list of them.

    Raises:
        ConfigError: a file is not there, or is not what a tuning sweep writes.
    """
    given = [tuned] if isinstance(tuned, str) else list(tuned)
    paths = dict.fromkeys(path for place in given for path in _files(Path(place).expanduser(), place))
    return [entry for path in paths for entry in _read(path)]


def _files(place: Path, given: str) -> list[Path]:
    if place.is_file():
        return [place]
    if (place / NAME).is_file():
        return [place / NAME]
    found = sorted(place.rglob(NAME)) if place.is_dir() else []
    if not found:
        raise ConfigError(f"tuned={given}: there is no {NAME} (from {Path.cwd()}); sweep=tune writes one.")
    return found


def _read(path: Path) -> list[Tuned]:
    try:
        content = path.read_bytes()
        value = json.loads(content)
        jsonschema.validate(value, SCHEMA)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"tuned: {path} can't be read as JSON ({error}).") from error
    except jsonschema.ValidationError as error:
        raise ConfigError(
            f"tuned: {path} is not what sweep=tune writes: {error.json_path}: {error.message:.200}"
        ) from None
    if SEAL in value and not is_whole(value):  # one that somebody wrote by hand has none
        raise ConfigError(f"tuned: {path} was damaged or changed after sweep=tune wrote it; give that command again.")
    return [
        Tuned(
            path=path,
            sha256=hashlib.sha256(content).hexdigest(),
            name=method["name"],
            status=method["status"],
            lr=method["lr"] or 0.0,
            head_lr=method["head_lr"] or 0.0,
            head_lr_tuned=method["head_lr_tuned"],
            edge=method["edge"],
            settings=method["settings"] or {},
            fingerprint=(method["backbone"] or {}).get("fingerprint"),
            source_hashes=tuple(method.get("source_hashes") or ()),
        )
        for method in value["methods"]
    ]


def _one(same: Sequence[Tuned], given: Any) -> Tuned:
    """The value that all files agree on; a file that found none says nothing against another that did."""
    tuned = [entry for entry in same if entry.status == "tuned"]
    if not tuned:
        what = (
            "did not end"
            if same[0].status == "unfinished"
            else "found no value, since at every learning rate a run failed"
        )
        raise ConfigError(f"tuned={given}: the tuning of {same[0].name} {what} ({same[0].path}).")
    values = {(entry.lr, entry.head_lr) for entry in tuned}
    if len(values) > 1:
        lines = [f"  - lr={entry.lr:g}, head_lr={entry.head_lr:g}: {entry.path}" for entry in tuned]
        raise ConfigError(
            f"tuned={given}: {tuned[0].name} was tuned several times, with different results; name one of the files.\n"
            + "\n".join(lines)
        )
    return min(tuned, key=lambda entry: str(entry.path))


def _unlike(entry: Tuned, settings: Settings, head_lr: float) -> list[str]:
    """In what a method that was tuned is another; with ``head_lr`` where that was the same in all its trials."""
    lines = (
        differences(entry.settings, settings) if entry.settings else ["its settings are not known, since no run ended"]
    )
    if entry.status == "tuned" and not entry.head_lr_tuned and entry.head_lr != head_lr:
        lines.append(f"head_lr: {entry.head_lr!r} there, {head_lr!r} here")
    return lines


def _unknown(entries: Sequence[Tuned], mine: Settings, plain: Mapping[str, Any]) -> str:
    if not entries:
        return f"tuned={plain['tuned']} names no method."
    methods = dict.fromkeys(f"{entry.name} ({entry.status})" for entry in entries)
    name = plain["adapter"]["name"]
    there = f"tuned={plain['tuned']}: {name} with these settings was not tuned. What is there: {', '.join(methods)}."
    remedy = "Tune this method too (sweep=tune with these settings), or set them as they were tuned."
    alike = [entry for entry in entries if entry.settings.get("adapter", {}).get("name") == name]
    if not alike:
        return f"{there} {remedy}"
    nearest = min(alike, key=lambda entry: len(_unlike(entry, mine, plain["head_lr"])))
    lines = _unlike(nearest, mine, plain["head_lr"])
    more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    listed = "\n".join(f"  - {line}" for line in [*lines[:MOST_LINES], *more])
    return f"{there} From the nearest, {nearest.name}, it differs in:\n{listed}\n{remedy}"
