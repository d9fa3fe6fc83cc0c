"""How the label column is read."""

from typing import Any

import pytest

from curlora_lab.data.checks import LabelReader


@pytest.mark.parametrize(
    ("reader", "value", "expected"),
    [
        (LabelReader(["a", "b"]), 1, 1),
        (LabelReader(["a", "b"]), "1", 1),
        (LabelReader(["a", "b"]), "b", 1),
        (LabelReader(["a", "b"]), 2, None),
        (LabelReader(["a", "b"]), -1, None),
        (LabelReader(["a", "b"]), "²", None),
        (LabelReader(["a", "b"]), 1.0, None),
        (LabelReader(["a", "b"]), None, None),
        (LabelReader(["a", "b"]), True, None),
        (LabelReader(["False", "True"]), True, 1),
        (LabelReader(["False", "True"]), 0, 0),
        (LabelReader(["0", "1"]), 1, 1),
        (LabelReader(["neg", "pos"], label_map={0: "neg", 4: "pos"}), 4, 1),
        (LabelReader(["neg", "pos"], label_map={0: "neg", 4: "pos"}), "4", 1),
        (LabelReader(["neg", "pos"], label_map={0: "neg", 4: "pos"}), "pos", 1),
        (LabelReader(["neg", "pos"], label_map={0: "neg", 4: "pos"}), 1, None),
        (LabelReader(["neg", "pos"], label_map={0: "neg", 2: "neg", 4: "pos"}), 2, 0),
        (LabelReader(["neg", "pos"], label_map={0: "neg", 2: "mid", 4: "pos"}, drop_labels=["mid"]), 2, "mid"),
        (LabelReader(["neg", "pos"], drop_labels=["mid"]), "mid", "mid"),
        (LabelReader(["three", "one"], label_map={1: "one", 3: "three"}), 1, 1),
    ],
)
def test_read(reader: LabelReader, value: Any, expected: Any) -> None:
    assert reader.read(value) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["only"]}, "needs at least two"),
        ({"labels": ["a", "a"]}, "each name may occur once"),
        ({"labels": ["a", "b"], "drop_labels": ["b"]}, "drop_labels names 'b', which is among labels too"),
        ({"labels": ["a", "b"], "label_map": {0: "c"}}, "label_map leads to 'c'; labels and drop_labels have a, b"),
        ({"labels": ["1", "2"]}, "look like indices of other labels; say with label_map"),
    ],
)
def test_labels_that_cannot_be_right(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelReader(**arguments)
