"""A sweep of the basic launcher whose job the system kills: the job is named, the next one is done."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from curlora_lab.backbone import BUILTIN_FOLDER

pytestmark = pytest.mark.slow  # each job starts a process of its own

ROOT = Path(__file__).parents[2]
SMALL = (
    "task=builtin_sentiment2",
    "train_rows=48",
    "eval_rows=40",
    "epochs=1",
    "probe=none",
    "trainer.accelerator=cpu",
)


def kill_job(folder, override):
    """Kill the process of a job as the system does when memory is short, once its run has begun."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for path in folder.glob(".multirun/*/jobs/*.json"):
            job = json.loads(path.read_text())
            if job["status"] == "running" and job["run"] and override in job["overrides"]:
                os.kill(json.loads(path.with_suffix(".lock").read_text())["process"], signal.SIGKILL)
                return
        time.sleep(0.02)


def test_a_model_that_may_be_too_large_gets_a_process_for_each_job(tmp_path):
    model = ("model=local", f"model.path={BUILTIN_FOLDER}", "model.target_modules=[q_proj]")
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, *model, "-m", "seed=0,1", f"output_dir={tmp_path}"]
    killer = threading.Thread(target=kill_job, args=(tmp_path, "seed=0"))
    killer.start()
    sweep = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    killer.join()
    output = sweep.stdout + sweep.stderr
    assert sweep.returncode == 1, output
    (path,) = tmp_path.glob(".multirun/*/sweep.json")
    assert [job["status"] for job in json.loads(path.read_text())["jobs"]] == ["killed", "finished"], output
    assert "SIGKILL; the system does so when memory is short" in output
