import copy
import json

import pytest

from curlora_lab.report import compare
from curlora_lab.report.figures import Lines
from curlora_lab.report.html import render
from curlora_lab.report.study import configurations, continual, estimate, telling
from curlora_lab.report.study_figures import layer_shift, mean_matrix, shown_lines, study_figures
from curlora_lab.report.study_view import study_view
from curlora_lab.report.view import run_view


def test_seeds_are_one_configuration_and_the_rest_is_named_by_what_varies(seeds) -> None:
    found = configurations(
        [*seeds(3, lr=0.005), *seeds(2, adapter="lora", lr=0.002), *seeds(1, adapter="lora", lr=0.004)]
    )
    assert [(one.label, len(one.records)) for one in found] == [
        ("curlora · lr 0.005", 3),
        ("lora · lr 0.002", 2),
        ("lora · lr 0.004", 1),
    ]
    assert [one.method for one in found] == ["curlora", "lora", "lora"]


def test_a_rate_that_follows_from_the_adapter_is_not_said_twice(seeds) -> None:
    found = configurations([*seeds(2, lr=0.005), *seeds(2, adapter="lora", lr=0.002)])
    assert [one.label for one in found] == ["curlora", "lora"]
    (alone,) = configurations(seeds(2))
    assert alone.label == "curlora"
    assert alone.settings == {}


def test_settings_that_tell_configurations_apart() -> None:
    facts = [
        {"rank": 8, "adapter.r": 8, "adapter.name": "a", "epochs": 1},
        {"rank": 16, "adapter.r": 16, "adapter.name": "a", "epochs": 1},
        {"rank": 16, "adapter.r": 16, "adapter.name": "b", "epochs": 1, "adapter.extra": [1]},
    ]
    assert telling(facts) == ["adapter.name", "rank"]


def test_mean_over_seeds_by_hand(seeds) -> None:
    found = estimate(seeds(3), continual("learning"))
    # 0.70, 0.72, 0.74: s = 0.02, t(0.975, 2) = 4.302653, half = 4.302653 * 0.02 / sqrt(3) = 0.049683.
    assert found.mean == pytest.approx(0.72)
    assert found.half == pytest.approx(0.0496827, abs=1e-6)
    assert found.text() == "0.720 ± 0.050"
    assert estimate(seeds(1), continual("learning")).half is None
    records = seeds(2)
    records[1]["continual"]["learning"] = None
    assert estimate(records, continual("learning")) is None, "a mean over the others would flatter"


def test_response_curves_are_one_line_a_method_over_what_was_swept(seeds) -> None:
    runs = [run for lr in (0.001, 0.01) for name in ("curlora", "lora") for run in seeds(2, adapter=name, lr=lr)]
    curves = study_figures(configurations(runs))["response"]
    assert [one.name for one in curves] == [
        "response-lr-average", "response-lr-learning", "response-lr-forgetting", "response-lr-log-perplexity-ratio-tinystories",
    ]  # fmt: skip
    learning = curves[1]
    assert isinstance(learning, Lines)
    assert [(one.name, list(one.x)) for one in learning.series] == [("curlora", [0.001, 0.01]), ("lora", [0.001, 0.01])]
    assert learning.log_x


def test_no_curve_where_nothing_was_swept(seeds) -> None:
    assert study_figures(configurations([*seeds(1), *seeds(1, adapter="lora")]))["response"] == []


def test_tasks_are_drawn_together_only_where_they_are_the_same(seeds) -> None:
    other = seeds(1, adapter="lora")[0]
    other["learnt_in"] = dict.fromkeys(other["tasks"], 1)
    assert study_figures(configurations([*seeds(1), other]))["tasks"] == []


def test_mean_matrix_and_layers_by_hand(seeds) -> None:
    records = seeds(2)
    records[1]["scores"][1][0] += 0.2
    (one,) = configurations(records)
    assert mean_matrix(one).values[1][0] == pytest.approx(records[0]["scores"][1][0] + 0.1)
    record = records[0]
    record["shift"]["weight"][3]["modules"] = {"h.0.a": 3.0, "h.0.b": 4.0, "h.1.a": None, "head": 1.0}
    assert layer_shift(record) == {0: pytest.approx(12.5**0.5)}


def test_too_many_configurations_get_a_line_only_if_they_learnt_most(seeds) -> None:
    runs = []
    for k in range(15):
        (run,) = seeds(1, lr=0.001 * (k + 1))
        run["continual"]["learning"] = 0.5 + 0.01 * k
        runs.append(run)
    shown = shown_lines(configurations(runs))
    assert len(shown) == 12
    assert shown[0].label == "lr 0.004"


def test_unfinished_runs_and_findings_come_first(seeds) -> None:
    runs = [*seeds(2), *seeds(1, adapter="lora")]
    runs[2] |= {"status": "failed", "message": "loss is not finite"}
    found = configurations(runs)
    view = study_view(found, ["run"], [[], []], [["a"], ["b"]], [])
    assert view["unfinished"][0][1] == "This run failed"
    assert [finding["grave"] for finding in view["findings"]] == sorted(
        (finding["grave"] for finding in view["findings"]), reverse=True
    )
    assert view["findings"][0]["text"].startswith("curlora, mrpc (2 of 2 runs): ")
    page = render("compare.html.jinja", view, study_figures(found))
    assert page.index("loss is not finite") < page.index("What a sceptic would object") < page.index("What is paid")


def test_mixed_metrics_are_named(seeds) -> None:
    runs = seeds(1)
    mixed = copy.deepcopy(runs[0])
    mixed["metric"]["sst2"] = "f1"
    mixed["continual"]["average"] = None
    mixed["reasons"]["continual.average"] = "tasks are scored by accuracy, f1"
    view = study_view(configurations([mixed]), ["run"], [[]], [["a"]], [])
    assert view["mixed"].startswith("Different metrics (accuracy: mrpc, sentiment140; f1: sst2).")
    assert "No average is taken: tasks are scored by" in view["mixed"]


def test_a_matrix_without_one_metric_has_no_mean_column(record) -> None:
    assert run_view(record)["matrix"]["mean"]
    assert [mean for _, _, mean in run_view(record)["matrix"]["rows"]] == ["–", "0.701", "0.686", "0.654"]
    record["metric"]["sst2"] = "f1"
    assert not run_view(record)["matrix"]["mean"]


def test_different_numbers_of_seeds_are_noted(seeds, tmp_path) -> None:
    for k, run in enumerate([*seeds(2), *seeds(1, adapter="lora")]):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "results.json").write_text(json.dumps(run))
    found = compare([tmp_path / str(k) for k in range(3)])
    assert any("different numbers of seeds" in note for note in found.notes)
    assert found.labels == ["curlora", "lora"]
