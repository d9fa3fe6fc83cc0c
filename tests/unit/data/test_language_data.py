"""Documents as rows, and documents joined into blocks; no row is without a token to predict."""

from typing import Any

import pytest
import torch

from curlora_lab.data import DataError, DataSource, LanguageModelData
from curlora_lab.data.loading import make_loader

SPLITS = {"train": "train", "test": "test"}


def make(tokenizer: Any, data_dir: Any, *, seed: int = 0, splits: Any = None, **arguments: Any) -> LanguageModelData:
    source = DataSource(name="toy", splits=splits or SPLITS, data_dir=data_dir)
    data = LanguageModelData(name="toy", source=source, **{"max_length": 16, "choose_fraction": 0.0, **arguments})
    data.prepare(tokenizer, seed=seed, cache_dir=None)
    return data


@pytest.fixture
def folder(write_split: Any, rows: Any) -> Any:
    write_split("toy", "train", [{"text": row["text"] * (1 + row["idx"] % 3)} for row in rows(20)])
    return write_split("toy", "test", [{"text": row["text"]} for row in rows(5, start=50)])


def test_each_document_is_a_row_and_padding_is_ignored(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder)
    assert data.counts == {"train": 20, "test": 5}
    assert data.labels == ()
    for batch in make_loader(data.rows("train"), batch_size=6, shuffle=True):
        real = batch["attention_mask"] == 1
        assert torch.equal(batch["labels"][real], batch["input_ids"][real])
        assert (batch["labels"][~real] == -100).all()
        assert (real.sum(dim=1) >= 2).all()
    assert data.row_ids("test")[0] == "test-0"


def test_truncation_is_counted(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder, max_length=8)
    assert any(note.startswith("truncated: ") and note.endswith("train documents to 8 tokens") for note in data.notes)


@pytest.mark.parametrize(("kind", "edge"), [("gpt2", "<|endoftext|>"), ("llama", "<s>")])
def test_joined_documents_lose_nothing(kind: str, edge: str, folder: Any, tokenizers: Any) -> None:
    tokenizer = tokenizers[kind]
    data = make(tokenizer, folder, documents="joined")
    ids = [
        token
        for batch in make_loader(data.rows("train"), batch_size=4)
        for row in batch["labels"]
        for token in row.tolist()
        if token != -100
    ]
    texts = [row.values["text"] for row in DataSource(name="toy", splits=SPLITS, data_dir=folder).rows("train")]
    expected = "".join(text + edge if kind == "gpt2" else edge + text for text in texts)
    assert tokenizer.decode(ids) == expected
    lengths = [
        int(n) for batch in make_loader(data.rows("train"), batch_size=4) for n in batch["attention_mask"].sum(1)
    ]
    assert set(lengths[:-1]) == {16}
    assert 2 <= lengths[-1] <= 16
    assert data.row_ids("train")[-1] == f"train-block-{len(lengths) - 1}"


def test_a_last_block_of_one_token_is_dropped_and_noted(write_split: Any, tokenizer: Any) -> None:
    write_split("toy", "train", [{"text": "Q" * 8}, {"text": "Z" * 7}])  # 8 + 1 + 7 + 1 = 17 tokens
    data = make(tokenizer, write_split("toy", "test", [{"text": "QQQ"}]), documents="joined")
    assert data.counts == {"train": 1, "test": 1}
    assert "dropped: the last token of the train documents, alone in its block" in data.notes


def test_a_document_of_one_token_is_a_broken_row(folder: Any, write_split: Any, tokenizer: Any) -> None:
    write_split("toy", "test", [{"text": "the cat"}, {"text": "Q"}])
    with pytest.raises(DataError, match=r"toy/test\.jsonl\.gz:2: the text gives 1 tokens; 2 are needed"):
        make(tokenizer, folder)
    data = make(tokenizer, folder, bad_rows="skip")
    assert data.counts["test"] == 1
    assert data.row_ids("test") == ("test-0",)
    assert any("1 document of one token" in note for note in data.notes)


def test_only_documents_of_one_token(folder: Any, write_split: Any, tokenizer: Any) -> None:
    write_split("toy", "test", [{"text": "Q"}])
    with pytest.raises(DataError, match="'toy' has no usable test document"):
        make(tokenizer, folder, bad_rows="skip")
    data = make(tokenizer, folder, documents="joined")  # Q and the end token: one to read, one to predict
    assert data.counts["test"] == 1


def test_documents_without_an_edge_cannot_be_joined(folder: Any, tokenizer: Any) -> None:
    bare = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|endoftext|>")
    with pytest.raises(ValueError, match="marks no document edges and has no eos token; use documents=each"):
        make(bare, folder, documents="joined")


def test_test_documents_are_set_aside_where_there_is_no_test_split(folder: Any, tokenizer: Any) -> None:
    data = make(tokenizer, folder, splits={"train": "train", "test": None}, choose_fraction=0.25)
    assert data.counts == {"train": 12, "test": 4, "choose": 4}
    assert data.roles == ("train", "test", "choose")


def test_other_documents_have_another_fingerprint(folder: Any, tokenizer: Any) -> None:
    runs = [make(tokenizer, folder, train_rows=5, seed=seed) for seed in (0, 0, 1)]
    assert runs[0].fingerprint == runs[1].fingerprint != runs[2].fingerprint


@pytest.mark.parametrize("documents", ["each", "joined"])
def test_rows_longer_than_the_model_reads(documents: str, folder: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="max_length is 65; the tokenizer's model reads 1 to 64 tokens"):
        make(tokenizer, folder, documents=documents, max_length=65)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": "packed"}, "documents is 'packed'; allowed: each, joined"),
        ({"max_length": 1}, "max_length is 1; a row needs 2 tokens"),
        ({"bad_rows": "mend"}, "bad_rows is 'mend'"),
    ],
)
def test_arguments_that_cannot_be_right(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModelData(name="toy", source=DataSource(name="toy", splits=SPLITS), **arguments)


def test_a_role_without_rows(folder: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="task 'toy' has no rows for 'choose'"):
        make_loader(make(tokenizer, folder).rows("choose"), batch_size=2)
