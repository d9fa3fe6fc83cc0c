"""Jobs side by side share the processor: each takes its part of the cores and not all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each job starts a process of its own, or a worker that imports everything

ROOT = Path(__file__).parents[2]
#: A callback that leaves behind what its process uses. The jobs of a sweep find it by PYTHONPATH.
WITNESS = """
import json, os, lightning as L, torch
class Witness(L.Callback):
    def __init__(self, folder):
        self.folder = folder
    def on_train_start(self, trainer, task):
        with open(f"{self.folder}/{os.getpid()}.json", "w") as stream:
            json.dump({"threads": torch.get_num_threads(), "pid": os.getpid()}, stream)
"""
SMALL = ("task=builtin_sentiment2", "train_rows=32", "eval_rows=24", "epochs=1", "probe=none", "gradient_batches=0")


def witnessed(folder: Path, *overrides: str, **environment: str) -> list[int]:
    """Threads of each job of a sweep with two seeds."""
    (folder / "seen").mkdir()
    (folder / "lab_witness.py").write_text(WITNESS)
    given = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    given |= {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]), **environment}
    command = [
        *(sys.executable, str(ROOT / "train.py"), "-m", *SMALL, "trainer.accelerator=cpu", "seed=0,1"),
        *("launch=joblib", f"output_dir={folder / 'runs'}"),
        f"+callbacks.witness={{_target_: lab_witness.Witness, folder: {folder / 'seen'}}}",
        *overrides,
    ]
    done = subprocess.run(command, env=given, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(path.read_text())["threads"] for path in sorted((folder / "seen").iterdir())]


@pytest.mark.parametrize("isolate", ["null", "false"])
def test_threads_times_workers_are_at_most_the_cores(tmp_path: Path, isolate: str) -> None:
    cores = len(os.sched_getaffinity(0))
    threads = witnessed(tmp_path, "hydra.launcher.n_jobs=2", f"isolate={isolate}")
    assert len(threads) == 2
    assert all(2 * found <= max(cores, 2) for found in threads), (threads, cores)


def test_all_cores_at_a_time_is_one_thread_each(tmp_path: Path) -> None:
    assert witnessed(tmp_path) == [1, 1]


def test_what_the_user_asks_for_is_what_is_used(tmp_path: Path) -> None:
    assert witnessed(tmp_path, "hydra.launcher.n_jobs=1", OMP_NUM_THREADS="2") == [2, 2]
