"""One process on a run at a time, and no lock outlives its process."""

import os
import subprocess
import sys

import pytest

from curlora_lab.continual.lock import RunLockedError, lock


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
