"""The published procedure as a whole, on rows made here: what its faults do to the numbers, and that the record says so."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Runner = Callable[..., dict[str, Any]]

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
        "probe.probes.wikitext2_published.max_tokens=200",
        "probe.probes.wikitext2_published.window=200",
        "probe.probes.wikitext2_published.stride=200",
    )
    assert record["status"] == "finished"
    assert record["config"]["adapter"]["name"] == "curlora_published"
    said = [warning["message"] for warning in record["warnings"]]
    assert any(
        "all test rows are labelled 'negative', so a constant prediction scores 1" in message for message in said
    )
    assert record["baselines"]["sentiment140_published"]["constant"] == 1.0
    assert record["baselines"]["sentiment140_published"]["rows"] == 1024
    codes = {(warning["code"], warning["task"]) for warning in record["warnings"]}
    assert ("not_learnt", "sentiment140_published") in codes
