"""What the rows on Sentiment140 of docs/paper.md change, counted on rows made here, on a hub's, and on the real ones."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tests.unit.test_paper_table import TWEETS, row

Compose = Callable[..., DictConfig]
REALITY = Path(os.environ.get("CURLORA_LAB_REALITY", "nowhere")) / "data"
FOLDED, SORTED, EXCHANGED = row("… neutral").sound[0], row("… scored").sound[0], row("Sentiment140").sound
#: Rows of the hand-labelled file by their code.
HAND = {0: 177, 2: 139, 4: 182}


def tweets(codes: Iterator[int], start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"tweet number {n}", "sentiment": code} for n, code in enumerate(codes, start)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files shaped like the real ones: 498 hand-labelled rows, and noisy ones in no order of labels."""
    root = tmp_path_factory.mktemp("data")
    (root / "sentiment140").mkdir()
    for split, rows in {
        "test": tweets(code for code, count in HAND.items() for _ in range(count)),
        "train": tweets((4 * (n % 2) for n in range(2400)), 1000),
        "validation": tweets((4 * (n % 2) for n in range(100)), 9000),
    }.items():
        lines = "".join(json.dumps(one) + "\n" for one in rows)
        (root / "sentiment140" / f"{split}.jsonl").write_text(lines)
    return root


@pytest.fixture
def read(compose: Compose, builtin_tokenizer: Any) -> Callable[..., Any]:
    """The task's data under the published protocol, with words of the command line."""

    def make(*words: str) -> Any:
        cfg = compose("experiment=paper/gpt2_large", *words)
        data = instantiate(OmegaConf.to_container(cfg, resolve=True)["sequence"]["tasks"]["sentiment140"]["data"])  # type: ignore[index,call-overload]
        data.prepare(builtin_tokenizer, seed=1311)
        return data

    return make


@pytest.fixture(
    params=[
        "made",
        pytest.param(
            "real",
            marks=[
                pytest.mark.reality,
                pytest.mark.skipif(not REALITY.is_dir(), reason="CURLORA_LAB_REALITY names no folder with data/"),
            ],
        ),
    ]
)
def folder(request: pytest.FixtureRequest, made: Path) -> str:
    return f"data_dir={made if request.param == 'made' else REALITY}"


def test_neutral_tweets_are_taught_as_negative_and_set_back_left_out(read: Any, folder: str) -> None:
    assert read(folder).label_counts("train") == {"negative": 177 + 139, "positive": 182}
    data = read(folder, *FOLDED)
    assert data.label_counts("train") == {"negative": 177, "positive": 182}
    assert data.counts["train"] == 359
    assert "dropped: 139 train rows labelled 'neutral'" in data.notes
    assert data.label_counts("test") == {"negative": 1024, "positive": 0}, "the rest stays published"


def test_half_of_what_sets_it_back_is_refused(read: Any, made: Path) -> None:
    with pytest.raises(Exception, match=r"drop_labels names 'neutral', and label_map leads no value to it") as raised:
        read(f"data_dir={made}", f"{TWEETS}.data.drop_labels=[neutral]")
    assert "label_map={<value>: neutral}" in str(raised.value)


def test_one_class_is_scored_and_set_back_both(read: Any, folder: str) -> None:
    assert read(folder).label_counts("test") == {"negative": 1024, "positive": 0}
    data = read(folder, *SORTED)
    negative, positive = data.label_counts("test").values()
    assert negative == positive >= 1200, "all rows"
    assert data.counts["train"] == 498


def test_the_hub_too_scores_one_class_and_set_back_both(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's training file is 1.6 million tweets, the first half negative; a slice is cut out before any row is seen."""

    def load_dataset(path: str, config: str | None = None, *, split: str, revision: str) -> datasets.Dataset:
        if split == "test":
            return datasets.Dataset.from_list(tweets(code for code, count in HAND.items() for _ in range(count)))
        begin, end = re.fullmatch(r"train\[(\d*):(\d+)\]", split).groups()  # type: ignore[union-attr]
        numbers = range(int(begin or 0), int(end))
        return datasets.Dataset.from_list(tweets((4 * (n >= 800_000) for n in numbers), numbers.start + 1000))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read().label_counts("test") == {"negative": 1024, "positive": 0}
    assert read(*SORTED[:2]).label_counts("test") == {"negative": 1024, "positive": 0}, (
        "without the slice nothing changes"
    )
    assert read(*SORTED).label_counts("test") == {"negative": 500, "positive": 500}


def test_the_exchange_set_back_trains_on_as_many_rows(read: Any, folder: str) -> None:
    data = read(folder, *EXCHANGED[0])
    assert data.counts["train"] == read(folder).counts["train"] == 498
    assert set(data.roles) == {"train", "test"}
    assert data.label_counts("train") == {"negative": 249, "positive": 249}
    by_hand = read(folder, *EXCHANGED[1])
    assert by_hand.counts["train"] == 498
    assert by_hand.label_counts("test") == {"negative": 177, "positive": 182}
