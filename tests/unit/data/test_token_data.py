"""Words with tags: alignment to pieces under every kind of tokenizer, schemes, truncation counted in words."""

from typing import Any

import pytest

from curlora_lab.data import DataError, DataSource, TokenData
from curlora_lab.data.loading import IGNORED, make_loader
from curlora_lab.data.source import Row, Split
from curlora_lab.data.tags import checked_tags, scheme_fault

LABELS = ["O", "B-animal", "I-animal", "B-place"]
SENTENCE = {
    "tokens": ["the", "big", "cat", "sat", "on", "Ødegård", "."],
    "tags": ["O", *LABELS[1:3], "O", "O", "B-place", "O"],
}


def rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"tokens": ["the", "cat", "sat", str(i)], "tags": ["O", "B-animal", "O", "O"], "idx": i}
        for i in range(start, start + n)
    ]


def make(tokenizer: Any, train: list[Any], test: list[Any], **arguments: Any) -> TokenData:
    found = {"train": train, "test": test}
    source = DataSource(
        name="toy",
        splits={"train": "train", "test": "test"},
        generator=lambda split, n, seed: found[split],
        sizes={"train": len(train), "test": len(test)},
    )
    data = TokenData(
        name="toy", source=source, **{"labels": LABELS, "max_length": 64, "choose_fraction": 0.0, **arguments}
    )
    data.prepare(tokenizer, seed=0)
    return data


def pieces(data: TokenData, tokenizer: Any, role: str = "test") -> list[tuple[str, str]]:
    """Text and tag of the tokens that are read, of the first row."""
    batch = next(iter(make_loader(data.rows(role), batch_size=1)))
    found = zip(batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), strict=True)
    return [(tokenizer.decode([token]).strip(), data.labels[tag]) for token, tag in found if tag != IGNORED]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "roberta", "words"])
@pytest.mark.parametrize("piece", ["first", "last"])
def test_each_word_has_one_token_with_its_tag(tokenizers: Any, kind: str, piece: str) -> None:
    tokenizer = tokenizers[kind]
    data = make(tokenizer, rows(3), [SENTENCE], piece=piece)
    found = pieces(data, tokenizer)
    assert [tag for _, tag in found] == SENTENCE["tags"]
    assert data.words_read("test")[0].tolist() == list(range(7))
    for (text, _), word in zip(found, SENTENCE["tokens"], strict=True):
        known = text not in ("[UNK]", "") and "\ufffd" not in text
        assert not known or (word.startswith(text) if piece == "first" else word.endswith(text))


def test_running_text_is_what_the_tokenizer_sees(tokenizer: Any) -> None:
    data = make(tokenizer, rows(3), [SENTENCE])
    ids = data.rows("test").encoded.row(0)
    assert tokenizer.decode(ids) == " ".join(SENTENCE["tokens"])


def test_tags_may_be_names_indices_or_text_with_blanks(tokenizer: Any) -> None:
    forms = [
        {"tokens": ["the", "cat"], "tags": ["O", "B-animal"]},
        {"tokens": ["the", "dog"], "tags": [0, 1]},
        {"tokens": "the  bird", "tags": "O B-animal"},
    ]
    data = make(tokenizer, rows(3), forms)
    assert [example.target for example in data.examples("test")] == [[0, 1]] * 3
    assert data.examples("test")[2].texts == ("the", "bird")


def test_what_is_cut_off_is_counted_in_words(tokenizers: Any) -> None:
    long = {"tokens": ["cat", "sat"] * 10, "tags": ["B-animal", "O"] * 10}
    data = make(tokenizers["bert"], rows(3), [long, SENTENCE], max_length=8)  # [CLS], six words, [SEP]
    assert "truncated: 2 of 2 test rows to 8 tokens; 15 of 27 words are cut off" in data.notes
    assert data.words_read("test")[0].tolist() == list(range(6))
    encoded = data.rows("test").encoded
    assert (len(encoded.row(0)), encoded.row(0)[-1]) == (8, tokenizers["bert"].sep_token_id)
    with pytest.raises(DataError, match="max_length 2 has no room beside the special tokens"):
        make(tokenizers["bert"], rows(3), [long], max_length=2)


def test_a_word_without_a_token_is_not_read_and_counted(tokenizers: Any) -> None:
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers["words"].backend_tokenizer
    stripped = type(backend).from_str(backend.to_str())
    stripped.normalizer = normalizers.Replace("\u200d", "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=stripped, pad_token="[PAD]", model_max_length=64)
    data = make(tokenizer, rows(3), [{"tokens": ["the", "\u200d", "cat"], "tags": ["O", "O", "B-animal"]}])
    assert data.words_read("test")[0].tolist() == [0, 2]
    assert [tag for _, tag in pieces(data, tokenizer)] == ["O", "B-animal"]
    assert "words: 1 of 3 test words have no token of their own and are not read" in data.notes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "there are 2 words and 1 tags"),
        (
            {"tokens": ["a", "b"], "tags": ["O", "B-car"]},
            "word 2 is tagged 'B-car'; allowed: O, B-animal, I-animal, B-place",
        ),
        ({"tokens": ["a", "b"], "tags": [0, 4]}, "word 2 is tagged 4; allowed: .*, or an index"),
        ({"tokens": ["a", "b"], "tags": [0, -100]}, "word 2 is tagged -100"),
        (
            {"tokens": ["a", "b"], "tags": ["O", "I-animal"]},
            "word 2 is tagged 'I-animal' after 'O', where .* 'B-animal'",
        ),
        ({"tokens": ["a"], "tags": ["I-animal"]}, "word 1 is tagged 'I-animal' at the beginning"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "word 2 of 'tokens' is ' ', not text"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "word 2 of 'tokens' is None, not text"),
        ({"tokens": [], "tags": []}, "'tokens' is empty"),
        ({"tokens": 3, "tags": []}, r"'tokens' is a int \(3\)"),
        ({"tokens": ["a"], "tags": None}, "'tags' is a NoneType"),
        ({"tokens": ["a"]}, "the row has no column 'tags'"),
    ],
)
def test_a_broken_row_is_named(tokenizer: Any, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"builtin:toy test:3: .*{message}"):
        make(tokenizer, rows(3), [*rows(2, start=5), row])
    data = make(tokenizer, rows(3), [*rows(2, start=5), row], bad_rows="skip")
    assert data.counts["test"] == 2


def test_lenient_takes_an_i_without_its_b(tokenizer: Any) -> None:
    data = make(tokenizer, rows(3), [{"tokens": ["a", "cat"], "tags": ["O", "I-animal"]}], scheme="lenient")
    assert data.examples("test")[0].target == [0, 2]


def test_words_that_are_dropped_are_counted(tokenizer: Any) -> None:
    row = {"tokens": ["don't", "do", "not"], "tags": ["_", "a", "b"]}
    data = make(tokenizer, [row] * 3, [row], labels=["a", "b"], scheme="none", drop_words=["_"])
    assert data.examples("test")[0].texts == ("do", "not")
    assert "dropped: 1 test rows labelled '_'" in data.notes
    with pytest.raises(DataError, match="all words are tagged _"):
        make(
            tokenizer, [row] * 3, [{"tokens": ["x"], "tags": ["_"]}], labels=["a", "b"], scheme="none", drop_words=["_"]
        )


@pytest.mark.parametrize(
    ("labels", "scheme", "message"),
    [
        (["O"], "iob2", "name at least two tags"),
        (["O", "O"], "iob2", "each once"),
        (["O", "I-a"], "iob2", "'I-a' without 'B-a'"),
        (["NOUN", "VERB"], "iob2", "write scheme=none"),
        (["O", "B-"], "lenient", "O, B-<type> or I-<type>"),
        (["a", "b"], "bioes", "scheme is 'bioes'; allowed: iob2, lenient, none"),
    ],
)
def test_labels_that_are_no_scheme(labels: list[str], scheme: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_tags(labels, scheme=scheme)


def test_a_tag_goes_on_only_with_its_own_type() -> None:
    assert scheme_fault(["B-a", "I-a", "I-a", "O", "B-b", "B-b"]) is None
    assert scheme_fault(["B-a", "I-b"]) == "word 2 is tagged 'I-b' after 'B-a', where an entity begins with 'B-b'"


def test_one_tag_in_train_cannot_be_learnt(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="all 6 words of the 3 train rows are tagged 'O'"):
        make(tokenizer, [{"tokens": ["a", "b"], "tags": "O O"}] * 3, rows(1))


def test_words_without_tags_are_read_too(tokenizer: Any) -> None:
    data = make(tokenizer, rows(3), rows(2, start=5))
    split = Split((Row("text 1", "0", {"tokens": "the cat sat 5"}),), (), None, 0)
    other = data.only(tokenizer, data.read(split, labelled=False)[0])
    ours, theirs = (next(iter(make_loader(each.rows("test"), batch_size=1))) for each in (other, data))
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert (ours["labels"] != IGNORED).tolist() == (theirs["labels"] != IGNORED).tolist()
