"""The real data sets: every task reads all its rows, with the counts their page states."""

import os
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from curlora_lab.data.loading import make_loader

REALITY = Path(os.environ.get("CURLORA_LAB_REALITY", "nowhere"))
CONF = Path(__file__).parents[3] / "conf"
pytestmark = [
    pytest.mark.reality,
    pytest.mark.skipif(
        not (REALITY / "data").is_dir(), reason="CURLORA_LAB_REALITY names no folder with data/ and models/"
    ),
]

# task: (train + choose, test, label shares of test where the page gives them)
COUNTS: dict[str, tuple[int, int, dict[str, int] | None]] = {
    "mrpc": (3668, 408, {"not_equivalent": 129, "equivalent": 279}),
    "sst2": (61327, 872, {"negative": 428, "positive": 444}),
    "sentiment140": (5000, 1000, {"negative": 500, "positive": 500}),
    "sentiment140_hand": (5000, 359, {"negative": 177, "positive": 182}),
    "sentiment140_published": (498, 1024, {"negative": 1024, "positive": 0}),
    "cola": (8551, 1043, None),
    "rte": (2490, 277, None),
    "agnews": (4000, 1500, None),
    "amazon": (5000, 1500, None),
    "yelp": (4000, 500, None),
    "dbpedia": (4000, 1500, None),
    "boolq": (2000, 1500, {"False": 568, "True": 932}),
    "cb": (250, 56, {"entailment": 23, "contradiction": 28, "neutral": 5}),
    "mnli": (3000, 1500, None),
    "qqp": (2000, 1500, None),
    "copa": (400, 100, {"A": 55, "B": 45}),
    "multirc": (1484, 514, None),
    "trace_fomc": (500, 100, {"dovish": 25, "hawkish": 22, "neutral": 53}),
    "trace_c_stance": (500, 100, {"for": 38, "against": 38, "neutral": 24}),
    "wnut17": (3394, 1009, None),
    "ud_ewt": (4000, 2001, None),
    "xquad_en": (676, 221, None),
    "tinystories": (2500, 300, None),
    "wiki_demo": (24, 6, None),
    "alpaca_demo": (800, 185, None),
    "self_instruct_seed": (140, 35, None),  # a fifth of its 175 rows is set aside for testing
    "trace_scienceqa": (500, 100, None),
    "trace_numglue_cm": (500, 81, None),
    "trace_numglue_ds": (500, 100, None),
    "trace_20minuten": (500, 100, None),
}
#: Tasks whose rows only the hub has, or the user.
NOT_HERE = {
    *("conll2003", "imdb", "instructions_jsonl", "squad", "squad_v2", "stsb"),
    *("trace_meetingbank", "trace_py150", "wic", "yahoo"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(REALITY / "models" / "stories3m")


def load(task: str, tokenizer: Any, *overrides: str) -> Any:
    root = [
        "+heads=own",
        "++shots=null",
        "++draw=0",
        "++max_length=128",
        "++train_rows=null",
        "++eval_rows=null",
        "++evaluate_on=test",
        f"++data_dir={REALITY / 'data'}",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data = instantiate(compose(overrides=[f"+task={task}", *root, *overrides]).task.data)
    data.prepare(tokenizer, seed=0, cache_dir=None)
    return data


def test_every_task_is_counted() -> None:
    assert {path.stem for path in (CONF / "task").glob("*.yaml") if not path.stem.startswith("builtin")} == {
        *COUNTS,
        *NOT_HERE,
    }


@pytest.mark.parametrize("task", [name for name in COUNTS if name != "wiki_demo"])
def test_counts(task: str, tokenizer: Any) -> None:
    data = load(task, tokenizer)
    train, test, labels = COUNTS[task]
    assert data.counts["train"] + data.counts.get("choose", 0) == train
    assert data.counts["test"] == test
    if labels is not None:
        assert data.label_counts("test") == labels
    assert not [note for note in data.notes if note.startswith(("skipped", "ids"))]
    batch = next(iter(make_loader(data.rows("train"), batch_size=16, shuffle=True)))
    assert batch["input_ids"].shape[1] <= 128


def test_wiki_demo_is_joined_and_divided_by_document(tokenizer: Any) -> None:
    data = load("wiki_demo", tokenizer, "task.data.choose_fraction=0")
    assert any("6 test rows set aside" in note for note in data.notes)
    assert data.counts["train"] > 1000
    assert set(data.roles) == {"train", "test"}


def test_the_published_folding_of_neutral_tweets(tokenizer: Any) -> None:
    data = load("sentiment140_published", tokenizer)
    assert data.label_counts("train") == {"negative": 316, "positive": 182}  # 177 negative, 139 neutral, 182 positive


def test_the_leak_of_sst2_is_found(tokenizer: Any) -> None:
    leaks = [note for note in load("sst2", tokenizer).notes if note.startswith("leak: ")]
    assert len(leaks) == 1
    assert leaks[0].startswith("leak: 2 of 872 test rows")  # "2 validation sentences also occur in train, as in GLUE"


def test_mrpc_pairs_have_a_newline_between_them(tokenizer: Any) -> None:
    data = load("mrpc", tokenizer, "++max_length=400")
    batch = next(iter(make_loader(data.rows("test"), batch_size=1)))
    example = data.examples("test")[0]
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).strip() == "\n".join(example.texts)
