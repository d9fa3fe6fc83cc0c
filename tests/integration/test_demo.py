"""The main job on the built-in model and tasks: they are really learnt, and the figures show that the whole chain is sane."""

import json
from pathlib import Path
from statistics import fmean

import pytest
from hydra import compose, initialize_config_dir

from curlora_lab import config
from curlora_lab.run import run

pytestmark = pytest.mark.slow  # whole runs of about a minute each

SEEDS = (0, 1, 2)


def demo(folder: Path, *overrides: str) -> dict:
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        run(config.validate(compose("train", overrides=[f"output_dir={folder}", "trainer=cpu", *overrides])))
    (path,) = folder.glob("*/*/results.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("adapter", ["curlora", "lora"])
def test_every_built_in_task_is_learnt(adapter, tmp_path):
    records = [demo(tmp_path / str(seed), f"adapter={adapter}", f"seed={seed}") for seed in SEEDS]
    for column, task in enumerate(records[0]["tasks"]):
        baseline = records[0]["baselines"][task]
        shares = [
            (record["scores"][record["learnt_in"][task]][column] - baseline["constant"])
            / (baseline["best"] - baseline["constant"])
            for record in records
        ]
        assert fmean(shares) >= 0.8, (task, shares)
    assert not [
        warning for record in records for warning in record["warnings"] if warning["code"] == "untuned_learning_rate"
    ]


def test_full_fine_tuning_moves_the_language_model_and_a_head_alone_does_not(tmp_path):
    full = demo(tmp_path / "full", "adapter=full", "lr=1e-3", "epochs=2")  # its customary 1e-4 hardly moves this model
    head = demo(tmp_path / "none", "adapter=none", "epochs=2")
    before, after = (full["probes"]["perplexity"]["builtin"][row] for row in (0, -1))
    assert after > 1.05 * before
    assert len(set(head["probes"]["perplexity"]["builtin"])) == 1
    assert full["continual"]["learning"] > head["continual"]["learning"]
