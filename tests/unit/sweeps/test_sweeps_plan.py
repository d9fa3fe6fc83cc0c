"""Multiruns that build on one another: what each is given, when it is done, what is refused."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from curlora_lab.sweeps import jobs, steps
from curlora_lab.sweeps.jobs import Job
from curlora_lab.sweeps.plan import Method, Phase, Plan, StudyError

METHODS = {
    "heads": Method(adapter="none", rates=("1e-2", "1e-1")),
    "plain": Method(adapter="curlora", setting="adapter.basis=inverse_norm", rates=("1e-3", "1e-2", "1e-1")),
    "control": Method(adapter="curlora", setting="adapter.basis=uniform", rates=("1e-3", "1e-2")),
    "rival": Method(adapter="lora", rates=("1e-4", "1e-3")),
}
NAMES = ("plain", "control", "rival", "heads")
PHASES = {
    "head": Phase(about="heads", tunes=("heads",)),
    "tune": Phase(about="rates", tunes=("plain", "control", "rival")),
    "compare": Phase(about="all", compares=NAMES, rates_of="tune"),
    "grid": Phase(about="every rate", compares=("plain",), grid=True),
    "longer": Phase(about="longer", tunes=("heads", "plain"), compares=("plain",), words=("epochs=9",)),
    "other": Phase(
        about="heads' rates", compares=("plain", "heads"), rates_of="tune", words=("head_lr=1,2",), given=True
    ),
    "else": Phase(about="another protocol", variants={"odd": ("adapter=lora", "rank=1,2")}),
}


def plan_in(folder: Path, **changes: Any) -> Plan:
    given: dict[str, Any] = {
        "methods": METHODS,
        "phases": PHASES,
        "seeds": "0,1",
        "tuning_seed": 7,
        "settings": {name: ["experiment=study/builtin"] for name in PHASES},
    }
    return Plan(folder, **given | changes)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_in(tmp_path / "a study")


def finish(plan: Plan, name: str, *, at: float = 1.0, **found: Any) -> None:
    """Leave behind what a multirun leaves that has done all its jobs."""
    step = plan.steps[name]
    for number, overrides in enumerate(plan.planned(step)):
        run = plan.out / "runs" / f"{name}-{number}"
        file = jobs.job_file(plan.folder(step), overrides)
        jobs.write(file, Job(number, overrides, status="finished", run=str(run)))
    method = {"name": name, "status": "tuned", "lr": 0.003, "head_lr": 0.01, "head_lr_tuned": False, "edge": False}
    if step.sweep == "tune":
        (plan.folder(step) / "tuned.json").write_text(json.dumps({"methods": [method | found]}))
    spells = {"spells": [{"started": at, "seconds": 2.0, "code": 0}]}
    (plan.folder(step) / "times.json").write_text(json.dumps(spells))


def test_a_step_comes_after_those_that_it_needs(plan: Plan) -> None:
    names = list(plan.steps)
    for step in plan.steps.values():
        assert all(names.index(need) < names.index(step.name) for need in step.needs), step
    assert plan.steps["longer-plain"].needs == ("longer-heads",), "a phase with heads of its own takes their rate"
    assert plan.steps["tune-plain"].needs == ("head-heads",)


def test_jobs_are_counted_before_anything_is_known(plan: Plan) -> None:
    counted = {name: len(plan.planned(step)) for name, step in plan.steps.items()}
    assert counted == {
        "head-heads": 2, "tune-plain": 3, "tune-control": 2, "tune-rival": 2,
        "compare-of-plain-and-1": 4, "compare-of-rival": 2, "compare-of-heads": 2, "grid-of-plain": 6,
        "longer-heads": 2, "longer-plain": 3, "longer-of-plain": 2, "other-of-plain": 4, "other-of-heads": 4, "else-odd": 4,
    }  # fmt: skip


def test_rates_go_from_step_to_step(plan: Plan) -> None:
    with pytest.raises(StudyError, match="head-heads has found no rate yet"):
        plan.arguments(plan.steps["tune-plain"])
    finish(plan, "head-heads", head_lr=0.02, head_lr_tuned=True)
    tune = plan.arguments(plan.steps["tune-plain"])
    assert tune[:3] == ["-m", "sweep=tune", "experiment=study/builtin"]
    several = plan.arguments(plan.steps["tune-plain"], cores=3)
    assert several == [*tune[:2], "launch=joblib", "hydra.launcher.n_jobs=3", *tune[2:]]
    assert {"head_lr=0.02", "lr=1e-3,1e-2,1e-1", "seed=7", "adapter.basis=inverse_norm"} <= set(tune)
    assert tune[-1] == f"output_dir='{plan.out}/choosing'"
    for name in ("plain", "control"):
        finish(plan, f"tune-{name}")
    compare = plan.arguments(plan.steps["compare-of-plain-and-1"])
    assert {"sweep=compare", "adapter.basis=inverse_norm,uniform", "seed=0,1", "head_lr=0.02"} <= set(compare)
    (tuned,) = OverridesParser.create().parse_overrides([word for word in compare if word.startswith("tuned=")])
    assert tuned.value() == [f"{plan.out}/sweeps/tune-{name}/tuned.json" for name in ("plain", "control")]
    heads = plan.arguments(plan.steps["compare-of-heads"])
    assert "head_lr=0.02" in heads
    assert not any(word.startswith(("tuned=", "sweep=")) for word in heads)
    other = plan.arguments(plan.steps["other-of-plain"])
    assert "lr=0.003" in other
    assert [word for word in other if word.startswith("head_lr")] == ["head_lr=1,2"]


def test_a_method_without_a_rate_stops_what_needs_it(plan: Plan) -> None:
    finish(plan, "head-heads")
    finish(plan, "tune-rival", status="failed", lr=None)
    with pytest.raises(StudyError, match="tune-rival found no rate: tune-rival is failed"):
        plan.arguments(plan.steps["compare-of-rival"])


def test_what_is_needed_comes_along(plan: Plan) -> None:
    assert [step.name for step in plan.needed(["longer"])] == ["longer-heads", "longer-plain", "longer-of-plain"]
    assert [step.name for step in plan.needed(["grid"])] == ["head-heads", "grid-of-plain"]
    assert [step.name for step in plan.needed(["else"])] == ["else-odd"]


def test_done_until_a_rate_is_looked_for_again(plan: Plan) -> None:
    tune = plan.steps["tune-plain"]
    assert not plan.is_done(tune)
    finish(plan, "head-heads")
    finish(plan, "tune-plain", at=10)
    assert plan.is_done(tune)
    finish(plan, "head-heads", at=100)
    assert not plan.is_done(tune), "the heads' rate may be another"
    wider = {
        **METHODS,
        "plain": Method(adapter="curlora", setting="adapter.basis=inverse_norm", rates=("1", "2", "3", "4")),
    }
    assert not plan_in(plan.out, methods=wider).is_done(plan_in(plan.out, methods=wider).steps["tune-plain"])


def test_runs_that_are_reported_and_runs_that_chose(plan: Plan) -> None:
    finish(plan, "head-heads")
    finish(plan, "compare-of-rival")
    assert [run.name for run in plan.runs(PHASES)] == ["compare-of-rival-0", "compare-of-rival-1"]
    assert [run.name for run in plan.runs(PHASES, tuning=True)] == ["head-heads-0", "head-heads-1"]
    assert plan.runs(["grid"]) == []


def test_the_seed_that_chose_is_not_reported(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="rates are not found with seed 1"):
        plan_in(tmp_path, tuning_seed=1)


# -- steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["plain", "/a/b-c.d", "two words", "it's", "a,b=c[d]{e}", "back\\slash", "ends with \\", "\\'", "ä/ö", ""],
)
def test_quoted_values_are_read_as_they_are(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={steps.quoted(text)}"])
    assert str(override.value()) == text


def test_progress(tmp_path: Path) -> None:
    for number, status in enumerate(["finished", "reused", "failed", "waiting"]):
        overrides = [f"seed={number}"]
        file = jobs.job_file(tmp_path, overrides)
        jobs.write(file, Job(number, overrides, status=status, run=str(tmp_path / f"r{number}")))
    found = steps.progress(tmp_path, 4)
    assert (found.done, found.failed, found.complete) == (2, 1, False)
    assert found.word == "2 done, 1 failed, 1 to do"
    assert [run.name for run in steps.run_folders(tmp_path)] == ["r0", "r1"]
    assert steps.progress(tmp_path / "nothing", 3).word == "3 to do"
    assert steps.progress(tmp_path, 2).word == "done"


class Process:
    """Stands for one of ``train.py``: ends when it has been looked at so many times."""

    made: ClassVar[list["Process"]] = []

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        self.command, self.environment, self.looks, self.code = command, env, 0, len(self.made)
        self.made.append(self)

    def poll(self) -> int | None:
        self.looks += 1
        return self.code if self.looks > 2 else None


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    monkeypatch.setattr(steps.subprocess, "Popen", Process)
    monkeypatch.setattr(Process, "made", [])
    return Process.made


def test_a_multirun_keeps_how_long_it_took(tmp_path: Path, processes: list[Process]) -> None:
    assert steps.ended(tmp_path) is None
    for source in (tmp_path / "source", None):
        work = steps.Work(["-m", "seed=0,1"], folder=tmp_path, source=source)
        assert [work.ended(), work.ended()] == [None, None]
        spell = work.ended()
        assert spell is not None
        assert steps.times(tmp_path)[-1] == spell
    first = processes[0]
    assert first.command[1:] == ["-m", "curlora_lab.cli", "-m", "seed=0,1", f"hydra.sweep.dir={steps.quoted(tmp_path)}"]
    assert first.environment["OMP_NUM_THREADS"] == "1"
    assert first.environment["PYTHONPATH"].split(":")[0] == str(tmp_path / "source" / "src")
    spells = steps.times(tmp_path)
    assert [spell.code for spell in spells] == [0, 1]
    assert steps.ended(tmp_path) == spells[1].started + spells[1].seconds


class Piece:
    """Work that takes so many looks; ``log`` has what began and ended, in order."""

    def __init__(self, name: str, looks: int, log: list[str]) -> None:
        self.name, self.looks, self.log, self.stopped = name, looks, log, False
        log.append(f"+{name}")

    def ended(self) -> steps.Spell | None:
        self.looks -= 1
        if self.looks > 0:
            return None
        self.log.append(f"-{self.name}")
        return steps.Spell(0.0, 1.0, 0)

    def stop(self) -> None:
        self.stopped = True


NEEDS = {"heads": (), "a": ("heads",), "b": ("heads",), "c": ("heads",), "ab": ("a", "b"), "last": ("c",)}
SIZES = {"heads": 3, "a": 3, "b": 3, "c": 3, "ab": 9, "last": 1}


def work_through(
    cores: int, monkeypatch: pytest.MonkeyPatch, nothing: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, int]]:
    """What began and ended, in order, and on how many cores each piece began."""
    monkeypatch.setattr(steps, "LOOK", 0.0)
    log: list[str] = []
    shares: dict[str, int] = {}

    def begin(name: str, share: int) -> Any:
        shares[name] = share
        return None if name in nothing else Piece(name, SIZES[name], log)

    ended = [name for name, _ in steps.side_by_side(NEEDS, begin, cores=cores, sizes=SIZES)]
    assert sorted(ended) == sorted(NEEDS)
    return log, shares


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
def test_pieces_wait_for_what_they_need_and_for_a_core(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log, shares = work_through(cores, monkeypatch)
    for name, needs in NEEDS.items():
        assert all(log.index(f"-{need}") < log.index(f"+{name}") for need in needs)
    running: set[str] = set()
    for event in log:
        (running.add if event[0] == "+" else running.remove)(event[1:])
        assert sum(shares[name] for name in running) <= cores
    assert shares["heads"] == cores, "nobody else can use them"


def test_the_longest_chain_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    log, shares = work_through(2, monkeypatch)
    began = [event[1:] for event in log if event[0] == "+"]
    assert began == ["heads", "a", "b", "ab", "c", "last"]
    assert shares == {"heads": 2, **dict.fromkeys(("a", "b", "ab", "c", "last"), 1)}


def test_what_was_done_before_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    log, _ = work_through(2, monkeypatch, nothing=("heads", "a", "b"))
    assert [event for event in log if event[0] == "+"] == ["+ab", "+c", "+last"]


def test_when_one_goes_wrong_the_others_are_stopped() -> None:
    made: list[Piece] = []

    def begin(name: str, _: int) -> Any:
        made.append(Piece(name, 1 if name == "a" else 10**9, []))
        return made[-1]

    with closing(steps.side_by_side({"a": (), "b": ()}, begin, cores=2, sizes={"a": 1, "b": 1})) as ended:
        assert next(ended)[0] == "a"
    assert [piece.stopped for piece in made] == [False, True]


def test_what_was_side_by_side_is_counted_once() -> None:
    spells = [steps.Spell(at, seconds, 0) for at, seconds in ((100.0, 10.0), (0.0, 10.0), (5.0, 10.0), (6.0, 2.0))]
    assert steps.on_the_clock(spells) == 15.0 + 10.0
    assert steps.on_the_clock([]) == 0.0
