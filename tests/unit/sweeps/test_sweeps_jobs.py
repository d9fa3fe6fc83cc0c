"""Files of jobs, the table made of them, and what a sweep is called."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from curlora_lab.config import ConfigError, RunError
from curlora_lab.continual.lock import lock
from curlora_lab.sweeps import jobs, objectives, table
from curlora_lab.sweeps.jobs import Job
from curlora_lab.sweeps.session import check_plugins, is_sweep, sweep_name

AVERAGE, RATIO = "continual/average", "probe/builtin/perplexity_ratio"


def done(number, overrides, average, ratio=None, status="finished"):
    found = {AVERAGE: average} if ratio is None else {AVERAGE: average, RATIO: ratio}
    return Job(number, overrides, status, None, found, f"/runs/demo/run-{number}", 1.5)


def test_a_job_is_known_by_what_it_does_not_how_it_is_launched(tmp_path):
    one = jobs.job_file(tmp_path, ["rank=8", "launch=joblib", "output_dir=/a", "logger=wandb", "seed=0"])
    assert one == jobs.job_file(tmp_path, ["seed=0", "rank=8"])
    assert one != jobs.job_file(tmp_path, ["seed=1", "rank=8"])


def test_a_finished_job_is_written_and_read(tmp_path):
    path = jobs.job_file(tmp_path, ["rank=8"])

    def work(entered):
        entered(tmp_path / "run", False)
        assert jobs.read(path).status == "running"
        assert jobs.read(path).run == str(tmp_path / "run")
        return {AVERAGE: 0.5}

    found = jobs.record(path, Job(3, ["rank=8"]), work)
    assert jobs.read(path) == found
    assert (found.status, found.value, found.number) == ("finished", 0.5, 3)


def test_a_run_that_was_there_is_reused(tmp_path):
    found = jobs.record(tmp_path / "a.json", Job(0, []), lambda entered: entered(tmp_path, True) or {AVERAGE: 1.0})
    assert (found.status, found.value) == ("reused", 1.0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigError("rank=0 must be at least 1."), "rank=0 must be at least 1."),
        (RunError("out of memory"), "out of memory"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_failure_is_kept_and_not_raised(tmp_path, error, reason, caplog):
    def work(entered):
        raise error

    found = jobs.record(tmp_path / "a.json", Job(0, []), work)
    assert (found.status, found.reason, found.value) == ("failed", reason, None)
    assert jobs.read(tmp_path / "a.json").reason == reason
    assert reason in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(error, KeyError), "a fault of the code shows its place"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(130), SystemExit(143)])
def test_an_interruption_is_kept_and_goes_up(tmp_path, error):
    def work(entered):
        raise error

    with pytest.raises(type(error)):
        jobs.record(tmp_path / "a.json", Job(0, []), work)
    found = jobs.read(tmp_path / "a.json")
    assert found.status == "interrupted"
    assert ("143" in found.reason) == (getattr(error, "code", None) == 143)


def _die(path):
    jobs.record(path, Job(0, ["rank=8"]), lambda entered: os.kill(os.getpid(), signal.SIGKILL))


def test_a_job_whose_process_died_is_named_killed(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_die, args=(tmp_path / "a.json",))
    process.start()
    process.join()
    assert json.loads((tmp_path / "a.json").read_text())["status"] == "running", "it could not say more"
    assert jobs.read(tmp_path / "a.json").status == "killed"


def test_a_job_that_another_process_does_is_left_to_it(tmp_path):
    path = tmp_path / "jobs" / "a.json"
    jobs.write(path, Job(0, [], "running"))
    with lock(path.with_suffix(".lock"), run=path):
        jobs.put(path, Job(0, []))
        assert jobs.read(path).status == "running"
        found = jobs.record(path, Job(0, []), lambda entered: {AVERAGE: 1.0})
        assert found.status == "failed"
        assert "process" in found.reason
        assert jobs.read(path).status == "running"


def test_a_plan_shows_jobs_that_never_began_and_forgets_another_grid(tmp_path):
    jobs.plan(tmp_path, [["rank=8"], ["rank=16"], ["rank=24"]])
    jobs.record(jobs.job_file(tmp_path, ["rank=16"]), Job(1, ["rank=16"]), lambda entered: {AVERAGE: 0.5})
    assert [job.status for job in jobs.read_all(tmp_path)] == ["waiting", "finished", "waiting"]
    jobs.plan(tmp_path, [["rank=8"]])
    assert [job.overrides for job in jobs.read_all(tmp_path)] == [["rank=8"]]


def test_a_flipped_bit_makes_a_job_undone_and_is_said(tmp_path, caplog):
    path = tmp_path / "jobs" / "a.json"
    jobs.write(path, done(0, ["rank=8"], 0.5))
    content = path.read_bytes()
    for position in range(0, len(content) - 2, 5):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert jobs.read(path) is None, position
    assert f"{path} is damaged" in caplog.text
    path.write_bytes(content)
    assert jobs.read(path).objectives == {AVERAGE: 0.5}
    assert jobs.read(tmp_path / "jobs" / "none.json") is None


def test_a_damaged_file_is_no_job(tmp_path):
    (tmp_path / "jobs").mkdir()
    for name, content in (("a", "{"), ("b", "[]"), ("c", '{"number": 1}')):
        (tmp_path / "jobs" / f"{name}.json").write_text(content)
    assert jobs.read_all(tmp_path) == []


def test_the_table_has_what_varies_and_every_job(tmp_path):
    found = [
        done(0, ["task=a", "adapter=lora", "rank=8"], 0.5),
        Job(1, ["task=a", "adapter=lora", "rank=800"], "failed", "rank 800 is | larger\nthan allowed"),
        Job(2, ["task=a", "adapter=curlora", "rank=8"]),
    ]
    columns, rows = table.cells(found)
    assert columns == ["job", "adapter", "rank", f"{AVERAGE} ↑", "status", "run"]
    assert rows[0] == ["0", "lora", "8", "0.5", "finished", "run-0"]
    assert rows[1][4] == "failed: rank 800 is | larger than allowed"
    assert rows[2][4] == "not started"
    assert "3 jobs: 1 not started, 1 finished, 1 failed." in table.summary(found)
    table.write_summary(tmp_path, found, command=["-m", "rank=8,800"])
    kept = json.loads((tmp_path / "sweep.json").read_text())
    assert [job["status"] for job in kept["jobs"]] == ["finished", "failed", "waiting"]
    assert kept["command"] == ["-m", "rank=8,800"]
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines[:5]}) == 1


def test_the_table_on_the_screen_names_reasons(tmp_path, capsys):
    table.show(tmp_path, [done(0, ["rank=8"], 0.5), Job(1, ["rank=9"], "killed", "[red] SIGKILL")])
    assert "job 1 killed: [red] SIGKILL" in capsys.readouterr().out


def test_the_pareto_front():
    rows = [
        {AVERAGE: 0.9, RATIO: 1.2},
        {AVERAGE: 0.8, RATIO: 1.0},
        {AVERAGE: 0.8, RATIO: 1.1},  # beaten by the second
        {AVERAGE: 0.9, RATIO: 1.2},  # as good as the first
        {AVERAGE: None, RATIO: 0.5},
        {},
    ]
    assert objectives.pareto(rows) == [True, True, False, True, False, False]
    marked = [done(number, [f"rank={number}"], row[AVERAGE], row[RATIO]) for number, row in enumerate(rows[:4])]
    columns, cells = table.cells(marked)
    assert [row[columns.index("front")] for row in cells] == ["*", "*", "", "*"]


def test_what_a_sweeper_gets():
    assert jobs.returned({AVERAGE: 0.5}) == 0.5
    assert jobs.returned({AVERAGE: 0.5, RATIO: 1.0}) == (0.5, 1.0)
    assert jobs.returned({AVERAGE: 0.5, RATIO: None}) is None
    assert jobs.returned({}) is None
    assert done(0, [], 0.5, status="killed").value is None


def test_directions_follow_from_names():
    lower = [name for name in objectives.FIXED if objectives.lower_is_better(name)]
    assert {"continual/forgetting", "cost/seconds", "warnings/count"} <= set(lower)
    assert not {"continual/average", "continual/bwt", "continual/gain", "choose/learning"} & set(lower)
    assert objectives.lower_is_better(RATIO)


def test_unknown_objectives_are_refused():
    config = {"probe": {"probes": {"builtin": {"name": "builtin"}}}, "objectives": [AVERAGE, RATIO]}
    objectives.check(config)
    with pytest.raises(ConfigError, match=r"continual/averge.*Did you mean 'continual/average'"):
        objectives.check({**config, "objectives": ["continual/averge"]})
    with pytest.raises(ConfigError, match="probe/wiki/perplexity_ratio"):
        objectives.check({**config, "objectives": ["probe/wiki/perplexity_ratio"]})
    with pytest.raises(ConfigError, match="empty"):
        objectives.check({**config, "objectives": []})


def test_a_sweep_has_the_name_of_what_it_searches():
    name = sweep_name(["-m", "rank=8,16", "seed=0,1"])
    assert name == sweep_name(["seed=0,1", "launch=joblib", "--multirun", "rank=8,16", "output_dir=/a"])
    assert name == sweep_name(["seed=0,1", "rank=8,16", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=9"])
    assert name != sweep_name(["-m", "rank=8,16"])
    assert name != sweep_name(["-m", "rank=8,16", "seed=0,1", "hydra.sweeper.params.lr=1,2"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rank=8"], False),
        (["-m", "rank=8"], True),
        (["--multirun"], True),
        (["sweep=optuna"], True),
        (["sweep=null"], False),
        (["sweep=optuna", "hydra.mode=RUN"], False),
        (["hydra.mode=MULTIRUN"], True),
        (["--cfg", "job", "sweep=optuna"], False),
    ],
)
def test_what_is_a_sweep(arguments, expected):
    assert is_sweep(arguments) == expected


def test_a_missing_plugin_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "optuna" in name else Path())
    check_plugins(["launch=joblib"])
    with pytest.raises(ConfigError, match=r"pip install 'curlora-lab\[sweeps\]'"):
        check_plugins(["sweep=optuna"])
