"""A finished run is sent to a logger that was not there when it was trained, once."""

import json
from typing import ClassVar

import pytest

from curlora_lab import publishing
from curlora_lab.integrity import sealed

LINES = [
    {"stage": 0.0, "step": 0, "eval/a/accuracy": 0.5, "probe/p/perplexity": 2.0},
    {"stage": 1, "step": 0, "train/a/loss": 0.7, "epoch": 0},
    {"stage": 1, "step": 1, "train/a/loss": 0.5, "epoch": 0},
    {"stage": 1, "step": 2, "choose/score": 0.75, "epoch": 0},
    {"stage": 1.0, "step": 1, "eval/a/accuracy": 1.0, "probe/p/perplexity": None},
]


class Sink:
    """A logger that keeps what it gets."""

    made: ClassVar = []

    def __init__(self, save_dir, name="sink"):
        self.save_dir, self.name, self.got = save_dir, name, []
        Sink.made.append(self)

    def log_hyperparams(self, params):
        self.params = params

    def log_metrics(self, metrics, step=None):
        self.got.append((step, metrics))

    def publish(self, record, folder):
        self.got.append(("published", record["name"]))

    def finalize(self, status):
        self.got.append(("ended", status))


@pytest.fixture
def folder(tmp_path):
    Sink.made.clear()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(sealed(line)) + "\n" for line in LINES))
    return tmp_path


@pytest.fixture
def nodes(monkeypatch):
    monkeypatch.setattr(publishing, "instantiate", lambda node, **kwargs: node["made_by"])
    return {"sink": {"made_by": Sink}}


def publish(folder, nodes):
    return publishing.publish_missing({"name": "run"}, folder, nodes=nodes, about={"key": "abc"})


def test_it_gets_what_training_logged_and_what_the_run_found(folder, nodes):
    assert publish(folder, nodes) == ["sink"]
    (sink,) = Sink.made
    assert sink.save_dir == str(folder)
    assert sink.params == {"key": "abc"}
    assert sink.got == [
        (0, {"stage": 0, "eval/a/accuracy": 0.5, "probe/p/perplexity": 2.0}),
        (0, {"train/a/loss": 0.7, "epoch": 0}),
        (1, {"train/a/loss": 0.5, "epoch": 0}),
        (2, {"choose/score": 0.75, "epoch": 0}),
        (1, {"stage": 1, "eval/a/accuracy": 1.0}),
        ("published", "run"),
        ("ended", "success"),
    ]


def test_nothing_is_sent_twice(folder, nodes):
    publish(folder, nodes)
    assert publish(folder, nodes) == []
    assert len(Sink.made) == 1
    assert publish(folder, {**nodes, "other": nodes["sink"]}) == ["other"]


def test_what_was_logged_while_training_is_not_sent_again(folder, nodes):
    publishing.note(folder, nodes)
    assert publish(folder, nodes) == []


def test_without_loggers_nothing_is_written(folder):
    publishing.note(folder, {})
    assert publish(folder, {}) == []
    assert not (folder / publishing.NOTE).exists()


def test_each_trial_of_a_sweep_gets_it(folder, nodes, monkeypatch):
    publishing.note(folder, nodes)
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    for trial in ("one", "two"):
        monkeypatch.setenv("WANDB_RUN_ID", trial)
        assert publish(folder, nodes) == ["sink"]
        assert publish(folder, nodes) == []
