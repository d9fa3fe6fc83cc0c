"""Generator, folder and hub give the same rows in the same form."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from curlora_lab.data import ClassificationData, DataError, DataSource

SPLITS = {"train": "train", "test": "validation"}


def generate(split: str, n: int, seed: int) -> list[dict[str, Any]]:
    return [{"text": f"{split} {number} of seed {seed}", "label": number % 2} for number in range(n)]


def hub_of(rows: list[dict[str, Any]], calls: list[dict[str, Any]]) -> Any:
    def load_dataset(path: str, config: str | None = None, **arguments: Any) -> datasets.Dataset:
        calls.append({"path": path, "config": config, **arguments})
        return datasets.Dataset.from_list(rows)

    return load_dataset


def test_a_generator_wins_and_its_rows_are_numbered(tmp_path: Path) -> None:
    source = DataSource(
        name="toy", splits=SPLITS, data_dir=tmp_path, generator=generate, sizes={"train": 3, "test": 2}, seed=7
    )
    rows = source.rows("test")
    assert [row.where for row in rows] == ["builtin:toy validation:1", "builtin:toy validation:2"]
    assert [row.row_id for row in rows] == ["validation-0", "validation-1"]
    assert rows[1].values["text"] == "validation 1 of seed 7"


def test_a_generator_without_a_size_is_refused() -> None:
    source = DataSource(name="toy", splits=SPLITS, generator=generate, sizes={"train": 3})
    with pytest.raises(DataError, match="sizes names no number of rows for 'test'"):
        source.rows("test")


@pytest.mark.parametrize(
    ("column", "values", "ids"),
    [
        ("idx", [5, 3], ["5", "3"]),
        ("id", ["a", "b"], ["a", "b"]),
        ("idx", [1, 1], ["train-0", "train-1"]),
        ("idx", [{"paragraph": 1}, {"paragraph": 2}], ["train-0", "train-1"]),
        ("id", ["a", None], ["train-0", "train-1"]),
    ],
)
def test_row_ids(column: str, values: list[Any], ids: list[str], write_split: Any) -> None:
    data_dir = write_split("toy", "train", [{"text": "x", column: value} for value in values])
    rows = DataSource(name="toy", splits=SPLITS, data_dir=data_dir).rows("train")
    assert [row.row_id for row in rows] == ids
    assert [row.where for row in rows] == ["toy/train.jsonl.gz:1", "toy/train.jsonl.gz:2"]


def test_rows_stops_at_a_row_that_cannot_be_read(write_split: Any) -> None:
    data_dir = write_split("toy", "train", '{"text": "x"}\n{\n', "jsonl")
    with pytest.raises(DataError, match=r"toy/train\.jsonl:2: the line is not JSON"):
        DataSource(name="toy", splits=SPLITS, data_dir=data_dir).rows("train")


def test_the_hub_is_asked_for_its_own_splits_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(datasets, "load_dataset", hub_of([{"title": "T", "content": "C", "gold": 1}], calls))
    hub = {
        "path": "some/set",
        "config": "part",
        "revision": "abc",
        "splits": {"test": "train[:5]"},
        "columns": {"text": "{title}\n{content}", "label": "gold"},
    }
    source = DataSource(name="toy", splits=SPLITS, hub=hub)
    (row,) = source.rows("test")
    assert calls == [{"path": "some/set", "config": "part", "split": "train[:5]", "revision": "abc"}]
    assert row.where == "hub some/set/part train[:5]:1"
    assert (row.values["text"], row.values["label"]) == ("T\nC", 1)


def test_hub_and_folder_give_equal_examples(
    monkeypatch: pytest.MonkeyPatch, write_split: Any, tokenizer: Any, rows: Any
) -> None:
    made = rows(20)
    monkeypatch.setattr(datasets, "load_dataset", hub_of(made, []))
    prints = set()
    for arguments in ({"hub": {"path": "some/set"}}, {"data_dir": write_split("toy", "train", made)}):
        source = DataSource(name="toy", splits={"train": "train"}, **arguments)
        data = ClassificationData(name="toy", source=source, columns=["text"], labels=["no", "yes"], max_length=16)
        data.prepare(tokenizer, seed=3)
        prints.add(data.fingerprint)
    assert len(prints) == 1


def test_slices_and_booleans_through_the_real_datasets_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    made = [{"question": f"q {i}", "answer": i % 2 == 0} for i in range(10)]
    repository.mkdir()
    datasets.Dataset.from_list(made).to_parquet(repository / "train.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = {"path": str(repository), "splits": {"train": "train[:2]+train[8:]"}, "columns": {"label": "answer"}}
    rows = DataSource(name="toy", splits=SPLITS, hub=hub).rows("train")
    assert [(row.values["question"], row.values["label"]) for row in rows] == [
        ("q 0", True),
        ("q 1", False),
        ("q 8", True),
        ("q 9", False),
    ]
    with pytest.raises(
        DataError, match=r"the split 'validation' of .* cannot be had from the hub \(ValueError: Unknown split"
    ):
        DataSource(name="toy", splits=SPLITS, hub=hub).rows("test")


def test_a_column_that_the_hub_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", hub_of([{"title": "T"}], []))
    source = DataSource(name="toy", splits=SPLITS, hub={"path": "some/set", "columns": {"text": "{body}"}})
    with pytest.raises(DataError, match="hub some/set has no column 'body'; it has title"):
        source.rows("train")


def test_an_unreachable_hub_names_what_is_missing_and_the_way_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    source = DataSource(name="toy", splits=SPLITS, hub={"path": "some/set", "config": "part"})
    with pytest.raises(
        DataError, match=r"split 'train' of 'some/set/part'.*Couldn't reach.*data_dir=<folder>.*HF_HOME"
    ):
        source.rows("train")


def test_no_source_at_all() -> None:
    with pytest.raises(
        DataError, match=r"no hub data set is known for task 'toy'.*data_dir=<folder>.*toy/train.jsonl.gz"
    ):
        DataSource(name="toy", splits=SPLITS).rows("train")


def test_a_role_without_a_split() -> None:
    source = DataSource(name="toy", splits={"train": "train", "test": None}, generator=generate, sizes={"train": 2})
    assert source.split("test") is None
    with pytest.raises(DataError, match="task 'toy' has no split for the role 'test'; it has train: train"):
        source.rows("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"splits": {"train": "train", "dev": "validation"}}, "names the role 'dev'; allowed: train, test, choose"),
        ({"splits": {"test": "test"}}, "names no split for the role 'train'"),
        ({"splits": SPLITS, "hub": {"config": "x"}}, "needed: path"),
        ({"splits": SPLITS, "hub": {"path": "x", "name": "y"}}, "has the keys .*'name'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSource(name="toy", **arguments)
