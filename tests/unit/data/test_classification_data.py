"""What ClassificationData makes of good data, and what it notes."""

from collections import Counter
from typing import Any

import pytest

from curlora_lab.data import ClassificationData, DataError, DataSource
from curlora_lab.data.loading import make_loader

LABELS = ["no", "yes"]


def make(
    tokenizer: Any, data_dir: Any, *, splits: Any = None, seed: int = 0, cache_dir: Any = None, **arguments: Any
) -> ClassificationData:
    source = DataSource(name="toy", splits=splits or {"train": "train", "test": "test"}, data_dir=data_dir)
    arguments = {"columns": ["text"], "labels": LABELS, "max_length": 16, **arguments}
    data = ClassificationData(name="toy", source=source, **arguments)
    data.prepare(tokenizer, seed=seed, cache_dir=cache_dir)
    return data


def notes(data: ClassificationData, code: str) -> list[str]:
    return [note.removeprefix(f"{code}: ") for note in data.notes if note.startswith(f"{code}: ")]


@pytest.fixture
def folder(write_split: Any, rows: Any) -> Any:
    write_split("toy", "train", rows(100))
    return write_split("toy", "test", rows(40, start=100))


def test_roles_counts_and_labels(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder)
    assert data.roles == ("train", "test", "choose")
    assert data.counts == {"train": 90, "test": 40, "choose": 10}
    assert data.label_counts("choose") == {"no": 5, "yes": 5}
    assert not set(data.row_ids("train")) & set(data.row_ids("choose"))
    assert data.row_ids("test") == tuple(str(i) for i in range(40))
    assert data.notes == []


def test_nothing_is_there_before_prepare(folder: Any) -> None:
    source = DataSource(name="toy", splits={"train": "train"}, data_dir=folder)
    data = ClassificationData(name="toy", source=source, columns=["text"], labels=LABELS)
    assert (data.labels, data.roles, data.counts, data.fingerprint, data.best) == (("no", "yes"), (), {}, "", None)
    with pytest.raises(ValueError, match="it has none before prepare"):
        data.row_ids("train")


def test_the_test_rows_are_the_same_for_every_seed(folder: Any, tokenizer: Any) -> None:
    runs = [make(tokenizer, folder, seed=seed, train_rows=20, eval_rows=10) for seed in (0, 0, 1)]
    assert [run.counts for run in runs] == [{"train": 20, "test": 10, "choose": 2}] * 3
    assert runs[0].row_ids("test") == runs[2].row_ids("test")
    assert runs[0].row_ids("train") == runs[1].row_ids("train") != runs[2].row_ids("train")
    assert runs[0].fingerprint == runs[1].fingerprint != runs[2].fingerprint


def test_the_cache_changes_nothing(folder: Any, tokenizer: Any, tmp_path: Any) -> None:
    batches = []
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        data = make(tokenizer, folder, cache_dir=cache)
        batches.append(
            [batch["input_ids"].tolist() for batch in make_loader(data.rows("train"), batch_size=8, shuffle=True)]
        )
    assert batches[0] == batches[1] == batches[2]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_published_protocol_takes_the_first_rows(folder: Any, tokenizer: Any) -> None:
    data = make(
        tokenizer, folder, subset="first", train_rows=7, eval_rows=5, choose_fraction=0.0, sort_by={"test": "label"}
    )
    assert data.row_ids("train") == tuple(map(str, range(7)))
    assert data.row_ids("test") == ("0", "2", "4", "6", "8")
    assert data.roles == ("train", "test")
    assert notes(data, "labels") == ["all test rows are labelled 'no', so a constant prediction scores 1"]


def test_few_shots_of_each_label_differ_by_draw_and_by_nothing_else(
    write_split: Any, rows: Any, tokenizer: Any
) -> None:
    uneven = [{**row, "label": int(row["idx"] % 5 == 0)} for row in rows(100)]
    write_split("toy", "train", uneven)
    folder = write_split("toy", "test", rows(40, start=100))
    draws = [make(tokenizer, folder, shots=4, draw=draw) for draw in (0, 0, 1)]
    for data in draws:
        assert Counter(example.label for example in data.examples("train")) == {0: 4, 1: 4}
        assert data.label_counts("train") == {"no": 4, "yes": 4}
        assert not set(data.row_ids("train")) & set(data.row_ids("choose"))
    assert draws[0].row_ids("train") == draws[1].row_ids("train")
    assert len(set(draws[0].row_ids("train")) & set(draws[2].row_ids("train"))) < 8
    assert draws[0].row_ids("test") == draws[2].row_ids("test")
    with pytest.raises(ValueError, match="shots=21, but label 1 has only 20 train rows"):
        make(tokenizer, folder, shots=21)
    with pytest.raises(ValueError, match="shots=4 and train_rows=9 both say how many rows"):
        make(tokenizer, folder, shots=4, train_rows=9)


def test_a_split_of_its_own_for_choosing(folder: Any, write_split: Any, rows: Any, tokenizer: Any) -> None:
    write_split("toy", "dev", rows(30, start=200))
    splits = {"train": "train", "test": "test", "choose": "dev"}
    data = make(tokenizer, folder, splits=splits, eval_rows=20)
    assert data.counts == {"train": 100, "test": 20, "choose": 20}


def test_test_rows_are_set_aside_where_there_is_no_test_split(folder: Any, tokenizer: Any) -> None:
    runs = [make(tokenizer, folder, splits={"train": "train"}, seed=seed) for seed in (0, 1)]
    assert runs[0].counts == {"train": 72, "test": 20, "choose": 8}
    assert runs[0].row_ids("test") == runs[1].row_ids("test")
    assert "20 test rows set aside from train" in notes(runs[0], "carved")[0]


def test_fewer_rows_than_asked_for_are_noted(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder, train_rows=95)
    assert data.counts["train"] == 90
    assert notes(data, "rows") == ["train_rows is 95, and there are 90 to train on"]


def test_dropped_labels_are_counted(write_split: Any, rows: Any, tokenizer: Any) -> None:
    write_split("toy", "train", [{**row, "label": [0, 4][row["label"]]} for row in rows(20)])
    folder = write_split(
        "toy", "test", [{**row, "label": [0, 2, 4][row["label"]]} for row in rows(9, labels=3, start=50)]
    )
    data = make(
        tokenizer, folder, label_map={0: "no", 2: "maybe", 4: "yes"}, drop_labels=["maybe"], choose_fraction=0.0
    )
    assert data.counts == {"train": 20, "test": 6}
    assert data.label_counts("test") == {"no": 3, "yes": 3}
    assert notes(data, "dropped") == ["3 test rows labelled 'maybe'"]


def test_a_label_that_train_lacks_is_noted(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder, labels=["no", "yes", "perhaps"])
    assert notes(data, "labels") == ["no train row is labelled 'perhaps'"]


def test_truncation_is_counted(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder, max_length=3)
    assert notes(data, "truncated")[0].startswith("90 of 90 train rows to 3 tokens")


def test_equal_texts_in_train_and_test_are_a_leak(folder: Any, write_split: Any, rows: Any, tokenizer: Any) -> None:
    stolen = [{**row, "text": row["text"].upper() + " !"} for row in rows(3, start=7)]
    write_split("toy", "test", [*rows(10, start=100), *stolen])
    (note,) = notes(make(tokenizer, folder, splits={"train": "train", "test": "test"}), "leak")
    assert note.startswith(
        "3 of 13 test rows have the text of a train row (case and punctuation aside), the first toy/test.jsonl.gz:11"
    )


def test_equal_ids_in_train_and_test_are_a_leak_unless_they_count_rows(
    write_split: Any, rows: Any, tokenizer: Any
) -> None:
    named = [{**row, "id": f"tweet-{i}", "idx": None} for i, row in enumerate(rows(30))]
    write_split("toy", "train", named)
    later = [{**row, "id": f"tweet-{i + 28}", "idx": None} for i, row in enumerate(rows(5, start=50))]
    folder = write_split("toy", "test", later)
    (note,) = notes(make(tokenizer, folder, choose_fraction=0.0), "leak")
    assert note.startswith("2 of 5 test rows have the id of a train row, the first toy/test.jsonl.gz:1")


def test_repeated_ids_are_noted_and_replaced(folder: Any, write_split: Any, rows: Any, tokenizer: Any) -> None:
    write_split("toy", "test", [{**row, "idx": row["idx"] // 2} for row in rows(8, start=100)])
    data = make(tokenizer, folder)
    assert data.row_ids("test") == tuple(f"test-{i}" for i in range(8))
    assert notes(data, "ids") == ["4 test rows repeat the id of an earlier one; rows are numbered instead"]


def test_fewer_rows_than_a_batch(write_split: Any, rows: Any, tokenizer: Any) -> None:
    write_split("toy", "train", rows(3))
    data = make(tokenizer, write_split("toy", "test", rows(1, start=10)))
    assert [batch["row"].tolist() for batch in make_loader(data.rows("train"), batch_size=32)] == [[0, 1, 2]]
    assert [batch["row"].tolist() for batch in make_loader(data.rows("test"), batch_size=32)] == [[0]]


def test_a_text_without_tokens_is_refused(folder: Any, write_split: Any, rows: Any, tokenizer: Any) -> None:
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Replace("\u200b", "")
    blind = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>")
    write_split("toy", "test", [{"text": "\u200b", "label": 1}, *rows(3, start=100)])
    with pytest.raises(DataError, match=r"toy/test.jsonl.gz:1: the text gives no token at all \(1 test rows\)"):
        make(blind, folder)


def test_a_tokenizer_without_a_pad_token(folder: Any, tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match=r"has no pad token; set tokenizer\.pad_token"):
        make(bare, folder)


def test_several_columns_with_a_template(write_split: Any, tokenizer: Any) -> None:
    made = [{"premise": f"it rained {i}", "question": "cause", "label": i % 2} for i in range(6)]
    write_split("toy", "train", made)
    data = make(
        tokenizer,
        write_split("toy", "test", made),
        columns=["premise", "question"],
        template="{premise} What was the {question}?",
        max_length=64,
        choose_fraction=0.0,
    )
    (batch,) = make_loader(data.rows("train"), batch_size=6)
    length = int(batch["attention_mask"][0].sum())
    assert tokenizer.decode(batch["input_ids"][0, :length]) == "it rained 0 What was the cause?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bad_rows": "ignore"}, "bad_rows is 'ignore'; allowed: stop"),
        ({"train_rows": 0}, "train_rows is 0; write a number of rows from 1"),
        ({"eval_rows": -3}, "eval_rows is -3"),
        ({"choose_fraction": 1.0}, "choose_fraction is 1.0; it is a part of train"),
        ({"test_fraction": -0.1}, "test_fraction is -0.1"),
        ({"subset": "last"}, "subset is 'last'; allowed: random, first"),
        ({"sort_by": {"dev": "x"}}, "sort_by names the role 'dev'; allowed: train, test, choose"),
        ({"template": "{txt}"}, "template has the fields"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused_before_reading(arguments: dict[str, Any], message: str) -> None:
    source = DataSource(name="toy", splits={"train": "train"})
    with pytest.raises(ValueError, match=message):
        ClassificationData(name="toy", source=source, columns=["text"], labels=LABELS, **arguments)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("nothing", "'nothing', which a row of toy/train.jsonl.gz:1 or below lacks"),
        ("mixed", "'mixed', whose values cannot be put in order"),
    ],
)
def test_columns_that_cannot_sort(column: str, message: str, write_split: Any, rows: Any, tokenizer: Any) -> None:
    made = [{**row, "mixed": [1, "x"][row["label"]]} for row in rows(4)]
    with pytest.raises(DataError, match=message):
        make(tokenizer, write_split("toy", "train", made), splits={"train": "train"}, sort_by={"train": column})
