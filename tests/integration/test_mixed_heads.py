"""A sequence of five heads, from the command line to scores again, answers to texts and exported heads."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from transformers import AutoTokenizer

from curlora_lab import config
from curlora_lab.continual.store import read_predictions
from curlora_lab.reopen import open_run
from curlora_lab.run import run

ROOT = Path(__file__).parents[2]
SMALL = ("rank=4", "train_rows=48", "eval_rows=24", "epochs=1", "probe=none", "trainer.accelerator=cpu")
METRIC = {
    "sentiment2": "accuracy",
    "similarity": "pearson",
    "words": "entity_f1",
    "questions": "exact_match",
    "instructions": "exact_match",
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mixed_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


evaluate, predict, export = script("evaluate"), script("predict"), script("export")
Called = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("mixed")
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        given = ["sequence=mixed_demo", *SMALL, f"output_dir={output}", "name=small"]
        run(config.validate(compose("train", overrides=given)))
    return output / "mixed_demo" / "small"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Called:
    """Call a script's ``main`` and give its exit code and what it wrote."""
    monkeypatch.setenv("COLUMNS", "200")

    def called(module: ModuleType, *arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = module.main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return code, written.out, written.err

    return called


def test_the_matrix_says_which_metric_is_which_and_averages_what_can_be(finished: Path) -> None:
    record = json.loads((finished / "results.json").read_text())
    assert record["metric"] == METRIC
    assert all(value is not None for row in record["scores"] for value in row)
    assert [record["baselines"][name]["best"] for name in METRIC] == [1.0] * 5
    shares = [
        (score - base["constant"]) / (base["best"] - base["constant"])
        for score, base in zip(record["scores"][-1], record["baselines"].values(), strict=True)
    ]
    assert record["continual"]["gain"] == pytest.approx(sum(shares) / 5)
    assert set(record["metrics"]["questions"][-1]) == {"exact_match", "f1"}
    assert {warning["task"] for warning in record["warnings"]} <= {*METRIC, None}


def test_predictions_are_one_line_a_row_with_names_for_people(finished: Path) -> None:
    lines = {name: read_predictions(finished / "stage_05" / "predictions" / f"{name}.jsonl.gz") for name in METRIC}
    assert {len(found) for found in lines.values()} == {24}
    assert all(isinstance(line["prediction"], float) for line in lines["similarity"])
    assert {tag for line in lines["words"] for tag in line["label"]} >= {"O", "B-person", "B-place"}
    assert all(line["label"] == (line["answers"] or [""])[0] for line in lines["questions"])


def test_scores_are_those_of_the_record_bit_for_bit(finished: Path, call: Called, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    code, shown, error = call(evaluate, finished, "--device", "cpu", "--json", out)
    assert (code, error) == (0, "")
    for name, task in json.loads(out.read_text())["tasks"].items():
        assert (task["equal"], task["changed_predictions"], task["rows"]) == (True, 0, 24), name
    assert "bit for bit" in shown


@pytest.mark.parametrize("name", ["similarity", "words", "questions"])
def test_other_rows_are_scored(finished: Path, call: Called, tmp_path: Path, name: str) -> None:
    out = tmp_path / "scores.json"
    asked = (evaluate, finished, "--task", name, "--json", out)
    assert call(*asked, "--max-rows", 5, "--split", "train")[0] == 0
    task = json.loads(out.read_text())["tasks"][name]
    assert (task["rows"], task["recorded"]) == (5, None)
    assert task["constant"] is not None
    row: dict[str, Any] = {
        "similarity": {"sentence1": "We saw a cow.", "sentence2": "We saw a goat.", "label": 3},
        "words": {"tokens": ["Tom", "sat"], "tags": ["B-person", "O"]},
        "questions": {"question": "Who?", "context": "Tom sat.", "answers": {"text": ["Tom"], "answer_start": [0]}},
    }[name]
    (tmp_path / name).mkdir()
    (tmp_path / name / "test.jsonl").write_text(json.dumps(row) + "\n")
    assert call(*asked, "--data-dir", tmp_path)[0] == 0
    assert json.loads(out.read_text())["tasks"][name]["rows"] == 1
    row |= {"label": "high", "tags": ["B-person"], "answers": {"text": ["Tom"], "answer_start": [4]}}
    (tmp_path / name / "test.jsonl").write_text(json.dumps(row) + "\n")
    code, _, error = call(*asked, "--data-dir", tmp_path)
    assert (code, f"error: {name}/test.jsonl:1: " in error) == (2, True)
    code, _, error = call(*asked, "--with", "task=builtin_sentiment2")
    assert (code, "the rows are ClassificationData" in error) == (2, True)


def answered(call: Called, finished: Path, name: str, *arguments: Any) -> list[dict[str, Any]]:
    code, shown, error = call(predict, finished, "--task", name, "--json", *arguments)
    assert (code, error) == (0, "")
    return [json.loads(line) for line in shown.splitlines()]


def test_each_head_answers_in_its_own_words(finished: Path, call: Called, tmp_path: Path) -> None:
    (number,) = answered(call, finished, "similarity", "We saw the cow. || We saw the goat.")
    assert isinstance(number["prediction"], float)
    (tagged,) = answered(call, finished, "words", "the lad saved the hound on the beach")
    assert len(tagged["tags"]) == 8
    assert all(set(entity) == {"type", "start", "end"} for entity in tagged["entities"])
    listed = {"tokens": ["the", "lad", "saved", "the", "hound", "on", "the", "beach"]}
    (tmp_path / "words.jsonl").write_text(json.dumps(listed) + "\n")
    assert answered(call, finished, "words", "--file", tmp_path / "words.jsonl")[0]["tags"] == tagged["tags"]
    context = "Tom said: the lad saved the hound on the beach."
    (found,) = answered(call, finished, "questions", f"Who said it? || {context}")
    assert found["answer"] in context
    assert found["start"] is None or context[found["start"] :].startswith(found["answer"])
    for name, text in (("words", "Tom said"), ("questions", "Who said it? || Tom"), ("similarity", "a || b")):
        assert call(predict, finished, "--task", name, text)[0] == 0  # as a table


def test_known_rows_are_answered_as_in_the_run(finished: Path, call: Called, tmp_path: Path) -> None:
    opened = open_run(finished, device="cpu")
    for name, key in (("similarity", "prediction"), ("words", "tags"), ("questions", "answer")):
        task = opened.task(name)
        task.data.prepare(opened.backbone.tokenizer, seed=0, cache_dir=None)
        lines = [
            {column: example.values[column] for column in task.data.columns} for example in task.data.examples("test")
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = [line[key] for line in answered(call, finished, name, "--file", tmp_path / f"{name}.jsonl")]
        stored = read_predictions(finished / "stage_05" / "predictions" / f"{name}.jsonl.gz")
        assert found == [line["prediction"] for line in stored]


def test_an_exported_head_gives_the_same_without_this_package(finished: Path, call: Called, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(export, finished, "--to", "merged", "--out", out)[0] == 0
    about = json.loads((out / "heads.json").read_text())["tasks"]
    assert set(about) >= {"sentiment2", "similarity", "words", "questions"}
    assert about["words"]["labels"][:2] == ["O", "B-person"]
    assert about["questions"]["no_answer"] is True
    tokenizer = AutoTokenizer.from_pretrained(out)
    opened = open_run(finished, device="cpu")
    task: Any = opened.task("similarity")
    head = load_file(out / about["similarity"]["file"])
    text = about["similarity"]["text"].format(sentence1="We saw the cow.", sentence2="We saw the goat.")
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        known = {"head": head, "pooled": opened.backbone.features(inputs["input_ids"], inputs["attention_mask"])}
        exec(about["similarity"]["output"], known)
        ours = task.numbers({"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]})
    assert float(known["number"]) == pytest.approx(float(ours), abs=1e-6)


@pytest.mark.slow  # six runs of one to two minutes
@pytest.mark.parametrize("adapter", ["lora", "curlora"])
@pytest.mark.parametrize("task", ["similarity", "words", "questions"])
def test_the_built_in_tasks_are_really_learnt(task: str, adapter: str, tmp_path: Path) -> None:
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        given = [f"task=builtin_{task}", f"adapter={adapter}", "probe=none", "trainer=cpu", f"output_dir={tmp_path}"]
        run(config.validate(compose("train", overrides=given)))
    (path,) = tmp_path.glob("*/*/results.json")
    record = json.loads(path.read_text())
    assert record["continual"]["gain"] >= 0.75
    assert not [finding for finding in record["warnings"] if finding["task"] == task and finding["stage"] is not None]
