"""A finished run of two tasks, as far as loggers look at it."""

import gzip
import json

import pytest


@pytest.fixture
def record():
    nodes = {
        "first": {"name": "first", "data": {"labels": ["no", "yes"], "drop_labels": []}},
        "second": {"name": "second", "data": {"labels": ["a", "b", "c"], "drop_labels": ["b"]}},
    }
    return {
        "name": "tiny-curlora-r4-a1-lr0.01-s0-0123abcd",
        "config": {
            "task": None,
            "sequence": {"tasks": nodes, "name": "demo"},
            "rank": 4,
            "alpha": 1,
            "lr": 0.01,
            "seed": 0,
        },
        "tasks": ["first", "second"],
        "metric": {"first": "accuracy", "second": "accuracy"},
        "learnt_in": {"first": 1, "second": 2},
        "scores": [[0.5, 0.25], [1.0, 0.25], [0.5, 0.75]],
        "metrics": {
            "first": [{"accuracy": 0.5}, {"accuracy": 1.0}, {"accuracy": 0.5}],
            "second": [{"accuracy": 0.25}, {"accuracy": 0.25}, {"accuracy": 0.75}],
        },
        "baselines": {"first": {"constant": 0.5, "best": 1.0}, "second": {"constant": 0.5, "best": None}},
        "warnings": [{"code": "not_learnt", "task": "first", "stage": 2, "message": "<b>accuracy</b>"}],
        "continual": {"average": 0.625, "gain": None, "bwt": -0.5, "fwt": None, "forgetting": 0.5, "learning": 0.875},
        "probes": {"perplexity": {"stories": [4.0, 4.4, 5.0]}, "bits_per_character": {"stories": [1.0, 1.1, None]}},
        "parameters": {"adapter": 16, "head": 10, "trainable": 26, "total": 1000},
        "shift": {
            "weight": [{"overall": 0.0}, {"overall": 0.1}, {"overall": 0.2}],
            "output": {"stories": [0.0, 0.1, 0.3]},
        },
        "cost": {"seconds": 2.5, "stages": [{"seconds": 1.0}], "tokens": 120, "peak_memory_bytes": 7},
        "provenance": {"identity": "0123abcd" * 8, "model": {"name": "tiny"}, "reused_stages": []},
    }


@pytest.fixture
def run_folder(record, tmp_path):
    folder = tmp_path / "demo" / record["name"]
    answers = {  # stage -> task -> (label, prediction)
        1: {"first": [(0, 0), (1, 1), (1, 0)]},
        2: {"first": [(0, 1), (1, 1), (1, 1)], "second": [(0, 0), (2, 2)]},
    }
    for stage, tasks in answers.items():
        for task, pairs in tasks.items():
            path = folder / f"stage_{stage:02d}" / "predictions" / f"{task}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                {"row": str(row), "label": label, "prediction": given, "log_probabilities": [-1.0, -0.5, -2.0]}
                for row, (label, given) in enumerate(pairs)
            ]
            path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    adapter = folder / "stage_02" / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "stage_02" / "head.safetensors").write_bytes(b"heads")
    (folder / "results.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "report.html").write_text("<html><body>report</body></html>")
    return folder
