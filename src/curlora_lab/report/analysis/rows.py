"""How sure a difference is of other test rows: a bootstrap over the rows of ``predictions/*.jsonl.gz``, paired by row."""

import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curlora_lab.report import wording
from curlora_lab.report.analysis.samples import Run, Sample
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


@dataclass(frozen=True)
class Rows:
    """The test rows of one task.

    Attributes:
        ids: Their ids, sorted.
        right: 1 where the answer was right, 0 elsewhere, in the same order.
    """

    ids: tuple[str, ...]
    right: Vector


class RowScores:
    """Right and wrong of each test row, read from run folders, and metrics resampled over them; every file is read once.

    A file that cannot be used leaves the bootstrap over rows out of its comparisons, and is named in :attr:`notes`.
    """

    def __init__(self) -> None:
        self._unusable: list[str] = []
        self._missing: list[str] = []
        self._known: dict[tuple[Path, int, str], Rows | None] = {}
        self._resampled: dict[tuple[Path, str], Vector] = {}

    @property
    def notes(self) -> list[str]:
        """What could not be used, and why."""
        absent = f"{len(self._missing)} files of predictions are not there, the first {min(self._missing, default='')}"
        return [*self._unusable, *([f"no bootstrap over rows: {absent}"] if self._missing else [])]

    def right(self, run: Run, stage: int, task: str) -> Rows | None:
        """1 for every row that was answered rightly, 0 for the others, and the rows' ids.

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

    def _read(self, run: Run, stage: int, task: str) -> Rows | None:
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
        ids = tuple(sorted(found))
        return Rows(ids, np.array([found[row] for row in ids]))

    def resample(self, wanted: Iterable[tuple[Run, str]]) -> None:
        """Draw the rows of many runs at once, for :meth:`resampled`.

        Args:
            wanted: Runs and metrics, see :func:`terms`; all their predictions can be read.
        """
        blocks: dict[tuple[str, tuple[str, ...]], list[tuple[tuple[Path, str], float, Vector]]] = {}
        for (folder, key), run in {(run.folder, key): run for run, key in wanted}.items():
            if (folder, key) in self._resampled:
                continue
            self._resampled[folder, key] = np.zeros(DRAWS)
            for task, stage, weight in terms(run.record, key) or ():
                rows = self.right(run, stage, task)
                if rows is not None:
                    blocks.setdefault((task, rows.ids), []).append(((folder, key), weight, rows.right))
        for task, ids in sorted(blocks):
            parts = blocks[task, ids]
            shares = _drawn_shares(task, ids, np.stack([right for _, _, right in parts], axis=1))
            for k, (name, weight, _) in enumerate(parts):
                self._resampled[name] += weight * shares[:, k]

    def resampled(self, run: Run, key: str) -> Vector:
        """``DRAWS`` values of a metric on resampled rows; rows with the same ids are drawn together in all runs.

        Args:
            run: A run.
            key: A metric; both were given to :meth:`resample`.
        """
        return self._resampled[run.folder, key]


def _drawn_shares(task: str, ids: tuple[str, ...], right: Vector) -> Vector:
    """Share of right answers in ``DRAWS`` samples of the rows with replacement: (rows, runs) to (draws, runs)."""
    generator, even = generator_at("rows", task, *ids), np.full(len(ids), 1 / len(ids))
    drawn = [generator.multinomial(len(ids), even, size=_CHUNK) @ right for _ in range(DRAWS // _CHUNK)]
    return np.concatenate(drawn) / len(ids)


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


def row_intervals(pairs: Sequence[tuple[Sample, Sample, str]], reader: RowScores) -> list[RowIntervals | None]:
    """Bootstrap over rows, and over seeds and rows, of many differences at once: the same draws serve all of them.

    Args:
        pairs: Two samples with the same replicates, and a continual metric, see :func:`terms`.
        reader: Reads the predictions.

    Returns:
        Intervals in the same places; ``None`` where they cannot be made.
    """
    usable = [_usable(first, second, key, reader) for first, second, key in pairs]
    there = [pair for pair, found in zip(pairs, usable, strict=True) if found]
    reader.resample((run, key) for *two, key in there for one in two for run in one.runs.values())
    return [
        _intervals(_differences(first, second, key, reader), key) if found else None
        for (first, second, key), found in zip(pairs, usable, strict=True)
    ]


def _usable(first: Sample, second: Sample, key: str, reader: RowScores) -> bool:
    """Whether the metric of all runs is the same sum over scores, and both runs of each pair answered the same rows."""
    for name, run in first.runs.items():
        other = second.runs[name]
        summed = terms(run.record, key)
        if summed is None or terms(other.record, key) != summed:
            return False
        for task, stage, _ in summed:
            own, theirs = reader.right(run, stage, task), reader.right(other, stage, task)
            if own is None or theirs is None or own.ids != theirs.ids:
                return False
    return bool(first.runs)


def _differences(first: Sample, second: Sample, key: str, reader: RowScores) -> Vector:
    """Resampled differences, shape (draws, seeds): of each seed the mean over its draws of rows and orders."""
    found: dict[str, list[Vector]] = {}
    for name, run in first.runs.items():
        difference = reader.resampled(run, key) - reader.resampled(second.runs[name], key)
        found.setdefault(run.seed, []).append(difference)
    return np.stack([np.mean(those, axis=0) for those in found.values()], axis=1)


def _intervals(drawn: Vector, key: str) -> RowIntervals:
    """Of resampled values, shape (draws, seeds)."""
    seeds = drawn.shape[1]
    rows = _percentiles(drawn.mean(axis=1))
    if seeds < FEWEST_PAIRS:
        return RowIntervals(rows, None)
    taken = generator_at("seeds", key, seeds).multinomial(seeds, np.full(seeds, 1 / seeds), size=len(drawn)) / seeds
    return RowIntervals(rows, _percentiles((drawn * taken).sum(axis=1)))


def _percentiles(values: Vector) -> Interval:
    low, high = np.quantile(values, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Interval(float(low), float(high))
