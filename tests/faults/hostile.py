"""Run folders and adapters that somebody made to do harm: nothing of them is run, nothing is written outside, no traceback.

Every hash is forged so that it holds; what is refused is refused for what it is.
"""

import copy
import functools
import os
import pickle
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import cases
from tests.faults.cases import Case
from tests.faults.exporting import script
from tests.faults.hostile_corpus import CORPUS, MODELS, Hostile
from tests.faults.tally import Tally
from tests.faults.warm import fork

from curlora_lab.continual import files
from curlora_lab.integrity import sealed, sealed_record

LAW = "0 files written outside the target, 0 code executed, no pickle read, no traceback, an answer in seconds"
READERS = ("evaluate", "report", "export", "init_from", "model")
MEMORY = 12 << 30  # bytes of address space that a reader may take
SECONDS = 40.0
CASE = Case("lora", ("adapter=lora", "epochs=1"))

#: What a reader says when it was about to do what it must not.
CAUGHT = "CAUGHT:"


class Payload:
    """Unpickling this leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


@dataclass(frozen=True)
class Place:
    """Where one hostile folder lies.

    Args:
        root: Everything below may be written by a reader.
        run: The run folder.
        mark: A file that only a payload makes.
        outside: A folder that nobody may touch, beside ``root``.
    """

    root: Path
    run: Path
    mark: Path
    outside: Path

    @property
    def adapter(self) -> Path:
        """The adapter of the last stage."""
        return self.run / "stage_02" / "adapter"

    def pickle(self) -> bytes:
        """A pickle that leaves the mark."""
        return pickle.dumps(Payload(self.mark))

    def edit(self, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a JSON file of the run folder."""
        path = self.run / name
        value = files.read_json(path)
        change(value)
        if name == "results.json" and isinstance(value.get("provenance"), dict):
            value = sealed_record(value)
        elif path.name in (files.MANIFEST, "RUN_MANIFEST.json"):
            value = sealed(value)
        path.write_text(cases.dumps(value))

    def sign(self) -> None:
        """Forge all manifests for the files as they are."""
        for stage in sorted(self.run.glob("stage_*")):
            if stage.is_symlink() or not (stage / files.MANIFEST).is_file():
                continue
            about = {key: value for key, value in files.read_json(stage / files.MANIFEST).items() if key != "files"}
            found = [path for path in stage.rglob("*") if path.is_file() and path != stage / files.MANIFEST]
            listed = {str(path.relative_to(stage)): files.hash_file(path) for path in sorted(found)}
            files.write_json(stage / files.MANIFEST, sealed({**about, "files": listed}))
        manifest = self.run / "RUN_MANIFEST.json"
        if manifest.is_file() and (self.run / "results.json").is_file():
            value = files.read_json(manifest)
            for name in value.get("files", {}):
                if (self.run / name).is_file() and (self.run / name).stat().st_size < 1 << 30:
                    value["files"][name] = files.hash_file(self.run / name)
            files.write_json(manifest, sealed(value))


def specimen(workplace: Path) -> Path:
    """A finished run of one task with a LoRA adapter; its workplace."""
    place = workplace / "specimen"
    if not place.is_dir():
        place.mkdir(parents=True)
        configuration = cases.configured(CASE, workplace / "models")
        child = fork(lambda: cases.do_run(configuration), cwd=place, log=workplace / "specimen.txt")
        if (code := child.wait()) != 0:
            raise AssertionError(f"the specimen's run ended with {code}: {child.text()[-2000:]}")
    return place


def hostile(
    tally: Tally,
    workplace: Path,
    *,
    chosen: Sequence[Hostile] | None = None,
    readers: Sequence[str] = READERS,
    say: Callable[[str], None] = print,
) -> Tally:
    """Give every hostile folder to every reader that it concerns."""
    made = specimen(workplace)
    _continuing(workplace / "models")  # composed once, before processes are forked
    with tally.timed():
        for number, case in enumerate(chosen if chosen is not None else [*CORPUS, *MODELS]):
            for reader in [reader for reader in readers if reader in case.readers]:
                place = _arranged(case, made, workplace / f"hostile{number}-{reader}")
                ended = _read(place, reader)
                if ended in ("refused", "read as data"):
                    tally.ended(f"{case.kind}: {ended}")
                else:
                    tally.failed(f"{case.kind}, {case.name}, {reader}: {ended}")
                shutil.rmtree(place.root.parent, ignore_errors=True)
        say(f"hostile: {tally.tried} readings, {len(tally.failures)} failures")
    return tally


def _arranged(case: Hostile, made: Path, folder: Path) -> Place:
    shutil.rmtree(folder, ignore_errors=True)
    root, outside = folder / "root", folder / "outside"
    outside.mkdir(parents=True)
    (outside / "secret.txt").write_text("nobody reads this\n")
    shutil.copytree(made, root, symlinks=True)
    place = Place(root, cases.run_folder(root), outside / "mark", outside)
    case.arrange(place)
    if case.signed:
        place.sign()
    return place


def _read(place: Place, reader: str) -> str:
    """How a reader took it: ``refused``, ``read as data``, or what it did wrong."""
    before = _tree(place.outside)

    def work() -> int:
        for name in ("HOME", "TMPDIR", "MPLCONFIGDIR", "HF_HOME"):
            os.environ[name] = str(place.root / name.lower())
            (place.root / name.lower()).mkdir(exist_ok=True)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        _watch(place)
        return _readings()[reader](place)

    child = fork(work, cwd=place.root, log=place.root.parent / "output.txt")
    code = child.ended(SECONDS)
    if code is None:
        child.kill()
        child.wait()
        return f"no answer within {SECONDS:g} s"
    text = child.text()
    if CAUGHT in text:
        return text[text.index(CAUGHT) :].splitlines()[0]
    if place.mark.exists() or _tree(place.outside) != before:
        return f"the payload ran, or something was written outside: {_tree(place.outside)}"
    if "Traceback" in text or code not in (0, 1, 2):
        return f"exit code {code}: {' | '.join(text.strip().splitlines()[-2:])[-400:]}"
    if any(ord(char) < 32 and char not in "\n\t\r" for char in text):
        return f"control characters reach the terminal: {text!r:.200}"
    return "refused" if code == 2 else "read as data"


def _watch(place: Place) -> None:
    """Say so, and end, when this process is about to do what a reader must not."""
    import torch

    def caught(what: str) -> None:
        os.write(2, f"\n{CAUGHT} {what}\n".encode())
        os._exit(99)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "ctypes.dlopen"):
            if event != "ctypes.dlopen" or (arguments and str(arguments[0]).startswith(str(place.root))):
                caught(f"{event} {arguments[:2]!r:.200}")
        elif event == "subprocess.Popen" and "git" not in str(arguments[0]):
            caught(f"{event} {arguments[:2]!r:.200}")
        elif event == "open" and isinstance(arguments[0], str) and _is_outside(arguments, place):
            caught(f"writes {arguments[0]}")

    torch.load = lambda *arguments, **options: caught(f"torch.load {arguments[:1]!r:.200}")
    sys.addaudithook(hear)


def _is_outside(arguments: tuple[Any, ...], place: Place) -> bool:
    path, mode, flags = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else 0
    writes = (
        any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR))
    )
    resolved = os.path.realpath(path)
    return writes and not resolved.startswith((os.path.realpath(place.root), "/dev/"))


def _readings() -> dict[str, Callable[[Place], int]]:
    return {
        "evaluate": lambda place: script("evaluate").main([str(place.run), "--device", "cpu"]),
        "export": lambda place: script("export").main([str(place.run), "--to", "lora", "--out", "taken_away"]),
        "report": lambda place: script("report").main([str(place.run)]),
        "init_from": _continue_from,
        "model": lambda place: script("evaluate").main([str(place.run), "--model-path", str(place.root / "model")]),
    }


def _continue_from(place: Place) -> int:
    """A run that continues from the adapter, up to where training would begin."""
    from curlora_lab import build, config

    configuration = copy.deepcopy(_continuing(place.root.parent.parent / "models"))
    configuration["adapter"]["init_from"] = str(place.run)
    try:
        build.build(configuration)
    except (config.ConfigError, ValueError, OSError) as error:  # run.py makes a ConfigError of these
        print(error)
        return 2
    return 0


@functools.cache
def _continuing(models: Path) -> dict[str, Any]:
    return cases.configured(CASE, models)


def _tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(folder)), path.lstat().st_size) for path in folder.rglob("*"))
