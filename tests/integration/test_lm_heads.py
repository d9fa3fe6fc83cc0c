"""Whole runs of the tasks that the LM head answers: label words, instructions, both with stored heads, and the benchmarks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from curlora_lab import config

Runner = Callable[..., dict[str, Any]]
LABEL_WORDS = ("heads=label_words", "adapter=lora")


def test_label_words_with_candidates_of_all_tasks_seen(small_run: Runner) -> None:
    record = small_run(*LABEL_WORDS, "heads.prompt.candidates=all", "~sequence.tasks.paraphrase", "eval_rows=24")
    assert record["parameters"]["head"] == 0
    assert not (record["folder"] / "stage_01" / "head.safetensors").exists()
    assert record["scores"][0][0] > 0.7  # the built-in model knows what the words mean before any training
    assert record["continual"]["fwt"] is not None
    assert record["config"]["sequence"]["tasks"]["sentiment2"]["_target_"] == "curlora_lab.tasks.LabelWords"
    candidates = []
    for stage in range(3):
        lines = _predictions(record["folder"] / f"stage_{stage:02d}" / "predictions" / "sentiment2.jsonl.gz")
        candidates.append(len(lines[0]["log_probabilities"]))
    assert candidates == [2, 2, 5]


def test_heads_of_every_kind_in_one_sequence(small_run: Runner) -> None:
    record = small_run(
        "adapter=lora",
        "~sequence.tasks.paraphrase",
        "~sequence.tasks.sentiment3",
        "+task@sequence.tasks.instructions=builtin_instructions",
        "train_rows=32",
        "eval_rows=12",
    )
    assert record["metric"] == {"sentiment2": "accuracy", "instructions": "exact_match"}
    assert record["parameters"]["head"] > 0
    assert set(record["metrics"]["instructions"][2]) == {
        "exact_match",
        "rouge_l",
        "negative_nll",
        "token_accuracy",
        "perplexity",
    }
    assert record["metrics"]["instructions"][2]["negative_nll"] > record["metrics"]["instructions"][0]["negative_nll"]
    assert record["continual"]["gain"] is not None
    line = _predictions(record["folder"] / "stage_02" / "predictions" / "instructions.jsonl.gz")[0]
    assert {"prediction", "label", "nll"} <= set(line)


@pytest.mark.slow
def test_one_task_is_not_a_benchmark_and_a_part_of_one_says_so(small_run: Runner, tmp_path: Path) -> None:
    data = generated(tmp_path, ["dbpedia", "amazon", "agnews"])
    record = small_run("sequence=order1_local", f"data_dir={data}", *BENCHMARK)
    warnings = {warning["code"]: warning["message"] for warning in record["warnings"]}
    assert warnings["not_the_benchmark"].startswith("order1_local is not the benchmark: it lacks yahoo;")
    assert record["folder"].parent.name == "order1_local"


def test_the_benchmarks_protocol_on_generated_rows(small_run: Runner, tmp_path: Path) -> None:
    data = generated(tmp_path, ["amazon", "agnews"])
    fewer = ("~sequence.tasks.dbpedia", "~sequence.tasks.yahoo", "eval_rows=4")  # those with long labels take long
    record = small_run("experiment=benchmark/order1", f"data_dir={data}", *BENCHMARK, *fewer)
    assert record["tasks"] == ["amazon", "agnews"]
    assert set(record["metric"].values()) == {"normalized_match"}
    assert all(score is not None for row in record["scores"] for score in row)
    warnings = {warning["code"]: warning["message"] for warning in record["warnings"]}
    assert warnings["not_the_benchmark"].startswith("this run is not the benchmark order1: it lacks dbpedia, yahoo;")
    assert record["config"]["lr"] == 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 4])
def test_whole_orders_on_generated_rows(small_run: Runner, tmp_path: Path, order: int) -> None:
    data = generated(tmp_path, list(LABELS))
    without_texts = ("heads.metrics=[accuracy]", "heads.metric=accuracy", "eval_rows=2")  # texts take most of the time
    record = small_run(f"experiment=benchmark/order{order}", f"data_dir={data}", *BENCHMARK, *without_texts)
    assert len(record["tasks"]) == (4 if order < 4 else 15)
    assert "not_the_benchmark" not in {warning["code"] for warning in record["warnings"]}
    assert all(score is not None for row in record["scores"] for score in row)


@pytest.mark.slow
def test_trace_on_generated_rows(small_run: Runner, tmp_path: Path) -> None:
    rows = [{"prompt": f"Solve the problem number {i}.\nAnswer:", "answer": "ABC"[i % 3]} for i in range(12)]
    tasks = ["c_stance", "fomc", "meetingbank", "py150", "scienceqa", "numglue_cm", "numglue_ds", "20minuten"]
    for task in tasks:
        write(tmp_path / "data" / f"trace_{task}", rows)
    few = [f"sequence.tasks.trace_{task}.max_new_tokens=4" for task in tasks[2:]]
    few += [f"sequence.tasks.trace_{task}.data.max_prompt=0.5" for task in tasks[2:]]
    few += [f"sequence.tasks.trace_{task}.epochs=1" for task in tasks]
    record = small_run(
        "experiment=benchmark/trace", "adapter=lora", "max_length=64", f"data_dir={tmp_path / 'data'}", *few
    )
    assert list(record["metric"].values()) == [
        *["normalized_match"] * 2,
        *["rouge_l", "edit_similarity", "first_character", "exact_match", "exact_match", "sari"],
    ]


@pytest.mark.parametrize(("order", "heads"), [(1, "own"), (1, "label_words"), (4, "own"), (4, "benchmark")])
def test_the_same_sequence_with_any_heads(order: int, heads: str) -> None:
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        plain = config.validate(compose("train", overrides=[f"experiment=benchmark/order{order}", f"heads={heads}"]))
    targets = {node["_target_"] for node in plain["sequence"]["tasks"].values()}
    assert targets == {"curlora_lab.tasks." + ("SequenceClassification" if heads == "own" else "LabelWords")}


# -- generated rows --------------------------------------------------------------------------------------------------------

BENCHMARK = (
    "adapter=lora",
    "train_rows=8",
    "eval_rows=6",
    "max_length=256",
    "epochs=1",
    "batch_size=8",
)
LABELS = {
    "dbpedia": (14, "test", ("text",)),
    "amazon": (5, "test", ("text",)),
    "yahoo": (10, "test", ("text",)),
    "agnews": (4, "test", ("text",)),
    "yelp": (5, "test", ("text",)),
    "imdb": (2, "test", ("text",)),
    "mnli": (3, "test", ("premise", "hypothesis")),
    "cb": (3, "validation", ("premise", "hypothesis")),
    "rte": (2, "validation", ("sentence1", "sentence2")),
    "qqp": (2, "test", ("question1", "question2")),
    "sst2": (2, "validation", ("sentence",)),
    "copa": (2, "validation", ("premise", "question", "choice1", "choice2")),
    "boolq": (2, "test", ("question", "passage")),
    "multirc": (2, "validation", ("paragraph", "question", "answer")),
    "wic": (2, "validation", ("word", "sentence1", "sentence2")),
}


def generated(folder: Path, names: list[str]) -> Path:
    """Data sets of the benchmark's names and columns, with a few made-up rows."""
    for name in names:
        labels, test, columns = LABELS[name]
        rows = [{"label": i % labels, **{column: f"the {column} {i}" for column in columns}} for i in range(28)]
        write(folder / "data" / name, rows, test=test)
    return folder / "data"


def write(folder: Path, rows: list[dict[str, Any]], test: str = "test") -> None:
    folder.mkdir(parents=True)
    for split in ("train", test):
        lines = (json.dumps({**row, "idx": f"{split}{i}"}) for i, row in enumerate(rows))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def _predictions(path: Path) -> list[dict[str, Any]]:
    import gzip

    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
