import copy
import importlib.util
import json
from pathlib import Path

import pytest

from curlora_lab.report.compare import compare, find_runs, write_comparison
from curlora_lab.report.record import RecordError


@pytest.fixture
def runs(record, tmp_path: Path) -> list[Path]:
    """Three finished runs: CURLoRA, LoRA with another seed, and a broken one."""
    other = copy.deepcopy(record)
    other["name"] = "stories3m-lora|x"
    other["config"]["seed"] = 1
    other["config"]["adapter"] = {"name": "lora"}
    other["parameters"]["adapter"] = 1_474_560
    other["probes"]["perplexity"] = {"tinystories": [4.7035, 20.0, 90.0, 267.0]}
    for name, text in (("a", json.dumps(record)), ("b", json.dumps(other)), ("c", "{}")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "results.json").write_text(text)
    return [tmp_path / "runs" / name for name in "abc"]


def test_one_row_a_run_and_broken_ones_named(runs) -> None:
    comparison = compare(runs)
    assert comparison.columns[:5] == ["run", "seeds", "average", "learning", "forgetting"]
    assert comparison.columns[5] == "log perplexity ratio, tinystories"
    assert [row[5] for row in comparison.rows] == ["+0.653", "+4.039"]
    assert comparison.rows[1][6] == "1,474,560"
    assert comparison.notes[0].startswith("left out: ")
    assert "stories3m-lora\\|x" in comparison.markdown
    assert comparison.markdown.count("\n| ") == 3
    assert 'role="img"' in comparison.html


def test_seeds_of_one_configuration_are_one_row_with_an_interval(record, tmp_path: Path) -> None:
    for seed, average in enumerate((0.70, 0.72, 0.77)):
        twin = copy.deepcopy(record)
        twin["name"] = f"tiny-curlora-r16-a1-lr0.005-s{seed}-0123abc{seed}"
        twin["config"]["seed"] = seed
        twin["continual"]["average"] = average
        twin["continual"]["forgetting"] = None if seed == 1 else 0.1
        twin["reasons"]["continual.forgetting"] = "one stage"
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "results.json").write_text(json.dumps(twin))
    (row,) = compare([tmp_path / str(seed) for seed in range(3)]).rows
    assert row[:2] == ["tiny-curlora-r16-a1-lr0.005", "3"]
    # By hand: mean 0.73, s = 0.036056, t(0.975, 2) = 4.302653, half = 4.302653 * 0.036056 / sqrt(3) = 0.0896.
    assert row[2] == "0.730 ± 0.090"
    assert row[4] == "–", "a mean over the seeds that have a value would flatter"


def test_unfair_comparisons_are_noted(runs, record) -> None:
    record["tasks"] = ["x"]
    assert compare(runs[:2]).notes == []
    assert compare([runs[0], runs[0]]).notes == ["one seed only: differences between runs may be chance"]
    for change in (
        lambda r: r["provenance"].update(package_version="0.2.0"),
        lambda r: r["baselines"]["mrpc"].update(rows=10),
        lambda r: r["provenance"]["model"].update(fingerprint="other"),
    ):
        other = json.loads((runs[1] / "results.json").read_text())
        change(other)
        (runs[2] / "results.json").write_text(json.dumps(other))
        assert any(note.startswith("the runs differ in ") for note in compare([runs[0], runs[2]]).notes)


def test_names_are_escaped(runs) -> None:
    record = json.loads((runs[0] / "results.json").read_text())
    record["name"] = "<script>alert(1)</script>"
    (runs[0] / "results.json").write_text(json.dumps(record))
    assert "<script>alert" not in compare(runs).html


def test_nothing_readable_is_an_error(runs) -> None:
    with pytest.raises(RecordError, match="none of the runs can be compared"):
        compare(runs[2:])


def test_runs_are_found_below_a_folder_once(runs, tmp_path: Path) -> None:
    assert find_runs([tmp_path / "runs", runs[0]]) == runs
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match=r"holds no results.json"):
        find_runs([tmp_path / "empty"])


def test_files_are_written(runs, tmp_path: Path) -> None:
    page, table = write_comparison(runs[:2], tmp_path / "out")
    assert page.name == "comparison.html"
    assert table.read_text().startswith("| run | seeds | average |")


def test_script_writes_pages_and_comparison(runs, capsys) -> None:
    path = Path(__file__).parents[3] / "scripts" / "report.py"
    spec = importlib.util.spec_from_file_location("scripts_report", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main([str(runs[0].parent)]) == 1  # one record is broken
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        str(runs[0] / "report.html"),
        str(runs[1] / "report.html"),
        str(runs[0].parent / "comparison.html"),
        str(runs[0].parent / "comparison.md"),
    ]
    assert "does not hold what a record must" in captured.err
    assert script.main([str(runs[0])]) == 0
    assert script.main([str(runs[0] / "nowhere")]) == 1
