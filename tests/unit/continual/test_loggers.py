"""The run folder's log of numbers survives a killed process and a stage that is done again."""

import csv

from curlora_lab.continual.loggers import JsonLinesLogger, read_metrics, write_csv


def test_a_stage_that_begins_anew_cuts_its_own_lines(tmp_path):
    sink = JsonLinesLogger(tmp_path / "metrics.jsonl")
    for stage in (0, 1, 2):
        sink.start_stage(stage)
        sink.log_metrics({"loss": float(stage)}, step=1)
    again = JsonLinesLogger(tmp_path / "metrics.jsonl")
    again.start_stage(1)
    again.log_metrics({"loss": 9.0}, step=1)
    again.sort()
    assert [(line["stage"], line["loss"]) for line in read_metrics(again.path)] == [(0, 0.0), (1, 9.0), (2, 2.0)]


def test_a_stage_that_goes_on_keeps_the_lines_before_its_checkpoint(tmp_path):
    sink = JsonLinesLogger(tmp_path / "metrics.jsonl")
    sink.start_stage(0)
    sink.log_metrics({"loss": 0.5}, step=0)
    sink.start_stage(1)
    for step in range(5):
        sink.log_metrics({"loss": 1.0 + step}, step=step)
        if step == 2:
            kept = sink.lines
    whole = sink.path.read_bytes()
    again = JsonLinesLogger(sink.path)
    again.start_stage(1, keep=kept)
    for step in (3, 4):
        again.log_metrics({"loss": 1.0 + step}, step=step)
    assert sink.path.read_bytes() == whole


def test_a_half_written_line_is_dropped(tmp_path):
    sink = JsonLinesLogger(tmp_path / "metrics.jsonl")
    sink.log_metrics({"loss": 1.0}, step=1)
    with sink.path.open("a") as stream:
        stream.write('{"stage": 0, "st')
    assert len(read_metrics(sink.path)) == 1
    sink.start_stage(5)
    assert len(read_metrics(sink.path)) == 1


def test_numbers_that_json_has_not_are_null(tmp_path):
    sink = JsonLinesLogger(tmp_path / "metrics.jsonl")
    sink.log_metrics({"loss": float("inf")}, step=1)
    assert read_metrics(sink.path)[0]["loss"] is None


def test_the_table_has_every_column(tmp_path):
    sink = JsonLinesLogger(tmp_path / "metrics.jsonl")
    sink.log_metrics({"a": 1.0}, step=1)
    sink.log_metrics({"b": 2.0}, step=2)
    write_csv(sink.path, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {"stage": "0", "step": "1", "a": "1.0", "b": ""}
    assert rows[1]["b"] == "2.0"
