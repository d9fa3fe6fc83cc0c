import csv
import importlib.util
import io
import json
import math
from pathlib import Path

import pytest
from tests.unit.report.analysis_runs import make_record, seeds_of, write_run, writer
from tests.unit.report.conftest import _record

from curlora_lab.report.aggregate import aggregate, write_aggregate
from curlora_lab.report.record import RecordError

LEARNT = [0.80, 0.82, 0.84, 0.81, 0.83]
JITTER = [
    0.005,
    -0.005,
    0.005,
    -0.005,
    0.0,
]  # one row of 200: differences that are all the same would tell nothing of chance


def told(found) -> str:
    """Everything that the verdict says."""
    return found.text()


def table(found, name: str) -> list[dict[str, str]]:
    (one,) = [one for one in found.tables if one.name == name]
    return list(csv.DictReader(io.StringIO(one.csv())))


def difference(found, first: str, quantity: str) -> dict[str, str]:
    (row,) = [row for row in table(found, "differences") if row["first"] == first and row["quantity"] == quantity]
    return row


@pytest.fixture
def runs(record, tmp_path: Path) -> Path:
    """Run folders that a test may change."""
    return write_three(record, tmp_path / "runs")


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """The analysis of the same runs, made once."""
    return aggregate([write_three(_record(), tmp_path_factory.mktemp("analysed"))])


def write_three(record, folder: Path) -> Path:
    """Five seeds each: heads alone, CURLoRA that learns more, LoRA that learns as much and drifts more."""
    write = writer(folder)
    write(
        seeds_of(
            record,
            [{"learnt": (x - 0.2 + e, 0.6), "kept": x - 0.2 + e} for x, e in zip(LEARNT, JITTER, strict=True)],
            adapter="none",
            drift=0.0,
            parameters=0,
        )
    )
    write(seeds_of(record, [{"learnt": (x, 0.7), "kept": x - 0.05, "drift": x / 4} for x in LEARNT], parameters=1000))
    other = [0.82, 0.80, 0.83, 0.82, 0.82]
    write(
        seeds_of(
            record,
            [{"learnt": (x, 0.7), "kept": x - 0.05, "drift": 2 * x} for x in other],
            adapter="lora",
            parameters=1080,
        )
    )
    return folder


def test_estimates_by_hand(analysed) -> None:
    found = analysed
    (row,) = [r for r in table(found, "estimates") if (r["configuration"], r["quantity"]) == ("curlora", "learning")]
    # Seeds: (x + 0.7) / 2 with x = 0.80, ..., 0.84: mean 0.76, s = 0.0158114 / 2, t(0.975, 4) = 2.776445.
    half = 2.776445 * (0.0158114 / 2) / math.sqrt(5)
    assert float(row["mean"]) == pytest.approx(0.76)
    assert float(row["low"]) == pytest.approx(0.76 - half, abs=1e-6)
    assert row["seeds"] == "5"


def test_reference_is_head_only_and_differences_are_paired(analysed) -> None:
    found = analysed
    row = difference(found, "curlora", "learning")
    assert row["second"] == "none"
    # (x + 0.7) / 2 minus (x - 0.2 + e + 0.6) / 2 = 0.15 - e / 2: the seeds' own spread cancels, that of e / 2 is 0.0025.
    assert float(row["difference"]) == pytest.approx(0.15)
    assert float(row["student_high"]) - 0.15 == pytest.approx(2.776445 * 0.0025 / math.sqrt(5), abs=1e-6)
    assert row["distinguishable"] == "yes"
    assert "curlora: learning higher by 0.15" in told(found)
    assert "curlora learnt: +0.26 ± 0.0098 above a constant answer." in told(found)


def test_what_cannot_be_told_apart_is_said_so(runs) -> None:
    found = aggregate([runs], reference="lora")
    assert difference(found, "curlora", "learning")["distinguishable"] == "no"
    assert "curlora: learning not distinguishable (" in told(found)
    assert "drift, tales lower by" in told(found)


def test_row_intervals_are_those_of_the_predictions(analysed) -> None:
    row = difference(analysed, "curlora", "learning")
    # Task red: 40 of 200 rows differ (0.2), task blue 20 of 200 (0.1); each weighs one half, rows are drawn independently:
    # var = (0.2 * 0.8 + 0.1 * 0.9) / (4 * 200) = 0.0003125, so half of the interval is about 1.96 * 0.01768 = 0.0346.
    assert float(row["rows_high"]) - float(row["difference"]) == pytest.approx(0.0346, abs=0.004)
    assert float(row["seeds_and_rows_low"]) < 0.125


def test_dominated_by_means_and_surely(analysed) -> None:
    rows = {(row["configuration"], row["cost"]): row for row in table(analysed, "fronts")}
    drifting = rows["lora", "drift/tales"]
    assert (drifting["on_front"], drifting["dominated_by_means"]) == ("no", "curlora")
    assert drifting["surely_dominated_by"] == "", "their learning can't be told apart"
    assert rows["none", "drift/tales"]["on_front"] == "yes", "no drift at all"


def test_surely_dominated_needs_both(record, tmp_path: Path) -> None:
    write = writer(tmp_path)
    write(seeds_of(record, [{"learnt": (x, 0.7), "kept": x, "drift": 0.1 + x / 100} for x in LEARNT]))
    write(
        seeds_of(
            record,
            [
                {"learnt": (x - 0.1 + e, 0.7), "kept": x - 0.1 + e, "drift": 0.5 - x / 100}
                for x, e in zip(LEARNT, JITTER, strict=True)
            ],
            adapter="lora",
        )
    )
    rows = {(row["configuration"], row["cost"]): row for row in table(aggregate([tmp_path]), "fronts")}
    assert rows["lora", "drift/tales"]["surely_dominated_by"] == "curlora"
    assert rows["lora", "forgetting"]["surely_dominated_by"] == "", "both forget nothing"
    assert rows["curlora", "drift/tales"]["surely_dominated_by"] == ""


def test_one_seed_supports_no_statement(record, tmp_path: Path) -> None:
    write = writer(tmp_path)
    write(seeds_of(record, [{"learnt": (0.9, 0.9)}]) + seeds_of(record, [{"learnt": (0.5, 0.5)}], adapter="lora"))
    found = aggregate([tmp_path])
    assert "fewer than 3 seeds nothing is said" in told(found)
    assert "higher by" not in told(found)
    assert "lower by" not in told(found)
    assert difference(found, "lora", "learning")["p"] == ""


def test_what_learns_nothing_is_named(record, tmp_path: Path) -> None:
    values = [{"learnt": (0.5 + d, 0.5), "kept": 0.5} for d in (0.01, -0.01, 0.0, 0.02)]
    writer(tmp_path)(seeds_of(record, values))
    assert "curlora did not demonstrably learn" in told(aggregate([tmp_path]))


def test_unfinished_broken_double_and_choosing_runs_are_named_not_used(runs, record) -> None:
    running = make_record(record, seed=7) | {"status": "running"}
    write_run(runs, running, predictions=False)
    (runs / "broken").mkdir()
    (runs / "broken" / "results.json").write_text("{")
    twin = make_record(record, seed=0, learnt=(0.80, 0.7), kept=0.75, drift=0.2)
    (runs / "twin").mkdir()
    (runs / "twin" / "results.json").write_text(json.dumps(twin))
    write_run(runs, make_record(record, seed=0, evaluate_on="choose", learnt=(1.0, 1.0)))
    found = aggregate([runs])
    notes = "\n".join(found.notes)
    assert "left out, running: " in notes
    assert "broken" in notes
    assert "left out, the same run as" in notes
    assert "left out, scored on rows for choosing (evaluate_on=choose): curlora-evaluate_onchoose" in notes
    assert len(table(found, "runs")) == 15


def test_runs_for_choosing_alone_are_labelled(record, tmp_path: Path) -> None:
    writer(tmp_path)(seeds_of(record, [{}, {}], evaluate_on="choose"))
    found = aggregate([tmp_path])
    assert found.verdict[0].heading == "Not to be reported"
    assert "Not to be reported" in found.html


def test_unpaired_runs_are_named(runs, record) -> None:
    write_run(runs, make_record(record, seed=9, drift=0.3))
    found = aggregate([runs])
    row = difference(found, "curlora", "learning")
    assert row["pairs"] == "5"
    assert row["note"] == "curlora without a pair: seed 9"
    assert "seed 9" in told(found)


def test_other_test_rows_make_no_pair(record, tmp_path: Path) -> None:
    ours, theirs = make_record(record), make_record(record, adapter="lora")
    theirs["baselines"]["red"]["rows"] = 100
    write_run(tmp_path, ours)
    write_run(tmp_path, theirs)
    row = difference(aggregate([tmp_path]), "lora", "learning")
    assert row["difference"] == ""
    assert "other test rows: seed 0" in row["note"]


def test_orders_count_once_a_seed_and_are_told_apart(record, tmp_path: Path) -> None:
    write = writer(tmp_path)
    for adapter, more in (("none", 0.0), ("curlora", 0.1)):
        for tasks in (("red", "blue"), ("blue", "red")):
            some = JITTER if adapter == "none" else [0.0] * 5
            values = [
                {"learnt": (x - 0.1 + more + e, 0.7), "kept": x - 0.1 + more + e}
                for x, e in zip(LEARNT, some, strict=True)
            ]
            write(seeds_of(record, values, adapter=adapter, tasks=tasks))
    found = aggregate([tmp_path])
    assert difference(found, "curlora", "learning")["pairs"] == "5"
    assert "learning: better in 2, worse in 0 of 2 orders" in told(found)
    assert {row["order"] for row in table(found, "pairs")} == {"all", "red → blue", "blue → red"}


def test_matched_view_interpolates_by_hand(record, tmp_path: Path) -> None:
    """Both methods learn x and drift: CURLoRA x - 0.6, LoRA twice that; at any common x LoRA's drift is the double."""
    write = writer(tmp_path)
    for adapter, factor in (("curlora", 1.0), ("lora", 2.0)):
        for lr, level in ((0.001, 0.70), (0.003, 0.80), (0.01, 0.75)):
            values = [
                {"learnt": (level + s, level + s), "kept": level, "drift": factor * (level + s - 0.6 + e), "norm": lr}
                for s, e in ((0.0, 0.001), (0.01, -0.001), (0.02, 0.0))
            ]
            write(seeds_of(record, values, adapter=adapter, lr=lr))
    found = aggregate([tmp_path])
    rows = [row for row in table(found, "matched") if (row["equal"], row["quantity"]) == ("learning", "drift/tales")]
    assert [row["place"] for row in rows] == ["0.25", "0.5", "0.75"]
    # Common range: from the highest start 0.72 to the lowest top 0.80; middle 0.76. There the drifts are 0.16 and 0.32.
    middle = rows[1]
    assert float(middle["value"]) == pytest.approx(0.76)
    assert float(middle["first_mean"]) == pytest.approx(0.16)
    assert float(middle["second_mean"]) == pytest.approx(0.32)
    assert float(middle["difference"]) == pytest.approx(-0.16)
    assert "At equal learning (0.76), curlora has less drift, tales than lora, by 0.16" in told(found)
    assert "picking its best afterwards would flatter it" in told(found)


def test_where_nothing_can_be_interpolated_the_reason_is_said(record, tmp_path: Path) -> None:
    write = writer(tmp_path)
    for adapter, levels in (("curlora", (0.6, 0.65)), ("lora", (0.8, 0.9)), ("dora", (0.9, 0.5))):
        for lr, level in zip((0.001, 0.01), levels, strict=True):
            write(seeds_of(record, [{"learnt": (level, level)}] * 3, adapter=adapter, lr=lr))
    write(seeds_of(record, [{}] * 3, adapter="vera", lr=0.1))
    (view,) = [one for one in aggregate([tmp_path]).tables if one.name == "matched"]
    said = " ".join(cell for row in view.rows for cell in row)
    assert "no value of learning that all seeds of curlora and lora reach" in said
    assert "dora: learning does not rise with lr up to its highest point, seed 0, 1, 2" in said
    assert "one point only, so nothing to interpolate between: vera" in said


def test_at_its_edge_a_rate_is_named(record, tmp_path: Path) -> None:
    for lr, level in ((0.001, 0.7), (0.01, 0.8)):
        writer(tmp_path)(seeds_of(record, [{"learnt": (level, level)}] * 3, lr=lr))
    assert "it learns most at lr 0.01, the edge of what was tried" in told(aggregate([tmp_path]))


def test_alone_and_joint_by_hand(record, tmp_path: Path) -> None:
    write = writer(tmp_path)
    write(seeds_of(record, [{"learnt": (0.8, 0.7), "kept": 0.7}] * 3))
    write(seeds_of(record, [{"learnt": (0.8, 0.76)}] * 3, scenario="independent"))
    write(seeds_of(record, [{"learnt": (0.85, 0.75)}] * 3, scenario="joint"))
    rows = {row["quantity"]: row for row in table(aggregate([tmp_path]), "references")}
    # Alone 0.80 and 0.76 against 0.80 and 0.70: intransigence 0.03, transfer to the second task -0.06;
    # 0.80 joint, 0.70 at the end.
    assert float(rows["intransigence"]["mean"]) == pytest.approx(0.03)
    assert float(rows["transfer"]["mean"]) == pytest.approx(-0.06)
    assert float(rows["joint gap"]["mean"]) == pytest.approx(0.10)


def test_missing_references_come_with_the_command(analysed) -> None:
    notes = "\n".join(analysed.notes)
    assert "python train.py -m adapter=curlora scenario=independent seed=0,1,2,3,4" in notes
    assert (
        "without which nothing is known of the gap to joint training of curlora; lora; none; python train.py -m adapter=curlora"
        in notes
    )
    commands = {
        row["configuration"]: row["command"] for row in table(analysed, "references") if row["quantity"] == "joint gap"
    }
    assert commands["lora"] == "python train.py -m adapter=lora scenario=joint seed=0,1,2,3,4"


def test_a_sceptic_is_answered_or_told_that_nobody_asked(analysed) -> None:
    ((_, answers),) = analysed.questions
    said = {one.question[:2]: one.answers for one in answers}
    assert said["1."] == ["not asked by these runs"]
    assert any("the heads alone reach 42 % of what it learns" in line for line in said["5."])


def test_captured_energy_is_read_from_the_stages(runs) -> None:
    for folder in runs.iterdir():
        (folder / "stage_01" / "diagnostics.json").write_text(
            json.dumps(
                {
                    "gradient_energy": {"a": {"captured": 0.1, "ceiling": 0.5}, "b": {"captured": 0.3, "ceiling": 0.7}},
                    "basis": {},
                }
            )
        )
    rows = table(aggregate([runs]), "sceptic")
    assert {row["mean"] for row in rows if row["quantity"] == "captured"} == {"0.2"}


def test_equal_parameters_within_ten_per_cent(analysed) -> None:
    budgets = {row["configuration"]: row["budget"] for row in table(analysed, "equal_parameters")}
    assert budgets == {"none": "1", "curlora": "2", "lora": "2"}


def test_reference_by_name_and_a_wrong_one(runs) -> None:
    assert {row["second"] for row in table(aggregate([runs], reference="LORA"), "differences")} == {"lora"}
    with pytest.raises(
        RecordError, match="'dora' is no configuration of these runs; choose one of: curlora; lora; none"
    ):
        aggregate([runs], reference="dora")


def test_nothing_finished_is_an_error(record, tmp_path: Path) -> None:
    write_run(tmp_path, make_record(record) | {"status": "failed"}, predictions=False)
    with pytest.raises(RecordError, match="no finished run"):
        aggregate([tmp_path])


def test_predictions_that_do_not_fit_are_named_and_not_used(runs) -> None:
    path = next(runs.glob("curlora-*-s0-*")) / "stage_01" / "predictions" / "red.jsonl.gz"
    path.write_bytes(b"no gzip")
    found = aggregate([runs])
    assert difference(found, "curlora", "learning")["rows_low"] == ""
    assert any("no bootstrap over rows with" in note and "s0" in note for note in found.notes)


def test_without_predictions_everything_else_is_there(runs) -> None:
    for path in runs.glob("*/stage_*/predictions/*"):
        path.unlink()
    found = aggregate([runs])
    row = difference(found, "curlora", "learning")
    assert (row["rows_low"], row["pairs"], row["distinguishable"]) == ("", "5", "yes")
    (note,) = [note for note in found.notes if "predictions" in note]
    assert note.startswith("no bootstrap over rows: ")
    assert "s0-0123abcd/stage_01/predictions/red.jsonl.gz" in note


def test_no_folder_of_the_machine_is_named(runs, record) -> None:
    write_run(runs, make_record(record, seed=7) | {"status": "running"}, predictions=False)
    (runs / "broken").mkdir()
    (runs / "broken" / "results.json").write_text("{")
    next(runs.glob("curlora-*-s0-*/stage_01/predictions/red*")).write_bytes(b"no gzip")
    twin = runs / "twin"
    twin.mkdir()
    (twin / "results.json").write_text(json.dumps(make_record(record)))
    found = aggregate([runs])
    assert str(runs) not in found.html + found.markdown + "".join(one.csv() for one in found.tables)


def test_other_metrics_have_no_bootstrap_over_rows(record, tmp_path: Path) -> None:
    for adapter in ("none", "curlora"):
        for one in seeds_of(record, [{}, {}, {}], adapter=adapter):
            one["metric"] = {"red": "accuracy", "blue": "mcc"}
            write_run(tmp_path, one)
    assert difference(aggregate([tmp_path]), "curlora", "average")["rows_low"] == ""


def test_names_are_escaped(record, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    writer(tmp_path)(
        seeds_of(record, [{}] * 3, tasks=(evil.replace("/", ""), "blue")) + seeds_of(record, [{}] * 3, note=evil)
    )
    found = aggregate([tmp_path])
    assert "<script>alert" not in found.html
    assert "<script>alert" not in found.markdown


def test_files_are_written(runs, analysed, tmp_path: Path) -> None:
    written = write_aggregate([runs], tmp_path / "out")
    names = {path.name for path in written}
    assert {"aggregate.html", "aggregate.md", "estimates.csv", "differences.csv", "pairs.csv", "runs.csv"} <= names
    assert {"front-drift-tales.svg", "front-drift-tales.png", "front-forgetting.svg"} <= names
    assert all(path.is_file() for path in written)
    assert (tmp_path / "out" / "aggregate.html").read_text() == analysed.html, "made anew elsewhere: the same"
    assert (tmp_path / "out" / "pairs.csv").read_text() == next(t for t in analysed.tables if t.name == "pairs").csv()


def test_script_prints_the_verdict(runs, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("curlora_lab.report.aggregate.FORMATS", ())  # pictures take seconds
    path = Path(__file__).parents[3] / "scripts" / "aggregate.py"
    spec = importlib.util.spec_from_file_location("scripts_aggregate", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main([str(runs), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "Against none" in out
    assert str(tmp_path / "out" / "aggregate.html") in out
    assert script.main([str(tmp_path / "out")]) == 1
    assert "results.json" in capsys.readouterr().err
