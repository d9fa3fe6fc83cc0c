"""The command line as a user has it: other processes, exit codes, sweeps, several processes in one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    "task=builtin_sentiment2",
    "train_rows=48",
    "eval_rows=40",
    "epochs=1",
    "probe.probes.builtin.source.sizes.test=10",
    "probe.probes.builtin.shift_positions=32",
)

pytestmark = pytest.mark.slow


def train(*arguments: str, wait: bool = True) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LOCAL_RANK", "WORLD_SIZE"))}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    if wait:
        process.output = process.communicate(timeout=300)[0]  # type: ignore[attr-defined]
    return process


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/*/results.json"))]


def test_help_says_what_there_is_to_choose():
    process = train("--help")
    assert process.returncode == 0
    for word in ("adapter: ", "curlora", "sequence: ", "rank", "-m adapter=", "tab completion"):
        assert word in process.output


def test_tab_completes_options_and_keys(monkeypatch):
    for line, wanted in (("python train.py adapter=", "adapter=curlora"), ("python train.py ran", "rank=")):
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        process = train("-sc", "query=bash")
        assert process.returncode == 0, process.output
        assert wanted in process.output.split()


def test_a_bad_configuration_is_one_message_without_a_traceback(tmp_path):
    process = train(f"output_dir={tmp_path}", "adapter.rnk=3", "rank=0")
    assert process.returncode == 1
    assert "Traceback" not in process.output
    process = train(f"output_dir={tmp_path}", "+adapter.flor=3", "rank=0")
    assert process.returncode == 1
    assert "Traceback" not in process.output
    assert "2 faults" in process.output
    assert not list(tmp_path.iterdir())


def test_two_processes_in_one_run_give_the_scores_of_one(tmp_path):
    small = [argument for argument in SMALL if not argument.startswith("task=")]
    # 50 training rows in batches of 16: the last batch has 2, one on each process; 41 evaluation rows split unevenly.
    small += ["train_rows=50", "batch_size=16", "eval_rows=41", "train_rows=49"]
    one = train(*small, f"output_dir={tmp_path / 'one'}", "trainer=cpu")
    two = train(*small, f"output_dir={tmp_path / 'two'}", "trainer=ddp_cpu")
    assert one.returncode == 0, one.output
    assert two.returncode == 0, two.output
    single, double = records(tmp_path / "one")[0], records(tmp_path / "two")[0]
    assert double["scores"] == single["scores"]
    assert double["cost"]["tokens"] == single["cost"]["tokens"]
    # Gradients are summed in another order, so the weights agree to rounding and not to the bit.
    assert double["probes"]["perplexity"]["builtin"] == pytest.approx(
        single["probes"]["perplexity"]["builtin"], rel=1e-5
    )


def test_the_second_process_on_a_run_is_told_who_holds_it(tmp_path):
    holder = train(*SMALL, f"output_dir={tmp_path}", "epochs=30", "train_rows=1000", "name=held", wait=False)
    lines = []
    for line in holder.stdout:
        lines.append(line)
        if "untrained:" in line:
            break
    try:
        second = train(*SMALL, f"output_dir={tmp_path}", "epochs=30", "train_rows=1000", "name=held")
        assert second.returncode == 3, second.output
        assert f"process {holder.pid} on host" in second.output
        assert "Traceback" not in second.output
    finally:
        holder.kill()
        holder.wait()
    again = train(*SMALL, f"output_dir={tmp_path}", "name=other")
    assert again.returncode == 0, "a killed process must not leave a lock behind"


def test_a_sweep_goes_on_after_a_failed_job_and_runs_only_what_is_missing(tmp_path):
    sweep = ["-m", *SMALL, f"output_dir={tmp_path}", "adapter=curlora,lora", "rank=4,400"]
    first = train(*sweep)
    assert first.returncode == 1, "one job failed"
    assert {record["name"].split("-")[1] for record in records(tmp_path)} == {"curlora", "lora"}
    done = len([record for record in records(tmp_path) if record["status"] == "finished"])
    assert done == 3
    assert "rank 400" in first.output
    again = train(*sweep)
    assert again.output.count("This run is finished already") == 3


def test_two_runs_started_at_once_never_share_a_folder(tmp_path):
    processes = [train(*SMALL, f"output_dir={tmp_path}", f"seed={seed}", wait=False) for seed in (0, 1)]
    for process in processes:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    found = records(tmp_path)
    assert sorted(record["config"]["seed"] for record in found) == [0, 1]
    assert all(record["status"] == "finished" for record in found)


def test_the_installed_command_is_train_py(tmp_path):
    command = Path(sys.executable).with_name("curlora-train")
    done = subprocess.run(
        [command, "--cfg", "job"], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rank: 16" in done.stdout
    assert not list(tmp_path.iterdir()), "looking at a configuration leaves nothing behind"
