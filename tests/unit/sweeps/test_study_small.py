"""The small study: every multirun that it plans composes and is valid; what its command line refuses."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import DictConfig

from curlora_lab import config
from curlora_lab.backbone import BUILTIN_FOLDER
from curlora_lab.sweeps.plan import Plan, StudyError
from curlora_lab.sweeps.steps import Spell

ROOT = Path(__file__).parents[3]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_study_small", ROOT / "scripts" / "study_small.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


study = script()


def planned(folder: Path, *words: str) -> Plan:
    return study.make_plan(study.parser().parse_args(["--out", str(folder), *words]))


def jobs_of(plan: Plan) -> dict[str, list[str]]:
    """The first job of every multirun, as a run of its own."""
    choosing = {"tune": ["evaluate_on=choose"]}
    return {name: [*plan.planned(step)[0], *choosing.get(step.sweep or "", [])] for name, step in plan.steps.items()}


BUILTIN = jobs_of(planned(Path("nowhere"), "--size", "extended"))
#: One multirun of each phase that tunes and one that compares; the others differ in a word.
SOME = {name.partition("-of-")[0] if "-of-" in name else name.partition("-")[0]: name for name in reversed(BUILTIN)}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SOME.values() else pytest.mark.slow) for n in BUILTIN]
)
def test_every_multirun_is_valid_on_the_built_in_model(name: str, compose: Callable[..., DictConfig]) -> None:
    plain = config.validate(compose(*BUILTIN[name]))
    rank = 1 if "rank=1" in BUILTIN[name] else 16
    assert (plain["train_rows"], plain["max_length"], plain["rank"]) == (1000, 96, rank)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The study on a model and data in folders."""
    data = tmp_path_factory.mktemp("data")
    for task in ("sst2", "agnews", "sentiment140", "tinystories", "mrpc", "wikitext2"):
        (data / task).mkdir()
        for split in ("train", "validation", "test"):
            (data / task / f"{split}.jsonl").touch()
    return planned(data / "out", "--size", "extended", "--model-path", str(BUILTIN_FOLDER), "--data-dir", str(data))


QUICKLY = ("pairs", "sentiment140")


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=() if f in QUICKLY else pytest.mark.slow) for f in study.MENDED if f != "published"]
)
def test_the_published_protocol_without_one_fault_is_valid(
    fault: str, local: Plan, compose: Callable[..., DictConfig]
) -> None:
    found = jobs_of(local)
    published = config.validate(compose(*found["paper-published"]))
    assert config.validate(compose(*found[f"paper-{fault}"])) != published


def test_the_local_study_is_valid(local: Plan, compose: Callable[..., DictConfig]) -> None:
    found = jobs_of(local)
    for name in ("head-head_only", "scenarios-of-lora_1-and-1"):
        plain = config.validate(compose(*found[name]))
        assert list(config.tasks_of(plain)) == ["sst2", "agnews", "sentiment140"]
        assert set(plain["probe"]["probes"]) == {"tinystories", "builtin"}
        assert all(task["data"]["choose_fraction"] == 0.5 for task in plain["sequence"]["tasks"].values())
    anchored = config.validate(compose(*found["anchor-of-lora_16"]))
    assert anchored["strategy"]["text"]["source"]["name"] == "tinystories"


def test_core_is_what_was_promised(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    counted = {step.name: len(plan.planned(step)) for step in plan.steps.values()}
    assert sum(counted.values()) == 48
    assert sum(number for name, number in counted.items() if name.startswith("compare")) == 6 * 5
    assert len(planned(tmp_path, "--size", "quick").steps) == 6


def test_a_study_stays_what_it_was(tmp_path: Path) -> None:
    study.write_json(tmp_path / study.SAVED, {"model_path": None, "data_dir": None, "seeds": "0,1,2", "quick": False})
    assert planned(tmp_path).seeds == "0,1,2"
    for words in (["--seeds", "0,1"], ["--size", "quick"], ["--model-path", "m", "--data-dir", "d"]):
        with pytest.raises(StudyError, match="holds a study with another setting"):
            planned(tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model-path", "m"], "belong together"),
        (["--only", "basis"], "choose from head, tune, compare"),
        (["--only", "paper", "--size", "extended"], "choose from head"),
        (["--seeds", "99,100"], "not found with seed 100"),
        (["--publish", "docs"], "no finished run"),
    ],
)
def test_what_cannot_be_is_said(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main(["--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_list_shows_what_is_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["--out", str(tmp_path), "--list", "--only", "tune"]) == 0
    said = capsys.readouterr().out
    assert "18 runs in 6 multiruns, 0 done" in said
    assert "head: the learning rate of the heads, one for all methods" in said
    assert not list(tmp_path.iterdir())


def test_what_fails_is_said_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []

    class Fails:
        def __init__(self, arguments: list[str], *, folder: Path, source: Path) -> None:
            started.append(folder.name)

        def ended(self) -> Spell:
            return Spell(0.0, 1.0, 1)

    monkeypatch.setattr(study.steps, "Work", Fails)
    monkeypatch.setattr(study.snapshot, "take", lambda folder: folder)
    assert study.main(["--out", str(tmp_path)]) == 1
    assert started == ["head-head_only"], "all others need its rate"
    assert "tune-lora_1: left out. head-head_only has found no rate yet" in capsys.readouterr().err
