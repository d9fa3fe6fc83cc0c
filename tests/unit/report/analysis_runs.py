"""Run folders made by hand for the tests of the analysis."""

import copy
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curlora_lab.metrics import summarise

TASKS = ("red", "blue")
ROWS = 200
Record = dict[str, Any]


def write_run(folder: Path, record: Record, *, predictions: bool = True) -> Path:
    """A run folder with its record and predictions that give exactly the recorded scores."""
    path = folder / record["name"]
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps(record))
    for stage, row in enumerate(record["scores"] if predictions else ()):
        for task, score in zip(record["tasks"], row, strict=True):
            if score is not None:
                lines = [
                    json.dumps({"row": f"{task}-{k}", "label": 1, "prediction": int(k < round(score * ROWS))}) + "\n"
                    for k in range(ROWS)
                ]
                target = path / f"stage_{stage:02d}" / "predictions" / f"{task}.jsonl.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    return path


def make_record(
    base: Record,
    *,
    adapter: str = "curlora",
    seed: int = 0,
    learnt: tuple[float, float] = (0.8, 0.7),
    kept: float = 0.75,
    drift: float = 0.1,
    norm: float = 1.0,
    parameters: int = 1000,
    tasks: tuple[str, str] = TASKS,
    **settings: Any,
) -> Record:
    """A finished run of two tasks: ``learnt`` right after each stage, ``kept`` of the first at the end."""
    record = copy.deepcopy(base)
    scores = [[0.5, 0.5], [learnt[0], 0.5], [kept, learnt[1]]]
    if settings.get("scenario") == "independent":
        scores = [[0.5, 0.5], [learnt[0], None], [None, learnt[1]]]
    if settings.get("scenario") == "joint":
        scores = [[0.5, 0.5], [learnt[0], learnt[1]]]
    stages = len(scores)
    learnt_in = {task: 1 if stages == 2 else k for k, task in enumerate(tasks, start=1)}
    baselines = {task: {"constant": 0.5, "constant_label": "1", "best": 1.0, "rows": ROWS} for task in tasks}
    summary = summarise(
        scores, tasks, baselines=baselines, fwt_defined=[False, False], trained_at=[learnt_in[t] for t in tasks],
        metrics=["accuracy"] * 2,
    )  # fmt: skip
    label = "-".join([adapter, *(f"{key}{value}" for key, value in settings.items())])
    record |= {
        "name": f"{label}-{tasks[0]}-s{seed}-0123abcd",
        "overrides": [f"adapter={adapter}", *(f"{key}={value}" for key, value in settings.items()), f"seed={seed}"],
        "tasks": list(tasks),
        "metric": dict.fromkeys(tasks, "accuracy"),
        "learnt_in": learnt_in,
        "scores": scores,
        "metrics": {task: [{} for _ in scores] for task in tasks},
        "choose": dict.fromkeys(tasks),
        "baselines": baselines,
        "warnings": [],
        "continual": summary.continual,
        "variants": summary.variants,
        "reasons": summary.reasons,
        "shift": {
            "weight": [
                {"overall": norm * k / 100, "absolute": norm * k / (stages - 1), "modules": {}, "reasons": {}}
                for k in range(stages)
            ],
            "output": {"tales": [0.0] * stages},
        },
    }
    record["probes"] = {
        "perplexity": {"tales": [4.0, *[4.0 * math.exp(drift * k / (stages - 1)) for k in range(1, stages)]]},
        "bits_per_character": {"tales": [1.0] * stages},
        "details": {"tales": {}},
    }
    record["config"] |= {"seed": seed, "adapter": {"name": adapter, "seed": seed}, **settings}
    record["parameters"] = {"adapter": parameters, "head": 10, "trainable": parameters + 10, "total": 10_000}
    record["provenance"]["identity"] = json.dumps([label, seed, tasks])
    return record


def seeds_of(base: Record, values: list[dict[str, Any]], **settings: Any) -> list[Record]:
    """One record a seed; each dictionary is what is special about it."""
    return [make_record(base, seed=seed, **{**settings, **special}) for seed, special in enumerate(values)]


def writer(folder: Path) -> Callable[[list[Record]], list[Path]]:
    """Writes records into run folders below a folder."""
    return lambda records: [write_run(folder, record) for record in records]
