"""The workspace and the report as code: complete, by W&B's own model of them, and only of keys that runs log."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("wandb_workspaces")

from curlora_lab.loggers import content

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("dashboard_script", ROOT / "scripts" / "dashboard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record():
    """As much of a record as is looked at."""
    return {
        "name": "tiny-lora",
        "status": "finished",
        "tasks": ["first", "second"],
        "metric": {"first": "accuracy", "second": "f1"},
        "metrics": {"first": [{"accuracy": 0.5}] * 3, "second": [{"f1": 0.5}] * 3},
        "learnt_in": {"first": 1, "second": 2},
        "scores": [[0.5, 0.5]] * 3,
        "continual": {"average": 0.5, "gain": 0.1, "bwt": 0.0, "fwt": 0.0, "forgetting": 0.0, "learning": 0.5},
        "probes": {"perplexity": {"stories": [2.0, 2.1, 2.2]}, "bits_per_character": {"stories": [1.0, 1.0, 1.0]}},
        "shift": {"weight": [{"overall": 0.1}] * 3, "output": {"stories": [0.0, 0.1, 0.1]}},
        "parameters": {"adapter": 1, "head": 1, "trainable": 2, "total": 3},
        "cost": {"seconds": 1.0, "tokens": 2, "peak_memory_bytes": 3},
        "warnings": [],
        "config": {"sequence": {"name": "demo"}, "rank": 8, "alpha": 1.0, "lr": 1e-3, "adapter": {"name": "lora"}},
    }


@pytest.fixture(scope="module")
def made(script, record):
    there = script.content([record])
    where = {"entity": "someone", "project": "forgetting"}
    return {name: script.as_json(getattr(script, name)(there, **where)) for name in ("workspace", "report")}


def panels(node):
    """All panels, wherever they lie."""
    if isinstance(node, dict):
        if "viewType" in node:
            yield node
        for child in node.values():
            yield from panels(child)
    elif isinstance(node, list):
        for child in node:
            yield from panels(child)


@pytest.mark.parametrize("name", ["workspace", "report"])
def test_every_question_has_its_panel(made, name):
    kinds = [panel["viewType"] for panel in panels(made[name])]
    for kind in ("Media Browser", "Scatter Plot", "Parallel Coordinates Plot", "Run History Line Plot", "Bar Chart"):
        assert kind in kinds, kinds
    text = json.dumps(made[name])
    for key in ("score_heatmap", "eval/first/accuracy", "eval/second/f1", "probe/stories/perplexity", "cost/seconds"):
        assert key in text
    assert "someone" in text
    assert "forgetting" in text


def test_every_key_is_one_that_runs_log(made, record):
    logged = {*content.summary(record), *content.measured(record, 2), "stage"}
    asked = [
        key.removeprefix("summary:")
        for panel in panels(made["workspace"])
        for key in json.dumps(panel["config"]).replace('"', " ").split()
        if "/" in key
        and key.removeprefix("summary:").split("/")[0] in ("eval", "probe", "continual", "cost", "adapter", "shift")
    ]
    assert len(asked) >= 8
    assert set(asked) <= logged


def test_files_are_written_without_a_server_and_pushed_with_one(script, small_run, tmp_path, capsys, monkeypatch):
    folder = small_run("task=builtin_sentiment2", "train_rows=32", "eval_rows=32")["folder"]
    arguments = [str(folder), "--output", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    assert json.loads((tmp_path / "out" / "workspace.json").read_text())["spec"]
    assert "eval/sentiment2/accuracy" in (tmp_path / "out" / "report.json").read_text()
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    assert script.main([*arguments, "--push"]) == 2
    assert "--entity" in capsys.readouterr().err
    monkeypatch.setattr(script, "why_offline", lambda: "nobody is logged in")
    assert script.main([*arguments, "--push", "--entity", "someone"]) == 2
    assert "nobody is logged in" in capsys.readouterr().err

    saved = []
    for kind in (script.ws.Workspace, script.wr.Report):
        monkeypatch.setattr(kind, "save", lambda self, *args, **kwargs: saved.append(self) or self)
        monkeypatch.setattr(kind, "url", "https://wandb.example/view", raising=False)
    monkeypatch.setattr(script, "why_offline", lambda: None)
    assert script.main([*arguments, "--push", "--entity", "someone"]) == 0
    assert [type(thing).__name__ for thing in saved] == ["Workspace", "Report"]


def test_a_folder_without_runs_is_said(script, tmp_path, capsys):
    assert script.main([str(tmp_path)]) == 2
    assert "results.json" in capsys.readouterr().err
