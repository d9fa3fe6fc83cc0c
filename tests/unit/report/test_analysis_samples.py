"""What counts as one repetition, which runs make pairs, and what a conclusion over them has to stand on."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel
from tests.unit.report.analysis_runs import make_record, seeds_of, write_run, writer

from curlora_lab.report import wording
from curlora_lab.report.analysis.comparisons import against_reference, all_pairs, by_order, standings
from curlora_lab.report.analysis.matched import looked_at, views
from curlora_lab.report.analysis.quantities import LEARNING, UPDATE_NORM, drift_of
from curlora_lab.report.analysis.references import referenced
from curlora_lab.report.analysis.rows import RowScores
from curlora_lab.report.analysis.samples import Run, Sample, gather
from curlora_lab.report.analysis.sceptic import doubts
from curlora_lab.report.analysis.statistics import generator_at, paired
from curlora_lab.report.analysis.verdict import Found, verdict

Record = dict[str, Any]
DRIFT = drift_of("tales")


def group_of(folder: Path, *, reference: str | None = None):
    (group,) = gather([folder], reference=reference).groups
    return group


def said(folder: Path) -> str:
    """The verdict as one text."""
    study = gather([folder])
    found = []
    for group in study.groups:
        reader = RowScores()
        pairs = all_pairs(group, reader)
        trades = [one for cost in looked_at(group, LEARNING) for one in standings(group, cost, pairs)]
        found.append(
            Found(
                group=group,
                against=against_reference(group, reader),
                pairs=pairs,
                standings=trades,
                views=views(group),
                orders=by_order(group, reader),
            )
        )
    return "\n".join(line for part in verdict(study, found) for line in part.sentences)


def one(comparisons, quantity: str):
    (found,) = [pair for pair in comparisons if pair.quantity.key == quantity]
    return found


def test_draws_of_one_seed_are_no_repetitions() -> None:
    """With nothing to find, five seeds with three draws each find something in 5 % of the studies, not in 27 %."""
    generator, trials, wrong = generator_at("draws"), 400, 0
    for trial in range(trials):
        by_seed = generator.normal(size=(2, 5, 1)) + generator.normal(scale=0.5, size=(2, 5, 3))
        samples = [
            Sample(
                label="",
                configuration=None,
                runs={
                    (str(seed), str(draw), ""): Run(
                        folder=Path(), record={"config": {"seed": seed, "draw": draw}, "tasks": [], "value": value}
                    )
                    for seed, row in enumerate(values)
                    for draw, value in enumerate(row)
                },
            )
            for values in by_seed
        ]
        found = paired(*(sample.values(lambda record: record["value"]) for sample in samples), position=[trial])
        wrong += found.p < 0.05
    assert wrong / trials == pytest.approx(0.05, abs=0.03)


def test_draws_and_orders_that_say_the_same_add_nothing(record: Record, tmp_path: Path) -> None:
    for name, draws in (("one", (0,)), ("three", (0, 1, 2))):
        for draw in draws:
            for adapter, more in (("curlora", (0.1, 0.12, 0.11)), ("none", (0.0, 0.0, 0.0))):
                values = [{"learnt": (0.6 + e + s / 50, 0.7), "kept": 0.6 + e} for s, e in enumerate(more)]
                writer(tmp_path / name)(seeds_of(record, values, adapter=adapter, draw=draw))
    alone, thrice = (against_reference(group_of(tmp_path / name), RowScores()) for name in ("one", "three"))
    for few, many in zip(alone, thrice, strict=True):
        assert many.difference.n == 3
        assert many.difference.p == pytest.approx(few.difference.p)
        for kind in ("student", "bootstrap", "rows", "crossed"):
            first, second = getattr(few.difference, kind), getattr(many.difference, kind)
            assert (first is None) == (second is None)
            if first is not None:
                assert (second.low, second.high) == pytest.approx((first.low, first.high))


def test_pairs_share_draw_and_order_before_seeds_are_averaged(record: Record, tmp_path: Path) -> None:
    """Draws move both configurations alike, so only the same draw may be subtracted; the rest is the t test of seed means."""
    ours = np.array([[0.80, 0.70], [0.82, 0.75], [0.77, 0.70]])  # seed, draw
    theirs = ours - np.array([[0.10, 0.12], [0.08, 0.10], [0.13, 0.09]])
    for adapter, scores in (("curlora", ours), ("none", theirs)):
        for draw in (0, 1):
            values = [{"learnt": (x, x), "kept": x} for x in scores[:, draw]]
            writer(tmp_path)(seeds_of(record, values, adapter=adapter, draw=draw))
    write_run(tmp_path, make_record(record, seed=0, draw=7, learnt=(1.0, 1.0), kept=1.0))
    found = one(against_reference(group_of(tmp_path), RowScores()), "learning")
    test = ttest_rel(ours.mean(axis=1), theirs.mean(axis=1))
    assert (found.difference.n, found.difference.p) == (3, pytest.approx(test.pvalue))
    assert found.reason == "curlora without a pair: seed 0 draw 7"
    assert "A seed counts once" in said(tmp_path)


def test_a_sceptic_counts_seeds_not_orders(record: Record, tmp_path: Path) -> None:
    captured = {"red": (0.1, 0.3, 0.2), "blue": (0.3, 0.5, 0.4)}
    for tasks in (("red", "blue"), ("blue", "red")):
        for seed, value in enumerate(captured[tasks[0]]):
            folder = write_run(tmp_path, make_record(record, seed=seed, tasks=tasks), predictions=False)
            (folder / "stage_01").mkdir()
            (folder / "stage_01" / "diagnostics.json").write_text(
                json.dumps({"gradient_energy": {"a": {"captured": value}}})
            )
    (found,) = doubts(group_of(tmp_path))
    # Means of the seeds: 0.2, 0.4, 0.3; s = 0.1, t(0.975, 2) = 4.302653.
    assert found.numbers["captured"].mean == pytest.approx(0.3)
    assert found.numbers["captured"].half == pytest.approx(4.302653 * 0.1 / math.sqrt(3))


def test_a_destroyed_model_has_no_drift() -> None:
    assert wording.finite_log_ratio([4.0, 4.205, None]) is None
    assert (
        wording.finite_log_ratio([None, 4.0]) is wording.finite_log_ratio([4.0]) is wording.finite_log_ratio([]) is None
    )
    assert wording.finite_log_ratio([4.0, None, 8.0]) == pytest.approx(math.log(2))


def test_drift_beyond_the_largest_perplexity_is_that_of_the_bits(record: Record) -> None:
    """1,000 characters in 250 tokens: 100 bits a character more are 400 bits a token, whatever the perplexity may be."""
    made = make_record(record)
    made["probes"] = {
        "perplexity": {"tales": [4.0, 8.0, None]},
        "bits_per_character": {"tales": [0.5, 0.75, 100.5]},
        "details": {"tales": {"tokens": 250, "characters": 1000}},
    }
    assert DRIFT.measure(made) == pytest.approx(400 * math.log(2))
    made["probes"]["bits_per_character"]["tales"][-1] = None
    assert DRIFT.measure(made) is None


def test_a_missing_drift_is_named_with_its_reason(record: Record, tmp_path: Path) -> None:
    writer(tmp_path)(seeds_of(record, [{}] * 3))
    for made in seeds_of(record, [{}] * 3, adapter="lora"):
        if made["config"]["seed"] == 1:
            for key in ("perplexity", "bits_per_character"):
                made["probes"][key]["tales"][-1] = None
            made["reasons"]["probes.perplexity.tales[2]"] = "perplexity is nan: the model is destroyed"
        write_run(tmp_path, made)
    text = said(tmp_path)
    reason = "drift, tales in 1 of 3 runs of lora (perplexity is nan: the model is destroyed)"
    assert f"No {reason}, so it is on no front." in text
    assert f"drift, tales: no comparison (no {reason})" in text
    assert "drift, tales, against curlora: no comparison: lora." in text


def test_drifts_on_other_texts_are_not_compared(record: Record, tmp_path: Path) -> None:
    for adapter, text in (("curlora", "a"), ("lora", "b")):
        for made in seeds_of(record, [{}] * 3, adapter=adapter):
            made["probes"]["details"]["tales"] = {
                "protocol": "all rows", "window": 8, "stride": 4, "documents": 1, "tokens": 10, "characters": 40,
                "fingerprint": text if made["config"]["seed"] != 2 else "a",
            }  # fmt: skip
            write_run(tmp_path, made)
    group = group_of(tmp_path)
    found = against_reference(group, RowScores())
    assert one(found, "learning").difference.n == 3
    assert one(found, "drift/tales").difference.n == 1
    assert one(found, "drift/tales").reason == "drift, tales is of another text: seed 0, seed 1"
    assert standings(group, DRIFT, found) == []
    assert "drift/tales" not in [quantity.key for quantity in looked_at(group, UPDATE_NORM)]
    assert "drift, tales was measured on other texts in some runs than in others, so there is no front." in said(
        tmp_path
    )


@pytest.fixture
def of_few_rows(record: Record, tmp_path: Path) -> Path:
    """CURLoRA learns more in every seed, by the same two or three of 200 rows, and drifts less."""
    write = writer(tmp_path)
    more = [{"learnt": (0.80, 0.7), "drift": 0.1 + s / 1000} for s in range(5)]
    less = [{"learnt": (0.79 - 0.005 * (s % 2), 0.7), "drift": 0.5 - s / 1000} for s in range(5)]
    for tasks in (("red", "blue"), ("blue", "red")):
        swap = tasks[0] == "blue"
        for adapter, values in (("curlora", more), ("lora", less)):
            turned = [v | {"learnt": v["learnt"][::-1] if swap else v["learnt"], "kept": 0.7} for v in values]
            write(seeds_of(record, turned, adapter=adapter, tasks=tasks))
    return tmp_path


def test_every_family_stands_on_seeds_and_rows(of_few_rows: Path) -> None:
    group, reader = group_of(of_few_rows, reference="lora"), RowScores()
    against = one(against_reference(group, reader), "learning")
    pair = one(all_pairs(group, reader), "learning")
    alone = [found for _, found in by_order(group, reader) if found.quantity.key == "learning"]
    assert against.difference.student.excludes(0)
    assert not against.difference.crossed.excludes(0), "other rows of the same kind could turn it"
    assert pair.difference == against.difference
    assert len(alone) == 2
    assert all(found.difference.crossed is not None for found in alone)
    assert [found.sure for found in (against.difference, *(f.difference for f in alone))] == [False] * 3
    assert not any(place.surely_by for place in standings(group, DRIFT, all_pairs(group, reader)))


def test_the_basis_says_what_has_no_interval_over_rows(of_few_rows: Path) -> None:
    text = said(of_few_rows)
    assert "There is no interval over seeds and test rows of forgetting; drift, tales." in text
    assert "a further condition, at 95 % for each comparison by itself" in text


def test_the_same_answers_differ_by_nothing_on_any_rows(record: Record, tmp_path: Path) -> None:
    for adapter in ("curlora", "lora"):
        writer(tmp_path)(seeds_of(record, [{"learnt": (0.6 + s / 10, 0.7)} for s in range(3)], adapter=adapter))
    crossed = one(all_pairs(group_of(tmp_path), RowScores()), "learning").difference.crossed
    assert (crossed.low, crossed.high) == (0.0, 0.0)


def test_only_orders_with_a_comparison_are_counted(record: Record, tmp_path: Path) -> None:
    write = writer(tmp_path)
    levels = [0.70, 0.72, 0.71]
    write(seeds_of(record, [{"learnt": (x, x)} for x in levels], adapter="none"))
    write(seeds_of(record, [{"learnt": (x + 0.2 + s / 200, x)} for s, x in enumerate(levels)]))
    write(seeds_of(record, [{}] * 3, adapter="none", tasks=("blue", "red")))
    assert (
        "curlora, learning: better in 1, worse in 0 of 1 orders of the tasks, each order alone; nothing to be said of 1 more."
        in said(tmp_path)
    )


def strategy(name: str, **settings: Any) -> dict[str, Any]:
    return {"_target_": f"curlora_lab.continual.strategies.{name}", **settings}


@pytest.mark.parametrize(
    ("own", "other", "taken"),
    [
        (strategy("Strategy"), strategy("Strategy"), True),
        (strategy("Strategy"), strategy("Anchor", weight=1.0), False),
        (strategy("Replay", size=10), strategy("Strategy"), True),
        (strategy("Replay", size=10), strategy("Anchor", weight=1.0), False),
        (strategy("Anchor", weight=1.0), strategy("Anchor", weight=1.0), True),
        (strategy("Anchor", weight=1.0), strategy("Anchor", weight=2.0), False),
    ],
)
def test_a_reference_has_the_same_strategy_or_none(
    record: Record, tmp_path: Path, own: Record, other: Record, taken: bool
) -> None:
    made = seeds_of(record, [{}] * 3, strategy=own) + seeds_of(record, [{}] * 3, strategy=other, scenario="joint")
    for number, one_run in enumerate(made):
        one_run["name"], one_run["overrides"] = f"run-{number}", ["strategy=mine", "strategy.size=10", "lr=0.1"]
        write_run(tmp_path, one_run, predictions=False)
    study = gather([tmp_path])
    (found,) = referenced(study, study.groups[0])
    assert (found.joint_gap is not None, "joint" not in found.missing) == (taken, taken)
    if not taken:
        bare = "" if own["_target_"].endswith("Replay") else "strategy=mine strategy.size=10 "
        assert found.missing["joint"] == f"python train.py -m {bare}lr=0.1 scenario=joint seed=0,1,2"


def test_the_own_strategy_goes_before_none(record: Record, tmp_path: Path) -> None:
    anchor = strategy("Anchor", weight=1.0)
    made = seeds_of(record, [{"kept": 0.7}] * 3, strategy=anchor)
    made += seeds_of(record, [{"learnt": (0.9, 0.7)}] * 3, strategy=anchor, scenario="joint")
    made += seeds_of(record, [{"learnt": (1.0, 1.0)}] * 3, strategy=strategy("Strategy"), scenario="joint")
    for number, one_run in enumerate(made):
        one_run["name"] = f"run-{number}"
        write_run(tmp_path, one_run, predictions=False)
    study = gather([tmp_path])
    (found,) = referenced(study, study.groups[0])
    assert found.joint_gap.mean == pytest.approx(0.8 - 0.7)


def test_what_learns_less_at_equal_norm_is_said_to(record: Record, tmp_path: Path) -> None:
    """Both move the weights as far; CURLoRA learns 0.1 less, and drifts less for it."""
    for adapter, less in (("curlora", 0.1), ("lora", 0.0)):
        for lr, norm in ((0.001, 1.0), (0.01, 2.0)):
            values = [
                {"learnt": (0.7 + norm / 20 - less + e, 0.7), "drift": norm * (0.3 - less) + e, "norm": norm}
                for e in ((0.0, 0.005, 0.01) if adapter == "curlora" else (0.0, 0.0, 0.005))
            ]
            writer(tmp_path)(seeds_of(record, values, adapter=adapter, lr=lr))
    text = said(tmp_path)
    assert "At equal ‖ΔW‖ (1.5), lora has more learning than curlora, by 0.04" in text
    assert "At equal ‖ΔW‖ (1.5), curlora has less drift, tales than lora, by 0.14" in text
