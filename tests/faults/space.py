"""The disk is full: at every write of a run in turn, on a real file system of a few megabytes.

A child takes a mount namespace of its own and puts a small tmpfs where the run writes; at the chosen write, everything that is
left of it is filled up. Where the system allows no such namespace, the write itself fails with ``ENOSPC`` (and a Rust writer
with the error that it gives then).
"""

import ctypes
import errno
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError
from tests.faults import cases, exporting
from tests.faults.cases import Case
from tests.faults.kills import LARGEST_LEFTOVER, Plan
from tests.faults.outcome import differences, leftovers, outcome
from tests.faults.points import NAMES, Counting
from tests.faults.tally import Tally
from tests.faults.warm import Child, Shared, fork

from curlora_lab.continual import files

LAW = "non-zero exit, message with path and bytes, what was there stays valid; with room again the run ends bit-equal"

#: Moments at which something is about to be written.
WRITES = ("open", "tensors")
SIZE = "48m"

#: What the message says of the room that is needed.
NEEDS = re.compile(r"\bneeds [1-9]\d* bytes\b")
CASES = (Case("curlora", ("adapter=curlora", "epochs=1")),)
_NEWNS, _NEWUSER, _PRIVATE, _RECURSIVE = 0x00020000, 0x10000000, 1 << 18, 1 << 14


def mountable() -> bool:
    """Whether a process may mount a small file system for itself."""
    child = os.fork()
    if child == 0:
        try:
            _own_disk(Path("/tmp"))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _own_disk(folder: Path) -> None:
    """Mount an empty tmpfs that only this process and its children see; needs root or user namespaces."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNS) != 0 and libc.unshare(_NEWNS | _NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    libc.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={SIZE}".encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def disk_full(
    tally: Tally,
    workplace: Path,
    *,
    made: Plan,
    seed: int,
    count: int | None,
    say: Callable[[str], None] = print,
) -> Tally:
    """Fill the disk at ``count`` of a run's writes, or at every one."""
    real = mountable()
    with tally.timed():
        case = made.case
        moments = [(name, number) for name in WRITES for number in range(1, made.moments.get(name, 0) + 1)]
        if count is not None:
            moments = random.Random(seed).sample(moments, min(count, len(moments)))
        for moment in moments:
            place = workplace / "full"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            if real:
                wrong = _in_child(partial(_attempt, made), moment, place, workplace / "verdict.txt")
            else:
                wrong = _attempt(made, moment, place, lambda at: _refuse(at))
            if wrong:
                tally.failed(f"{case.name}, full at {moment[0]} {moment[1]}: {wrong}")
            else:
                tally.ended({"open": "opening or writing a file", "tensors": "writing tensors"}[moment[0]])
        kind = f"a real tmpfs of {SIZE}, filled up at the write" if real else "ENOSPC raised at the write"
        tally.notes.append(f"{case.name}, {len(moments)} writes: {kind}")
        say(f"disk full: {case.name}: {tally.tried} writes, {len(tally.failures)} failures")
    return tally


def export_full(
    tally: Tally, workplace: Path, *, made: Plan, seed: int, count: int | None, say: Callable[[str], None] = print
) -> Tally:
    """Fill the disk at ``count`` of the writes of a finished run's export, or at every one."""
    real = mountable()
    with tally.timed():
        counters = Shared(len(NAMES))
        whole = workplace / "export-whole"
        shutil.copytree(made.finished, whole)
        child = _export(whole, Counting(counters))
        if (code := child.wait()) != 0:
            raise AssertionError(f"the undisturbed export ended with {code}:\n{child.text()[-2000:]}")
        expected = _content(whole / "out")
        moments = [(name, number) for name in WRITES for number in range(1, counters[NAMES.index(name)] + 1)]
        if count is not None:
            moments = random.Random(seed).sample(moments, min(count, len(moments)))

        def attempt(moment: tuple[str, int], place: Path, full: Callable[[str], None]) -> str | None:
            return _attempt_export(made, expected, moment, place, full)

        for moment in moments:
            place = workplace / "full-export"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            if real:
                wrong = _in_child(attempt, moment, place, workplace / "verdict-export.txt")
            else:
                wrong = attempt(moment, place, lambda at: _refuse(at))
            if wrong:
                tally.failed(f"{made.case.name}, export, full at {moment[0]} {moment[1]}: {wrong}")
            else:
                tally.ended("export")
        tally.notes.append(f"{made.case.name}, export: {len(moments)} writes")
        say(f"disk full: {made.case.name}, export: {len(moments)} writes, {len(tally.failures)} failures")
    return tally


def _attempt_export(
    made: Plan, expected: dict[str, bytes], moment: tuple[str, int], place: Path, full: Callable[[str], None]
) -> str | None:
    """An export to a disk that fills up at one moment, then the same command with room again."""
    work = place / "work"
    shutil.copytree(made.finished, work)
    child = _export(work, Counting(Shared(len(NAMES)), moment, lambda: full(moment[0])))
    code, text = child.wait(), child.text()
    (place / "filler").unlink(missing_ok=True)
    if code == 0:
        return None if _content(work / "out") == expected else "it ended well and differs"
    left = [path.name for path in work.iterdir() if "out" in path.name and path.is_dir()]
    if wrong := _wrong_words(code, text, "out ", ".out.") or (f"{left} is left" if left else None):
        return wrong
    if (code := _export(work, Counting(Shared(len(NAMES)))).wait()) != 0 or _content(work / "out") != expected:
        return f"with room again it ended with {code}"
    return None


def _export(work: Path, counting: Counting) -> Child:
    def do() -> int:
        counting.install()
        return exporting.export(cases.run_folder(Path.cwd()), Path("out"))

    return fork(do, cwd=work, log=work.parent.parent / "export.txt")  # the log is not on the small disk


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Attempt = Callable[[tuple[str, int], Path, Callable[[str], None]], str | None]


def _in_child(attempt: Attempt, moment: tuple[str, int], place: Path, verdict: Path) -> str | None:
    """Do one attempt in a process that has a disk of its own."""

    def work() -> int:
        _own_disk(place)
        wrong = attempt(moment, place, lambda at: _fill(place / "filler", at))
        verdict.write_text(wrong or "")
        return 0

    child = fork(work, cwd=place.parent, log=place.parent / "disk.txt")
    if (code := child.wait()) != 0:
        raise AssertionError(f"the attempt itself ended with {code}: {child.text()[-2000:]}")
    return verdict.read_text() or None


def _attempt(made: Plan, moment: tuple[str, int], place: Path, full: Callable[[str], None]) -> str | None:
    """A run on a disk that fills up at one moment, then the same command with room again."""
    work = place / "work"
    work.mkdir()
    child = _run(made.configuration, work, moment, lambda: full(moment[0]))
    code, text = child.wait(), child.text()
    (place / "filler").unlink(missing_ok=True)
    if code == 0:
        # What is written for convenience only (the data cache) may be left out with a line in the log.
        return "; ".join(differences(made.expected, outcome(cases.run_folder(work)))) or None
    wrong = _wrong_words(code, text, "runs/") or _wrong_files(work)
    if wrong:
        return wrong
    child = _run(made.configuration, work, None, lambda: None)
    if (code := child.wait()) != 0:
        return f"with room again it ended with {code}: {child.text()[-300:]}"
    found = differences(made.expected, outcome(cases.run_folder(work)))
    found += [f"{path.name} is left" for path in leftovers(work) if path.stat().st_size > LARGEST_LEFTOVER]
    return "; ".join(found[:4]) or None


def _run(configuration: dict[str, Any], work: Path, at: tuple[str, int] | None, strike: Callable[[], None]) -> Child:
    def do() -> int:
        Counting(Shared(len(NAMES)), at, strike).install()
        return cases.do_run(configuration)

    return fork(do, cwd=work, log=work.parent.parent / "run.txt")  # the log is not on the small disk


def _wrong_words(code: int, text: str, *places: str) -> str | None:
    if code <= 0 or "Traceback" in text:
        return f"exit code {code}, {text.strip().splitlines()[-1:]}"
    said = [line for line in text.splitlines() if "No space left" in line or "disk is full" in line.lower()]
    if not said:
        return f"the message does not say that the disk is full: {text.strip()[-300:]}"
    if not any(NEEDS.search(line) and any(place in line for place in places) for line in said):
        return f"the message names no path or not the bytes that are needed: {said[-1][-300:]}"
    return None


def _wrong_files(work: Path) -> str | None:
    """Whatever has a manifest must hold; whatever is called a record must be JSON."""
    for manifest in work.glob("runs/*/*/stage_*/MANIFEST.json"):
        if files.read_manifest(manifest.parent) is None:
            return f"{manifest.parent.name} is declared whole and is not"
    for record in work.glob("runs/*/*/results.json"):
        if not files.read_json(record):
            return "results.json is no JSON"
    return None


def _fill(filler: Path, _: str) -> None:
    """Take all the room that is left, to the last byte; what follows fails by itself."""
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 1 << 12, 1):
        block = bytes(size)
        try:
            while os.write(descriptor, block):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    os.close(descriptor)


def _refuse(moment: str) -> NoReturn:
    if moment == "tensors":
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def filesystem(folder: Path) -> str:
    """The kind of file system that a folder lies on, for the table."""
    if sys.platform != "linux":
        return "unknown"
    found = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
