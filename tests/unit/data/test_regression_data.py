"""What RegressionData makes of good data and of bad."""

from typing import Any

import pytest
import torch

from curlora_lab.data import DataError, DataSource, RegressionData
from curlora_lab.data.loading import make_loader
from curlora_lab.data.source import Row, Split


def scored(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"the cat sat {i}", "label": i % 26 / 5, "idx": i} for i in range(start, start + n)]


def make(tokenizer: Any, data_dir: Any, **arguments: Any) -> RegressionData:
    source = DataSource(name="toy", splits={"train": "train", "test": "test"}, data_dir=data_dir)
    data = RegressionData(name="toy", source=source, **{"columns": ["text"], "max_length": 16, **arguments})
    data.prepare(tokenizer, seed=0)
    return data


@pytest.fixture
def folder(write_split: Any) -> Any:
    write_split("toy", "train", scored(100))
    return write_split("toy", "test", scored(40, start=100))


def test_labels_are_numbers_in_their_unit(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder)
    assert (data.counts, data.labels, data.notes) == ({"train": 90, "test": 40, "choose": 10}, (), [])
    batch = next(iter(make_loader(data.rows("test"), batch_size=40)))
    assert batch["labels"].dtype.is_floating_point
    assert batch["labels"].tolist() == pytest.approx([example.target for example in data.examples("test")])
    mean, spread = data.statistics()
    labels = torch.tensor([example.target for example in data.examples("train")])
    assert (mean, spread) == pytest.approx((float(labels.mean()), float(labels.std(unbiased=False))))


def test_a_subset_keeps_the_share_of_each_fifth_of_the_range(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder, label_range=[0, 5], train_rows=50)
    fifths = [min(4, int(example.target)) for example in data.examples("train")]
    assert max(fifths.count(k) for k in range(5)) - min(fifths.count(k) for k in range(5)) <= 3


def test_the_label_is_part_of_the_fingerprint(folder: Any, write_split: Any, tokenizer: Any) -> None:
    before = make(tokenizer, folder).fingerprint
    write_split("toy", "test", [{**row, "label": row["label"] + 0.5} for row in scored(40, start=100)])
    assert make(tokenizer, folder).fingerprint != before


def test_numbers_may_be_written_as_text(write_split: Any, tokenizer: Any) -> None:
    write_split("toy", "train", "text,label\na cat,1.5\na dog,2e0\n a house ,-0\n", suffix="csv")
    data = make(tokenizer, write_split("toy", "test", "text,label\na mat,3\n", suffix="csv"), choose_fraction=0)
    assert [example.target for example in data.examples("train")] == [1.5, 2.0, 0.0]
    assert data.notes == ["labels: all test rows have the label 3, so no correlation is defined"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "the row has no column 'label'; it has text"),
        ({"text": "a", "label": None}, "the label 'label' is null"),
        ({"text": "a", "label": "good"}, "the label 'label' is 'good', not a number"),
        ({"text": "a", "label": True}, r"is a bool \(True\), not a number"),
        ({"text": "a", "label": [1]}, r"is a list \(\[1\]\), not a number"),
        ({"text": "a", "label": "nan"}, "is nan, not a finite number"),
        ({"text": "a", "label": 5.5}, "the label 5.5 is outside label_range, 0 to 5"),
        ({"text": "a", "label": -1.0}, "-1 marks rows without a label on the hub"),
        ({"text": " ", "label": 1}, "the text 'text' is empty"),
    ],
)
def test_a_broken_row_is_named(write_split: Any, tokenizer: Any, row: Any, message: str) -> None:
    write_split("toy", "train", scored(5))
    folder = write_split("toy", "test", [*scored(2, start=5), row])
    with pytest.raises(DataError, match=rf"toy/test.jsonl.gz:3: .*{message}"):
        make(tokenizer, folder, label_range=[0, 5])
    data = make(tokenizer, folder, label_range=[0, 5], bad_rows="skip")
    assert data.counts["test"] == 2
    assert any(note.startswith("skipped: test rows that cannot be used, of 3: 1 (") for note in data.notes)


def test_one_number_in_train_cannot_be_learnt(write_split: Any, tokenizer: Any) -> None:
    write_split("toy", "train", [{"text": f"cat {i}", "label": 2} for i in range(5)])
    with pytest.raises(DataError, match="all 5 train rows have the label 2; nothing can be learnt"):
        make(tokenizer, write_split("toy", "test", scored(3, start=50)), choose_fraction=0)


@pytest.mark.parametrize("given", [[5, 0], [1, 1], [0]])
def test_a_range_that_is_none(given: Any) -> None:
    with pytest.raises(ValueError, match="write the least and the greatest label"):
        make(None, "nowhere", label_range=given)


def test_rows_without_labels_are_read_too(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder)
    split = Split((Row("text 1", "0", {"text": "the cat sat 100"}),), (), None, 0)
    examples, notes = data.read(split, labelled=False)
    other = data.only(tokenizer, examples)
    assert (notes, other.counts, data.counts["test"]) == ([], {"test": 1}, 40)
    ours, theirs = (next(iter(make_loader(each.rows("test"), batch_size=1))) for each in (other, data))
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    with pytest.raises(DataError, match="no row has the column 'label'"):
        data.read(split)
