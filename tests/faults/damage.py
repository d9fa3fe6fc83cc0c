"""Files cut short and bits flipped, in every kind of file that the lab writes: never taken for whole.

What reads a file must refuse it, pass it over (and do the work again), or give exactly what it gave before; anything else is a
silent load.
"""

import copy
import functools
import hashlib
import logging
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import cases
from tests.faults.cases import Case
from tests.faults.outcome import differences, outcome
from tests.faults.specimens import TEXTS, Specimen, encoder, newest
from tests.faults.tally import Tally
from tests.faults.warm import fork

from curlora_lab import build, config, report, run
from curlora_lab.adapters.attach import trainable_state
from curlora_lab.continual import files, loggers
from curlora_lab.continual.checkpoint import CheckpointFolder
from curlora_lab.continual.store import StageStore
from curlora_lab.data.cache import encode_cached
from curlora_lab.reopen import open_run
from curlora_lab.sweeps import jobs

LAW = "refused, passed over and done again, or nothing read differs; 0 silent loads"
REFUSED, AGAIN, NOTHING = "refused with a message", "passed over, to be done again", "nothing that is read differs"

CASES = (Case("curlora", ("adapter=curlora",)), Case("full", ("adapter=full",)))


@dataclass(frozen=True)
class Kind:
    """One kind of file with one reader.

    Args:
        name: Name for the table: file, reader.
        found: The files.
        read: Reads, and gives what is read as something comparable; raises :class:`Again` where it is passed over.
        again: The reader may do it again by itself and give the right thing.
    """

    name: str
    found: Callable[[Specimen], Sequence[Path]]
    read: Callable[[Specimen, Path], Any]


class Again(Exception):  # noqa: N818  it is no error
    """The reader passed the file over."""


# -- readers -----------------------------------------------------------------------------------------------------------


def _resumed_stage(made: Specimen, path: Path) -> Any:
    """A stage as the resuming run sees it."""
    folder = next(parent for parent in path.parents if parent.name.startswith("stage_"))
    stage = int(folder.name.removeprefix("stage_"))
    keys = [_keys(made)[number] for number in range(stage + 1)]
    row = StageStore(folder.parent, keys).finished(stage)
    if row is None:
        raise Again
    listed = (files.read_manifest(folder) or {})["files"]
    return [vars(row), sorted(listed.items()), {name: files.hash_file(folder / name) for name in listed}]


_KEYS: dict[Path, list[str]] = {}


def _keys(made: Specimen) -> list[str]:
    """Identities of all stages, read while nothing was damaged."""
    return _KEYS[made.finished]


def _opened(made: Specimen, path: Path) -> Any:
    """A run as evaluate, predict and export see it: weights and heads."""
    folder = next(parent for parent in path.parents if (parent / "config.yaml").exists())
    stage = next((int(part.removeprefix("stage_")) for part in path.parts if part.startswith("stage_")), None)
    opened = open_run(folder, stage=None if stage is None or stage == 0 else stage, device="cpu")
    heads = {
        f"{name}/{key}": value
        for name, task in opened.tasks.items()
        if task.head
        for key, value in task.head.state_dict().items()
    }
    state = {
        **dict(opened.backbone.named_parameters()),
        **dict(opened.backbone.named_buffers()),
        **heads,
        **trainable_state(opened.backbone),
    }
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return [digest.hexdigest(), opened.stage, opened.learnt, dict(opened.record)]


def _found_finished(made: Specimen, path: Path) -> Any:
    """The same command again, on a finished run."""
    found = run.finished(path.parent)
    if found is None:
        raise Again
    return found


def _reported(made: Specimen, path: Path) -> Any:
    """The record as the report and the comparison see it."""
    return report.read_record(path.parent)


def _metrics(made: Specimen, path: Path) -> Any:
    """The log of numbers as it is read back; a line less is a line that was passed over."""
    lines = loggers.read_metrics(path)
    whole = _PRISTINE.get((Kinds.metrics.name, path), lines)
    if len(lines) < len(whole) and all(line in whole for line in lines):
        raise Again
    return lines


def _checkpoint(made: Specimen, path: Path) -> Any:
    """The newest checkpoint that a resuming run takes."""
    folder = path.parents[1]
    step = int(path.parent.name.removeprefix("step_"))
    manifest = _CHECKPOINTS[made.running]
    found = CheckpointFolder(folder).latest(key=manifest["key"], stage=manifest["stage"])
    if found is None or found.step != step:
        raise Again
    return [found.step, found.trained, found.state, {name: value.tolist() for name, value in found.tensors.items()}]


_CHECKPOINTS: dict[Path, dict[str, Any]] = {}


def _cached(made: Specimen, path: Path) -> Any:
    """Tokenised rows: a damaged file is built again at once."""
    content = path.read_bytes()
    encoded = encode_cached(encoder(), TEXTS, path.parent)
    if path.read_bytes() != content:
        raise Again
    return [encoded.ids.tolist(), encoded.offsets.tolist(), encoded.truncated.tolist()]


def _continued_from(made: Specimen, path: Path) -> Any:
    """An adapter that another run continues from."""
    configuration = copy.deepcopy(made.made.configuration)
    configuration["adapter"]["init_from"] = str(made.finished)
    return _started(configuration)


def _continued_from_stopped(made: Specimen, path: Path) -> Any:
    """The weights of a run that stopped, from which another run continues."""
    configuration = copy.deepcopy(made.made.configuration)
    configuration["adapter"]["init_from"] = str(made.stopped / "adapter")
    return _started(configuration)


def _job_read(made: Specimen, path: Path) -> Any:
    """A job as the sweep sees it when it is started again, and as its table has it."""
    found = jobs.read(path)
    if found is None:
        raise Again
    return found


def _continued_from_export(made: Specimen, path: Path) -> Any:
    """An exported adapter that a LoRA run continues from."""
    configuration = copy.deepcopy(_lora(str(made.made.configuration["model"]["path"])))
    configuration["adapter"]["init_from"] = str(made.export)
    return _started(configuration)


def _started(configuration: dict[str, Any]) -> Any:
    """Weights that a run begins with."""
    state = trainable_state(build.build(configuration).backbone)
    return {name: tensor.tolist() for name, tensor in sorted(state.items())}


@functools.cache
def _lora(model: str) -> dict[str, Any]:
    return config.validate(cases.composed([*cases.SMALL, "adapter=lora", "model=local", f"model.path={model}"]))


def _stages(*names: str) -> Callable[[Specimen], list[Path]]:
    return lambda made: [
        path for name in names for path in sorted(made.finished.glob(f"stage_0[12]/{name}")) if path.is_file()
    ]


def _last(*names: str) -> Callable[[Specimen], list[Path]]:
    return lambda made: [
        path for name in names for path in sorted(made.finished.glob(f"stage_02/{name}")) if path.is_file()
    ]


def _in(folder: str, *names: str) -> Callable[[Specimen], list[Path]]:
    return lambda made: [path for name in names if (path := getattr(made, folder) / name).is_file()]


def _exported(made: Specimen) -> list[Path]:
    return sorted(path for path in made.export.iterdir() if path.is_file()) if made.export else []


STAGE_FILES = (
    "adapter/*",
    "head.safetensors",
    "strategy.safetensors",
    "scores.json",
    "predictions/*",
    "diagnostics.json",
)


class Kinds:
    """All kinds; a class only to have them by name."""

    stage = Kind("stage: adapter, heads, strategy, scores, predictions / resume", _stages(*STAGE_FILES), _resumed_stage)
    manifest = Kind("stage: manifest / resume", _stages("MANIFEST.json"), _resumed_stage)
    opened = Kind("stage: all files / evaluate, predict, export", _last(*STAGE_FILES, "MANIFEST.json"), _opened)
    record = Kind("results.json / evaluate, predict, export", _in("finished", "results.json"), _opened)
    sealed = Kind("RUN_MANIFEST.json / evaluate, predict, export", _in("finished", "RUN_MANIFEST.json"), _opened)
    again = Kind(
        "results.json, config.yaml, RUN_MANIFEST.json / same command again",
        _in("finished", "results.json", "config.yaml", "RUN_MANIFEST.json"),
        _found_finished,
    )
    reported = Kind("results.json / report, comparison", _in("finished", "results.json"), _reported)
    running = Kind("results.json of an unfinished run / report", _in("running", "results.json"), _reported)
    metrics = Kind("metrics.jsonl / resume, report", _in("finished", "metrics.jsonl"), _metrics)
    checkpoint = Kind(
        "checkpoint: tensors, state, manifest / resume",
        lambda made: sorted(path for path in newest(made).iterdir() if path.is_file()),
        _checkpoint,
    )
    source = Kind("stage: adapter / adapter.init_from", _last("adapter/*"), _continued_from)
    stopped = Kind(
        "stopped: adapter, manifest / adapter.init_from",
        lambda made: sorted(path for path in made.stopped.rglob("*") if path.is_file()),
        _continued_from_stopped,
    )
    job = Kind("job of a sweep / same command again", lambda made: [made.job], _job_read)
    export = Kind("exported adapter / adapter.init_from", _exported, _continued_from_export)
    cache = Kind("data cache / next run", lambda made: sorted(made.cache.glob("*.safetensors")), _cached)

    @classmethod
    def all(cls) -> list[Kind]:
        """Every kind."""
        return [value for value in vars(cls).values() if isinstance(value, Kind)]


_PRISTINE: dict[tuple[str, Path], Any] = {}


def damaged(
    tally: Tally, made: Specimen, *, seed: int, cuts: int, flips: int, kinds: Sequence[Kind] | None = None,
    say: Callable[[str], None] = print,
) -> Tally:  # fmt: skip
    """Cut short and flip files of every kind, ``cuts`` and ``flips`` of each kind."""
    chance = random.Random(seed)
    logging.getLogger("curlora_lab").setLevel(logging.CRITICAL)
    _KEYS[made.finished] = [
        files.read_json(path)["key"] for path in sorted(made.finished.glob("stage_*/MANIFEST.json"))
    ]
    _CHECKPOINTS[made.running] = files.read_json(newest(made) / "MANIFEST.json")
    with tally.timed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in kinds if kinds is not None else Kinds.all():
            paths = kind.found(made)
            if not paths:
                continue
            ends: dict[str, int] = {}
            for number in range(cuts + flips):
                path = paths[number % len(paths)]
                if (kind.name, path) not in _PRISTINE:
                    _PRISTINE[(kind.name, path)] = kind.read(made, path)
                end, what = _one(kind, made, path, chance, cut=number < cuts)
                if end is None:
                    tally.failed(f"{kind.name}: {path.name} {what}")
                else:
                    tally.ended(f"{'cut short' if number < cuts else 'bit flipped'}: {end}")
                    ends[end] = ends.get(end, 0) + 1
            tally.notes.append(
                f"{made.made.case.name}, {kind.name}: {', '.join(f'{count} {end}' for end, count in ends.items())}"
            )
            say(f"damage: {tally.notes[-1]}")
    logging.getLogger("curlora_lab").setLevel(logging.INFO)
    return tally


def _one(kind: Kind, made: Specimen, path: Path, chance: random.Random, *, cut: bool) -> tuple[str | None, str]:
    """Damage a file, read, and put it back; how it ended, and what was done."""
    content = path.read_bytes()
    wrong, what = _cut(content, chance) if cut else _flipped(content, chance)
    path.write_bytes(wrong)
    try:
        found = kind.read(made, path)
    except Again:
        return AGAIN, what
    except (ValueError, OSError) as error:
        return (REFUSED, what) if str(error) else (None, f"{what}: {type(error).__name__} without a message")
    except Exception as error:
        return None, f"{what}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        path.write_bytes(content)
    return (NOTHING, what) if found == _PRISTINE[(kind.name, path)] else (None, f"{what}: loaded as if it were whole")


def _cut(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    length = chance.choice((0, len(content) - 1, chance.randrange(len(content)), chance.randrange(len(content))))
    return content[:length], f"cut to {length} of {len(content)} bytes"


def _flipped(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    position, bit = chance.randrange(len(content)), chance.randrange(8)
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {position} of {len(content)} flipped"


def _is_told(difference: str, output: str) -> bool:
    """Whether what differs is a line of the log of numbers that was damaged, and the run said that it leaves it out."""
    return difference.startswith("metrics.") and "lines are not what was written and are left out" in output


def done_again(tally: Tally, made: Specimen, workplace: Path, *, seed: int, count: int) -> Tally:
    """Damage one file of an unfinished run and give the same command again: the outcome is that of the undisturbed run."""
    chance = random.Random(seed)
    place = workplace / "again"
    with tally.timed():
        for _ in range(count):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(made.running.parents[2], place)
            folder = cases.run_folder(place)
            path = chance.choice([path for path in folder.rglob("*") if path.is_file() and path.stat().st_size])
            wrong, what = (_cut if chance.random() < 0.3 else _flipped)(path.read_bytes(), chance)
            path.write_bytes(wrong)
            child = fork(lambda: cases.do_run(made.made.configuration), cwd=place, log=place / "output.txt")
            code, name = child.wait(), path.relative_to(folder)
            if code == 2 and "Traceback" not in child.text():
                tally.ended("resume: refused with a message")
            elif code != 0:
                tally.failed(f"{name} {what}: the resume ended with {code}: {child.text()[-300:]}")
            elif found := [
                one for one in differences(made.made.expected, outcome(folder)) if not _is_told(one, child.text())
            ]:
                tally.failed(f"{name} {what}: {'; '.join(found[:3])}")
            else:
                tally.ended("resume: bit-equal in the end")
    return tally
