"""A run that goes on with other versions or on another device says so, in its log and in its record."""

import json
from pathlib import Path

import pytest

from curlora_lab.continual import files, stages
from curlora_lab.continual.environment import environment_on
from curlora_lab.report import validate_record
from curlora_lab.tasks import SequenceClassification

FEW = (
    "~sequence.tasks.sentiment3",
    "train_rows=16",
    "eval_rows=8",
    "batch_size=8",
    "checkpoint.every_steps=1",
)


class Taken(BaseException):
    """The machine is gone."""


@pytest.fixture
def elsewhere(monkeypatch):
    """From now on the run is on another machine."""
    return lambda: monkeypatch.setattr(
        stages, "environment_on", lambda device: {**environment_on(device), "torch": "2.99.0", "device": "NVIDIA H100"}
    )


def taken_at(monkeypatch, *, stage, batch):
    real = SequenceClassification.training_step

    def step(task, rows, batch_idx):
        if (task.stage, batch_idx) == (stage, batch):
            raise Taken
        return real(task, rows, batch_idx)

    monkeypatch.setattr(SequenceClassification, "training_step", step)


def changed(record):
    return [warning["message"] for warning in record["warnings"] if warning["code"] == "environment_changed"]


def environments(folder: Path):
    return [len(files.read_manifest(folder / f"stage_{stage:02d}")["environments"]) for stage in range(3)]


def test_a_run_in_one_environment_has_nothing_to_say(small_run, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        taken_at(patch, stage=1, batch=1)
        with pytest.raises(Taken):
            small_run(*FEW)
    record = small_run(*FEW)
    assert changed(record) == []
    assert environments(record["folder"]) == [1, 1, 1]
    assert "different environments" not in caplog.text


def test_a_stage_that_went_on_elsewhere_is_known_for_it(small_run, monkeypatch, caplog, elsewhere):
    with monkeypatch.context() as patch:
        taken_at(patch, stage=1, batch=1)
        with pytest.raises(Taken):
            small_run(*FEW)
    elsewhere()
    with monkeypatch.context() as patch:
        taken_at(patch, stage=2, batch=1)
        with pytest.raises(Taken):
            small_run(*FEW)
    record = small_run(*FEW)
    assert environments(record["folder"]) == [1, 2, 1]
    (message,) = changed(record)
    assert "torch" in message
    assert "NVIDIA H100" in message
    assert "peft" not in message
    assert caplog.text.count("different environments") == 2, "once in each process that meets it"
    validate_record({key: value for key, value in record.items() if key != "folder"})
    again = small_run(*FEW)
    assert changed(again) == [message]
    assert json.loads((record["folder"] / "results.json").read_text())["status"] == "finished"


def test_stages_that_are_reused_from_elsewhere_are_said(small_run, elsewhere):
    small_run(*FEW)
    elsewhere()
    longer = small_run(*FEW, "+task@sequence.tasks.topic=builtin_topic")
    assert environments(longer["folder"]) == [2, 2, 2], "the further task was scored here"
    assert len(changed(longer)) == 1
