"""Choose a learning rate for each adapter from finished runs, by scores on rows set aside from train and never reported.

    python train.py -m adapter=curlora,lora lr=1e-3,3e-3,1e-2
    python scripts/choose_learning_rate.py runs/demo

The rule: of the rates whose mean score on the choosing rows, each task right after its own stage, is within a tolerance of the
best, the smallest. A larger rate that learns no more only moves the language model further.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from curlora_lab.report import RecordError, find_runs, read_record


@dataclass(frozen=True)
class Trial:
    """One learning rate of one adapter, over its seeds: mean choosing score and mean log ratio of probe perplexity."""

    adapter: str
    lr: float
    seeds: int
    chosen: float
    drift: float | None


def trials(records: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """Group finished runs by adapter and learning rate.

    Raises:
        ValueError: a run kept no scores on choosing rows.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record["status"] == "finished":
            groups[record["config"]["adapter"]["name"], record["config"]["lr"]].append(record)
    return [
        Trial(adapter, lr, len(runs), fmean(_chosen(run) for run in runs), _mean([_drift(run) for run in runs]))
        for (adapter, lr), runs in sorted(groups.items())
    ]


def choose(found: Sequence[Trial], tolerance: float) -> dict[str, Trial]:
    """The smallest rate of each adapter that is within ``tolerance`` of its best."""
    best = {trial.adapter: max(t.chosen for t in found if t.adapter == trial.adapter) for trial in found}
    good = [trial for trial in found if trial.chosen >= best[trial.adapter] - tolerance]
    return {adapter: min((t for t in good if t.adapter == adapter), key=lambda t: t.lr) for adapter in best}


def table(found: Sequence[Trial], taken: Mapping[str, Trial]) -> str:
    """All trials as a Markdown table, the chosen ones marked."""
    lines = [
        "| adapter | lr | seeds | score on choosing rows | probe, log ratio of perplexity | |",
        "|---|---|---|---|---|---|",
    ]
    for trial in found:
        drift = "–" if trial.drift is None else f"{trial.drift:+.3f}"
        mark = "taken" if taken[trial.adapter] == trial else ""
        lines.append(f"| {trial.adapter} | {trial.lr:g} | {trial.seeds} | {trial.chosen:.3f} | {drift} | {mark} |")
    return "\n".join(lines)


def _chosen(record: Mapping[str, Any]) -> float:
    """Mean over tasks of the score on choosing rows right after the task's stage."""
    scores = [(record["choose"][task] or {}).get(record["metric"][task]) for task in record["tasks"]]
    if None in scores:
        raise ValueError(f"{record['name']}: no scores on choosing rows; set data.choose_fraction above 0.")
    return fmean(score for score in scores if score is not None)


def _drift(record: Mapping[str, Any]) -> float | None:
    """Mean over probes of log(perplexity after / before)."""
    pairs = [(values[0], values[-1]) for values in record["probes"]["perplexity"].values()]
    return _mean([math.log(after / before) if before and after else None for before, after in pairs])


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 2 where the runs do not allow a choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="how far below the best score still counts as equal"
    )
    arguments = parser.parse_args(argv)
    try:
        found = trials(read_record(folder / "results.json") for folder in find_runs(arguments.runs))
    except (RecordError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if not found:
        print("No finished runs there.", file=sys.stderr)
        return 2
    print(table(found, choose(found, arguments.tolerance)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
