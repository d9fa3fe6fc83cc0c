"""A W&B workspace and a report on finished runs, as code: score matrices, learning against drift, probes, sweep, cost.

python scripts/dashboard.py runs/demo                                        # dashboard/{workspace,report}.json, to look at
python scripts/dashboard.py runs/demo --entity you --project forgetting --push

The run folders say which tasks, metrics and probes there are; the numbers come from the runs in the W&B project, which must
have been made with logger=wandb. Needs: pip install 'curlora-lab[dashboards]'.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curlora_lab.loggers.connection import why_offline
from curlora_lab.loggers.wandb_run import PROJECT
from curlora_lab.report import RecordError, find_runs, read_record

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
except ModuleNotFoundError:
    sys.exit("scripts/dashboard.py needs wandb-workspaces: pip install 'curlora-lab[dashboards]'")

NAME = "Continual fine-tuning"


@dataclass(frozen=True)
class Content:
    """What the runs of a project have in common or between them.

    Attributes:
        scores: keys of the score matrix, ``eval/{task}/{metric}``.
        probes: names of the probes.
        sequences: names of the sequences, which are the runs' groups.
    """

    scores: list[str]
    probes: list[str]
    sequences: list[str]


def content(records: Sequence[Mapping[str, Any]]) -> Content:
    """What there is to show.

    Args:
        records: records of finished runs.
    """
    scores = {f"eval/{task}/{record['metric'][task]}": None for record in records for task in record["tasks"]}
    probes = {probe: None for record in records for probe in record["probes"]["perplexity"]}
    sequences = {str((record["config"].get("sequence") or {}).get("name", "")): None for record in records}
    return Content(list(scores), list(probes), list(sequences))


def sections(there: Content) -> dict[str, list[Any]]:
    """Panels by the title of their section; each knows the keys that runs log."""
    by_adapter = {"groupby": wr.Config("adapter.name"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    ratios = [(probe, wr.SummaryMetric(f"probe/{probe}/perplexity_ratio")) for probe in there.probes]
    found: dict[str, list[Any]] = {
        "Scores": [
            wr.MediaBrowser(title="Score matrix of each run", media_keys=["score_heatmap"], layout=_size(24, 10)),
            *[
                wr.LinePlot(title=key.removeprefix("eval/"), x="stage", y=[key], **by_adapter, layout=_size(8, 8))
                for key in there.scores
            ],
        ],
        "Learning against drift of the language model": [
            wr.ScatterPlot(
                title=f"learning against drift, {probe} (up and left is better)",
                x=ratio,
                y=wr.SummaryMetric("continual/learning"),
                log_x=True,
                running_ymax=True,
                layout=_size(12, 10),
            )
            for probe, ratio in ratios
        ],
        "Language model over stages": [
            wr.LinePlot(
                title=f"perplexity, {probe}",
                x="stage",
                y=[f"probe/{probe}/perplexity"],
                log_y=True,
                **by_adapter,
                layout=_size(12, 8),
            )
            for probe in there.probes
        ],
        "Rank, alpha, learning rate": [
            wr.ParallelCoordinatesPlot(title="rank x alpha x lr", columns=_columns(ratios), layout=_size(24, 10)),
            wr.ParameterImportancePlot(with_respect_to="continual/average", layout=_size(12, 8)),
        ],
        "Cost": [
            wr.BarPlot(title=title, metrics=[wr.SummaryMetric(key)], layout=_size(8, 8))
            for key, title in (
                ("cost/seconds", "seconds"),
                ("cost/peak_memory_bytes", "peak memory, bytes"),
                ("adapter/trainable_parameters", "trained parameters of the adapter"),
            )
        ],
        "Answers": [
            wr.WeavePanelSummaryTable(table_name="predictions", layout=_size(24, 10)),
            wr.WeavePanelSummaryTable(table_name="warnings", layout=_size(24, 6)),
        ],
    }
    return {title: panels for title, panels in found.items() if panels}


def workspace(there: Content, *, entity: str, project: str) -> Any:
    """The workspace: a section for each question, runs grouped by adapter.

    Args:
        there: what there is to show.
        entity: user or team.
        project: W&B project.
    """
    made = [ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections(there).items()]
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=made)


def report(there: Content, *, entity: str, project: str) -> Any:
    """The report: the same panels with what one must know to read them.

    Args:
        there: what there is to show.
        entity: user or team.
        project: W&B project.
    """
    notes = {
        "Scores": "Row 0 is before any training. The frame marks the stage in which a task was learnt.",
        "Learning against drift of the language model": (
            "Drift is perplexity after the last stage over that before any training; 1 is no drift. "
            "An adapter that learns nothing does not drift either: read both axes."
        ),
        "Rank, alpha, learning rate": "A learning rate that was found for one method is no setting for another.",
        "Answers": "`forgotten` was right after the task's own stage and is wrong at the end.",
    }
    blocks: list[Any] = [wr.P(f"Sequences: {', '.join(there.sequences)}."), wr.TableOfContents()]
    for title, panels in sections(there).items():
        runsets = [wr.Runset(name="runs")]  # of the report's own project; to name it here would ask the server for it
        note = [wr.P(notes[title])] if title in notes else []
        blocks += [wr.H2(title), *note, wr.PanelGrid(runsets=runsets, panels=panels)]
    return wr.Report(
        entity=entity,
        project=project,
        title=NAME,
        description="What was learnt, forgotten, and what it cost.",
        blocks=blocks,
    )


def as_json(made: Any) -> dict[str, Any]:
    """What W&B would be sent, by its own model of it."""
    return json.loads(made._to_model().model_dump_json(by_alias=True))


def _columns(ratios: Sequence[tuple[str, Any]]) -> list[Any]:
    """From the settings to what they lead to."""
    column = wr.ParallelCoordinatesPlotColumn
    return [
        column(metric=wr.Config("adapter.name"), display_name="adapter"),
        column(metric=wr.Config("rank"), display_name="rank"),
        column(metric=wr.Config("alpha"), display_name="alpha"),
        column(metric=wr.Config("lr"), display_name="lr", log=True),
        *[column(metric=ratio, display_name=f"drift {probe}", log=True) for probe, ratio in ratios],
        column(metric=wr.SummaryMetric("continual/average"), display_name="average"),
    ]


def _size(width: int, height: int) -> Any:
    return wr.Layout(w=width, h=height)


def main(argv: Sequence[str] | None = None) -> int:
    """Build both, write them down, and push them if told so; exit code 2 with a message where that can't be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY", ""), help="user or team")
    parser.add_argument("--project", default=os.environ.get("WANDB_PROJECT") or PROJECT)
    parser.add_argument("--output", type=Path, default=Path("dashboard"), help="folder of the JSON files")
    parser.add_argument("--push", action="store_true", help="save both on the W&B server")
    arguments = parser.parse_args(argv)
    try:
        records = [read_record(folder) for folder in find_runs(arguments.runs)]
    except RecordError as error:
        print(error, file=sys.stderr)
        return 2
    there = content([record for record in records if record["status"] == "finished"])
    where = {"entity": arguments.entity, "project": arguments.project}
    made = {"workspace": workspace(there, **where), "report": report(there, **where)}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, thing in made.items():
        path = arguments.output / f"{name}.json"
        path.write_text(json.dumps(as_json(thing), indent=1) + "\n", encoding="utf-8")
        print(path)
    if not arguments.push:
        return 0
    if not arguments.entity:
        print("--push needs --entity (or WANDB_ENTITY): the user or team that owns the project.", file=sys.stderr)
        return 2
    if reason := why_offline():
        print(f"Nothing was pushed: {reason}.", file=sys.stderr)
        return 2
    for thing in made.values():
        print(thing.save().url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
