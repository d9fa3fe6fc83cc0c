"""Short versions of the fault harness: a few faults of each kind. ``make faults`` tries thousands."""

import random
from pathlib import Path

import pytest
from tests.faults import cases, crowd, damage, hostile, inputs, kills, overrides, rows, services, space, specimens
from tests.faults.kills import Plan
from tests.faults.tally import Tally

from curlora_lab import config

#: Hostile folders that stand for their kinds.
HOSTILE = (
    "config/sequence/tasks/paraphrase/data/source/generator",
    "record is a pipe",
    "weights as adapter_model.bin",
    "a module to import",
    "predictions unpack to 8 GB",
)


def silent(*_: object) -> None:
    """Say nothing."""


@pytest.mark.parametrize("when", ["step", "rename", 0.6], ids=str)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(made: Plan, tmp_path: Path, when: str | float) -> None:
    chance = random.Random(str(when))
    moment: kills.When = (when, chance.randint(1, made.moments[when])) if isinstance(when, str) else when * made.seconds
    killed, wrong = kills.strike(made, [moment], tmp_path / "struck")
    assert wrong is None
    assert killed or not isinstance(when, str)


def test_every_strategy_and_every_adapter_is_killed() -> None:
    chosen = {override for case in cases.CASES for override in case.overrides}
    for group, alike in {
        "strategy": {"none", "anchor_file", "anchor_tinystories", "anchor_wikitext2"},
        "adapter": set(),
    }.items():
        options = {path.stem for path in (config.conf_dir() / group).glob("*.yaml")} - alike  # anchor on other texts
        assert {f"{group}={option}" for option in options} <= chosen
    assert cases.available() == list(cases.CASES)


@pytest.mark.slow
def test_a_run_killed_while_it_takes_over_another_runs_stages(tmp_path: Path) -> None:
    (case,) = (case for case in cases.CASES if case.earlier is not None)
    made = kills.plan(case, tmp_path)
    chance = random.Random(0)
    for _ in range(6):  # what it takes over is done within its first renames and removals
        moment = (chance.choice(("rename", "remove", "open")), chance.randint(1, 12))
        killed, wrong = kills.strike(made, [moment], tmp_path / "struck")
        assert wrong is None
        assert killed


def test_damaged_files_are_never_taken_for_whole(made: Plan, tmp_path: Path) -> None:
    tally = Tally("damage", damage.LAW)
    damage.damaged(tally, specimens.specimen(made, tmp_path), seed=0, cuts=2, flips=6, say=silent)
    tally.check(least=100)


def test_a_run_is_not_continued_with_other_rows(tmp_path: Path) -> None:
    inputs.changed(Tally("inputs", inputs.LAW), tmp_path, names=("a label of a training row",)).check(least=1)


@pytest.mark.slow
def test_a_run_is_not_continued_with_other_inputs(tmp_path: Path) -> None:
    inputs.changed(Tally("inputs", inputs.LAW), tmp_path).check(least=5)


def test_a_full_disk_leaves_what_was_there(made: Plan, tmp_path: Path) -> None:
    tally = Tally("disk full", space.LAW)
    space.disk_full(tally, tmp_path, made=made, seed=0, count=1, say=silent)
    space.export_full(tally, tmp_path, made=made, seed=0, count=1, say=silent)
    tally.check(least=2)


def test_one_works_and_the_others_are_told_who(made: Plan, tmp_path: Path) -> None:
    tally = Tally("concurrency", crowd.LAW)
    crowd.same_run(tally, tmp_path, made=made, processes=4)
    crowd.one_cache(tally, tmp_path, processes=4, rounds=1)
    tally.check(least=8)


def test_hostile_folders_do_nothing(workplace: Path) -> None:
    chosen = [case for case in hostile.CORPUS if case.name in HOSTILE]
    assert len(chosen) == len(HOSTILE)
    tally = Tally("hostile", hostile.LAW)
    hostile.hostile(tally, workplace, chosen=chosen, readers=("evaluate",), say=silent)
    tally.check(least=len(HOSTILE))
    assert tally.ends.total() == len(HOSTILE)


def test_there_are_at_least_fifty_hostile_folders() -> None:
    assert len({(case.kind, case.name) for case in [*hostile.CORPUS, *hostile.MODELS]}) >= 150


def test_bad_data_files_are_read_right_or_refused_with_the_row(tmp_path: Path) -> None:
    rows.bad_files(Tally("data files", rows.LAW), tmp_path).check(least=60)


def test_mutated_overrides_are_refused_with_their_key(tmp_path: Path) -> None:
    tally = Tally("overrides", overrides.LAW)
    overrides.mutated(tally, tmp_path / "empty", seed=1, count=5).check(least=5)


@pytest.mark.parametrize("what", ["model", "cached model"])
def test_a_hub_that_is_not_there_costs_seconds(what: str, tmp_path: Path) -> None:
    tally = Tally("services", services.LAW)
    services.hub_down(tally, tmp_path, servers=("nobody listens",), kinds=(what,), say=silent).check(least=1)


@pytest.mark.slow  # a connection that is never answered takes its time
def test_a_hub_that_never_answers_costs_seconds(tmp_path: Path) -> None:
    services.hub_down(Tally("services", services.LAW), tmp_path, servers=("nobody answers",), say=silent).check(least=3)


@pytest.mark.slow
def test_different_runs_and_a_killed_multirun(tmp_path: Path) -> None:
    tally = Tally("concurrency", crowd.LAW)
    (tmp_path / "different").mkdir()
    crowd.different_runs(tally, tmp_path / "different", processes=4)
    crowd.killed_multirun(tally, tmp_path / "multirun", jobs=3)
    tally.check(least=7)
