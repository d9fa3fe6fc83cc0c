"""Score a finished run again, whatever its heads: on its own rows, on other rows, or on another data set with the same labels.

python scripts/evaluate.py runs/demo/RUN                               # all tasks; scores must be those of the record
python scripts/evaluate.py runs/demo/RUN --stage 1 --task sentiment2   # as it was after the first stage
python scripts/evaluate.py runs/demo/RUN --split train                 # how well it knows what it was trained on
python scripts/evaluate.py runs/demo/RUN --data-dir my_data            # rows of my_data/<task>/<split>.jsonl.gz (.csv, ...)
python scripts/evaluate.py runs/demo/RUN --task sentiment2 --with task=sst2 data_dir=../data    # head of one, rows of another

Exit code 1 says that a score differs from the record although the same rows were scored; 2 that nothing could be scored.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from curlora_lab import rebuild
from curlora_lab.continual import files
from curlora_lab.continual.store import read_predictions
from curlora_lab.data import DataError, Example
from curlora_lab.data.splitting import take_evaluation
from curlora_lab.reopen import OpenRun
from curlora_lab.reopen_cli import DIFFERENT, guarded, open_named, printable, run_parser
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Record


@dataclass(kw_only=True)
class Scored:
    """What one task's rows gave.

    Args:
        metrics: Every metric of the task.
        rows: Rows that were scored.
        constant: Best constant predictor under the task's metric on these rows; ``None`` where there is none.
        recorded: The record's metrics, if these are the rows that the run was scored on; else ``None``.
        changed: Rows on which not every bit of the prediction is what the run stored; ``None`` where nothing is stored.
        notes: What a reader should know of the rows.
    """

    metrics: dict[str, float]
    rows: int
    constant: float | None = None
    recorded: dict[str, float | None] | None = None
    changed: int | None = None
    notes: list[str] = field(default_factory=list)

    def differing(self, tolerance: float) -> list[str]:
        """Metrics that are not what the record says."""
        if self.recorded is None:
            return []
        known = {name: value for name, value in self.recorded.items() if value is not None}
        return [name for name, value in known.items() if not abs(self.metrics[name] - value) <= tolerance]


def main(arguments: Sequence[str] | None = None) -> int:
    """Score the tasks and print a table.

    Args:
        arguments: Command line without the program's name.

    Returns:
        Exit code, see above.
    """
    options = _parser().parse_args(arguments)
    return guarded(lambda: _evaluate(options))


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__)
    parser.add_argument(
        "--task", action="append", metavar="NAME", help="a task of the run (default: all); may be repeated"
    )
    parser.add_argument(
        "--split", choices=("test", "choose", "train"), default="test", help="which rows (default: test)"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="take the tasks' rows from DIR/<task>/<split>.{jsonl.gz,csv,...}"
    )
    parser.add_argument(
        "--with",
        dest="overrides",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="rows of another task configuration: task=<a file of conf/task> and overrides of it; needs one --task",
    )
    parser.add_argument(
        "--max-rows",
        type=int,
        metavar="N",
        help="at most N rows a task, labels in proportion",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows in a batch (default: as in the run)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="X",
        help="a score counts as that of the record up to X (default 0: bit for bit; another device needs more)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write scores, rows and predictions' counts as JSON too"
    )
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    if options.max_rows is not None and options.max_rows < 1:
        raise ValueError(f"--max-rows is {options.max_rows}; write a number of rows from 1.")
    run = open_named(options)
    names = options.task or list(run.tasks)
    if options.overrides and len(options.task or ()) != 1:
        raise ValueError(f"--with needs the task whose head is used: one --task of {', '.join(run.tasks)}.")
    scored = {name: _score(run, run.task(name), options) for name in names}
    Console().print(_table(run, scored, options.tolerance))
    if options.json:
        files.write_json(options.json, _as_json(run, scored, options))
    wrong = {name: found.differing(options.tolerance) for name, found in scored.items()}
    for name, metrics in wrong.items():
        for metric in metrics:
            recorded = (scored[name].recorded or {})[metric]
            print(f"{name}: {metric} is {scored[name].metrics[metric]!r}, recorded {recorded!r}", file=sys.stderr)
    return DIFFERENT if any(wrong.values()) else 0


def _score(run: OpenRun, task: TaskModule, options: argparse.Namespace) -> Scored:
    if options.overrides or (options.data_dir and not _moved(run, task, options.data_dir)):
        return _on_other_rows(run, task, options)
    return _on_own_rows(run, task, options)


def _moved(run: OpenRun, task: TaskModule, data_dir: str) -> bool:
    """Whether a folder holds the very rows of the run, in another place; then the task reads them from there."""
    node = rebuild.task_nodes(run.config)[task.name]["data"]
    if node["source"].get("generator"):
        return False
    data = rebuild.build_data({**node, "source": {**node["source"], "data_dir": data_dir}})
    try:
        data.prepare(run.backbone.tokenizer, seed=task.training_plan.seed, cache_dir=_cache(run))
    except DataError:
        return False
    if not _is_same(run, task, data):
        return False
    task.data = data
    return True


def _is_same(run: OpenRun, task: TaskModule, data: Any) -> bool:
    return bool(data.fingerprint == run.record["provenance"]["data"][task.name]["fingerprint"])


def _on_own_rows(run: OpenRun, task: TaskModule, options: argparse.Namespace) -> Scored:
    """The rows of the run itself, drawn again as in the run."""
    try:
        task.data.prepare(run.backbone.tokenizer, seed=task.training_plan.seed, cache_dir=_cache(run))
    except DataError as error:
        raise DataError(f"{error} If the rows of the run lie elsewhere now, say where with --data-dir.") from error
    if not task.data.counts.get(options.split):
        there = ", ".join(role for role, rows in task.data.counts.items() if rows)
        raise ValueError(f"task {task.name!r} has no rows for --split {options.split}; it has {there}.")
    examples = task.data.examples(options.split)
    if options.max_rows is not None and options.max_rows < len(examples):
        examples = take_evaluation(examples, rows=options.max_rows, subset="random")
        return _on_examples(run, task, examples, options, [])
    same = _is_same(run, task, task.data)
    notes = list(task.data.notes) + ([] if same else ["rows: they are not those of the run, so nothing is compared"])
    if not same or options.split != "test":
        return _on_examples(run, task, examples, options, notes)
    records = run.records(task, batch_size=options.batch_size)
    return Scored(
        metrics=task.score(records),
        rows=len(records),
        constant=run.record["baselines"][task.name]["constant"],
        recorded=run.record["metrics"][task.name][run.stage],
        changed=_changed(run, task, records),
        notes=notes,
    )


def _changed(run: OpenRun, task: TaskModule, records: Sequence[Record]) -> int | None:
    """On how many rows the prediction, log-probabilities included, is not the one that the run stored."""
    path = run.stage_folder / "predictions" / f"{task.name}.jsonl.gz"
    if not path.is_file():
        return None
    stored = {record["row"]: record for record in read_predictions(path)}
    return sum(stored.get(record["row"]) != record for record in records)


def _on_other_rows(run: OpenRun, task: TaskModule, options: argparse.Namespace) -> Scored:
    """Rows that the run has not seen, read by the task's configuration or by another one with the same labels."""
    node = rebuild.task_nodes(run.config)[task.name] if not options.overrides else _composed(run, options)
    node = {**node["data"]}
    if options.data_dir:
        node["source"] = {**node["source"], "data_dir": options.data_dir, "generator": None}
    data = rebuild.build_data(node)
    theirs, ours = type(data).__name__, type(task.data).__name__
    if theirs != ours:
        raise ValueError(
            f"the rows are {theirs}, the head of {task.name!r} reads {ours}; name a task of that kind after --with."
        )
    if data.labels != task.data.labels:
        raise ValueError(
            f"the rows have the labels {list(data.labels)}, the head of {task.name!r} {list(task.data.labels)}; "
            "name them so, in this order, with task.data.labels and task.data.label_map after --with."
        )
    examples, notes = data.read(data.source.read(options.split))
    if not examples:
        raise DataError(
            f"task {data.name!r} has no usable {options.split} row; choose another --split, or check its files."
        )
    task.data = data
    return _on_examples(run, task, take_evaluation(examples, rows=options.max_rows, subset="random"), options, notes)


def _on_examples(
    run: OpenRun, task: TaskModule, examples: Sequence[Example], options: argparse.Namespace, notes: Sequence[str]
) -> Scored:
    """These rows and no others; they are compared with nothing."""
    task.data = task.data.only(run.backbone.tokenizer, examples)
    records = run.records(task, batch_size=options.batch_size)
    constant, _ = task.constant_baseline()
    return Scored(
        metrics=task.score(records),
        rows=len(records),
        constant=constant,
        notes=list(dict.fromkeys([*notes, *task.data.notes])),
    )


def _composed(run: OpenRun, options: argparse.Namespace) -> dict[str, Any]:
    """The task's node that ``--with`` names, composed as train.py would."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from curlora_lab import config

    if not any(override.lstrip("+").startswith("task=") for override in options.overrides):
        raise ValueError(
            f"--with {' '.join(options.overrides)} names no task; write --with task=<a file of conf/task>."
        )
    config.register()
    given = [f"max_length={rebuild.whole_number(run.config, 'max_length')}", *options.overrides]
    try:
        with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
            composed = compose("train", overrides=given)
            node: Any = OmegaConf.to_container(composed.task, resolve=True)
    except Exception as error:  # Hydra and OmegaConf have many, without a common base
        raise ValueError(f"--with {' '.join(options.overrides)}: {str(error).splitlines()[0]}") from error
    return dict(node)


def _cache(run: OpenRun) -> Path | None:
    """The tokenised cache that the run used, if it is still there."""
    folder = run.folder.resolve().parent.parent / ".cache"
    return folder if folder.is_dir() else None


def _table(run: OpenRun, scored: dict[str, Scored], tolerance: float) -> RenderableType:
    """Scores beside those of the record, then what is to be said of each task's rows."""
    table = Table(title=Text(printable(f"{run.folder.name}, stage {run.stage}")), title_justify="left")
    for heading in ("task", "metric"):
        table.add_column(heading)
    for heading in ("score", "recorded", "constant", "rows"):
        table.add_column(heading, justify="right")
    lines = [Text("constant: what always giving the same answer would get on these rows", style="dim")]
    for name, found in scored.items():
        task, wrong = run.tasks[name], found.differing(tolerance)
        for index, (metric, value) in enumerate(found.metrics.items()):
            recorded = (found.recorded or {}).get(metric)
            main = metric == task.metric
            table.add_row(
                Text(printable(name) if index == 0 else ""),
                Text(metric, style="bold" if main else ""),
                Text(_number(value), style="red" if metric in wrong else ""),
                "" if recorded is None else f"{_number(recorded)} " + ("≠" if metric in wrong else "="),
                _number(found.constant) if main and found.constant is not None else "",
                str(found.rows) if index == 0 else "",
            )
        lines += [Text(printable(f"{name}: {note}")) for note in _remarks(run, name, found)]
    return Group(table, *lines)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def _remarks(run: OpenRun, name: str, found: Scored) -> list[str]:
    remarks = [] if name in run.learnt else [f"not learnt yet at stage {run.stage}; its head is untrained"]
    if found.changed is not None:
        same = (
            "all are those of the run, bit for bit"
            if found.changed == 0
            else f"{found.changed} are not those of the run"
        )
        remarks.append(f"predictions: {same}")
    return [*remarks, *found.notes]


def _as_json(run: OpenRun, scored: dict[str, Scored], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "stage": run.stage,
        "split": options.split,
        "data_dir": options.data_dir,
        "with": options.overrides,
        "tasks": {
            name: {
                "metric": run.tasks[name].metric,
                "metrics": found.metrics,
                "rows": found.rows,
                "constant": found.constant,
                "recorded": found.recorded,
                "changed_predictions": found.changed,
                "equal": None if found.recorded is None else not found.differing(options.tolerance),
                "learnt": name in run.learnt,
                "notes": found.notes,
            }
            for name, found in scored.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
