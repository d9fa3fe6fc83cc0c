"""Class indices of the hub are read as names where it is asked, so that the order of ours does not matter."""

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from curlora_lab.data import DataError, DataSource

NAMES = ClassLabel(names=["NOUN", "VERB", "_"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features({"tokens": List(Value("string")), "upos": List(NAMES), "kind": NAMES, "n": Value("int64")})
    rows = {"tokens": [["cats", "sat"]], "upos": [[0, 1]], "kind": [1], "n": [3]}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Dataset.from_dict(rows, features=features))


def source(**hub: Any) -> DataSource:
    return DataSource(name="toy", splits={"train": "train"}, hub={"path": "somebody/toy", **hub})


@pytest.mark.usefixtures("hub")
def test_names_of_a_column_of_lists_and_of_one_of_labels() -> None:
    (row,) = source(names=["upos", "kind"], columns={"tags": "upos"}).rows("train")
    assert (row.values["tags"], row.values["kind"], row.values["n"]) == (["NOUN", "VERB"], "VERB", 3)
    (plain,) = source().rows("train")
    assert plain.values["upos"] == [0, 1]


@pytest.mark.usefixtures("hub")
def test_a_column_without_names_is_said() -> None:
    with pytest.raises(DataError, match="hub somebody/toy: the column 'n' has no names for its indices"):
        source(names=["n"]).rows("train")
    with pytest.raises(DataError, match="the column 'nothing' has no names"):
        source(names=["nothing"]).rows("train")
