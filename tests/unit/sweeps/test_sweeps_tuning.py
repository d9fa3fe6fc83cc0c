"""The rule by which a tuning sweep chooses, on records made by hand."""

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from curlora_lab.sweeps.jobs import Job
from curlora_lab.sweeps.methods import differences, method_settings, names
from curlora_lab.sweeps.tuning import Attempt, Trial, attempt_of, attempts_of, choose, chosen_score, edges, tune
from curlora_lab.sweeps.tuning_table import remarks, rows

Maker = Callable[..., dict[str, Any]]


def trial(lr: float | None, score: float | None, head_lr: float = 1.0, **changes: Any) -> Trial:
    given: dict[str, Any] = {"seeds": (0,), "runs": (), "forgetting": None, "drift": {}, "problems": (), "missing": 0}
    return Trial(lr=lr, head_lr=head_lr, score=score, **{**given, **changes})


def attempts(*records: dict[str, Any]) -> list[Attempt]:
    return [attempt_of(record) for record in records]


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_the_smallest_rate_within_the_tolerance_of_the_best() -> None:
    found = [trial(1e-3, 0.80), trial(3e-3, 0.90), trial(1e-2, 0.91), trial(3e-2, 0.85)]
    assert choose(found, tolerance=0.01) is found[1], "as far below as the tolerance still counts"
    assert choose(found, tolerance=0.0) is found[2]
    assert choose(found, tolerance=1.0) is found[0]
    assert choose([], tolerance=0.01) is None


def test_head_lr_is_the_one_that_scores_best_with_the_rate_that_is_taken() -> None:
    found = [trial(1e-3, 0.90, 0.01), trial(1e-3, 0.895, 0.001), trial(1e-2, 0.905, 0.1)]
    assert choose(found, tolerance=0.01) is found[0]
    equal = [trial(1e-3, 0.9, 0.1), trial(1e-3, 0.9, 0.01)]
    assert choose(equal, tolerance=0.01) is equal[1]


def test_a_trial_that_lost_a_run_is_not_taken() -> None:
    found = [trial(1e-3, 0.80), trial(1e-2, 0.95, problems=("job 3 failed",)), trial(3e-2, 0.99, missing=1)]
    assert choose(found, tolerance=0.01) is found[0]


def test_laws_of_the_rule() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        found = [trial(10**k, draw.random()) for k in draw.sample(range(-5, 0), draw.randint(1, 5))]
        best = max(one.score or 0 for one in found)
        taken = [choose(found, tolerance=tolerance) for tolerance in (0.0, 0.1, 0.3)]
        assert all(one is not None and (one.score or 0) >= best - 0.3 - 1e-9 for one in taken)
        rates = [one.lr or 0 for one in taken if one is not None]
        assert rates == sorted(rates, reverse=True), "who tolerates more never takes a larger rate"
        shuffled = draw.sample(found, len(found))
        assert choose(shuffled, tolerance=0.1) is taken[1]


def test_edges() -> None:
    found = [trial(1e-3, 0.8), trial(3e-3, 0.9), trial(1e-2, 0.9, problems=("diverged",))]
    assert edges(found, found[1], adapts=True) == [], "a rate beyond that failed was tried"
    assert edges(found[:2], found[1], adapts=True) == ["lr: nothing above 0.003 was tried"]
    assert edges(found, found[0], adapts=True) == ["lr: nothing below 0.001 was tried"]
    assert len(edges(found[:1], found[0], adapts=True)) == 2
    assert edges(found, found[0], adapts=False) == [], "lr does nothing where only heads are trained"
    heads = [trial(1e-3, 0.8, 0.1), trial(1e-3, 0.9, 0.2)]
    assert edges(heads, heads[1], adapts=False) == ["head_lr: nothing above 0.2 was tried"]


# -- from runs to methods ----------------------------------------------------------------------------------------------


def test_the_score_is_that_of_choosing_rows_right_after_each_task(make_record: Maker) -> None:
    record = make_record(score=0.7)
    assert chosen_score(record) == pytest.approx(0.7)
    record["config"]["evaluate_on"] = "test"
    assert chosen_score(record) == pytest.approx(0.35), (
        "what training noted on choosing rows, not the scores of test rows"
    )
    record["choose"]["two"] = None
    assert chosen_score(record) is None
    assert attempt_of(record).record is None


def test_seeds_orders_and_draws_are_one_trial_and_settings_are_methods(make_record: Maker) -> None:
    records = [
        make_record(lr=lr, score=score, seed=seed) for lr, score in ((1e-3, 0.6), (1e-2, 0.8)) for seed in (0, 1)
    ]
    records += [make_record(lr=1e-2, score=0.5, order=1), make_record(rank=1), make_record(adapter="curlora")]
    first, small, other = tune(attempts(*records), tolerance=0.01)
    assert [first["name"], small["name"], other["name"]] == ["lora · rank 8", "lora · rank 1", "curlora · rank 8"]
    assert [(one["lr"], one["seeds"]) for one in first["trials"]] == [(1e-3, [0, 1]), (1e-2, [0, 1])]
    assert first["trials"][1]["score"] == pytest.approx((0.8 + 0.8 + 0.5) / 3)
    assert first["trials"][0]["forgetting"] == pytest.approx(0.3)
    assert first["trials"][0]["drift"] == {"text": pytest.approx(0.6931, abs=1e-4)}
    assert (first["status"], first["lr"], first["edge"]) == ("tuned", 1e-2, True)
    assert first["settings"]["rank"] == 8
    assert "lr" not in first["settings"]


def job(number: int, status: str, *overrides: str, reason: str | None = None) -> Job:
    return Job(number, list(overrides), status=status, reason=reason)


def test_failed_and_missing_runs_are_named(make_record: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {"a": make_record(lr=1e-3, score=0.6), "b": make_record(lr=1e-2, score=0.9)}
    monkeypatch.setattr("curlora_lab.sweeps.tuning.read_record", lambda path: records[path])
    there = [job(n, "finished", "adapter=lora", f"lr={lr}") for n, lr in enumerate((1e-3, 1e-2))]
    there[0].run, there[1].run = "a", "b"
    diverged = job(2, "failed", "adapter=lora", "lr=0.1", "seed=0", reason="the loss is not finite")
    never = [job(n, "killed", "adapter=vera", f"lr={n}", reason="memory") for n in (3, 4)]
    good, bad = tune(attempts_of([*there, diverged, *never]), tolerance=0.01)
    assert (good["name"], good["lr"], good["edge"]) == ("lora", 1e-2, False)
    assert good["trials"][2]["failed"] == ["job 2 failed: the loss is not finite"]
    assert (bad["name"], bad["status"], bad["lr"]) == ("adapter=vera", "failed", None)
    said = remarks([good, bad])
    assert "adapter=vera: no value; at every learning rate a run failed." in said
    assert "lora at lr 0.1: job 2 failed: the loss is not finite" in said
    assert [row[-1] for row in rows([good, bad])] == ["", "taken", "failed", "failed", "failed"]

    waiting = job(5, "waiting", "adapter=lora", "lr=0.03")
    (unfinished,) = tune(attempts_of([*there, waiting]), tolerance=0.01)
    assert (unfinished["status"], unfinished["lr"]) == ("unfinished", None), "part of a grid is no grid"
    assert "1 runs are missing" in remarks([unfinished])[0]


def test_a_run_on_test_rows_is_no_trial_of_a_sweep(make_record: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curlora_lab.sweeps.tuning.read_record", lambda path: make_record(evaluate_on="test"))
    done = job(0, "finished", "lr=0.1")
    done.run = "x"
    (attempt,) = attempts_of([done])
    assert attempt.record is None
    assert "evaluated on test" in str(attempt.problem)


def test_settings_leave_out_what_tuning_varies_and_where_things_lie(make_record: Maker) -> None:
    one = make_record()["config"]
    two = copy.deepcopy(one)
    two |= {
        "lr": 1.0,
        "head_lr": 1.0,
        "seed": 5,
        "order": 1,
        "draw": 3,
        "evaluate_on": "test",
        "output_dir": "elsewhere",
    }
    two["adapter"]["seed"] = 5
    two["model"]["path"] = "/another/place"
    two["sequence"]["tasks"] = dict(reversed(two["sequence"]["tasks"].items()))
    two["sequence"]["tasks"]["one"]["data"] = {"draw": 3, "eval_rows": None, "evaluate_on": "test"}
    assert differences(method_settings(one), method_settings(two)) == []
    two["rank"] = 4
    two["model"]["name"] = "other"
    two["adapter"]["init_from"] = "run"
    assert differences(method_settings(one), method_settings(two)) == [
        "adapter.init_from: None there, 'run' here",
        "rank: 8 there, 4 here",
        "backbone: 'tiny' there, 'other' here",
    ]
    assert names([method_settings(one)]) == ["lora"]
