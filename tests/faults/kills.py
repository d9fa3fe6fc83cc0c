"""SIGKILL at any moment: the same command again continues, and ends with the bytes of a run that nothing happened to."""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import cases, exporting
from tests.faults.cases import Case
from tests.faults.outcome import differences, leftovers, outcome
from tests.faults.points import MEANING, NAMES, Counting
from tests.faults.tally import Tally
from tests.faults.warm import KILLED, Child, Shared, fork

from curlora_lab.continual.identity import source_hash

LAW = "the same command again goes on and ends bit-equal to a run that nothing happened to"
LARGEST_LEFTOVER = 1_000_000  # bytes

#: Moment (name, number), or seconds after the start.
When = tuple[str, int] | float


@dataclass
class Plan:
    """A case with what an undisturbed run of it is.

    Args:
        case: The case.
        configuration: Its configuration.
        expected: What an undisturbed run leaves.
        seconds: How long that takes.
        moments: How often each moment comes in it.
        finished: The undisturbed workplace.
        before: A workplace as it is before the run, if there is anything in it.
    """

    case: Case
    configuration: dict[str, Any]
    expected: dict[str, str]
    seconds: float
    moments: dict[str, int] = field(default_factory=dict)
    finished: Path = Path()
    before: Path | None = None


def plan(case: Case, workplace: Path) -> Plan:
    """Do the undisturbed run of a case."""
    source_hash()  # children inherit it: code that is edited meanwhile does not make another run of this one
    configuration = cases.configured(case, workplace / "models")
    stem = case.name.replace(" ", "_").replace(",", "")
    place, before = workplace / f"{stem}-whole", None
    if case.earlier is not None:
        before = _before(case, workplace, workplace / f"{stem}-before")
        shutil.copytree(before, place)
    counters = Shared(len(NAMES))
    child = _start(configuration, place, Counting(counters))
    if (code := child.wait()) != 0:
        raise AssertionError(f"{case.name}: the undisturbed run ended with {code}:\n{child.text()[-3000:]}")
    seconds = time.monotonic() - child.began
    moments = {name: counters[index] for index, name in enumerate(NAMES) if counters[index]}
    return Plan(case, configuration, outcome(cases.run_folder(place)), seconds, moments, place, before)


def _before(case: Case, workplace: Path, place: Path) -> Path:
    """A workplace with the finished run whose stages a case reuses."""
    shorter = Case(case.name, case.earlier or (), case.model)
    configuration = cases.configured(shorter, workplace / "models", f"name={cases.EARLIER}")
    child = _start(configuration, place, Counting(Shared(len(NAMES))))
    if (code := child.wait()) != 0:
        raise AssertionError(f"{case.name}: the earlier run ended with {code}:\n{child.text()[-3000:]}")
    return place


def strike(made: Plan, whens: Sequence[When], place: Path) -> tuple[list[str], str | None]:
    """Kill a run at the first moment, its restart at the second and so on; then let it finish.

    Returns:
        Where it was killed, and what is wrong with the outcome.
    """
    shutil.rmtree(place, ignore_errors=True)
    if made.before is not None:
        shutil.copytree(made.before, place)
    killed = []
    for when in whens:
        at = when if isinstance(when, tuple) else None
        child = _start(made.configuration, place, Counting(Shared(len(NAMES)), at))
        if at is None:
            code = child.ended(float(when))
            if code is None:
                child.kill()
                code = child.wait()
        else:
            code = child.wait()
        if code == KILLED:
            killed.append("random moment" if at is None else MEANING[at[0]])
        elif code != 0:
            return killed, f"{_said(made, whens)}: a process ended with {code}: {_last(child)}"
    child = _start(made.configuration, place, Counting(Shared(len(NAMES))))
    if (code := child.wait()) != 0:
        return killed, f"{_said(made, whens)}: the restart ended with {code}: {_last(child)}"
    wrong = differences(made.expected, outcome(cases.run_folder(place)))
    wrong += [f"{path.name} is left" for path in leftovers(place) if path.stat().st_size > LARGEST_LEFTOVER]
    return killed, f"{_said(made, whens)}: {'; '.join(wrong[:4])}" if wrong else None


def kill_exports(made: Plan, tally: Tally, chance: random.Random, *, count: int, workplace: Path) -> None:
    """Kill the export of a finished run and do it again: the exported folder is the same."""
    place = workplace / "export"

    def fresh() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made.finished, place)

    def exported() -> dict[str, bytes]:
        folder = place / "out"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    fresh()
    counters = Shared(len(NAMES))
    child = _export(place, Counting(counters))
    if (code := child.wait()) != 0:
        raise AssertionError(f"the undisturbed export ended with {code}:\n{child.text()[-2000:]}")
    expected = exported()
    moments = {name: counters[index] for index, name in enumerate(NAMES) if counters[index]}
    for _ in range(count):
        fresh()
        at = _drawn(moments, chance)
        code = _export(place, Counting(Shared(len(NAMES)), at)).wait()
        again = _export(place, Counting(Shared(len(NAMES)))) if not (place / "out").exists() else None
        if code != KILLED or (again and again.wait() != 0) or exported() != expected:
            tally.failed(f"export at {at}: exit code {code}, {again.text()[-300:] if again else ''}")
        else:
            tally.ended("export")


def kills(
    tally: Tally, workplace: Path, *, seed: int, count: int, chosen: Sequence[Case], say: Callable[[str], None] = print
) -> Tally:
    """Kill runs of the given cases until at least ``count`` kills were done, one export in ten.

    Half of the first kills are at a named moment (each name in turn), half at a random time; every third restart is killed too.
    """
    chance = random.Random(seed)
    share = -(-count * 9 // (10 * len(chosen)))
    with tally.timed():
        for number, case in enumerate(chosen):
            made = plan(case, workplace)
            done = 0
            while done < share:
                whens = [_when(made, chance, by_name=chance.random() < 0.5)]
                while chance.random() < 0.3:
                    whens.append(_when(made, chance, by_name=chance.random() < 0.5))
                killed, wrong = strike(made, whens, workplace / "struck")
                done += max(len(killed), 1)
                for where in killed:
                    tally.ended(where)
                if wrong:
                    tally.failed(wrong)
            say(f"kills: {case.name}: {done} kills, {len(tally.failures)} failures, {made.seconds:.1f} s a run")
            if number == 0:
                kill_exports(made, tally, chance, count=max(count // 10, 2), workplace=workplace)
        tally.notes.append(f"{len(chosen)} configurations: {'; '.join(case.name for case in chosen)}")
    return tally


def _when(made: Plan, chance: random.Random, *, by_name: bool) -> When:
    return _drawn(made.moments, chance) if by_name else chance.uniform(0.0, made.seconds)


def _drawn(moments: dict[str, int], chance: random.Random) -> tuple[str, int]:
    """A name, each as likely; then one of its moments."""
    name = chance.choice(sorted(moments))
    return name, chance.randint(1, moments[name])


def _start(configuration: dict[str, Any], place: Path, counting: Counting) -> Child:
    place.mkdir(parents=True, exist_ok=True)

    def work() -> int:
        counting.install()
        return cases.do_run(configuration)

    return fork(work, cwd=place, log=place / "output.txt")


def _export(place: Path, counting: Counting) -> Child:
    def work() -> int:
        counting.install()
        return exporting.export(cases.run_folder(Path.cwd()), Path("out"))

    return fork(work, cwd=place, log=place / "export.txt")


def _said(made: Plan, whens: Sequence[When]) -> str:
    return f"{made.case.name}, killed at {', '.join(str(when) for when in whens)}"


def _last(child: Child) -> str:
    return " | ".join(child.text().strip().splitlines()[-3:])
