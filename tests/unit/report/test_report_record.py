import json
import math
from pathlib import Path

import jsonschema
import pytest

from curlora_lab.report.record import RecordError, read_record, schema, validate_record


def test_schema_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_finished_and_running_records_are_valid(record, running, changed) -> None:
    validate_record(record)
    validate_record(running)
    validate_record(changed(status="failed", message="loss is not finite"))


def test_a_record_without_probes_or_adapter_is_valid(changed) -> None:
    probes = {"perplexity": {}, "bits_per_character": {}, "details": {}}
    none = {"overall": 0.0, "absolute": 0.0, "modules": {}, "reasons": {}}
    validate_record(changed(probes=probes, shift={"weight": [none] * 4, "output": {}}))


def test_an_encoder_has_empty_details(changed, record) -> None:
    empty = {"tinystories": [None] * 4}
    probes = {"perplexity": empty, "bits_per_character": empty, "details": {"tinystories": {}}}
    validate_record(changed(probes=probes, shift={**record["shift"], "output": empty}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("status", "done", "status: 'done' is not one of"),
        ("schema_version", "2", "schema_version: '1' was expected"),
        ("surprise", 1, "top level: Additional properties are not allowed"),
        ("scores", [[0.1, 0.2, "high"]] * 4, r"scores\[0\]\[2\]: 'high' is not of type 'number', 'null'"),
        ("scores", [[0.1, 0.2]] * 4, r"scores\[0\]: 2 entries for 3 tasks"),
        ("scores", [[0.1, 0.2, 0.3]] * 3, "metrics.mrpc: 4 entries for 3 rows"),
        ("metric", {"mrpc": "accuracy"}, "metric: names mrpc; tasks are mrpc, sst2, sentiment140"),
        ("learnt_in", {"mrpc": 1, "sst2": 2, "sentiment140": 4}, "learnt_in.sentiment140: stage 4 of 3"),
        ("reasons", {}, "continual.gain: null without a reason"),
        ("warnings", [{"code": "Bad Code", "task": None, "stage": None, "message": "m"}], r"warnings\[0\].code"),
    ],
)
def test_faults_are_named_with_their_place(changed, key, value, message) -> None:
    with pytest.raises(RecordError, match=message):
        validate_record(changed(**{key: value}))


def test_all_faults_come_at_once(changed) -> None:
    with pytest.raises(RecordError) as caught:
        validate_record(changed(status="done", tasks="mrpc", overrides=[1]), where="runs/a/results.json")
    text = str(caught.value)
    assert text.startswith("runs/a/results.json does not hold what a record must:")
    assert all(key in text for key in ("status:", "tasks:", "overrides[0]:"))


def test_missing_keys_are_named(record) -> None:
    del record["cost"]
    with pytest.raises(RecordError, match="'cost' is a required property"):
        validate_record(record)


def test_read_record_takes_folder_or_file(record, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(record))
    assert read_record(tmp_path) == read_record(tmp_path / "results.json") == record


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "holds a list; a record is an object"),
        ('{"scores": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "cannot be read"),
        ("{}", "'tasks' is a required property"),
    ],
)
def test_broken_files_are_named_errors(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        read_record(tmp_path)


def test_a_folder_without_record_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="does not exist; name a run folder"):
        read_record(tmp_path / "results.json")
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="cannot be read"):
        read_record(tmp_path)


def test_reading_instantiates_nothing(changed, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    config = {"model": {"_target_": "pathlib.Path.touch", "_args_": [str(mark)]}}
    (tmp_path / "results.json").write_text(json.dumps(changed(config=config)))
    assert read_record(tmp_path)["config"] == config
    assert not mark.exists()


def test_infinity_is_refused(changed, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(changed(scores=[[math.inf] * 3] * 4)))
    with pytest.raises(RecordError, match="Infinity is no JSON number"):
        read_record(tmp_path)
