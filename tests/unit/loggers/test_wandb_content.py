"""What a dashboard is given, by hand-worked values."""

import math

import pytest

from curlora_lab.loggers import content
from curlora_lab.loggers.heatmap import score_heatmap


def test_summary_has_what_runs_are_compared_by_and_leaves_out_what_is_missing(record):
    found = content.summary(record)
    assert found["continual/average"] == 0.625
    assert found["continual/bwt"] == -0.5
    assert "continual/gain" not in found
    assert (found["adapter/trainable_parameters"], found["head/trainable_parameters"]) == (16, 10)
    assert found["probe/stories/perplexity_ratio"] == pytest.approx(1.25)
    assert found["cost/tokens"] == 120
    assert "cost/stages" not in found
    assert found["warnings/count"] == 1


def test_summary_without_a_final_perplexity_has_no_ratio(record):
    record["probes"]["perplexity"]["stories"][-1] = None
    assert "probe/stories/perplexity_ratio" not in content.summary(record)


def test_average_seen_is_over_tasks_learnt_so_far(record):
    rows = list(content.stage_rows(record))
    assert [row["stage"] for row in rows] == [1, 2]
    assert [row["continual/average_seen"] for row in rows] == [1.0, 0.625]
    assert "continual/bwt" not in rows[0]
    assert rows[1]["continual/bwt"] == -0.5


def test_metrics_that_cant_be_averaged_are_not(record):
    record["continual"]["average"] = None
    rows = list(content.stage_rows(record))
    assert [row["stage"] for row in rows] == [2]
    assert "continual/average_seen" not in rows[0]


def test_a_missing_score_leaves_its_stage_without_an_average(record):
    record["scores"][1][0] = None
    assert [row["stage"] for row in content.stage_rows(record) if "continual/average_seen" in row] == [2]


def test_a_row_has_the_keys_that_training_logs(record):
    assert content.measured(record, 2) == {
        "stage": 2,
        "eval/first/accuracy": 0.5,
        "eval/second/accuracy": 0.75,
        "probe/stories/perplexity": 5.0,
        "shift/weight": 0.2,
        "shift/stories/output": 0.3,
    }


def test_score_matrix_and_long_form_say_the_same(record):
    matrix, long = content.score_matrix(record), content.scores(record)
    assert matrix.columns == ["stage", "after", "first", "second"]
    assert matrix.rows[0] == [0, "untrained", 0.5, 0.25]
    assert matrix.rows[2] == [2, "second", 0.5, 0.75]
    entries = {(row[0], row[2]): row[4] for row in long.rows}
    assert entries == {
        (i, task): row[2 + j] for i, row in enumerate(matrix.rows) for j, task in enumerate(record["tasks"])
    }


def test_tasks_learnt_together_share_a_row_name(record):
    record["learnt_in"]["second"] = 1
    record["scores"] = record["scores"][:2]
    assert content.stage_names(record) == ["untrained", "first + second"]


def test_predictions_name_labels_and_mark_what_was_forgotten(record, run_folder):
    table = content.predictions(record, run_folder, rows_per_task=10)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    first = [row for row in rows if row["task"] == "first"]
    assert [row["forgotten"] for row in first] == [True, False, False]
    assert [row["correct"] for row in first] == [False, True, True]
    assert (first[0]["label"], first[0]["learnt_prediction"], first[0]["prediction"]) == ("no", "no", "yes")
    assert first[0]["confidence"] == pytest.approx(math.exp(-0.5))


def test_label_ids_stand_where_names_are_unsure(record, run_folder):
    table = content.predictions(record, run_folder, rows_per_task=10)
    assert [row[2] for row in table.rows if row[0] == "second"] == ["0", "2"]  # a dropped label shifts the ids


def test_a_sample_is_spread_over_the_file(record, run_folder):
    rows = content.predictions(record, run_folder, rows_per_task=2).rows
    assert [row[1] for row in rows if row[0] == "first"] == ["0", "1"]


def test_tasks_without_labels_or_files_are_left_out(record, tmp_path):
    assert content.predictions(record, tmp_path, rows_per_task=5).rows == []


def test_heatmap_has_each_score_once_and_a_frame_a_task(record):
    record["scores"][0][1] = None
    figure = score_heatmap(record)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.500", "1.000", "0.500", "n/a", "0.250", "0.750"]
    assert sum(1 for patch in axes.patches if not patch.get_fill()) == len(record["tasks"])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["untrained", "after first", "after second"]
