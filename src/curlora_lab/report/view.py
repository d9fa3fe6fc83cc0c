"""What the page of one run shows, as plain values: everything is computed here, the template only lays it out."""

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from curlora_lab.report import wording
from curlora_lab.report.charts import Chart, Series, line_chart

MOST_BARS = 48
CLASSES = {"constant_prediction": "grave", "below_constant": "grave", "not_learnt": "plain"}


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
        "modules": _modules(record),
        "metrics": _metrics(record),
        "parameters": _parameters(record),
        "cost": _cost(record),
        "command": shlex.join(["python", "train.py", *record["overrides"]]),
        "config": yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True, default_flow_style=False),
        "provenance": _provenance(record["provenance"]),
        "data": _data(record["provenance"]["data"]),
        "reasons": dict(record["reasons"]),
    }


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Short facts under the title; keys that the configuration lacks are left out."""
    config, provenance = record["config"], record["provenance"]
    found = [("model", str(provenance["model"].get("name", "")))]
    found += [(key, str(config[key])) for key in ("rank", "alpha", "lr", "seed") if config.get(key) is not None]
    started, finished = provenance["started"], provenance["finished"]
    found += [("started", started.replace("T", " ")), ("finished", (finished or wording.MISSING).replace("T", " "))]
    return [(name, value) for name, value in found if value]


def _warnings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "code": warning["code"].replace("_", " "),
            "task": warning["task"],
            "stage": warning["stage"],
            "message": warning["message"],
            "grave": CLASSES.get(warning["code"]) == "grave",
        }
        for warning in record["warnings"]
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
        ratio = wording.score(wording.finite_log_ratio(values), signed=True)
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
            (wording.stage_name(record, i), [_cell(record, i, j) for j in range(len(tasks))])
            for i in range(len(record["scores"]))
        ],
    }


def _cell(record: Mapping[str, Any], i: int, j: int) -> dict[str, Any]:
    """One entry: its text, its shade, and how it stands to its stage and to a constant predictor."""
    task = record["tasks"][j]
    value, since = record["scores"][i][j], i - wording.learnt_in(record)[task]
    constant = record["baselines"][task]["constant"]
    notes = [w["code"].replace("_", " ") for w in record["warnings"] if w["task"] == task and w["stage"] == i]
    shade = _shade(record, value, j)
    return {
        "text": wording.score(value),
        "shade": round(abs(shade), 3),
        "sign": "low" if shade < 0 else "high",
        "when": "before" if since < 0 else "learnt" if since == 0 else "after",
        "below": value is not None and constant is not None and since >= 0 and value <= constant,
        "notes": notes,
    }


def _shade(record: Mapping[str, Any], value: float | None, j: int) -> float:
    """-1 to 1: 0 at the constant predictor's score, 1 at the best known or reached, -1 as far below."""
    if value is None:
        return 0.0
    baseline = record["baselines"][record["tasks"][j]]
    column = [row[j] for row in record["scores"] if row[j] is not None]
    zero = baseline["constant"] if baseline["constant"] is not None else min(column)
    top = max([*column, zero] + ([baseline["best"]] if baseline["best"] is not None else []))
    # Without a known best a small gain must not look like full marks: at least a tenth of the scale is needed for that.
    span = max(top - zero, 0.1)
    return max(-1.0, min(1.0, (value - zero) / span))


def _trajectory(record: Mapping[str, Any], j: int) -> dict[str, Any]:
    """One task over the stages: chart, and what was learnt and lost."""
    task = record["tasks"][j]
    values = [row[j] for row in record["scores"]]
    learnt, last = wording.learnt_in(record)[task], wording.last_row(record)
    baseline = record["baselines"][task]
    references = [(name, baseline[name]) for name in ("constant", "best") if baseline[name] is not None]
    labels = [wording.stage_name(record, i) for i in range(len(values))]
    marked = Series(task, values, frozenset({learnt}))
    then, now = values[learnt], values[last] if last >= learnt else None
    earlier = [value for value in values[learnt:last] if value is not None]
    return {
        "task": task,
        "metric": record["metric"][task],
        "chart": line_chart([marked], labels, describe=wording.score, references=references),
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
    chart: Chart | None = line_chart(
        [Series(name, values)], labels, describe=wording.perplexity, log=True, width=420, height=190
    )
    missing = {i: record["reasons"].get(f"probes.perplexity.{name}[{i}]") for i, v in enumerate(values) if v is None}
    return {
        "name": name,
        "chart": chart,
        "perplexity": [wording.perplexity(value) for value in values],
        "bits": [wording.score(value) for value in record["probes"]["bits_per_character"].get(name, [])],
        "kl": [wording.small(value) for value in record["shift"]["output"].get(name, [])],
        "details": record["probes"]["details"].get(name, {}),
        "missing": {labels[i]: reason for i, reason in missing.items() if reason},
    }


def _modules(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bars of ‖ΔW‖ / ‖W‖ by module after the last stage."""
    row = record["shift"]["weight"][wording.last_row(record)]
    if not row or not row["modules"]:
        return None
    top = max((value for value in row["modules"].values() if value is not None), default=0.0)
    bars = [
        {
            "name": name,
            "value": wording.small(value),
            "width": round(100 * value / top, 2) if value and top else 0,
            "reason": row.get("reasons", {}).get(name),
        }
        for name, value in row["modules"].items()
    ]
    return {"shown": bars[:MOST_BARS], "more": bars[MOST_BARS:], "overall": wording.small(row["overall"])}


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
    }


def _provenance(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Everything that is one value, the model's and the libraries' too."""
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
