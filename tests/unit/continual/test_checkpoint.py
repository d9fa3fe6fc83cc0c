"""Checkpoints on disk: whole or passed over with a word, never half, never a pickle, never another run's."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from curlora_lab.continual import files
from curlora_lab.continual.checkpoint import Checkpoint, CheckpointFolder, CheckpointPlan
from curlora_lab.continual.files import StorageError
from curlora_lab.continual.tensors import load_tensors, pack, save_tensors, unpack


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "checkpoints")


def checkpoint(step, *, key="k", stage=1, **tensors):
    return Checkpoint(
        key, stage, step, state={"step": step}, tensors={"parameters/U": torch.full((3, 2), float(step)), **tensors}
    )


def test_the_newest_is_found_as_it_was_written_and_two_are_kept(folder):
    for step in (1, 2, 3, 10):
        folder.write(checkpoint(step))
    found = folder.latest(key="k", stage=1)
    assert (found.step, found.state, found.trained) == (10, {"step": 10}, False)
    assert torch.equal(found.tensors["parameters/U"], torch.full((3, 2), 10.0))
    assert sorted(path.name for path in folder.folder.iterdir()) == ["step_10", "step_3"]
    assert {path.name for path in folder.path(10).iterdir()} == {"tensors.safetensors", "state.json", "MANIFEST.json"}


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "MANIFEST.json"])
def test_damage_is_named_and_the_one_before_is_used(folder, caplog, file):
    for step in (1, 2):
        folder.write(checkpoint(step))
    path = folder.path(2) / file
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert folder.latest(key="k", stage=1).step == 1, position
    for length in range(0, len(content) - 2, 11):
        path.write_bytes(content[:length])
        assert folder.latest(key="k", stage=1).step == 1
    if file != "MANIFEST.json":
        assert f"{path}: expected sha256" in caplog.text


def test_when_all_are_damaged_there_is_none(folder, caplog):
    for step in (1, 2):
        folder.write(checkpoint(step))
        (folder.path(step) / "state.json").write_text("{}")
    assert folder.latest(key="k", stage=1) is None
    assert caplog.text.count("expected sha256") == 2


def test_after_a_fall_back_the_damaged_one_is_not_kept_in_place_of_a_good_one(folder):
    for step in (60, 120):
        folder.write(checkpoint(step))
    (folder.path(120) / "state.json").write_text("{}")
    assert folder.latest(key="k", stage=1).step == 60
    folder.write(checkpoint(90))
    assert sorted(path.name for path in folder.folder.iterdir()) == ["step_60", "step_90"]


def test_another_runs_or_stages_is_not_used(folder, caplog):
    folder.write(checkpoint(1, key="another"))
    assert folder.latest(key="k", stage=1) is None
    assert "belongs to another run" in caplog.text
    assert folder.latest(key="another", stage=2) is None


@pytest.mark.parametrize("name", ["parameters/U", "heads/a/weight", "optimizer/state/0/exp_avg"])
def test_what_is_not_finite_is_never_written(folder, name):
    folder.write(checkpoint(1))
    with pytest.raises(ValueError, match=f"'{name}' is not finite"):
        folder.write(checkpoint(2, **{name: torch.tensor([0.0, math.inf])}))
    assert folder.latest(key="k", stage=1).step == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nor_what_a_strategy_keeps_but_for_what_is_ruled_out(folder, value):
    folder.write(checkpoint(1, **{"strategy/logits": torch.tensor([0.0, -math.inf])}))
    with pytest.raises(ValueError, match="'strategy/logits' is not finite"):
        folder.write(checkpoint(2, **{"strategy/logits": torch.tensor([0.0, value])}))
    assert folder.latest(key="k", stage=1).step == 1


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system which file a descriptor belongs to")
def test_a_checkpoint_is_on_disk_before_it_has_its_name_and_its_name_too(folder, monkeypatch):
    real, synced = os.fsync, []

    def fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path, folder.path(7).is_dir()))
        real(descriptor)

    folder.folder.mkdir()
    monkeypatch.setattr(os, "fsync", fsync)
    folder.write(checkpoint(7))
    new = files.temporary_name(folder.path(7))
    before = [path for path, named in synced if not named]
    manifest = files.temporary_name(new / "MANIFEST.json")
    assert {new / "tensors.safetensors", new / "state.json", manifest, new} <= set(before)
    assert before.index(manifest) > max(before.index(new / name) for name in ("tensors.safetensors", "state.json"))
    assert before[-1] == new, "the folder, once the manifest has its name"
    assert [path for path, named in synced if named] == [folder.folder], (
        "the folder that holds it, after it has its name"
    )


def test_a_full_disk_leaves_what_was_there_and_says_what_is_needed(folder, monkeypatch):
    folder.write(checkpoint(1))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"step_2 could not be written \(No space left on device\); it needs 24 bytes"
    ):
        folder.write(checkpoint(2))
    assert [path.name for path in folder.folder.iterdir()] == ["step_1"]
    assert folder.latest(key="k", stage=1).step == 1


def test_no_pickle_is_written(folder):
    folder.write(checkpoint(1))
    json.loads((folder.path(1) / "state.json").read_text())
    assert load_tensors(folder.path(1) / "tensors.safetensors").keys() == {"parameters/U"}


@pytest.mark.parametrize(("key", "value"), [("every_seconds", 0), ("every_steps", -1), ("every_epochs", 0)])
def test_a_plan_with_numbers_that_mean_nothing_is_refused(key, value):
    with pytest.raises(ValueError, match=f"checkpoint.{key}={value} must be positive"):
        CheckpointPlan(**{key: value})


def test_state_comes_back_from_json_as_it_was():
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": weight}, 1: {}},
        "param_groups": [
            {"lr": 0.1 + 0.2, "betas": [0.9, 0.999], "name": "adapter", "foreach": None, "params": [0, 1]}
        ],
        "best": -math.inf,
        "nan": math.nan,
        "tensor": {"items": True},
    }
    tensors = {}
    text = json.dumps(pack(state, "optimizer", tensors), allow_nan=False)
    back = unpack(json.loads(text), tensors)
    assert back["param_groups"] == state["param_groups"]
    assert torch.equal(back["state"][0]["exp_avg"], weight)
    assert back["state"][1] == {}
    assert back["best"] == -math.inf
    assert math.isnan(back["nan"])
    assert back["tensor"] == {"items": True}


def test_state_that_can_not_be_kept_says_where_it_stands():
    with pytest.raises(TypeError, match="schedulers/0/anneal holds a function"):
        pack([{"anneal": print.__class__ and (lambda x: x)}], "schedulers", {})


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    save_tensors({"a": weight, "b": weight, "row": weight[1]}, tmp_path / "x.safetensors")
    back = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(back["a"], weight)
    assert torch.equal(back["b"], weight)
    assert torch.equal(back["row"], weight[1])


def test_leftovers_of_killed_processes_go_and_nothing_else(tmp_path):
    (tmp_path / "stage_01").mkdir()
    (tmp_path / "stage_01" / "scores.json").write_text("{}")
    half = files.temporary_name(tmp_path / "stage_02")
    half.mkdir()
    (half / "adapter.safetensors").write_text("half")
    files.temporary_name(tmp_path / "stage_01" / "scores.json").write_text("half")
    (tmp_path / ".keep").write_text("")
    files.remove_leftovers(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert names == {".keep", "stage_01", "stage_01/scores.json"}
