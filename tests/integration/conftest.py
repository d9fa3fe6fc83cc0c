"""Whole runs in process: the real configuration, shrunk to seconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from curlora_lab import config
from curlora_lab.cli import settle
from curlora_lab.run import run

#: A run of seconds that still trains, scores and probes everything.
SMALL = (
    "train_rows=64",
    "eval_rows=48",
    "epochs=1",
    "trainer.accelerator=cpu",
    "probe.probes.builtin.source.sizes.test=20",
    "probe.probes.builtin.shift_positions=64",
    "gradient_batches=0",
)

Runner = Callable[..., dict[str, Any]]


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Compose and validate a small run that writes below the test's folder."""

    def make(*overrides: str) -> dict[str, Any]:
        config.register()
        with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
            given = [*SMALL, f"output_dir={tmp_path / 'runs'}", *overrides]
            return settle(compose("train", overrides=given))

    return make


@pytest.fixture
def small_run(configured: Callable[..., dict[str, Any]], tmp_path: Path) -> Runner:
    """Do a small run and return its record, with its folder under ``folder``."""

    def make(*overrides: str) -> dict[str, Any]:
        run(configured(*overrides), overrides=list(overrides))
        path = max(tmp_path.glob("runs/*/*/results.json"), key=lambda file: file.stat().st_mtime_ns)
        return {**json.loads(path.read_text()), "folder": path.parent}

    return make
