"""Multiruns through Hydra's own machinery; in process with runs that are made up, in processes of their own with real ones."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from curlora_lab import cli
from curlora_lab.config import ConfigError, RunError

ROOT = Path(__file__).parents[2]
SMALL = (
    "task=builtin_sentiment2",
    "train_rows=48",
    "eval_rows=40",
    "epochs=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "probe.probes.builtin.source.sizes.test=10",
    "probe.probes.builtin.shift_positions=32",
)


def summary(folder):
    (path,) = folder.glob(".multirun/*/sweep.json")
    return json.loads(path.read_text())


def statuses(folder):
    return [job["status"] for job in summary(folder)["jobs"]]


@pytest.fixture
def swept(monkeypatch, tmp_path):
    """Start a sweep in this process whose runs are made up by a function of the configuration; gives the exit code."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    ran = []

    def start(*arguments, run=lambda cfg: {"continual/average": 1.0 / cfg.rank}):
        def made_up(cfg, entered):
            ran.append(cfg)
            found = run(cfg)
            folder = tmp_path / f"run-{cfg.rank}-{cfg.seed}"
            entered(folder, folder.exists())
            folder.mkdir(exist_ok=True)
            return found

        monkeypatch.setattr(cli, "_run", made_up)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, f"output_dir={tmp_path}"])
        try:
            cli.main()
        except SystemExit as error:
            return error.code
        return 0

    start.ran = ran
    yield start
    root.handlers[:] = handlers
    root.setLevel(level)


def test_every_job_is_in_the_table_and_a_failure_stops_none(swept, tmp_path, capsys):
    def run(cfg):
        if cfg.rank == 16:
            raise ConfigError("rank 16 is too large")
        if cfg.rank == 24:
            raise RuntimeError("an unforeseen fault")
        return {"continual/average": 1.0 / cfg.rank}

    assert swept("-m", "rank=16,24,8", "seed=1", run=run) == 1
    assert statuses(tmp_path) == ["failed", "failed", "finished"]
    output = capsys.readouterr().out
    assert "rank 16 is too large" in output
    assert "3 jobs: 1 finished, 2 failed. The same command again runs only what is missing." in output
    assert summary(tmp_path)["jobs"][2]["run"] == str(tmp_path / "run-8-1")

    assert swept("-m", "seed=1", "rank=16,24,8") == 0, "now nothing fails"
    assert summary(tmp_path)["counts"] == {"finished": 2, "reused": 1}, (
        "the same sweep, in whatever order it is written"
    )


def test_batches_go_on_after_a_failure(swept, tmp_path):
    def run(cfg):
        if cfg.rank == 8:
            raise RunError("out of memory")
        return {"continual/average": 0.5}

    assert swept("-m", "rank=8,16", "hydra.sweeper.max_batch_size=1", run=run) == 1
    assert statuses(tmp_path) == ["failed", "finished"]


def test_an_interrupted_sweep_shows_what_is_missing_and_goes_on(swept, tmp_path):
    def run(cfg):
        if cfg.rank == 16:
            raise SystemExit(130)
        return {"continual/average": 0.5}

    assert swept("-m", "rank=8,16,24", run=run) == 130
    assert statuses(tmp_path) == ["finished", "interrupted", "waiting"]
    assert swept("-m", "rank=8,16,24") == 0
    assert statuses(tmp_path) == ["reused", "finished", "finished"]


def test_a_grid_from_a_file(swept, tmp_path):
    assert swept("sweep=rank_alpha_lr", "adapter=curlora", "rank=8", "lr=1e-3", "seed=0") == 0
    assert len(summary(tmp_path)["jobs"]) == 2
    assert {(cfg.rank, cfg.alpha, cfg.seed) for cfg in swept.ran} == {(8, 1.0, 0), (8, 2.0, 0)}


@pytest.mark.slow
def test_the_second_process_on_a_sweep_is_told(swept, tmp_path, capfd):
    code = []

    def run(cfg):
        if not code:
            command = [sys.executable, "-m", "curlora_lab.cli", "-m", "rank=8,16", f"output_dir={tmp_path}"]
            code.append(subprocess.run(command, capture_output=True, text=True, check=False))
        return {"continual/average": 0.5}

    assert swept("-m", "rank=8,16", run=run) == 0
    assert code[0].returncode == 3
    assert f"process {os.getpid()}" in code[0].stdout + code[0].stderr
    assert "Traceback" not in code[0].stderr


OPTUNA = ("-m", "sweep=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.n_startup_trials=2")
OBJECTIVES = ("continual/average", "probe/builtin/perplexity_ratio")


def drawn(cfg):
    """Two objectives that pull against each other."""
    return {OBJECTIVES[0]: float(cfg.lr), OBJECTIVES[1]: float(cfg.lr) * cfg.alpha}


def trials(folder):
    import optuna

    (path,) = folder.glob(".multirun/*/study.db")
    return optuna.load_study(study_name="curlora_lab", storage=f"sqlite:///{path}").trials


def test_a_study_of_two_objectives_goes_on(swept, tmp_path, capsys):
    pytest.importorskip("optuna")
    failed = []

    def run(cfg):
        if len(swept.ran) == 2:
            failed.append(cfg.lr)
            raise RunError("the loss is not finite")
        if len(swept.ran) == 4:
            raise KeyboardInterrupt
        return drawn(cfg)

    assert swept(*OPTUNA, run=run) == 130
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE", "FAIL", "COMPLETE", "RUNNING"]
    cut_off = swept.ran[-1].lr
    assert swept(*OPTUNA, run=drawn) == 1, "the failed trial stays in the table"
    found = trials(tmp_path)
    assert [trial.state.name for trial in found].count("COMPLETE") == 4
    assert swept.ran[4].lr == cut_off, "what was cut off comes first"
    assert len({cfg.lr for cfg in swept.ran}) == len(swept.ran) - 1, "and nothing else is drawn twice"
    jobs = summary(tmp_path)["jobs"]
    assert sorted(job["status"] in ("finished", "reused") for job in jobs) == [False] + [True] * 4
    assert len({job["number"] for job in jobs}) == len(jobs) == 5
    assert any(job["pareto"] for job in jobs)
    assert "front" in capsys.readouterr().out
    again = len(swept.ran)
    swept(*OPTUNA, run=drawn)
    assert len(swept.ran) == again, "a complete study is only shown"
    swept(*OPTUNA[:2], "hydra.sweeper.n_trials=5", OPTUNA[3], run=drawn)
    assert len(swept.ran) == again + 1, "a longer search goes on with it"


def test_a_study_in_which_every_trial_fails_still_ends_with_a_table(swept, tmp_path):
    pytest.importorskip("optuna")

    def run(cfg):
        raise RunError("never")

    assert swept(*OPTUNA[:2], "hydra.sweeper.n_trials=2", run=run) == 1
    assert statuses(tmp_path) == ["failed", "failed"]


def test_directions_must_fit_the_objectives(swept, tmp_path):
    pytest.importorskip("optuna")
    message = swept(*OPTUNA, "objectives=[continual/average]")
    assert "hydra.sweeper.direction=[maximize]" in message
    assert not swept.ran


# -- real runs, in processes of their own ------------------------------------------------------------------------------


def train(*arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LOCAL_RANK", "WORLD_SIZE"))}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SMALL, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def kill_job(folder, override):
    """Kill the process of a job as the system does when memory is short, once its run has begun."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for path in folder.glob(".multirun/*/jobs/*.json"):
            job = json.loads(path.read_text())
            if job["status"] == "running" and job["run"] and override in job["overrides"]:
                os.kill(json.loads(path.with_suffix(".lock").read_text())["process"], signal.SIGKILL)
                return
        time.sleep(0.05)


@pytest.mark.slow
def test_joblib_goes_on_when_a_job_is_killed_and_again_runs_only_what_is_missing(tmp_path):
    pytest.importorskip("joblib")
    sweep = ["-m", "launch=joblib", "hydra.launcher.n_jobs=2", "rank=4", "seed=0,1,2", f"output_dir={tmp_path}"]
    killer = threading.Thread(target=kill_job, args=(tmp_path, "seed=0"))
    killer.start()
    first = train(*sweep)
    output = first.communicate(timeout=600)[0]
    killer.join()
    assert first.returncode == 1, output
    assert statuses(tmp_path) == ["killed", "finished", "finished"], output
    assert "SIGKILL" in output
    again = train(*sweep)
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 0, output
    assert statuses(tmp_path) == ["finished", "reused", "reused"], output


@pytest.mark.slow
def test_submitit_runs_a_sweep(tmp_path):
    pytest.importorskip("submitit")
    sweep = train("-m", "launch=slurm_local", "rank=4,400", f"output_dir={tmp_path}")
    output = sweep.communicate(timeout=600)[0]
    assert sweep.returncode == 1, output
    assert statuses(tmp_path) == ["finished", "failed"]
    assert "rank 400" in output


@pytest.mark.slow
def test_jobs_that_train_with_several_processes(tmp_path):
    sweep = train("-m", "trainer=ddp_cpu", "seed=0,1", f"output_dir={tmp_path}")
    output = sweep.communicate(timeout=900)[0]
    assert sweep.returncode == 0, output
    assert statuses(tmp_path) == ["finished", "finished"]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/results.json")]
    assert sorted(record["config"]["seed"] for record in records) == [0, 1]


@pytest.mark.slow
def test_a_real_study(tmp_path):
    pytest.importorskip("optuna")
    study = ["-m", "sweep=optuna", "rank=2,4", f"output_dir={tmp_path}"]
    for number in (2, 3):
        process = train(*study, f"hydra.sweeper.n_trials={number}")
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output
        assert len(summary(tmp_path)["jobs"]) == number
    values = [tuple(trial.values) for trial in trials(tmp_path)]
    kept = [tuple(job["objectives"][name] for name in OBJECTIVES) for job in summary(tmp_path)["jobs"]]
    assert sorted(values) == sorted(kept)
