"""Records in one file: whole or refused, and without anything that names the machine."""

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curlora_lab.integrity import sealed_record
from curlora_lab.report import RecordError, compare, read_record
from curlora_lab.report.archive import ArchiveError, read_archive, unpack_archive, without_places, write_archive

Put = Callable[..., Path]
PLACES = {"/home/me": "<home>", "/home/me/data": "<data>", "/home/me/models/stories3m": "<model>"}


@pytest.fixture
def put(tmp_path: Path, record: dict[str, Any]) -> Put:
    """Write a run folder; what is given is changed in its record."""

    def make(name: str, **changes: Any) -> Path:
        made = copy.deepcopy(record) | {"name": name} | changes
        made["config"] |= {"data_dir": "/home/me/data", "output_dir": "/home/me/runs"}
        made["overrides"] = ["data_dir=/home/me/data", "tuned=['/home/me/runs/a b/tuned.json']"]
        made["provenance"]["model"]["path"] = "/home/me/models/stories3m"
        folder = tmp_path / "runs" / name
        (folder / "stage_01").mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(sealed_record(made)))
        found = {"gradient_energy": {"model.layers.0": {"captured": 0.123456789, "rank": 16}}}
        (folder / "stage_01" / "diagnostics.json").write_text(json.dumps(found))
        return folder

    return make


def test_what_is_kept_is_read_again(put: Put, tmp_path: Path) -> None:
    runs = [put("one"), put("two")]
    path = tmp_path / "kept" / "runs.jsonl.gz"
    write_archive(runs, path, places=PLACES)
    first, second = read_archive(path)
    assert [first["record"]["name"], second["record"]["name"]] == ["one", "two"]
    assert first["diagnostics"] == {"1": {"gradient_energy": {"model.layers.0": {"captured": 0.123457, "rank": 16}}}}
    original = read_record(runs[0])
    assert first["original_seal"] == original["provenance"]["seal"] != first["record"]["provenance"]["seal"]
    for key in ("scores", "metrics", "continual", "probes", "shift", "cost", "parameters"):
        assert first["record"][key] == original[key], "numbers are kept as they are"
    again = tmp_path / "again.jsonl.gz"
    write_archive(runs, again, places=PLACES)
    assert again.read_bytes() == path.read_bytes()


def test_nothing_names_the_machine(put: Put, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl.gz"
    write_archive([put("one")], path, places=PLACES)
    text = gzip.decompress(path.read_bytes()).decode()
    assert "/home" not in text
    assert "workstation" not in text
    (entry,) = read_archive(path)
    assert entry["record"]["config"]["data_dir"] == "<data>"
    assert entry["record"]["config"]["output_dir"] == "<home>/runs"
    assert entry["record"]["provenance"]["model"]["path"] == "<model>"


def test_a_place_that_nobody_named_is_refused(put: Put, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="'/home/me/data' is a place on this machine"):
        write_archive([put("one")], tmp_path / "runs.jsonl.gz", places={})
    assert not (tmp_path / "runs.jsonl.gz").exists()


@pytest.mark.parametrize(
    "text",
    [
        "nats/token",
        "a / b",
        "https://example.org/a/b",
        "../shared/models/x",
        "eval/sst2/accuracy",
        "1/2",
        "<data>/x/y",
        "/",
        "</g></svg>",
    ],
)
def test_what_only_looks_like_a_place_is_left(text: str) -> None:
    assert without_places(text, {"/home/me": "<home>"}) == text


def test_the_longest_folder_counts_and_a_longer_name_is_another_folder() -> None:
    found = without_places(["/home/me/data/x.csv", "/home/me/x"], PLACES)
    assert found == ["<data>/x.csv", "<home>/x"]
    with pytest.raises(ArchiveError, match="/home/meagher/x"):
        without_places("see /home/meagher/x", PLACES)


def test_runs_of_different_code_are_not_kept_together(put: Put, tmp_path: Path, record: dict[str, Any]) -> None:
    other = {**record["provenance"], "source_hash": "abcd" * 16}
    runs = [put("one"), put("two", provenance=other)]
    with pytest.raises(ArchiveError, match=r"2 different sources.*9f2c9f2c \(one\).*abcdabcd \(two\)"):
        write_archive(runs, tmp_path / "runs.jsonl.gz", places=PLACES)


def test_only_finished_and_whole_runs(put: Put, tmp_path: Path, running: dict[str, Any]) -> None:
    with pytest.raises(ArchiveError, match="is running; only finished runs"):
        write_archive(
            [put("one", **{key: running[key] for key in running if key != "name"})],
            tmp_path / "runs.jsonl.gz",
            places=PLACES,
        )
    edited = put("two")
    file = edited / "results.json"
    file.write_text(file.read_text().replace("0.701", "0.901", 1))
    with pytest.raises(RecordError, match="damaged or edited"):
        write_archive([edited], tmp_path / "runs.jsonl.gz", places=PLACES)


def test_a_changed_archive_is_refused(put: Put, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl.gz"
    write_archive([put("one")], path, places=PLACES)
    text = gzip.decompress(path.read_bytes()).decode().replace("0.123457", "0.923457")
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(ArchiveError, match="line 1 is not what was written"):
        list(read_archive(path))
    path.write_bytes(b"no gzip")
    with pytest.raises(ArchiveError, match="can't be read"):
        list(read_archive(path))


def test_reports_read_what_is_laid_out(put: Put, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl.gz"
    runs = [put("one"), put("two")]
    write_archive(runs, path, places=PLACES)
    folders = unpack_archive(path, tmp_path / "laid out")
    assert [folder.name for folder in folders] == ["one", "two"]
    assert (folders[0] / "stage_01" / "diagnostics.json").is_file()
    assert compare(folders).rows == compare(runs).rows
    with pytest.raises(ArchiveError, match="give an empty folder"):
        unpack_archive(path, tmp_path / "laid out")


def test_a_name_that_leads_elsewhere_is_refused(put: Put, tmp_path: Path) -> None:
    run = put("one")
    record = read_record(run)
    (run / "results.json").write_text(json.dumps(sealed_record({**record, "name": "../one"})))
    path = tmp_path / "runs.jsonl.gz"
    write_archive([run], path, places=PLACES)
    with pytest.raises(ArchiveError, match="can't be laid out"):
        unpack_archive(path, tmp_path / "out")
