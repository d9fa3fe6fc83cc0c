"""What came from outside is known by content, and named when it has changed."""

import logging

import pytest

from curlora_lab.continual import files
from curlora_lab.continual.inputs import changed_inputs, name_changed_runs
from curlora_lab.integrity import sealed_record

RECORD = sealed_record(
    {
        "config": {"lr": 1.0, "name": "x"},
        "provenance": {
            "model": {"name": "tiny", "fingerprint": "a" * 64},
            "data": {"mrpc": {"fingerprint": "b" * 64}, "sst2": {"fingerprint": "c" * 64}},
        },
    }
)
SAME = {"model": "a" * 64, "rows": {"mrpc": "b" * 64, "sst2": "c" * 64}}
OTHER = {"model": "a" * 64, "rows": {"mrpc": "b" * 64, "sst2": "d" * 64}}


def test_nothing_has_changed():
    assert changed_inputs(RECORD, **SAME) == []


def test_each_change_is_named():
    found = changed_inputs(RECORD, model="e" * 64, rows={"mrpc": "b" * 64, "sst2": "d" * 64})
    assert [line.split(":")[0] for line in found] == ["the content of the model 'tiny'", "the rows of task 'sst2'"]


def test_a_damaged_record_is_named_as_such():
    assert "damaged or edited" in changed_inputs({**RECORD, "config": {}}, **SAME)[0]


@pytest.mark.parametrize("record", [{}, {"provenance": []}, {"provenance": {"model": 3, "data": None}}])
def test_a_record_may_be_anything(record):
    assert changed_inputs(record, **SAME) == []


@pytest.mark.parametrize(("inputs", "said"), [(SAME, False), (OTHER, True)])
def test_a_run_with_other_rows_is_named(tmp_path, caplog, inputs, said):
    files.write_json(tmp_path / "tiny-lora-s0-11111111" / "results.json", RECORD)
    with caplog.at_level(logging.WARNING, logger="curlora_lab"):
        name_changed_runs(tmp_path / "tiny-lora-s0-22222222", {"lr": 1.0, "name": None}, **inputs)
        name_changed_runs(tmp_path / "tiny-lora-s0-22222222", {"lr": 2.0, "name": None}, **OTHER)
    assert ("the rows of task 'sst2'" in caplog.text) is said
    assert caplog.text.count("is not continued") == said
