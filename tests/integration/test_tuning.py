"""Tuning by choosing rows: what is reported is never read, and what was found is what a comparison uses."""

import json
import logging
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from curlora_lab import cli, config, sweeps
from curlora_lab.data.faults import DataError
from curlora_lab.report import compare, read_record, wording
from curlora_lab.run import run
from curlora_lab.tasks import TaskModule

ROOT = Path(__file__).parents[2]
TINY = (
    "task=builtin_sentiment2",
    "rank=2",
    "train_rows=32",
    "eval_rows=24",
    "epochs=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "gradient_batches=0",
    "probe=none",
)


def compose_run(*overrides: str) -> dict[str, Any]:
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return cli.settle(compose("train", overrides=list(overrides)), overrides=overrides)


def local_data(folder: Path, *, test: str) -> Path:
    """A data set in files, with a test split of any content."""
    (folder / "sst2").mkdir(parents=True)
    words = ("good", "fine", "great", "bad", "poor", "awful")
    rows = [
        {"sentence": f"a {word} film number {n}", "label": int(n % 6 < 3)} for n in range(60) for word in [words[n % 6]]
    ]
    (folder / "sst2" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sst2" / "validation.jsonl").write_text(test)
    return folder


LOCAL = (*(text for text in TINY if not text.startswith("task=")), "task=sst2", "task.data.choose_fraction=0.5")


def choosing_run(folder: Path, *, test: str) -> Path:
    data = local_data(folder / "data", test=test)
    run(compose_run(*LOCAL, "evaluate_on=choose", f"data_dir={data}", f"output_dir={folder / 'runs'}"))
    (found,) = folder.glob("runs/*/*/results.json")
    return found.parent


def test_what_is_reported_changes_nothing_in_a_choosing_run(tmp_path: Path) -> None:
    right = "".join(json.dumps({"sentence": f"a good one {n}", "label": n % 2}) + "\n" for n in range(20))
    one = choosing_run(tmp_path / "one", test=right)
    two = choosing_run(tmp_path / "two", test="this is { no data at all")
    assert one.name == two.name, "the name holds the hash of all that determines the numbers"
    for path in sorted(one.glob("stage_*/predictions/*")):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    first, second = read_record(one), read_record(two)
    assert first["scores"] == second["scores"]
    held = first["provenance"]["data"]["sst2"]
    assert held["fingerprint"] == second["provenance"]["data"]["sst2"]["fingerprint"]
    assert set(held["rows"]) == {"train", "choose"}
    assert first["baselines"]["sst2"]["rows"] == held["rows"]["choose"]


def test_code_that_reads_the_reported_rows_of_a_choosing_run_is_caught(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(TaskModule, "test_dataloader", lambda self: self._loader("test", batch_size=8, shuffle=False))
    with pytest.raises(ValueError, match=r"no rows for 'test'"):
        choosing_run(tmp_path / "late", test="")
    monkeypatch.undo()
    monkeypatch.setattr("curlora_lab.data.preparation.Selection.__post_init__", _forget_what_is_evaluated)
    with pytest.raises((DataError, config.ConfigError), match=r"validation"):
        choosing_run(tmp_path / "early", test="this is { no data at all")


def _forget_what_is_evaluated(selection: Any) -> None:
    object.__setattr__(selection, "evaluate_on", "test")


def test_a_choosing_run_says_so_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    where = [f"output_dir={tmp_path}", "display=plain"]
    run(compose_run(*TINY, *where, "evaluate_on=choose"))
    assert wording.CHOOSING_ROWS in " ".join(capsys.readouterr().out.split())
    (folder,) = (path.parent for path in tmp_path.glob("*/*/results.json"))
    record = read_record(folder)
    assert record["warnings"][0]["message"] == wording.CHOOSING_ROWS
    assert wording.CHOOSING_ROWS in (folder / "report.html").read_text()
    assert wording.CHOOSING_ROWS in compare([folder]).notes
    run(compose_run(*TINY, *where))
    both = compare([path.parent for path in tmp_path.glob("*/*/results.json")])
    assert any("never hold one against the other" in note for note in both.notes)
    assert len(both.rows) == 2


# -- sweeps ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Give a command to ``train.py`` in this process, below the test's folder; returns its exit code or message."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def start(*arguments: str, output: str = "runs") -> Any:
        monkeypatch.setattr(sys, "argv", ["train.py", *TINY, *arguments, f"output_dir={tmp_path / output}"])
        try:
            cli.main()
        except SystemExit as error:
            return error.code
        return 0

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)


def test_what_a_tuning_sweep_finds_is_what_a_comparison_uses(
    train: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("-m", "sweep=tune", "adapter=curlora,lora", "lr=1e-3,3e-2", "tune_tolerance=0.02") == 0
    output = capsys.readouterr().out
    assert "Learning rates from" in output
    (path,) = tmp_path.glob("runs/.multirun/*/tuned.json")
    assert f"Kept in {path}" in output
    found = json.loads(path.read_text())
    assert (found["tolerance"], [method["name"] for method in found["methods"]]) == (0.02, ["curlora", "lora"])
    curlora = found["methods"][0]
    assert (curlora["status"], curlora["edge"], len(curlora["trials"])) == ("tuned", True, 2)
    (taken,) = (one for one in curlora["trials"] if one["taken"])
    record = read_record(next(tmp_path.glob(f"runs/*/{taken['runs'][0]}")))
    assert taken["score"] == pytest.approx(record["scores"][1][0])

    script = runpy.run_path(str(ROOT / "scripts" / "choose_learning_rate.py"))["main"]
    assert script([str(tmp_path / "runs"), "--tolerance", "0.02", "--out", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["methods"] == found["methods"], "the same rule by hand"
    assert "taken (edge)" in capsys.readouterr().out

    compared = ("-m", "sweep=compare", f"tuned={tmp_path / 'runs'}", "adapter=curlora", "seed=1")
    assert train(*compared, output="compared") == 0
    (one,) = (path.parent for path in tmp_path.glob("compared/*/*/results.json"))
    assert train("adapter=curlora", f"lr={curlora['lr']}", "seed=1", output="by_hand") == 0
    (other,) = (path.parent for path in tmp_path.glob("by_hand/*/*/results.json"))
    assert one.name == other.name
    for file in sorted(one.glob("stage_*/predictions/*")):
        assert file.read_bytes() == (other / file.relative_to(one)).read_bytes()
    left, right = read_record(one), read_record(other)
    apart = {"cost", "provenance", "overrides", "config", "warnings"}
    assert {key: left[key] for key in left if key not in apart} == {
        key: right[key] for key in right if key not in apart
    }
    differing = {key for key in left["config"] if left["config"][key] != right["config"][key]}
    assert differing == {"tuned", "output_dir"}
    assert yaml.safe_load((one / "config.yaml").read_text())["lr"] == curlora["lr"]
    assert left["provenance"]["tuned"]["edge"] is True
    assert left["provenance"]["tuned"]["same_source"] is True
    said_of_rates = "untuned_learning_rate"
    assert [one for one in right["warnings"] if one["code"] != said_of_rates] == left["warnings"]
    (finding,) = (one["message"] for one in right["warnings"] if one["code"] == said_of_rates)
    assert f"lr={curlora['lr']:g} was given by hand" in finding
    assert said_of_rates not in {warning["code"] for warning in record["warnings"]}, (
        "a run that searches is not scolded"
    )

    capsys.readouterr()
    assert train(*compared, "rank=3", output="compared") == 1
    assert "rank: 2 there, 3 here" in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_tuning_sweep_again_does_what_is_missing(train: Callable[..., Any], tmp_path: Path) -> None:
    sweep = ("-m", "sweep=tune", "adapter=lora,curlora", "lr=1e-3,3e-2")
    assert train(*sweep) == 0
    (path,) = tmp_path.glob("runs/.multirun/*/tuned.json")
    found = path.read_bytes()
    (one, *_) = tmp_path.glob("runs/*/*/RUN_MANIFEST.json")
    one.unlink()
    path.unlink()
    assert train(*sweep) == 0
    statuses = sorted(job["status"] for job in json.loads((path.parent / "sweep.json").read_text())["jobs"])
    assert statuses == ["finished", "reused", "reused", "reused"]
    assert path.read_bytes() == found
    assert train("-m", "sweep=compare", f"tuned={path}", "adapter=lora", "seed=1", "lr=1") == 1


def test_what_a_sweep_cannot_be_is_refused_before_its_first_job(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(cli, "_run", lambda cfg, entered: ran.append(cfg))
    assert "sweep=compare needs" in train("-m", "sweep=compare", "adapter=lora")
    assert "leave out evaluate_on=test" in train("-m", "sweep=tune", "evaluate_on=test")
    assert not ran


def test_a_search_is_for_one_method(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    sweeps.check_plugins(["sweep=tune_optuna"])
    monkeypatch.setattr(cli, "_run", lambda cfg, entered: pytest.fail("nothing may run"))
    message = train("-m", "sweep=tune_optuna", "adapter=curlora,lora")
    assert "give adapter one value" in message


@pytest.mark.slow
def test_a_search_finds_a_rate_and_goes_on(train: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = ("-m", "sweep=tune_optuna", "adapter=lora")
    for trials in (2, 3):
        assert train(*search, f"hydra.sweeper.n_trials={trials}") == 0
        (path,) = tmp_path.glob("runs/.multirun/*/tuned.json")
        (found,) = json.loads(path.read_text())["methods"]
        assert len(found["trials"]) == trials
        assert found["status"] == "tuned"
    assert train(f"tuned={path}", "adapter=lora", output="compared") == 0
    (record,) = (read_record(path) for path in tmp_path.glob("compared/*/*/results.json"))
    assert record["config"]["lr"] == found["lr"]
