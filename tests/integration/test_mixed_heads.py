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
from transformers import AutoModel, AutoTokenizer

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
Runner = Callable[..., dict[str, Any]]


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


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    assert export.main([str(finished), "--to", "merged", "--out", str(out)]) == 0
    return out


def test_an_export_says_what_each_head_reads(exported: Path) -> None:
    about = json.loads((exported / "heads.json").read_text())["tasks"]
    assert set(about) == {"sentiment2", "similarity", "words", "questions"}
    assert about["words"]["labels"][:2] == ["O", "B-person"]
    assert about["questions"]["no_answer"] is True
    asked = json.loads((exported / "prompts.json").read_text())["instructions"]
    assert asked["text"] == ["{input} {instruction} ", "{instruction} "]
    assert f"- instructions: {asked['boundary']}" in (exported / "README.md").read_text()


class Outsider:
    """What somebody without this package makes of an exported folder, by its ``heads.json`` alone."""

    def __init__(self, folder: Path, name: str) -> None:
        about = json.loads((folder / "heads.json").read_text())
        assert about["pooling"] == "last_token"
        self.about = about["tasks"][name]
        self.head = load_file(folder / self.about["file"])
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    def read(self, text: str) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """What ``output`` leaves behind for a text, and where each token lies in it, in characters."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
        places = [tuple(place) for place in encoded.pop("offset_mapping")[0].tolist()]
        with torch.no_grad():
            hidden = self.model(**encoded).last_hidden_state[0]
        known: dict[str, Any] = {"head": self.head, "hidden": hidden, "pooled": hidden[-1:]}
        exec(self.about["output"], known)
        return known, places

    def log_probabilities(self, row: dict[str, Any]) -> list[float]:
        logits = self.read(self.about["text"].format(**row))[0]["logits"]
        return list(logits.log_softmax(-1).flatten().tolist())

    def number(self, row: dict[str, Any]) -> float:
        return float(self.read(self.about["text"].format(**row))[0]["number"])

    def tags(self, row: dict[str, Any]) -> list[str]:
        """The tag of each word, read at its first or last token."""
        (words,) = (row[column] for column in self.about["columns"])
        known, places = self.read(" ".join(words))
        tags, start, which = [], 0, 0 if "the first token" in self.about["reads"] else -1
        for word in words:
            own = [k for k, (a, b) in enumerate(places) if a < start + len(word) and b > start]
            tags.append(self.about["labels"][int(known["logits"][own[which]].argmax())])
            start += len(word) + 1
        return tags

    def answer(self, row: dict[str, Any]) -> str:
        """The best span of the context's tokens, or nothing where "not here" is above it."""
        text = self.about["text"].format(**row)
        begin = text.rindex(row["context"])
        known, places = self.read(text)
        assert len(places) <= self.about["max_length"]  # one window
        inside = [k for k, (a, b) in enumerate(places) if b > max(a, begin)]
        spans = [(i, j) for i in inside for j in inside if i <= j < i + self.about["max_answer_tokens"]]
        first, last = max(spans, key=lambda span: float(known["start"][span[0]] + known["end"][span[1]]))
        if self.about["no_answer"] and float(2 * known["none"]) > float(known["start"][first] + known["end"][last]):
            return ""
        return text[max(places[first][0], begin) : places[last][1]].strip()


@pytest.mark.parametrize("name", ["sentiment2", "similarity", "words", "questions"])
def test_an_exported_head_answers_as_in_the_run_without_this_package(finished: Path, exported: Path, name: str) -> None:
    data = open_run(finished, device="cpu").task(name).data
    data.prepare(AutoTokenizer.from_pretrained(exported), seed=0, cache_dir=None)
    stored = read_predictions(finished / "stage_05" / "predictions" / f"{name}.jsonl.gz")
    outsider = Outsider(exported, name)
    ask, column = {
        "sentiment2": (outsider.log_probabilities, "log_probabilities"),
        "similarity": (outsider.number, "prediction"),
        "words": (outsider.tags, "prediction"),
        "questions": (outsider.answer, "prediction"),
    }[name]
    answers, recorded = [ask(example.values) for example in data.examples("test")], [line[column] for line in stored]
    assert len({str(answer) for answer in answers}) > 1
    if isinstance(recorded[0], float) or column == "log_probabilities":
        torch.testing.assert_close(torch.tensor(answers), torch.tensor(recorded), atol=1e-5, rtol=0)
    else:
        assert answers == recorded


@pytest.mark.slow  # six runs of seconds each, some of many stages
@pytest.mark.parametrize(
    "given",
    [
        ("order=119",),
        ("repeats=2",),
        ("scenario=joint",),
        ("scenario=independent",),
        ("order=119", "strategy=replay"),
        ("repeats=2", "strategy=ewc"),
    ],
    ids="-".join,
)
def test_five_heads_in_any_scenario(small_run: Runner, given: tuple[str, ...]) -> None:
    record = small_run("sequence=mixed_demo", "rank=4", "train_rows=24", "eval_rows=12", *given)
    stages = {"repeats=2": 10, "scenario=joint": 1}.get(given[0], 5)
    names = list(METRIC)[::-1] if "order=119" in given else list(METRIC)
    assert record["status"] == "finished"
    assert record["tasks"] == names
    assert len(record["scores"]) == stages + 1
    for stage, row in enumerate(record["scores"]):
        alone = "scenario=independent" in given and stage > 0
        assert [value is not None for value in row] == [not alone or stage == k + 1 for k in range(5)], stage
    first = {name: stage for stage, name in enumerate(names, start=1)}
    assert record["learnt_in"] == (dict.fromkeys(names, 1) if "scenario=joint" in given else first)
    if "scenario=independent" in given:  # its last row has one task alone
        assert record["continual"]["gain"] is None
        assert record["reasons"]["continual.gain"]
    else:
        assert record["continual"]["gain"] is not None


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
