"""What the page of one run shows, as plain values: everything is computed here, the template only lays it out."""

import shlex
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import yaml

from curlora_lab.report import wording
from curlora_lab.report.run_figures import shade

CLASSES = {"constant_prediction": "grave", "below_constant": "grave", "choosing_rows": "grave", "not_learnt": "plain"}
STRATEGY_CLOCKS = {
    "seconds": "time in its hooks and backward through its penalty",
    "outside_seconds": "of that between training and evaluation, in no stage above",
}
STRATEGY_COST = {**STRATEGY_CLOCKS, "stored_rows": "rows kept, at most", "stored_bytes": "memory kept, at most"}


def run_view(record: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that ``run.html.jinja`` needs.

    Args:
        record: A valid record.

    Returns:
        Plain values by name.
    """
    return {
        "record": record,
        "facts": _facts(record),
        "warnings": _warnings(record),
        "cards": _cards(record),
        "matrix": _matrix(record),
        "trajectories": [_trajectory(record, j) for j in range(len(record["tasks"]))],
        "probes": [_probe(record, name) for name in record["probes"]["perplexity"]],
        "rows": [wording.stage_name(record, i) for i in range(len(record["scores"]))],
        "shifts": [wording.small((row or {}).get("overall")) for row in record["shift"]["weight"]],
        "moved": wording.small((record["shift"]["weight"][wording.last_row(record)] or {}).get("overall")),
        "unmoved": _unmeasured(record),
        "state": wording.status(record),
        "mixed": mixed_metrics(record),
        "metrics": _metrics(record),
        "parameters": _parameters(record),
        "cost": _cost(record),
        "command": shlex.join(["python", "train.py", *record["overrides"]]),
        "config": yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True, default_flow_style=False),
        "provenance": provenance_of(record),
        "provenance_text": "\n".join(f"{name}: {value}" for name, value in provenance_of(record)),
        "data": _data(record["provenance"]["data"]),
        "reasons": dict(record["reasons"]),
    }


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Short facts under the title; keys that the configuration lacks are left out."""
    config, provenance = record["config"], record["provenance"]
    found = [("model", str(provenance["model"].get("name", "")))]
    found += [("scored on", "choosing rows")] if wording.on_choosing_rows(record) else []
    found += [(key, str(config[key])) for key in ("rank", "alpha", "lr", "seed") if config.get(key) is not None]
    started, finished = provenance["started"], provenance["finished"]
    found += [("started", started.replace("T", " ")), ("finished", (finished or wording.MISSING).replace("T", " "))]
    return [(name, value) for name, value in found if value]


def _warnings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    ordered = sorted(record["warnings"], key=lambda warning: CLASSES.get(warning["code"]) != "grave")
    return [
        {
            "code": warning["code"].replace("_", " "),
            "task": warning["task"],
            "stage": warning["stage"],
            "message": warning["message"],
            "grave": CLASSES.get(warning["code"]) == "grave",
        }
        for warning in ordered
    ]


def _cards(record: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """The key numbers, each with what it means or why it is missing."""
    cards: list[dict[str, str | None]] = []
    for key, (name, meaning) in wording.CONTINUAL.items():
        value = record["continual"][key]
        reason = None if value is not None else record["reasons"].get(f"continual.{key}")
        text = wording.score(value, signed=key in ("bwt", "fwt"))
        cards.append({"name": name, "value": text, "meaning": meaning, "reason": reason})
    last = wording.last_row(record)
    for probe, values in record["probes"]["perplexity"].items():
        ratio = wording.score(wording.finite_log_ratio(values[: last + 1]), signed=True)
        text = f"{wording.perplexity(values[0])} → {wording.perplexity(values[last])}"
        meaning = f"perplexity before and after; log ratio {ratio} nats a token"
        reason = None if values[last] is not None else record["reasons"].get(f"probes.perplexity.{probe}[{last}]")
        cards.append({"name": f"language model · {probe}", "value": text, "meaning": meaning, "reason": reason})
    return cards


def _matrix(record: Mapping[str, Any]) -> dict[str, Any]:
    """The score matrix as cells, between the constant predictor's row and the best known one."""
    tasks, baselines = record["tasks"], record["baselines"]
    best = [baselines[task]["best"] for task in tasks]
    return {
        "tasks": [(task, record["metric"][task], baselines[task]["rows"]) for task in tasks],
        "constant": [(wording.score(baselines[t]["constant"]), baselines[t]["constant_label"]) for t in tasks],
        "best": [wording.score(value) for value in best] if any(value is not None for value in best) else None,
        "rows": [
            (wording.stage_name(record, i), [_cell(record, i, j) for j in range(len(tasks))], _mean_so_far(record, i))
            for i in range(len(record["scores"]))
        ],
        "mean": len(tasks) > 1 and len(set(record["metric"].values())) == 1,
    }


def _mean_so_far(record: Mapping[str, Any], i: int) -> str:
    """Mean over the tasks learnt by stage ``i``."""
    learnt = wording.learnt_in(record)
    values = [record["scores"][i][j] for j, task in enumerate(record["tasks"]) if learnt[task] <= i]
    return wording.score(fmean(values) if values and None not in values else None)


def _cell(record: Mapping[str, Any], i: int, j: int) -> dict[str, Any]:
    """One entry: its text, its shade, and how it stands to its stage and to a constant predictor."""
    task = record["tasks"][j]
    value, since = record["scores"][i][j], i - wording.learnt_in(record)[task]
    constant = record["baselines"][task]["constant"]
    notes = [w["code"].replace("_", " ") for w in record["warnings"] if w["task"] == task and w["stage"] == i]
    place = shade(record, value, j)
    return {
        "text": wording.score(value),
        "shade": round(abs(place), 3),
        "sign": "low" if place < 0 else "high",
        "when": "before" if since < 0 else "learnt" if since == 0 else "after",
        "below": value is not None and constant is not None and since >= 0 and value <= constant,
        "notes": notes,
    }


def _trajectory(record: Mapping[str, Any], j: int) -> dict[str, Any]:
    """What was learnt and lost of one task."""
    task = record["tasks"][j]
    values = [row[j] for row in record["scores"]]
    learnt, last = wording.learnt_in(record)[task], wording.last_row(record)
    baseline = record["baselines"][task]
    then, now = values[learnt], values[last] if last >= learnt else None
    earlier = [value for value in values[learnt:last] if value is not None]
    return {
        "task": task,
        "metric": record["metric"][task],
        "learnt": wording.score(then),
        "final": wording.score(now),
        "lost": wording.score(max(earlier) - now if earlier and now is not None else None, signed=True),
        "above": wording.score(
            now - baseline["constant"] if now is not None and baseline["constant"] is not None else None, signed=True
        ),
    }


def _probe(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One probe over the stages, with the protocol that makes its numbers repeatable."""
    values = record["probes"]["perplexity"][name]
    labels = [wording.stage_name(record, i) for i in range(len(values))]
    missing = {i: record["reasons"].get(f"probes.perplexity.{name}[{i}]") for i, v in enumerate(values) if v is None}
    return {
        "name": name,
        "perplexity": [wording.perplexity(value) for value in values],
        "bits": [wording.score(value) for value in record["probes"]["bits_per_character"].get(name, [])],
        "kl": [wording.small(value) for value in record["shift"]["output"].get(name, [])],
        "details": record["probes"]["details"].get(name, {}),
        "missing": {labels[i]: reason for i, reason in missing.items() if reason},
    }


def _unmeasured(record: Mapping[str, Any]) -> dict[str, str]:
    """Modules whose movement could not be measured, with the reason."""
    return dict((record["shift"]["weight"][wording.last_row(record)] or {}).get("reasons", {}))


def mixed_metrics(record: Mapping[str, Any]) -> str | None:
    """Which tasks are scored by which metric, and what that means for the averages.

    Args:
        record: A valid record.

    Returns:
        Two or three sentences; ``None`` where all tasks have one metric.
    """
    metrics = dict.fromkeys(record["metric"][task] for task in record["tasks"])
    if len(metrics) < 2:
        return None
    by = {name: [task for task in record["tasks"] if record["metric"][task] == name] for name in metrics}
    named = "; ".join(f"{name}: {', '.join(tasks)}" for name, tasks in by.items())
    reason = record["reasons"].get("continual.average") if record["continual"]["average"] is None else None
    averages = f"No average is taken: {reason}." if reason else "The averages are over metrics that all end at 1."
    return f"Different metrics ({named}). Compare within a column only. {averages}"


def _metrics(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every metric of every task by row."""
    found = []
    for task, rows in record["metrics"].items():
        names = list(dict.fromkeys(name for row in rows for name in row))
        found.append(
            {"task": task, "names": names, "rows": [[wording.score(row.get(name)) for name in names] for row in rows]}
        )
    return found


def _parameters(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    counts = record["parameters"]
    names = {"adapter": "adapter", "head": "heads, all tasks", "trainable": "trained", "total": "total"}
    return [
        (text, wording.count(counts[key]), wording.share(counts[key], counts["total"])) for key, text in names.items()
    ]


def _cost(record: Mapping[str, Any]) -> dict[str, Any]:
    cost = record["cost"]
    return {
        "stages": [
            (
                wording.stage_name(record, i).removeprefix("after "),
                wording.duration(stage["seconds"]),
                wording.count(stage["tokens"]),
                wording.count(stage["tokens_per_second"]),
            )
            for i, stage in enumerate(cost["stages"], start=1)
        ],
        "total": wording.duration(cost["seconds"]),
        "evaluation": wording.duration(cost["evaluation_seconds"]),
        "tokens": wording.count(cost["tokens"]),
        "memory": wording.memory(cost["peak_memory_bytes"]),
        "strategy": _strategy_cost(cost.get("strategy", {})),
    }


def _strategy_cost(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the strategy cost, each number with its name; empty for nothing."""
    values = {key: value for key, value in cost.items() if key != "stages"}
    if not any(value for key, value in values.items() if key not in STRATEGY_CLOCKS) and values.get("seconds", 0) < 0.1:
        return []
    return [(STRATEGY_COST.get(key, key.replace("_", " ")), _amount(key, value)) for key, value in values.items()]


def _amount(key: str, value: float) -> str:
    if key.endswith("seconds"):
        return wording.duration(value)
    return wording.memory(value) if key.endswith("bytes") else wording.number(value)


def provenance_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a run's numbers come from: everything that is one value, the model's and the libraries' too.

    Args:
        record: A valid record.

    Returns:
        Names and values.
    """
    provenance = record["provenance"]
    flat = {
        key: value for key, value in provenance.items() if key not in ("versions", "model", "data", "reused_stages")
    }
    flat |= {f"model · {key}": value for key, value in provenance["model"].items()}
    flat |= {f"version · {key}": value for key, value in provenance["versions"].items()}
    for stage in provenance["reused_stages"]:
        number, origin = (stage, "an earlier run") if isinstance(stage, int) else (stage["stage"], stage["from"])
        flat[f"stage {number} reused from"] = origin
    return [(name, wording.MISSING if value is None else str(value)) for name, value in flat.items()]


def _data(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "rows": ", ".join(f"{role} {wording.count(number)}" for role, number in entry.get("rows", {}).items()),
            "notes": list(entry.get("notes", [])),
            "fingerprint": str(entry.get("fingerprint", ""))[:16],
        }
        for task, entry in data.items()
    ]
