"""What a finished run shows in a dashboard: plain numbers and tables from its record and its predictions files.

Everything here is a pure function of ``results.json`` and the run folder; :mod:`curlora_lab.loggers.wandb_run` sends it.
"""

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of plain values.

    Attributes:
        columns: names of the columns.
        rows: one list a row, as long as ``columns``.
    """

    columns: list[str]
    rows: list[list[Any]]


def summary(record: Record) -> dict[str, float | int]:
    """The numbers by which runs are compared: sweeps maximise one of them, dashboards plot them against each other.

    Args:
        record: a finished run's record.

    Returns:
        ``continual/*``, ``choose/learning`` (mean over tasks of the score on rows set aside for choosing, each task right
        after its own stage: the number to tune by), ``adapter/trainable_parameters``,
        ``head/trainable_parameters``, ``parameters/*``, ``cost/*``,
        ``warnings/count``, ``warnings/choosing_rows`` (1 where scores are of choosing rows) and, for each probe,
        ``probe/{name}/perplexity_ratio``: perplexity after the last stage over that before any training. What the record has
        no value for is left out.
    """
    parameters, cost = record["parameters"], record["cost"]
    values: dict[str, float | int | None] = {
        **{f"continual/{name}": value for name, value in record["continual"].items()},
        "adapter/trainable_parameters": parameters["adapter"],
        "head/trainable_parameters": parameters["head"],
        "parameters/trainable": parameters["trainable"],
        "parameters/total": parameters["total"],
        "warnings/count": len(record["warnings"]),
        "choose/learning": _chosen(record),
        "warnings/choosing_rows": 1 if record["config"].get("evaluate_on") == "choose" else None,
        **{f"cost/{name}": value for name, value in cost.items() if isinstance(value, int | float)},
    }
    for probe, perplexities in record["probes"]["perplexity"].items():
        before, after = perplexities[0], perplexities[-1]
        values[f"probe/{probe}/perplexity_ratio"] = after / before if before and after is not None else None
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def _chosen(record: Record) -> float | None:
    """Mean over tasks of the score on choosing rows right after the task's stage; needs one metric for all tasks."""
    if record["continual"]["average"] is None:
        return None
    scores = [(record.get("choose", {}).get(task) or {}).get(record["metric"][task]) for task in record["tasks"]]
    there = [score for score in scores if score is not None]
    return math.fsum(there) / len(there) if there and len(there) == len(scores) else None


def stage_rows(record: Record) -> Iterator[dict[str, float | int]]:
    """The curve of a sequence: after stage i, the mean score over the tasks that were learnt up to then.

    ``continual/average_seen[i] = mean over {j : task j learnt in stage <= i} of a[i, j]``. Nothing is said of metrics
    that can't be averaged (the record has no average then) or of stages with a missing score.

    Args:
        record: a finished run's record.

    Yields:
        ``stage`` and ``continual/average_seen``, one dict a stage; the last also has all other ``continual/*``.
    """
    learnt_in, last = record["learnt_in"], len(record["scores"]) - 1
    for stage in range(1, last + 1):
        values: dict[str, float | int] = {"stage": stage}
        seen = [
            score
            for task, score in zip(record["tasks"], record["scores"][stage], strict=True)
            if learnt_in[task] <= stage
        ]
        if record["continual"]["average"] is not None and seen and None not in seen:
            values["continual/average_seen"] = math.fsum(seen) / len(seen)
        if stage == last:
            values |= {name: value for name, value in summary(record).items() if name.startswith("continual/")}
        if len(values) > 1:
            yield values


def measured(record: Record, stage: int) -> dict[str, float | int]:
    """One row of the score matrix with all that was measured beside it, under the keys that training logs.

    Args:
        record: a finished run's record.
        stage: row of the score matrix.
    """
    probes, shift = record["probes"], record["shift"]
    values: dict[str, Any] = {"stage": stage}
    for task, rows in record["metrics"].items():
        values |= {f"eval/{task}/{metric}": value for metric, value in rows[stage].items()}
    for quantity in ("perplexity", "bits_per_character"):
        values |= {f"probe/{name}/{quantity}": rows[stage] for name, rows in probes.get(quantity, {}).items()}
    values["shift/weight"] = (shift["weight"][stage] or {}).get("overall")
    values |= {f"shift/{name}/output": rows[stage] for name, rows in shift["output"].items()}
    return {name: value for name, value in values.items() if value is not None}


def score_matrix(record: Record) -> Table:
    """The score matrix as it stands in the report, one row a stage.

    Args:
        record: a finished run's record.
    """
    rows = [
        [stage, after, *scores]
        for stage, (after, scores) in enumerate(zip(stage_names(record), record["scores"], strict=True))
    ]
    return Table(["stage", "after", *record["tasks"]], rows)


def trajectories(record: Record) -> dict[str, list[float]]:
    """The columns of the score matrix, for tasks whose every score is there.

    Args:
        record: a finished run's record.

    Returns:
        By task, its score in each row.
    """
    columns = {task: [row[index] for row in record["scores"]] for index, task in enumerate(record["tasks"])}
    return {task: column for task, column in columns.items() if None not in column}


def scores(record: Record) -> Table:
    """Every entry of the score matrix in a row of its own, with what a constant answer gets and what is achievable.

    Args:
        record: a finished run's record.
    """
    columns = ["stage", "after", "task", "metric", "score", "constant", "best", "learnt_in"]
    rows = []
    for stage, (after, row) in enumerate(zip(stage_names(record), record["scores"], strict=True)):
        for task, score in zip(record["tasks"], row, strict=True):
            base = record["baselines"].get(task, {})
            known = [base.get("constant"), base.get("best"), record["learnt_in"][task]]
            rows.append([stage, after, task, record["metric"][task], score, *known])
    return Table(columns, rows)


def warnings(record: Record) -> Table:
    """What a sceptic would object to.

    Args:
        record: a finished run's record.
    """
    columns = ["code", "task", "stage", "message"]
    return Table(columns, [[warning[name] for name in columns] for warning in record["warnings"]])


def predictions(record: Record, folder: Path, *, rows_per_task: int) -> Table:
    """A sample of each classification task's answers when it had just been learnt and at the end of the run.

    Args:
        record: a finished run's record.
        folder: its run folder.
        rows_per_task: at most so many rows of a task, evenly spread over its file.

    Returns:
        ``forgotten`` marks rows that were right after the task's own stage and are wrong at the end. Tasks whose
        predictions are no labels (language modelling) are left out.
    """
    columns = ["task", "row", "label", "learnt_prediction", "prediction", "confidence", "correct", "forgotten"]
    rows: list[list[Any]] = []
    last = len(record["scores"]) - 1
    for task in record["tasks"]:
        final = read_predictions(folder, last, task)
        earlier = {line["row"]: line for line in read_predictions(folder, record["learnt_in"][task], task)}
        names = _label_names(record, task)
        for line in _spread([line for line in final if "label" in line and "prediction" in line], rows_per_task):
            before = earlier.get(line["row"], {}).get("prediction")
            correct = line["prediction"] == line["label"]
            rows.append(
                [
                    task,
                    str(line["row"]),
                    _name(names, line["label"]),
                    None if before is None else _name(names, before),
                    _name(names, line["prediction"]),
                    _confidence(line),
                    correct,
                    before == line["label"] and not correct,
                ]
            )
    return Table(columns, rows)


def stage_names(record: Record) -> list[str]:
    """What happened before each row of the score matrix: ``untrained``, then the tasks learnt in each stage."""
    learnt_in = record["learnt_in"]
    stages = range(1, len(record["scores"]))
    return ["untrained", *(" + ".join(t for t in record["tasks"] if learnt_in[t] == stage) for stage in stages)]


def read_predictions(folder: Path, stage: int, task: str) -> list[dict[str, Any]]:
    """A stage's predictions for a task; empty where the stage has none.

    Args:
        folder: the run folder.
        stage: row of the score matrix.
        task: name of the task.
    """
    path = folder / f"stage_{stage:02d}" / "predictions" / f"{task}.jsonl.gz"
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _label_names(record: Record, task: str) -> Sequence[str]:
    """Names of a task's labels, as far as its configuration says them in the order of the label ids."""
    config = record["config"]
    nodes = [config["task"]] if config.get("task") else list(config["sequence"]["tasks"].values())
    for node in nodes:
        data = node.get("data", {})
        if node.get("name") == task and isinstance(data.get("labels"), list) and not data.get("drop_labels"):
            return [str(name) for name in data["labels"]]
    return []


def _name(names: Sequence[str], label: Any) -> str:
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else str(label)


def _confidence(line: Mapping[str, Any]) -> float | None:
    """Probability that the model gave to what it predicted."""
    found, prediction = line.get("log_probabilities"), line["prediction"]
    if not isinstance(found, list) or not isinstance(prediction, int) or not 0 <= prediction < len(found):
        return None
    return math.exp(found[prediction])


def _spread(lines: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most ``most`` lines at even distances."""
    if len(lines) <= most:
        return list(lines)
    return [lines[index * len(lines) // most] for index in range(most)]
