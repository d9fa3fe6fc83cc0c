"""What a tuning sweep found: the learning rate of each method, by a stated rule, with every trial beside it.

Everything here reads scores of rows set aside for choosing and no others: runs with ``evaluate_on=choose`` score nothing
else, and of other runs only what they noted on their choosing rows while they trained is taken.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Any

from curlora_lab.continual.files import digest
from curlora_lab.report import RecordError, read_record, wording
from curlora_lab.sweeps.jobs import DONE, Job, defining
from curlora_lab.sweeps.methods import VARIED, Settings, method_settings, names

Record = Mapping[str, Any]
Method = dict[str, Any]

#: Statuses of jobs that may still end well when the same command is given again.
MISSING = ("waiting", "running", "interrupted")

RULE = (
    "Of the learning rates whose mean score on the choosing rows, each task right after its own stage, is at most "
    "{tolerance:g} below the best, the smallest: a larger one that learns no more only moves the language model further. "
    "Where head_lr was tuned too, the one that scores best with it."
)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of a tuning sweep.

    Attributes:
        lr: learning rate of the adapter, as far as it is known.
        head_lr: learning rate of the heads.
        seed: seed of the run.
        overrides: what else made it, in an order of its own; tells which method a run without a record was of.
        record: its record; ``None`` where it has none that counts.
        problem: why not.
        missing: whether it was not done yet.
    """

    lr: float | None
    head_lr: float | None
    seed: int | None
    overrides: tuple[str, ...] = ()
    record: Record | None = None
    problem: str | None = None
    missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One learning rate of a method, over its seeds, orders and draws.

    Attributes:
        lr: learning rate of the adapter.
        head_lr: learning rate of the heads.
        seeds: seeds of the runs that are there.
        runs: names of their folders.
        score: mean over runs of the mean score on choosing rows, each task right after its own stage.
        forgetting: mean of ``continual.forgetting``.
        drift: mean log ratio of perplexity by probe, in nats a token.
        problems: what became of runs that are not there.
        missing: how many were not done yet.
    """

    lr: float | None
    head_lr: float | None
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    score: float | None
    forgetting: float | None
    drift: dict[str, float]
    problems: tuple[str, ...]
    missing: int

    @property
    def counts(self) -> bool:
        """Whether it can be chosen: a rate at which one seed failed is none to be trusted."""
        return self.score is not None and self.lr is not None and not self.problems and not self.missing


def attempts_of(jobs: Sequence[Job]) -> list[Attempt]:
    """The runs of a sweep.

    Args:
        jobs: all its jobs.
    """
    return [_attempt(job) for job in jobs]


def attempt_of(record: Record, overrides: tuple[str, ...] = ()) -> Attempt:
    """A finished run.

    Args:
        record: its record.
        overrides: see :class:`Attempt`.
    """
    config = record["config"]
    problem = None if chosen_score(record) is not None else "it has no scores on choosing rows; set choose_fraction"
    return Attempt(
        lr=config["lr"],
        head_lr=config["head_lr"],
        seed=config["seed"],
        overrides=overrides,
        record=record if problem is None else None,
        problem=problem,
    )


def chosen_score(record: Record) -> float | None:
    """Mean over tasks of the score on choosing rows right after the task's own stage; ``None`` where one is missing.

    Args:
        record: a finished run's record. One that was evaluated on test has what training noted after its last epoch.
    """
    learnt = wording.learnt_in(record)
    values = [(record["choose"].get(task) or {}).get(record["metric"][task]) for task in record["tasks"]]
    if record["config"].get("evaluate_on") == "choose":
        values = [record["scores"][learnt[task]][position] for position, task in enumerate(record["tasks"])]
    there = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(there) if there and len(there) == len(values) else None


def tune(attempts: Sequence[Attempt], *, tolerance: float) -> list[Method]:
    """Choose for each method.

    Args:
        attempts: all runs.
        tolerance: how far below the best score still counts as equal.

    Returns:
        One plain JSON object a method, in the order of their first runs: ``name``, ``settings``, ``backbone``, ``status``
        (``tuned``, ``unfinished``: the same command goes on, ``failed``: no value was found), ``lr``, ``head_lr``,
        ``head_lr_tuned``, ``edge``, ``edges``, ``score``, ``trials``.
    """
    settings: dict[str, Settings] = {}
    of_overrides: dict[tuple[str, ...], str] = {}
    keys: dict[int, str] = {}
    for position, attempt in enumerate(attempts):
        if attempt.record is not None:
            found = method_settings(attempt.record["config"])
            keys[position] = digest([found, _backbone(attempt.record)])
            settings.setdefault(keys[position], found)
            of_overrides.setdefault(attempt.overrides, keys[position])
    methods: dict[str, list[Attempt]] = {}
    for position, attempt in enumerate(attempts):
        lost = of_overrides.get(attempt.overrides, " ".join(attempt.overrides))
        methods.setdefault(keys.get(position, lost), []).append(attempt)
    named = dict(zip(settings, names(list(settings.values())), strict=True))
    common = set(attempts[0].overrides).intersection(*(one.overrides for one in attempts)) if attempts else set()
    return [
        _method(named.get(key) or _words(group[0].overrides, common), settings.get(key), group, tolerance)
        for key, group in methods.items()
    ]


def choose(trials: Sequence[Trial], *, tolerance: float) -> Trial | None:
    """The trial that the rule takes (:data:`RULE`); ``None`` where none counts.

    Args:
        trials: all trials of a method.
        tolerance: how far below the best score still counts as equal.
    """
    counting = [(trial.score, trial.lr, trial.head_lr or 0.0, trial) for trial in trials if trial.counts]
    if not counting:
        return None
    best = max(score for score, *_ in counting if score is not None)
    # Scores are means of floats: what differs in the last bit alone is as far below the best as it says.
    good = [one for one in counting if one[0] is not None and one[0] >= best - tolerance - 1e-12]
    smallest = min(lr for _, lr, *_ in good if lr is not None)
    return min((one for one in good if one[1] == smallest), key=lambda one: (-(one[0] or 0.0), one[2]))[3]


def edges(trials: Sequence[Trial], taken: Trial, *, adapts: bool) -> list[str]:
    """Where the value that was taken is the last that was tried, so that a better one may lie beyond.

    Args:
        trials: all trials of the method; one that failed was tried too.
        taken: the one that was taken.
        adapts: whether anything but heads is trained; otherwise ``lr`` has no effect.

    Returns:
        Such as ``lr: nothing below 0.0003 was tried``.
    """
    found = []
    for key in (["lr"] if adapts else []) + (["head_lr"] if _varies(trials, "head_lr") else []):
        tried = sorted({value for trial in trials if (value := getattr(trial, key)) is not None})
        value = getattr(taken, key)
        found += [f"{key}: nothing below {value:g} was tried"] if value == tried[0] else []
        found += [f"{key}: nothing above {value:g} was tried"] if value == tried[-1] else []
    return found


def _words(overrides: Sequence[str], common: Collection[str]) -> str:
    """A name for a method of which no run ended: what sets it apart on the command line."""
    return " ".join(text for text in overrides if text not in common) or "the default"


def _attempt(job: Job) -> Attempt:
    given = dict(text.lstrip("+").split("=", 1) for text in job.overrides if "=" in text)
    rest = tuple(sorted(text for text in defining(job.overrides) if text.lstrip("+").split("=")[0] not in VARIED))
    lr, head_lr, seed = (_number(given.get(key)) for key in ("lr", "head_lr", "seed"))
    lost = Attempt(lr=lr, head_lr=head_lr, seed=None if seed is None else int(seed), overrides=rest)
    if job.status not in DONE:
        reason = " ".join((job.reason or "").split())
        what = f"job {job.number} {'not started' if job.status == 'waiting' else job.status}"
        return replace(lost, problem=f"{what}: {reason}" if reason else what, missing=job.status in MISSING)
    try:
        record = read_record(str(job.run))
    except RecordError as error:
        return replace(lost, problem=f"job {job.number}: {error}")
    if record["config"].get("evaluate_on") != "choose":
        return replace(lost, problem=f"job {job.number} was evaluated on test, not on rows for choosing")
    return attempt_of(record, rest)


def _method(name: str, settings: Settings | None, attempts: Sequence[Attempt], tolerance: float) -> Method:
    records = [attempt.record for attempt in attempts if attempt.record is not None]
    trials = _trials(attempts)
    taken = choose(trials, tolerance=tolerance)
    missing = any(trial.missing for trial in trials)
    status = "unfinished" if missing else "failed" if taken is None else "tuned"
    value = taken if status == "tuned" else None
    adapts = any(record["parameters"]["adapter"] for record in records)
    at = edges(trials, value, adapts=adapts) if value is not None else []
    return {
        "name": name,
        "status": status,
        "lr": value.lr if value else None,
        "head_lr": value.head_lr if value else None,
        "head_lr_tuned": _varies(trials, "head_lr"),
        "score": value.score if value else None,
        "edge": bool(at),
        "edges": at,
        "backbone": _backbone(records[0]) if records else None,
        "source_hashes": sorted({str(record["provenance"]["source_hash"]) for record in records}),
        "metrics": dict(records[0]["metric"]) if records else {},
        "trials": [_plain(trial, taken=trial is value) for trial in trials],
        "settings": settings,
    }


def _trials(attempts: Sequence[Attempt]) -> list[Trial]:
    """Attempts by learning rates, ascending; a rate that a failed run did not name is that of the others, if they agree."""
    known = {
        key: {getattr(a, key) for a in attempts if a.record is not None and getattr(a, key) is not None}
        for key in ("lr", "head_lr")
    }
    only = {key: next(iter(values)) if len(values) == 1 else None for key, values in known.items()}
    filled = [
        replace(a, lr=only["lr"] if a.lr is None else a.lr, head_lr=only["head_lr"] if a.head_lr is None else a.head_lr)
        for a in attempts
    ]

    def rates(attempt: Attempt) -> tuple[float, float]:
        return (attempt.lr or 0.0, attempt.head_lr or 0.0)

    return [_trial(list(group)) for _, group in groupby(sorted(filled, key=rates), key=rates)]


def _trial(attempts: Sequence[Attempt]) -> Trial:
    records = [attempt.record for attempt in attempts if attempt.record is not None]
    scores = [score for record in records if (score := chosen_score(record)) is not None]
    probes = list(dict.fromkeys(probe for record in records for probe in record["probes"]["perplexity"]))
    drift = {probe: _mean([_drift(record, probe) for record in records]) for probe in probes}
    return Trial(
        lr=attempts[0].lr,
        head_lr=attempts[0].head_lr,
        seeds=tuple(sorted({a.seed for a in attempts if a.record is not None and a.seed is not None})),
        runs=tuple(str(record["name"]) for record in records),
        score=fmean(scores) if scores else None,
        forgetting=_mean([record["continual"]["forgetting"] for record in records]),
        drift={probe: value for probe, value in drift.items() if value is not None},
        problems=tuple(a.problem for a in attempts if a.problem is not None and not a.missing),
        missing=sum(attempt.missing for attempt in attempts),
    )


def _plain(trial: Trial, *, taken: bool) -> dict[str, Any]:
    return {
        "lr": trial.lr,
        "head_lr": trial.head_lr,
        "seeds": list(trial.seeds),
        "score": trial.score,
        "drift": trial.drift,
        "forgetting": trial.forgetting,
        "taken": taken,
        "failed": list(trial.problems),
        "missing": trial.missing,
        "runs": list(trial.runs),
    }


def _backbone(record: Record) -> dict[str, Any]:
    model = record["provenance"]["model"]
    return {"name": model.get("name"), "fingerprint": model.get("fingerprint")}


def _drift(record: Record, probe: str) -> float | None:
    return wording.finite_log_ratio(record["probes"]["perplexity"].get(probe, []))


def _varies(trials: Sequence[Trial], key: str) -> bool:
    return len({getattr(trial, key) for trial in trials} - {None}) > 1


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there and len(there) == len(values) else None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
