"""An export's folder is whole or absent, also when it is killed, and that of another one at work is left alone."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from curlora_lab.continual import files


@pytest.fixture(scope="module")
def export():
    path = Path(__file__).parents[2] / "scripts" / "export.py"
    spec = importlib.util.spec_from_file_location("export_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_second_export_to_the_same_place_leaves_the_first_alone(export, tmp_path, monkeypatch):
    out = tmp_path / "out[1]"
    with export._whole(out, size=1) as first:
        (first / "a").write_text("first")
        with monkeypatch.context() as patch:
            real = os.getpid()
            patch.setattr(os, "getpid", lambda: real + 100_000_000)  # as another process has it
            with export._whole(out, size=1) as second:
                (second / "a").write_text("second")
                assert first != second
                assert (first / "a").read_text() == "first"
        out.rename(tmp_path / "other")
    assert (out / "a").read_text() == "first"
    with pytest.raises(ValueError, match="exists and is not an empty folder"), export._whole(out, size=1):
        pass


def test_what_a_killed_export_left_is_removed(export, tmp_path):
    out = tmp_path / "out"
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    with export._whole(out, size=1) as folder:
        name = folder.name
    dead = tmp_path / name.replace(str(os.getpid()), gone.stdout.strip())
    elsewhere = tmp_path / ".out.another-machine.1.part"
    for leftover in (dead, elsewhere):
        leftover.mkdir()
    out.rmdir()
    with export._whole(out, size=1):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [elsewhere.name, "out"]


def test_it_is_on_disk_once_it_has_its_name(export, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", lambda folder: synced.append((folder, (tmp_path / "out").is_dir())))
    with export._whole(tmp_path / "out", size=1):
        pass
    assert synced == [(tmp_path, True)]


def test_a_full_disk_is_said_with_path_and_bytes(export, tmp_path):
    with (
        pytest.raises(files.StorageError, match=r"out could not be written .* needs 77 bytes"),
        export._whole(tmp_path / "out", size=77),
    ):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
