"""A folder counts when its manifest is whole, and not a moment earlier or later."""

import json
import os

import pytest

from curlora_lab.continual import files
from curlora_lab.integrity import sealed


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "sub" / "scores.json").write_text('{"a": 1}')
    files.write_manifest(tmp_path, {"key": "k"})
    return tmp_path


def test_a_whole_folder_is_read_with_what_it_is(folder):
    manifest = files.read_manifest(folder)
    assert manifest["key"] == "k"
    assert set(manifest["files"]) == {"weights.bin", "sub/scores.json"}


def test_every_truncation_and_every_flipped_bit_is_noticed(folder, caplog):
    path = folder / "weights.bin"
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        assert files.read_manifest(folder) is None
    for position in range(0, len(content), 41):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert files.read_manifest(folder) is None
    assert f"{path}: expected sha256" in caplog.text
    path.write_bytes(content)
    assert files.read_manifest(folder) is not None


def test_a_truncated_manifest_never_happened(folder):
    path = folder / files.MANIFEST
    content = path.read_bytes()
    for length in range(len(content) - 2):
        path.write_bytes(content[:length])
        assert files.read_manifest(folder) is None


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": 3}', '{"files": {"no_such_file": "00"}}', "null"])
def test_a_strange_manifest_is_no_manifest(folder, content):
    (folder / files.MANIFEST).write_text(content)
    assert files.read_manifest(folder) is None


def test_paths_that_lead_outside_are_refused(folder, tmp_path_factory, caplog):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_text("x")
    manifest = json.loads((folder / files.MANIFEST).read_text())
    manifest["files"][os.path.relpath(outside, folder)] = files.hash_file(outside)
    (folder / files.MANIFEST).write_text(json.dumps(sealed(manifest)))
    assert files.read_manifest(folder) is None
    assert "outside its folder" in caplog.text


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.write_json(path, {"a": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_numbers_that_json_has_not_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})


def test_a_digest_goes_by_content_and_not_by_order():
    assert files.digest({"a": 1, "b": [1, 2]}) == files.digest({"b": [1, 2], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})


@pytest.mark.parametrize("what", ["key", "files", "seal"])
def test_every_flipped_bit_of_a_manifest_is_noticed(folder, what):
    path = folder / files.MANIFEST
    content = path.read_bytes()
    start = content.index(f'"{what}"'.encode())
    for position in range(start, min(start + 60, len(content) - 3)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert files.read_manifest(folder) is None, (position, damaged[position - 5 : position + 5])


def test_what_was_set_aside_by_a_killed_process_takes_its_name_again(tmp_path):
    final = tmp_path / "stage_01"
    with files.replacing(final, size=1) as new:
        (new / "a").write_text("old")
    final.rename(files.temporary_name(final, "old"))  # what a kill between the two renames leaves
    half = files.temporary_name(final)
    half.mkdir()
    (half / "a").write_text("new")
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["stage_01"]
    assert (final / "a").read_text() == "old"
    files.temporary_name(final, "old").mkdir()  # a kill after the second one: the old content is no longer wanted
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["stage_01"]
    assert (final / "a").read_text() == "old"


def test_folders_that_are_made_on_the_way_are_on_disk_too(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", lambda folder: synced.append(folder))
    files.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    files.make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_the_message_of_a_full_disk_has_bytes_even_where_nobody_knows_how_many(tmp_path):
    with pytest.raises(files.StorageError, match=r"it needs 4096 bytes"), files.naming_what_is_full(tmp_path / "a", 0):
        raise OSError(28, "No space left on device")
