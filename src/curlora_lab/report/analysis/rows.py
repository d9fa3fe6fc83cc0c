"""How sure a difference is of other test rows: a bootstrap over the rows of ``predictions/*.jsonl.gz``, paired by row."""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curlora_lab.report import wording
from curlora_lab.report.analysis.samples import Run, Sample, Unit
from curlora_lab.report.analysis.statistics import CONFIDENCE, FEWEST_PAIRS, Interval, generator_at
from curlora_lab.report.record import Record

ROW_METRIC = "accuracy"
DRAWS = 2000
_CHUNK = 50
_LONGEST_LINE = 1_000_000  # characters; a prediction of a classifier is a few hundred
_TOLERANCE = 1e-5  # recorded scores are float32 means

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class RowIntervals:
    """Intervals of a paired difference of scores.

    Attributes:
        rows: Rows drawn with replacement, seeds as they are: would it hold on other rows of the same kind?
        crossed: Seeds and rows drawn with replacement; ``None`` with fewer than three seeds.
    """

    rows: Interval
    crossed: Interval | None


class RowScores:
    """Right and wrong of each test row, read from run folders; every file once.

    A file that cannot be used leaves the bootstrap over rows out of its comparisons, and is named in :attr:`notes`.
    """

    def __init__(self) -> None:
        self._unusable: list[str] = []
        self._missing: list[str] = []
        self._known: dict[tuple[Path, int, str], dict[str, float] | None] = {}

    @property
    def notes(self) -> list[str]:
        """What could not be used, and why."""
        absent = f"{len(self._missing)} files of predictions are not there, the first {min(self._missing, default='')}"
        return [*self._unusable, *([f"no bootstrap over rows: {absent}"] if self._missing else [])]

    def right(self, run: Run, stage: int, task: str) -> dict[str, float] | None:
        """1 for every row that was answered rightly, 0 for the others, by row id.

        Args:
            run: A run.
            stage: Row of the score matrix.
            task: The task.

        Returns:
            The rows; ``None`` where the file is missing, broken or not what the recorded score was made from.
        """
        key = run.folder, stage, task
        if key not in self._known:
            self._known[key] = self._read(run, stage, task)
        return self._known[key]

    def _read(self, run: Run, stage: int, task: str) -> dict[str, float] | None:
        path = run.folder / f"stage_{stage:02d}" / "predictions" / f"{task}.jsonl.gz"
        name = str(path.relative_to(run.folder.parent))  # a page may be published: it names no folder of a machine
        score = run.record["scores"][stage][run.record["tasks"].index(task)]
        try:
            found = _right(path, most=run.record["baselines"][task]["rows"])
        except FileNotFoundError:
            self._missing.append(name)
            return None
        except (OSError, ValueError, EOFError, zlib.error, RecursionError) as error:
            said = str(error).replace(str(run.folder.parent), "").strip()
            self._unusable.append(f"no bootstrap over rows with {name}: {said}")
            return None
        if score is None or not found or abs(sum(found.values()) / len(found) - score) > _TOLERANCE:
            self._unusable.append(f"no bootstrap over rows with {name}: its rows do not give the recorded score")
            return None
        return found


def _right(path: Path, *, most: int) -> dict[str, float]:
    found: dict[str, float] = {}
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        while line := stream.readline(_LONGEST_LINE):
            row: Any = json.loads(line)
            if not isinstance(row, dict) or not {"row", "label", "prediction"} <= row.keys():
                raise ValueError("a line is no prediction with 'row', 'label' and 'prediction'")
            if len(found) == most:
                raise ValueError(f"more rows than the {most} that were scored")
            found[str(row["row"])] = float(row["label"] == row["prediction"])
    return found


def terms(record: Record, key: str) -> list[tuple[str, int, float]] | None:
    """A continual metric as a sum of scores: (task, stage, weight).

    Args:
        record: A record whose tasks are all scored by accuracy.
        key: ``learning``, ``average`` or ``bwt``.

    Returns:
        The terms; ``None`` for another metric, or where there is nothing to sum.
    """
    if set(record["metric"].values()) != {ROW_METRIC}:
        return None
    learnt, last, tasks = wording.learnt_in(record), len(record["scores"]) - 1, record["tasks"]
    earlier = [task for task in tasks if learnt[task] < last]
    if key == "learning":
        return [(task, learnt[task], 1 / len(tasks)) for task in tasks]
    if key == "average":
        return [(task, last, 1 / len(tasks)) for task in tasks]
    if key == "bwt" and earlier:
        return [
            (task, stage, sign / len(earlier)) for task in earlier for stage, sign in ((last, 1), (learnt[task], -1))
        ]
    return None


def row_intervals(
    pairs: Mapping[tuple[str, str], tuple[Sample, Sample]], keys: Sequence[str], reader: RowScores
) -> dict[tuple[str, str, str], RowIntervals]:
    """Bootstrap over rows, and over seeds and rows, of many differences at once: the same draws serve all of them.

    Args:
        pairs: Two samples by the labels that name the pair.
        keys: Continual metrics, see :func:`terms`.
        reader: Reads the predictions.

    Returns:
        Intervals by labels and metric; those that cannot be made are left out.
    """
    columns: dict[tuple[str, str, str], dict[Unit, list[tuple[str, tuple[str, ...], Vector]]]] = {}
    for (a, b), (first, second) in pairs.items():
        for key in keys:
            found = {unit: _weighted(first, second, unit, key, reader) for unit in _common(first, second)}
            kept = {unit: blocks for unit, blocks in found.items() if blocks is not None}
            if kept and len(kept) == len(found):
                columns[a, b, key] = kept
    sums = _resampled({(*name, *unit): blocks for name, units in columns.items() for unit, blocks in units.items()})
    return {
        name: _intervals(np.stack([sums[*name, *unit] for unit in units], axis=1), name[2])
        for name, units in columns.items()
    }


def _common(first: Sample, second: Sample) -> list[Unit]:
    return list(dict.fromkeys(unit for unit, order in first.runs if (unit, order) in second.runs))


def _weighted(
    first: Sample, second: Sample, unit: Unit, key: str, reader: RowScores
) -> list[tuple[str, tuple[str, ...], Vector]] | None:
    """The difference of one unit as sums over rows: (task, row ids, what each row adds times the number of rows)."""
    shared = [name for name in first.runs if name[0] == unit and name in second.runs]
    blocks = []
    for name in shared:
        runs = first.runs[name], second.runs[name]
        summed = terms(runs[0].record, key)
        if summed is None or terms(runs[1].record, key) != summed:
            return None
        for task, stage, weight in summed:
            right = [reader.right(run, stage, task) for run in runs]
            if right[0] is None or right[1] is None or right[0].keys() != right[1].keys():
                return None
            ids = tuple(sorted(right[0]))
            vector = np.array([right[0][row] - right[1][row] for row in ids]) * (weight / len(shared))
            blocks.append((task, ids, vector))
    return blocks


def _resampled(
    columns: Mapping[tuple[str, ...], Sequence[tuple[str, tuple[str, ...], Vector]]],
) -> dict[tuple[str, ...], Vector]:
    """``DRAWS`` resampled values of each column; rows with the same ids are drawn together in all columns."""
    names = {name: k for k, name in enumerate(columns)}
    blocks: dict[tuple[str, tuple[str, ...]], Vector] = {}
    for name, parts in columns.items():
        for task, ids, vector in parts:
            matrix = blocks.setdefault((task, ids), np.zeros((len(ids), len(columns))))
            matrix[:, names[name]] += vector
    total = np.zeros((DRAWS, len(columns)))
    for (task, ids), matrix in sorted(blocks.items()):
        generator = generator_at("rows", task, *ids)
        shares = np.full(len(ids), 1 / len(ids))
        for start in range(0, DRAWS, _CHUNK):
            drawn = generator.multinomial(len(ids), shares, size=_CHUNK)
            total[start : start + _CHUNK] += drawn @ matrix / len(ids)
    return {name: total[:, k] for name, k in names.items()}


def _intervals(drawn: NDArray[np.float64], key: str) -> RowIntervals:
    """Of resampled values, shape (draws, units)."""
    units = drawn.shape[1]
    rows = _percentiles(drawn.mean(axis=1))
    if units < FEWEST_PAIRS:
        return RowIntervals(rows, None)
    taken = generator_at("units", key, units).multinomial(units, np.full(units, 1 / units), size=len(drawn)) / units
    return RowIntervals(rows, _percentiles((drawn * taken).sum(axis=1)))


def _percentiles(values: Vector) -> Interval:
    low, high = np.quantile(values, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Interval(float(low), float(high))
