"""Loggers and runs that did not go in one go: resumed, and finished before the logger was asked for."""

import importlib.util
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SHORT = ("~sequence.tasks.sentiment3", "trainer.log_every_n_steps=1")
MANY = ("logger=many", "logger.wandb.offline=true", "logger.wandb.log_adapter=false")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """W&B's own reader of an offline run, and nothing of W&B outside the test's folder."""
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    spec = importlib.util.spec_from_file_location("offline_reader", Path(__file__).with_name("test_wandb_offline.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OfflineRun


def scalars(folder):
    """Every scalar of the event files, with its steps."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_finished_run_is_published_once_and_whole(small_run, offline, tmp_path):
    record = small_run(*SHORT)
    folder = record["folder"]
    assert not list(folder.glob("wandb")) + list(folder.glob("tensorboard"))
    small_run(*SHORT, *MANY)
    sent = offline(folder)
    assert sent.run.run_id == record["provenance"]["identity"][:16]
    assert sent.summary["continual/average"] == record["continual"]["average"]
    assert sent.table("score_matrix")[1][-1][2:] == record["scores"][-1]
    for task, rows in record["metrics"].items():
        key = f"eval/{task}/{record['metric'][task]}"
        assert [row[key] for row in sent.history if key in row] == [row[record["metric"][task]] for row in rows]
        assert len([row for row in sent.history if f"train/{task}/loss" in row]) >= 2
    assert sent.config["parameters"] == record["parameters"]
    shown = scalars(folder)
    assert len(shown["probe/builtin/perplexity"]) == len(record["scores"])
    assert json.loads((folder / "published.json").read_text()) == {"tensorboard": True, "wandb": True}
    small_run(*SHORT, *MANY)
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1, "the same command again sends nothing twice"
    assert scalars(folder) == shown


def test_a_resumed_run_has_every_number_once(small_run, offline, monkeypatch, tmp_path):
    told = []

    def stop(run):
        told.append(run.rows[-1].stage)
        if told == [0, 1]:
            raise RuntimeError("the power fails")

    monkeypatch.setattr("curlora_lab.run.Run._write_report", stop)
    with pytest.raises(RuntimeError, match="power"):
        small_run(*SHORT, "logger=tensorboard")
    record = small_run(*SHORT, "logger=tensorboard")
    for task, rows in record["metrics"].items():
        metric = record["metric"][task]
        found = scalars(record["folder"])[f"eval/{task}/{metric}"]
        assert found == [(stage, pytest.approx(row[metric], abs=1e-6)) for stage, row in enumerate(rows)]
        steps = [step for step, _ in scalars(record["folder"])[f"train/{task}/loss"]]
        assert steps == sorted(set(steps))
