"""What of a study goes into a repository: pages, tables, figures and records, without weights, predictions or places."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from curlora_lab.continual.files import read_json, write_atomically, write_json
from curlora_lab.report import wording
from curlora_lab.report.archive import ArchiveError, refuse_mixed, without_places, write_archive
from curlora_lab.report.record import Record, read_record
from curlora_lab.sweeps import snapshot, steps
from curlora_lab.sweeps.plan import TUNED, Plan, StudyError

LARGEST = 2_000_000
LARGEST_PAGE = 200_000
COPIED = (".md", ".csv", ".svg", ".html")
WHOLE = "compare"
FRONTS = "front-"
REPORTED, CHOOSING = "runs.jsonl.gz", "choosing.jsonl.gz"
COMMAND = "command.txt"


def publish(plan: Plan, folder: Path, *, places: Mapping[str, str], command: str) -> list[Path]:
    """Copy what is small: the pages, the rates that were found, a record of every run, and how it was made.

    Args:
        plan: the study; every phase of it that has runs is published.
        folder: where it goes; what lies there under other names stays.
        places: folder of this machine -> what stands for it, see :func:`curlora_lab.report.archive.without_places`.
        command: the command line that repeats it.

    Returns:
        The files.

    Raises:
        StudyError: there is nothing yet, or it is too large.
        ArchiveError: the runs were made by different code, or name a place that ``places`` does not.
        RecordError: a record is missing or damaged.
    """
    phases = list(plan.phases)
    reported, choosing = plan.runs(phases), plan.runs(phases, tuning=True)
    if not reported:
        raise StudyError(f"{plan.out} has no finished run to publish.")
    refuse_mixed([read_record(run) for run in (*reported, *choosing)])
    for name in phases:  # those of before, so that nothing is left of a page that is no longer written
        shutil.rmtree(folder / name, ignore_errors=True)
    paths = [path for name in phases for path in _page(plan.out / "pages" / name, folder / name, places)]
    records = write_archive(reported, folder / REPORTED, places=places)
    write_archive(choosing, folder / CHOOSING, places=places)
    write_json(folder / TUNED, without_places(_rates(plan), places))
    write_atomically(folder / COMMAND, "\n".join(_account(plan, records, command)) + "\n")
    paths += [folder / name for name in (REPORTED, CHOOSING, TUNED, COMMAND)]
    size = sum(path.stat().st_size for path in paths)
    if size > LARGEST:
        raise StudyError(f"{folder} has {size:,} bytes, more than {LARGEST:,}; publish fewer phases.")
    return paths


def _page(source: Path, target: Path, places: Mapping[str, str]) -> Iterator[Path]:
    """Tables, figures and text of a page.

    Its interactive form is taken only where it is small, and of further phases only the figures that show what is paid for
    what is learnt: all of them would be megabytes.
    """
    for path in sorted(path for path in source.rglob("*") if path.suffix in COPIED):
        if path.suffix == ".html" and path.stat().st_size > LARGEST_PAGE:
            continue
        if path.suffix == ".svg" and source.name != WHOLE and not path.name.startswith(FRONTS):
            continue
        try:
            text = without_places(path.read_text(encoding="utf-8"), places)
        except ArchiveError as error:
            raise ArchiveError(f"{path}: {error}") from None
        write_atomically(target / path.relative_to(source), text)
        yield target / path.relative_to(source)


def _rates(plan: Plan) -> dict[str, object]:
    """What every tuning step found, by its name."""
    found = {name: read_json(plan.folder(step) / TUNED) for name, step in plan.steps.items() if step.sweep == "tune"}
    return {name: {key: said for key, said in one.items() if key != "command"} for name, one in found.items() if one}


def _account(plan: Plan, records: Sequence[Record], command: str) -> Iterator[str]:
    """How it was made, for a reader who wants to repeat it."""
    first = records[0]["provenance"]
    source = read_json(plan.out / "source" / snapshot.ABOUT)
    yield command
    yield ""
    yield f"code       version {first['package_version']}, commit {source.get('commit')}, source {first['source_hash']}"
    yield f"python     {first['python']}, {', '.join(f'{name} {of}' for name, of in first['versions'].items())}"
    yield f"machine    {processor()}, {os.cpu_count()} cores, {memory()}, {platform.system()}; one thread a run"
    yield f"runs       {len(records)} reported, {len(plan.runs(list(plan.phases), tuning=True))} to choose rates"
    yield f"tokens     {wording.count(sum(one['cost']['tokens'] for one in records))} trained in the reported runs"
    yield ""
    yield "wall time in seconds, of all times that a multirun was at work:"
    every: list[steps.Spell] = []
    for name, step in plan.steps.items():
        spells = steps.times(plan.folder(step))
        every += spells
        if spells:
            yield f"{sum(spell.seconds for spell in spells):10.0f}  {name} ({plan.progress(step).word})"
    yield f"{steps.on_the_clock(every):10.0f}  together, what was side by side counted once"


def processor() -> str:
    """The processor as the system calls it."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory() -> str:
    """The memory of the machine in GiB."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "memory unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def common_places() -> dict[str, str]:
    """Folders that are this machine's alone, whatever the study: home, temporary files, Python, the current folder."""
    return {
        str(Path.cwd()): "<repository>",
        str(Path.home()): "<home>",
        tempfile.gettempdir(): "<tmp>",
        sys.prefix: "<python>",
    }
