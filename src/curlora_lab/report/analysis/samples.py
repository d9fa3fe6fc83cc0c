"""The finished runs of a study as samples: which are replicates of one another, which can be paired, which are references."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from curlora_lab.report import wording
from curlora_lab.report.compare import find_runs
from curlora_lab.report.record import Record, RecordError, read_record
from curlora_lab.report.study import Configuration, Estimate, Measure, configurations, mean_of

Replicate = tuple[str, str, str]
"""What tells the runs of one configuration apart, and makes a pair of two: seed, draw of rows, order of the tasks."""

SEQUENTIAL = "sequential"
HEAD_ONLY = "none"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where it lies.
        record: Its record.
    """

    folder: Path
    record: Record

    @property
    def place(self) -> str:
        """The last two names of its folder; a page may be published, so it names no more of a machine."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def seed(self) -> str:
        """The seed, from which columns, initial values and batches follow."""
        return str(self.record["config"].get("seed"))

    @property
    def draw(self) -> str:
        """Which rows were drawn to be trained on."""
        return str(self.record["config"].get("draw") or 0)

    @property
    def order(self) -> str:
        """The tasks in the order in which they were learnt."""
        return " → ".join(self.record["tasks"])

    @property
    def replicate(self) -> Replicate:
        """Seed, draw and order."""
        return self.seed, self.draw, self.order

    @property
    def scenario(self) -> str:
        """How tasks became stages."""
        return str(self.record["config"].get("scenario") or SEQUENTIAL)

    @property
    def chosen_on(self) -> bool:
        """Whether its scores are of rows set aside for choosing settings, which are never to be reported."""
        return wording.on_choosing_rows(self.record)

    @property
    def test_rows(self) -> tuple[Any, ...]:
        """What the reported rows of each task are known by."""
        found = self.record["baselines"]
        return tuple((task, found[task]["rows"], found[task]["constant"]) for task in sorted(self.record["tasks"]))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The replicates of one configuration: everything but seed, draw of rows and order of tasks is the same.

    Attributes:
        label: What tells it from the other configurations.
        configuration: The same as the other reports know it.
        runs: Its runs by seed, draw and order. Only seeds are independent repetitions: the runs of one seed share columns,
            initial values and batches, so they count once, with their mean.
    """

    label: str
    configuration: Configuration
    runs: Mapping[Replicate, Run]

    @property
    def first(self) -> Record:
        """One record, for what all replicates share."""
        return next(iter(self.runs.values())).record

    @property
    def seeds(self) -> list[str]:
        """Its independent repetitions."""
        return list(dict.fromkeys(run.seed for run in self.runs.values()))

    def only(self, names: Iterable[Replicate]) -> "Sample":
        """The same configuration with these of its runs."""
        return replace(self, runs={name: self.runs[name] for name in names})

    def values(self, measure: Measure) -> dict[str, float] | None:
        """One value a seed, see :func:`by_seed`.

        Args:
            measure: What is read from each record.
        """
        return by_seed((run, measure(run.record)) for run in self.runs.values())

    def estimate(self, measure: Measure) -> Estimate | None:
        """Mean over seeds with its 95 % interval (Student)."""
        values = self.values(measure)
        return None if values is None else mean_of(list(values.values()))

    def setting(self, *path: str) -> Any:
        """A value of the configuration by its path; ``None`` where there is none."""
        value: Any = self.first["config"]
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def head_only(self) -> bool:
        """Whether nothing but the task heads was trained."""
        return self.setting("adapter", "name") == HEAD_ONLY


def by_seed(values: Iterable[tuple[Run, float | None]]) -> dict[str, float] | None:
    """One value a seed: the mean over the draws and orders that were run with it.

    Args:
        values: Each run with its value.

    Returns:
        Values by seed; ``None`` where a run has no value, since the others alone would flatter, or there is no run.
    """
    found: dict[str, list[float]] = {}
    for run, value in values:
        if value is None:
            return None
        found.setdefault(run.seed, []).append(value)
    return {seed: fmean(those) for seed, those in found.items()} or None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples that can be held against one another: same tasks, metrics and model.

    Attributes:
        name: Model and tasks, for headings.
        samples: The samples, in the order of their first runs.
        reference: What all others are compared with.
    """

    name: str
    samples: Sequence[Sample]
    reference: Sample

    @property
    def others(self) -> list[Sample]:
        """All samples but the reference."""
        return [one for one in self.samples if one is not self.reference]

    @property
    def orders(self) -> list[str]:
        """All orders of tasks that were run."""
        return list(dict.fromkeys(run.order for run in self.runs))

    @property
    def draws(self) -> list[str]:
        """All draws of rows that were run."""
        return list(dict.fromkeys(run.draw for run in self.runs))

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for one in self.samples for run in one.runs.values()]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that was found in the folders.

    Attributes:
        groups: What can be compared, each with its reference.
        independent: Runs that trained each task from the untrained model.
        joint: Runs that trained all tasks at once.
        choosing: Whether all scores are of rows for choosing settings.
        notes: What was left out and what stands against a comparison.
    """

    groups: Sequence[Group]
    independent: Sequence[Run]
    joint: Sequence[Run]
    choosing: bool
    notes: Sequence[str] = field(default=())


def gather(run_folders: Iterable[Path | str], *, reference: str | None = None) -> Study:
    """Read runs and sort them into samples.

    Args:
        run_folders: Run folders, or folders that hold some.
        reference: Label or method that the others are compared with; default head only where it was run, else the first.

    Returns:
        The study. Whatever is unfinished, broken, there twice or scored on rows for choosing is named in its notes.

    Raises:
        RecordError: When no finished run is among them, or no configuration or several answer to ``reference``.
    """
    runs, notes = _finished(find_runs(list(run_folders)))
    runs, choosing = _reported(runs, notes)
    runs = _once(runs, notes)
    scenarios = {name: [run for run in runs if run.scenario == name] for name in (SEQUENTIAL, "independent", "joint")}
    samples = _samples(scenarios[SEQUENTIAL], notes)
    if not samples:
        raise RecordError("\n".join(["no finished run of scenario=sequential is among the folders", *notes]))
    groups = _groups(samples, reference)
    notes += _against(groups)
    return Study(
        groups=groups,
        independent=scenarios["independent"],
        joint=scenarios["joint"],
        choosing=choosing,
        notes=tuple(notes),
    )


def _finished(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    runs, notes = [], []
    for folder in folders:
        try:
            record = read_record(folder)
        except RecordError as error:
            said = str(error).splitlines()[0].replace(str(folder.parent), "").lstrip("/")
            notes.append(f"left out, its record is broken: {said}")
            continue
        if record["status"] == "finished":
            runs.append(Run(folder=folder, record=record))
        else:
            notes.append(f"left out, {record['status']}: {folder.name}")
    if not runs:
        raise RecordError("\n".join(["no finished run is among the folders", *notes]))
    return runs, notes


def _reported(runs: list[Run], notes: list[str]) -> tuple[list[Run], bool]:
    """Scores of rows for choosing never stand beside scores of reported rows."""
    reported = [run for run in runs if not run.chosen_on]
    if not reported:
        notes.append(
            "all scores are of rows set aside for choosing settings (evaluate_on=choose): good for choosing, never to be reported"
        )
        return runs, True
    if len(reported) < len(runs):
        notes.append(
            f"left out, scored on rows for choosing (evaluate_on=choose): {_names(run for run in runs if run.chosen_on)}"
        )
    return reported, False


def _once(runs: Sequence[Run], notes: list[str]) -> list[Run]:
    """A run that is there twice would be counted as two repetitions."""
    kept: dict[str, Run] = {}
    for run in runs:
        identity = run.record["provenance"].get("identity") or str(run.folder.resolve())
        if identity in kept:
            notes.append(f"left out, the same run as {kept[identity].place}: {run.place}")
        else:
            kept[identity] = run
    return list(kept.values())


def _samples(runs: Sequence[Run], notes: list[str]) -> list[Sample]:
    folders = {id(run.record): run for run in runs}
    samples = []
    for one in configurations([run.record for run in runs], any_order=True):
        members: dict[Replicate, Run] = {}
        for run in (folders[id(record)] for record in one.records):
            first = members.setdefault(run.replicate, run)
            if first is not run:
                notes.append(
                    f"left out, {first.folder.name} has the same configuration, seed, draw and order: {run.place}"
                )
        samples.append(Sample(label=one.label, configuration=one, runs=members))
    return samples


def _groups(samples: Sequence[Sample], reference: str | None) -> list[Group]:
    found: dict[str, list[Sample]] = {}
    for one in samples:
        record = one.first
        parts = [*(f"{task} ({record['metric'][task]})" for task in sorted(record["tasks"]))]
        model = record["provenance"]["model"]
        key = f"{model.get('name', '')} · {', '.join(parts)}\n{model.get('fingerprint')}"
        found.setdefault(key, []).append(one)
    chosen = None if reference is None else _named(samples, reference)
    return [
        Group(
            name=key.partition("\n")[0],
            samples=members,
            reference=next((one for one in members if one is chosen), None)
            or next((one for one in members if one.head_only), members[0]),
        )
        for key, members in found.items()
    ]


def _named(samples: Sequence[Sample], name: str) -> Sample:
    """The sample that a user means: by its label, its method, or a part of its label that no other has."""
    wanted = name.casefold()
    tests: list[Callable[[Sample], bool]] = [
        lambda one: one.label.casefold() == wanted,
        lambda one: one.configuration.method.casefold() == wanted,
        lambda one: wanted in one.label.casefold(),
    ]
    for test in tests:
        met = [one for one in samples if test(one)]
        if len(met) == 1:
            return met[0]
        if met:
            raise RecordError(f"reference {name!r} is said of {len(met)} configurations; name one of: {_labels(met)}")
    raise RecordError(f"reference {name!r} is no configuration of these runs; choose one of: {_labels(samples)}")


def _labels(samples: Sequence[Sample]) -> str:
    return "; ".join(one.label for one in samples)


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(run.folder.name for run in runs)


def _against(groups: Sequence[Group]) -> list[str]:
    """What stands between the runs and a fair comparison."""
    notes = []
    if len(groups) > 1:
        notes.append(
            f"{len(groups)} sets of runs with other tasks, metrics or models; comparisons are made within each: "
            + "; ".join(group.name for group in groups)
        )
    for group in groups:
        sources = {run.record["provenance"].get("source_hash") for run in group.runs}
        if len(sources) > 1:
            notes.append(f"{group.name}: the runs were made by {len(sources)} versions of the package's source")
        if any(one.first["config"].get("repeats", 1) != 1 for one in group.samples):
            notes.append(f"{group.name}: some runs go through the sequence more than once")
        several = [f"{len(group.draws)} draws of rows"] if len(group.draws) > 1 else []
        several += [f"{len(group.orders)} orders of the tasks"] if len(group.orders) > 1 else []
        if several:
            notes.append(f"{group.name}: {' and '.join(several)}; each seed counts once, with its mean over them")
    return notes
