"""One process on a run at a time, and no lock outlives its process."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from curlora_lab.continual.lock import RunLockedError, is_held, lock


def test_a_second_holder_is_told_who_holds_it(tmp_path):
    path = tmp_path / "locks" / "run"
    with lock(path, run=tmp_path / "run"), pytest.raises(RunLockedError, match=f"process {os.getpid()} on host"):
        lock(path, run=tmp_path / "run").__enter__()
    with lock(path, run=tmp_path / "run"):
        pass


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(tmp_path):
    path = tmp_path / "run.lock"
    code = (
        "import sys, time; from pathlib import Path; from curlora_lab.continual.lock import lock\n"
        "with lock(Path(sys.argv[1]), run=Path('run')): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunLockedError, match=f"process {holder.pid} on host"):
        lock(path, run=tmp_path).__enter__()
    holder.kill()
    holder.wait()
    with lock(path, run=tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused_in_words(tmp_path, monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "locks" / "run"
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(RunLockedError, match=rf"has no locks \({os.strerror(number)}\).*another output_dir"):
            lock(path, run=tmp_path / "run").__enter__()
        assert is_held(path), "nobody can tell that it is not"
    assert not is_held(path)
    assert not is_held(tmp_path / "no such file")


@pytest.mark.parametrize(("host", "status", "said"), [("node7", "running", True), ("node7", "finished", False)])
def test_a_run_that_another_machine_left_running_is_said(tmp_path, caplog, host, status, said):
    path, run = tmp_path / "lock", tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps({"status": status}))
    path.write_text(json.dumps({"host": host, "process": 12}))
    with lock(path, run=run):
        pass
    assert ("left running by process 12 on host node7" in caplog.text) == said
    caplog.clear()
    with lock(path, run=run):  # now by this machine
        assert "left running" not in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{", '{"host": "node7"}', "\xff"])
def test_a_lock_file_that_says_nothing_is_held_by_another_process(tmp_path, content):
    path = tmp_path / "lock"
    with lock(path, run=tmp_path):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(RunLockedError, match="by another process"):
            lock(path, run=tmp_path).__enter__()
