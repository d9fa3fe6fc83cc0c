"""``results.json``: everything a run found, put together from the rows of its stages."""

import datetime
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

import curlora_lab
from curlora_lab.backbone import Backbone
from curlora_lab.continual.environment import versions
from curlora_lab.continual.identity import source_hash
from curlora_lab.continual.store import Row
from curlora_lab.integrity import sealed_record
from curlora_lab.metrics import summarise
from curlora_lab.probes import PerplexityProbe
from curlora_lab.tasks import TaskModule

SCHEMA_VERSION = "1"
LIBRARIES = (
    "torch",
    "lightning",
    "transformers",
    "peft",
    "hydra-core",
    "datasets",
    "torchmetrics",
    "safetensors",
    "numpy",
)


def build_record(
    rows: Sequence[Row],
    *,
    status: str,
    name: str,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    tasks: Sequence[TaskModule],
    learnt_in: Mapping[str, int],
    stages: int,
    probes: Mapping[str, PerplexityProbe],
    baselines: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, int],
    warnings: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    message: str | None = None,
) -> dict[str, Any]:
    """Put the record of a run together.

    Args:
        rows: the finished rows; those still missing stand as null.
        status: ``running``, ``finished`` or ``failed``.
        name: name of the run folder.
        config: the resolved configuration.
        overrides: what was given on the command line.
        tasks: all tasks, in order.
        learnt_in: the stage in which each task is learnt.
        stages: how many stages the run has.
        probes: the probes, by name.
        baselines: see :func:`baseline`, by task.
        parameters: ``adapter``, ``head``, ``trainable``, ``total`` as the run begins.
        warnings: what is to be said about the run beside the findings of its rows.
        provenance: see :func:`provenance`.
        message: why a run failed.
    """
    names = [task.name for task in tasks]
    by_stage: list[Row | None] = [*rows, *[None] * (stages + 1 - len(rows))]
    scores = [[row.metrics.get(task.name, {}).get(task.metric) if row else None for task in tasks] for row in by_stage]
    summary = summarise(
        scores,
        names,
        baselines=baselines,
        fwt_defined=[task.zero_shot for task in tasks],
        trained_at=[learnt_in[name] for name in names],
        metrics=[task.metric for task in tasks],
    )
    reasons = {path: reason for row in rows for path, reason in row.reasons.items()}
    found = {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "message": message,
        "name": name,
        "config": dict(config),
        "overrides": list(overrides),
        "tasks": names,
        "metric": {task.name: task.metric for task in tasks},
        "learnt_in": dict(learnt_in),
        "scores": scores,
        "metrics": {name: [row.metrics.get(name, {}) if row else {} for row in by_stage] for name in names},
        "choose": {name: _chosen(by_stage[learnt_in[name]]) for name in names},
        "baselines": dict(baselines),
        "warnings": [*warnings, *(finding for row in rows for finding in row.findings)],
        "continual": summary.continual,
        "variants": summary.variants,
        "reasons": {**summary.reasons, **reasons},
        "probes": _probes(by_stage, probes),
        "parameters": _grown(parameters, rows),
        "shift": {
            "weight": [row.shift.get("weight") if row else None for row in by_stage],
            "output": {name: [row.shift["output"].get(name) if row else None for row in by_stage] for name in probes},
        },
        "cost": _cost(rows),
        "provenance": dict(provenance),
    }
    return sealed_record(found)


def count_parameters(backbone: Backbone, tasks: Sequence[TaskModule]) -> dict[str, int]:
    """Parameters of adapter and heads apart: a linear head often has more than a CURLoRA adapter."""
    adapter = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    head = sum(p.numel() for task in tasks if task.head is not None for p in task.head.parameters())
    total = sum(p.numel() for p in backbone.parameters()) + head
    return {"adapter": adapter, "head": head, "trainable": adapter + head, "total": total}


def _grown(parameters: Mapping[str, int], rows: Sequence[Row]) -> dict[str, int]:
    """The counts after the last stage: where a strategy gives each stage an adapter of its own, there are more by then."""
    held = rows[-1].cost.get("strategy", {}).get("adapter_parameters") if rows else None
    added = int(held) - parameters["adapter"] if held is not None else 0
    return {key: count + (added if key != "head" else 0) for key, count in parameters.items()}


def provenance(
    backbone: Backbone,
    tasks: Sequence[TaskModule],
    *,
    identity: str,
    reused: Mapping[int, str],
    started: str,
    tuned: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Where the numbers come from: code, machine, libraries, content of model and data; ``tuned``: its learning rate too."""
    return {
        **({"tuned": dict(tuned)} if tuned is not None else {}),
        "package_version": curlora_lab.__version__,
        "source_hash": source_hash(),
        "git_commit": git_commit(),
        "identity": identity,
        "started": started,
        "finished": now(),
        "host": socket.gethostname(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "versions": dict(versions(LIBRARIES)),
        "model": {**backbone.source, "name": backbone.name, "fingerprint": backbone.fingerprint},
        "data": {
            task.name: {
                "fingerprint": task.data.fingerprint,
                "rows": dict(task.data.counts),
                "notes": list(task.data.notes),
            }
            for task in tasks
        },
        "reused_stages": [{"stage": stage, "from": origin} for stage, origin in reused.items()],
    }


def now() -> str:
    """The time, to the second, with its zone."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def peak_memory() -> int:
    """Most memory the process has held so far, in bytes: on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def baseline(task: TaskModule) -> dict[str, Any]:
    """What a score on a task is to be held against: the best constant predictor and, where known, the best there can be."""
    constant, label = task.constant_baseline()
    return {
        "constant": constant,
        "constant_label": label,
        "best": task.data.best,
        "rows": task.data.counts[task.data.evaluated],
    }


def _chosen(row: Row | None) -> dict[str, float] | None:
    return row.choose if row else None


def _probes(rows: Sequence[Row | None], probes: Mapping[str, PerplexityProbe]) -> dict[str, Any]:
    keys = ("perplexity", "bits_per_character")
    values = {
        key: {name: [row.probes.get(name, {}).get(key) if row else None for row in rows] for name in probes}
        for key in keys
    }
    return {**values, "details": {name: probe.details() for name, probe in probes.items()}}


def _cost(rows: Sequence[Row]) -> dict[str, Any]:
    trained = [row.cost for row in rows if row.stage > 0]
    evaluation = sum(row.cost.get("evaluation_seconds", 0.0) for row in rows)
    strategy = _strategy_cost(rows)
    return {
        "seconds": sum(cost["seconds"] for cost in trained) + evaluation + strategy["outside_seconds"],
        "stages": [{key: cost[key] for key in ("seconds", "tokens", "tokens_per_second")} for cost in trained],
        "evaluation_seconds": evaluation,
        "tokens": int(sum(cost["tokens"] for cost in trained)),
        "peak_memory_bytes": int(max((row.cost.get("peak_memory_bytes", 0) for row in rows), default=0)),
        "strategy": strategy,
    }


def _strategy_cost(rows: Sequence[Row]) -> dict[str, Any]:
    """The strategy's seconds over all stages, the most it held of everything, and the same row by row."""
    stages: list[dict[str, float]] = [row.cost.get("strategy", {}) for row in rows]
    clocks = ("seconds", "outside_seconds")
    held = {key for stage in stages for key in stage if key not in clocks}
    return {
        **{key: sum(stage.get(key, 0.0) for stage in stages) for key in clocks},
        **{key: max(stage.get(key, 0.0) for stage in stages) for key in sorted(held)},
        "stages": stages,
    }


@cache
def git_commit() -> str | None:
    """Commit of a source tree, marked when it has uncommitted changes; ``None`` for an installed package."""
    folder = Path(curlora_lab.__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
