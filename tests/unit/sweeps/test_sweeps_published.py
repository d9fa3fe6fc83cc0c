"""A study in a folder for a repository, and the copy of the code that makes it."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.report.conftest import _record

from curlora_lab.continual.identity import source_hash
from curlora_lab.integrity import sealed_record
from curlora_lab.report.archive import ArchiveError, read_archive
from curlora_lab.report.record import read_record
from curlora_lab.sweeps import jobs, snapshot
from curlora_lab.sweeps.jobs import Job
from curlora_lab.sweeps.plan import Method, Phase, Plan, StudyError
from curlora_lab.sweeps.published import LARGEST_PAGE, publish

METHODS = {
    "heads": Method(adapter="none", rates=("1e-2", "1e-1")),
    "rival": Method(adapter="lora", rates=("1e-3", "1e-2")),
}
PHASES = {
    "head": Phase(about="heads", tunes=("heads",)),
    "tune": Phase(about="rates", tunes=("rival",)),
    "compare": Phase(about="all", compares=("rival",), rates_of="tune"),
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A study that is done, as far as publishing reads it."""
    out = tmp_path / "study"
    settings = {name: ["experiment=study/builtin"] for name in PHASES}
    made = Plan(out, methods=METHODS, phases=PHASES, seeds="0,1", tuning_seed=9, settings=settings)
    for step in made.steps.values():
        for number, overrides in enumerate(made.planned(step)):
            run = out / "runs" / f"{step.name}-{number}"
            run.mkdir(parents=True)
            record: dict[str, Any] = copy.deepcopy(_record())
            record["name"] = run.name
            record["config"]["output_dir"] = str(out / "runs")
            record["provenance"]["model"]["path"] = "builtin"
            (run / "results.json").write_text(json.dumps(sealed_record(record)))
            file = jobs.job_file(made.folder(step), overrides)
            jobs.write(file, Job(number, overrides, status="finished", run=str(run)))
        spells = {
            "spells": [{"started": 1.0, "seconds": 61.0, "code": 0}, {"started": 90.0, "seconds": 30.0, "code": 0}]
        }
        (made.folder(step) / "times.json").write_text(json.dumps(spells))
        if step.sweep == "tune":
            said = {"command": [f"output_dir={out}"], "methods": [{"name": step.name, "runs": ["a"]}]}
            (made.folder(step) / "tuned.json").write_text(json.dumps(said))
    page = out / "pages" / "compare"
    page.mkdir(parents=True)
    (page / "aggregate.md").write_text(f"from {out}/runs\n")
    (page / "estimates.csv").write_text("method,mean\n")
    (page / "front.svg").write_text("<svg></svg>")
    (page / "front.png").write_bytes(b"large")
    (page / "aggregate.html").write_text(" " * (LARGEST_PAGE + 1))
    return made


def call(plan: Plan, folder: Path) -> list[Path]:
    return publish(
        plan, folder, places={str(plan.out): "<study>"}, command="python scripts/study_small.py --out <study>"
    )


def test_what_is_published(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "compare").mkdir(parents=True)
    (folder / "compare" / "of_before.md").write_text("old")
    (folder / "reading.md").write_text("by hand")
    paths = {str(path.relative_to(folder)) for path in call(plan, folder)}
    pages = {"compare/aggregate.md", "compare/estimates.csv", "compare/front.svg"}
    assert paths == {*pages, "runs.jsonl.gz", "choosing.jsonl.gz", "tuned.json", "command.txt"}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {*paths, "reading.md"}
    assert (folder / "compare" / "aggregate.md").read_text() == "from <study>/runs\n"
    names = [entry["record"]["name"] for entry in read_archive(folder / "runs.jsonl.gz")]
    assert names == ["compare-of-rival-0", "compare-of-rival-1"]
    assert len(list(read_archive(folder / "choosing.jsonl.gz"))) == 4
    tuned = json.loads((folder / "tuned.json").read_text())
    assert set(tuned) == {"head-heads", "tune-rival"}
    assert "command" not in tuned["head-heads"]
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            text = gzip.decompress(content) if path.suffix == ".gz" else content
            assert str(tmp_path).encode() not in text, path


def test_the_account_says_how_it_was_made(plan: Plan, tmp_path: Path) -> None:
    call(plan, tmp_path / "docs")
    text = (tmp_path / "docs" / "command.txt").read_text()
    assert text.startswith("python scripts/study_small.py --out <study>\n")
    assert "2 reported, 4 to choose rates" in text
    assert "91  compare-of-rival (done)" in text
    assert "  together, what was side by side counted once" in text
    assert "source 9f2c" in text


def test_twice_gives_the_same(plan: Plan, tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in call(plan, tmp_path / "docs")}
    assert {path.name: path.read_bytes() for path in call(plan, tmp_path / "docs")} == first


def test_runs_that_chose_count_too(plan: Plan, tmp_path: Path) -> None:
    run = plan.runs(["tune"], tuning=True)[0]
    record = read_record(run)
    record["provenance"]["source_hash"] = "0" * 64
    (run / "results.json").write_text(json.dumps(sealed_record(record)))
    with pytest.raises(ArchiveError, match="2 different sources"):
        call(plan, tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_nothing_to_publish(tmp_path: Path) -> None:
    settings = {name: ["experiment=study/builtin"] for name in PHASES}
    made = Plan(tmp_path / "s", methods=METHODS, phases=PHASES, seeds="0", tuning_seed=9, settings=settings)
    with pytest.raises(StudyError, match="no finished run"):
        call(made, tmp_path / "docs")


def test_a_copy_of_the_code_is_taken_once(tmp_path: Path) -> None:
    folder = snapshot.take(tmp_path / "source")
    assert (folder / "src" / "curlora_lab" / "cli.py").is_file()
    assert (folder / "conf" / "train.yaml").is_file()
    assert not list(folder.rglob("__pycache__"))
    about = json.loads((folder / "snapshot.json").read_text())
    assert about["source_hash"] == source_hash()
    (folder / "conf" / "train.yaml").write_text("changed")
    assert snapshot.take(folder) == folder
    assert (folder / "conf" / "train.yaml").read_text() == "changed", "what is there stays"
