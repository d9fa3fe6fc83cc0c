"""A run that is stopped while it is loaded or tokenised ends with one line and the code that is the custom."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from curlora_lab import cli
from curlora_lab import run as runner
from curlora_lab.config import RunError
from curlora_lab.continual.signals import Interrupted

LINE = "Stopped before training; the same command starts again."
BUILDING = """
import time
from curlora_lab import build
def building(config):
    print("building", flush=True)
    time.sleep(60)
build._build = building
from curlora_lab.cli import main
main()
"""


def ctrl_c(config):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (ctrl_c, 130),
        (lambda config: os.kill(os.getpid(), signal.SIGINT), 130),
        (lambda config: os.kill(os.getpid(), signal.SIGTERM), 143),
        (lambda config: os.kill(os.getpid(), signal.SIGUSR1), 143),
    ],
    ids=["KeyboardInterrupt", "SIGINT", "SIGTERM", "SIGUSR1"],
)
def test_while_it_is_built(small_run, monkeypatch, tmp_path, caplog, build, code):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(runner, "build", build)
    with pytest.raises(Interrupted) as caught:
        small_run("task=builtin_sentiment2")
    assert caught.value.code == code
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [LINE]
    assert not (tmp_path / "runs").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_too_little_memory_while_it_is_built_is_said(small_run, monkeypatch):
    def build(config):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(runner, "build", build)
    with pytest.raises(RunError, match=r"Out of memory .*model.dtype=bfloat16"):
        small_run("task=builtin_sentiment2")


def test_while_libraries_are_imported(monkeypatch, capsys):
    def compose():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_compose_and_run", compose)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == f"{LINE}\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_line_says_so_without_a_traceback(tmp_path, number, code):
    command = [sys.executable, "-c", BUILDING, f"output_dir={tmp_path}", "task=builtin_sentiment2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout.readline() == "building\n"
        time.sleep(0.2)
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert LINE in output
    assert "Traceback" not in output
