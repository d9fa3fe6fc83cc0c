"""Which jobs get a process of their own, and what is made of how it ended."""

import signal

import pytest
from omegaconf import OmegaConf

from curlora_lab.sweeps import isolation, jobs, session
from curlora_lab.sweeps.jobs import Job

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"


@pytest.mark.parametrize(
    ("isolate", "launcher", "devices", "model", "expected"),
    [
        (None, isolation.BASIC, 1, "builtin", False),
        (None, isolation.BASIC, "auto", "builtin", False),
        (None, isolation.BASIC, 1, "gpt2", True),
        (None, isolation.BASIC, 2, "builtin", True),
        (None, isolation.BASIC, [0, 1], "builtin", True),
        (None, isolation.BASIC, -1, "builtin", True),
        (None, JOBLIB, 1, "builtin", True),
        (False, JOBLIB, 1, "gpt2", False),
        (False, isolation.BASIC, 1, "gpt2", False),
        (True, isolation.BASIC, 1, "builtin", True),
    ],
)
def test_who_gets_a_process(isolate, launcher, devices, model, expected):
    cfg = OmegaConf.create({"isolate": isolate, "trainer": {"devices": devices}, "model": {"path": model}})
    assert isolation.isolated(cfg, launcher=launcher) == expected


@pytest.mark.parametrize(
    ("left", "code", "status", "reason"),
    [
        ("finished", 0, "finished", None),
        ("failed", 0, "failed", "it says why"),
        ("interrupted", 143, "interrupted", None),
        ("running", -signal.SIGKILL, "killed", "SIGKILL; the system does so when memory is short"),
        ("running", -signal.SIGSEGV, "killed", "ended by SIGSEGV"),
        ("running", 1, "killed", "without a word"),
        ("waiting", 1, "failed", "ended with code 1 before it began"),
    ],
)
def test_how_it_ended(tmp_path, left, code, status, reason):
    path = tmp_path / "a.json"
    jobs.write(path, Job(0, ["rank=8"], left, "it says why" if left == "failed" else None))
    found = isolation._ended(path, Job(0, ["rank=8"]), code)
    assert found.status == status
    assert (reason or "") in (found.reason or "")
    assert jobs.read(path).status == status


@pytest.mark.parametrize(
    ("given", "front"),
    [
        (["-m", "rank=8,16"], ["-m", "rank=8,16"]),
        (["rank=8,16", "--multirun"], ["-m", "rank=8,16"]),
        (["rank=8", "-m", "seed=0,1"], ["-m", "rank=8", "seed=0,1"]),
        (["sweep=optuna"], ["sweep=optuna"]),
    ],
)
def test_flags_among_overrides(given, front):
    found = session._arranged(given)
    assert found[:-1] == front, "argparse takes no overrides after a flag that stands among them"
    assert found[-1].startswith("hydra.sweep.dir=${output_dir}/.multirun/")
    assert session._arranged([*given, "hydra.sweep.dir=mine"])[-1] == "hydra.sweep.dir=mine"
