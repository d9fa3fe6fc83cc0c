"""The published procedure as a whole, on rows made here: what its faults do to the numbers, and that the record says so."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

Runner = Callable[..., dict[str, Any]]
REALITY = Path(os.environ.get("CURLORA_LAB_REALITY", "nowhere"))

WORDS = ("the", "king", "sings", "a", "good", "bad", "day", "in", "town", "dog")


def text(number: int, length: int = 6) -> str:
    return (
        " ".join(WORDS[(number * 7 + k * 3 + number // 10) % len(WORDS)] for k in range(length + number % 4))
        + f" {number}"
    )


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{split}.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def published_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files with the names and columns of the published data; Sentiment140's train file is sorted by label."""
    root = tmp_path_factory.mktemp("data")
    for split, shift in (("train", 0), ("validation", 500)):
        rows = range(shift, shift + 24)
        write(
            root / "mrpc",
            split,
            [{"sentence1": text(i), "sentence2": text(i + 1), "label": i % 2, "idx": i} for i in rows],
        )
        write(root / "sst2", split, [{"sentence": text(i), "label": (i // 2) % 2, "idx": i} for i in rows])
    tweets = [{"text": text(i + 900), "sentiment": (0, 2, 4)[i % 3], "idx": i} for i in range(24)]
    write(root / "sentiment140", "test", tweets)
    noisy = [{"text": text(i + 1000), "sentiment": 4 if i % 2 else 0, "idx": i} for i in range(2400)]
    write(root / "sentiment140", "train", noisy)
    write(root / "wikitext2", "validation", [{"text": text(i, 20)} for i in range(40)])
    return root


def test_the_published_protocol_end_to_end(small_run: Runner, published_data: Path) -> None:
    record = small_run(
        "~probe.probes.builtin",
        "experiment=paper/local",
        "model=tiny",
        "model.pooling=last_position",
        f"data_dir={published_data}",
        "rank=4",
        "epochs=1",
        "sequence.tasks.sentiment140.epochs=1",
    )
    assert record["status"] == "finished"
    assert record["config"]["adapter"]["name"] == "curlora_published"
    assert record["probes"]["details"]["wikitext2_published"]["tokens"] == 256 - 1, "as many as this model reads"
    said = [warning["message"] for warning in record["warnings"]]
    assert any(
        "all test rows are labelled 'negative', so a constant prediction scores 1" in message for message in said
    )
    assert record["baselines"]["sentiment140_published"]["constant"] == 1.0
    assert record["baselines"]["sentiment140_published"]["rows"] == 1024
    codes = {(warning["code"], warning["task"]) for warning in record["warnings"]}
    assert ("not_learnt", "sentiment140_published") in codes


def test_neutral_tweets_are_taught_as_negative(
    configured: Callable[..., dict[str, Any]], published_data: Path, builtin_tokenizer: Any
) -> None:
    plain = configured(
        "~probe.probes.builtin", "sequence=paper_published", f"data_dir={published_data}", "train_rows=null"
    )
    data = instantiate(plain["sequence"]["tasks"]["sentiment140"]["data"])
    data.prepare(builtin_tokenizer, seed=0)
    # of 8 negative, 8 neutral and 8 positive tweets
    assert data.label_counts("train") == {"negative": 16, "positive": 8}
    assert data.label_counts("test") == {"negative": 1024, "positive": 0}


@pytest.mark.slow  # a few thousand tweets through a model of three million parameters
@pytest.mark.reality
@pytest.mark.skipif(not (REALITY / "models").is_dir(), reason="CURLORA_LAB_REALITY names no such folder")
@pytest.mark.parametrize("adapter", ["curlora_published", "lora_published"])
def test_the_published_protocol_on_real_data(small_run: Runner, adapter: str) -> None:
    record = small_run(
        "~probe.probes.builtin",
        "experiment=paper/local",
        f"model.path={REALITY / 'models' / 'stories3m'}",
        f"data_dir={REALITY / 'data'}",
        f"adapter={adapter}",
        "sequence.tasks.sst2.data.train_rows=64",
        "sequence.tasks.sentiment140.epochs=1",
        "max_length=64",
    )
    assert record["status"] == "finished"
    assert record["config"]["model"]["pooling"] == "last_position"
    assert record["tasks"] == ["mrpc", "sst2", "sentiment140_published"]
    published = record["baselines"]["sentiment140_published"]
    assert (published["constant"], published["rows"]) == (1.0, 1024)
    assert record["provenance"]["data"]["sentiment140_published"]["rows"]["train"] == 64
    perplexities = record["probes"]["perplexity"]["wikitext2_published"]
    assert len(perplexities) == 4
    assert record["probes"]["details"]["wikitext2_published"]["tokens"] == 512 - 1
    assert all(value > 1 for value in perplexities)
    assert all(value is not None for row in record["scores"] for value in row)
