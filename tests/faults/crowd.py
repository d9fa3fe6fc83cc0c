"""Many at once: runs of one configuration and of different ones, one data cache, a multirun that is killed half-way."""

import json
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import cases
from tests.faults.cases import Case
from tests.faults.kills import Plan, plan
from tests.faults.outcome import differences, outcome
from tests.faults.tally import Tally
from tests.faults.warm import KILLED, Child, fork
from transformers import AutoTokenizer

from curlora_lab.backbone import BUILTIN_FOLDER
from curlora_lab.data.cache import encode_cached
from curlora_lab.data.encoding import Encoder

LAW = "distinct folders, or a lock held by one and a message with host and process for the others; equal to runs done alone"
LOCKED = re.compile(r"is being worked on by process \d+ on host \S+")
CASE = Case("curlora", ("adapter=curlora", "epochs=1"))


def same_run(tally: Tally, workplace: Path, *, made: Plan, processes: int) -> Tally:
    """Start one configuration many times at once: one works, the others are told who does, or find it finished."""
    configuration, expected, together = made.configuration, made.expected, workplace / "together"
    with tally.timed():
        together.mkdir()
        children = [_start(configuration, together, number) for number in range(processes)]
        codes = [child.wait(300) for child in children]
        for code, child in zip(codes, children, strict=True):
            if code == 0:
                tally.ended("did the run or found it finished")
            elif code == 3 and LOCKED.search(child.text()):
                tally.ended("told who holds the lock, exit code 3")
            else:
                tally.failed(f"{processes} times the same run: exit code {code}: {child.text()[-300:]}")
        wrong = differences(expected, outcome(cases.run_folder(together)))
        if wrong or 0 not in codes:
            tally.failed(f"{processes} times the same run: {wrong[:3]}, exit codes {codes}")
    return tally


def different_runs(tally: Tally, workplace: Path, *, processes: int) -> Tally:
    """Start as many configurations at once in one output folder: each has a folder of its own, as if it were alone."""
    made = [cases.configured(CASE, workplace / "models", f"seed={seed}") for seed in range(processes)]
    together = workplace / "different"
    with tally.timed():
        together.mkdir()
        children = [_start(configuration, together, number) for number, configuration in enumerate(made)]
        for child in children:
            if (code := child.wait(600)) != 0:
                tally.failed(f"{processes} different runs: exit code {code}: {child.text()[-300:]}")
        folders = {
            json.loads(path.read_text())["config"]["seed"]: path.parent
            for path in together.glob("runs/*/*/results.json")
        }
        if len(folders) != processes:
            tally.failed(f"{processes} different runs left {len(folders)} folders")
        for seed in random.Random(0).sample(sorted(folders), min(2, len(folders))):
            wrong = differences(_alone(made[seed], workplace / f"alone{seed}"), outcome(folders[seed]))
            if wrong:
                tally.failed(f"seed {seed} is not what it is alone: {wrong[:3]}")
        tally.ended("a folder of its own", len(folders))
    return tally


def one_cache(tally: Tally, workplace: Path, *, processes: int, rounds: int) -> Tally:
    """Build the same tokenised rows in many processes at once, some of them killed: every reader gets the right rows."""
    encoder = Encoder(AutoTokenizer.from_pretrained(BUILTIN_FOLDER), columns=["text"], max_length=32)
    rows = [(f"the rain fell on house number {number} and nobody was there",) for number in range(400)]
    right = encoder.encode(rows)
    chance = random.Random(0)
    with tally.timed():
        for number in range(rounds):
            folder = workplace / f"cache{number}"
            logs = workplace / "logs"

            def build(folder: Path = folder) -> int:
                found = encode_cached(encoder, rows, folder)
                return 0 if all((getattr(found, key) == getattr(right, key)).all() for key in ("ids", "offsets")) else 1

            children = [fork(build, cwd=workplace, log=logs / f"{number}-{index}.txt") for index in range(processes)]
            victim = chance.choice(children)
            time.sleep(chance.uniform(0, 0.05))
            victim.kill()
            for child in children:
                code = child.wait()
                if code == 0 or (child is victim and code == KILLED):
                    tally.ended("the right rows" if code == 0 else "killed while it built")
                else:
                    tally.failed(f"cache, round {number}: exit code {code}: {child.text()[-300:]}")
            if len(list(folder.glob("*.safetensors"))) != 1 or build() != 0:
                tally.failed(f"cache, round {number}: {sorted(path.name for path in folder.iterdir())}")
    return tally


def killed_multirun(tally: Tally, workplace: Path, *, jobs: int) -> Tally:
    """Kill a multirun half-way and give the same command again: only what is missing is run."""
    place = workplace / "multirun"
    place.mkdir(parents=True)
    model = cases.small_model(workplace / "models" / "small").resolve()
    small = [*cases.SMALL, "model=local", f"model.path={model}", "epochs=1"]
    arguments = [*small, f"seed=range({jobs})", "isolate=false", "-m"]  # so that one kill takes the job too
    with tally.timed():
        child = _command(arguments, place)
        until = time.monotonic() + 300
        while len(_finished(place)) < jobs // 2 and time.monotonic() < until and child.ended(0.05) is None:
            pass
        child.kill()
        child.wait()
        before = _finished(place)
        child = _command(arguments, place)
        if (code := child.wait(600)) != 0:
            tally.failed(f"the multirun's second start ended with {code}: {child.text()[-500:]}")
        after = _finished(place)
        kept = [name for name, started in before.items() if after.get(name) == started]
        if len(after) != jobs or len(kept) != len(before) or not before or len(before) == jobs:
            tally.failed(
                f"multirun of {jobs}: {len(before)} finished before, {len(kept)} of them kept, {len(after)} after"
            )
        else:
            tally.ended("job kept", len(kept))
            tally.ended("job done by the second start", jobs - len(kept))
    return tally


def crowds(
    tally: Tally, workplace: Path, *, processes: int, rounds: int, jobs: int, say: Callable[[str], None] = print
) -> Tally:
    """All four."""
    for name, work in {
        "same": lambda place: same_run(tally, place, made=plan(CASE, place), processes=processes),
        "different": lambda place: different_runs(tally, place, processes=processes),
        "cache": lambda place: one_cache(tally, place, processes=processes, rounds=rounds),
        "multirun": lambda place: killed_multirun(tally, place, jobs=jobs),
    }.items():
        place = workplace / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        work(place)
        say(f"concurrency: {name}: {tally.tried} so far, {len(tally.failures)} failures")
    return tally


def _alone(configuration: dict[str, Any], place: Path) -> dict[str, str]:
    place.mkdir(parents=True)
    child = _start(configuration, place, 0)
    if (code := child.wait()) != 0:
        raise AssertionError(f"the run alone ended with {code}: {child.text()[-2000:]}")
    return outcome(cases.run_folder(place))


def _start(configuration: dict[str, Any], place: Path, number: int) -> Child:
    return fork(lambda: cases.do_run(configuration), cwd=place, log=place.parent / "logs" / f"{place.name}{number}.txt")


def _command(arguments: list[str], place: Path) -> Child:
    """``python train.py`` with these arguments, in a forked process."""

    def work() -> None:
        from curlora_lab import cli

        sys.argv = ["train.py", *arguments]
        cli.main()

    return fork(work, cwd=place, log=place.parent / "multirun.txt")


def _finished(place: Path) -> dict[str, str]:
    """Finished runs with the time at which they were started."""
    found = {}
    for manifest in place.glob("runs/*/*/RUN_MANIFEST.json"):
        record = json.loads((manifest.parent / "results.json").read_text())
        found[manifest.parent.name] = record["provenance"]["started"]
    return found
