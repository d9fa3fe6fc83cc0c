"""Separators between columns, and truncation that never cuts them or the special tokens off."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curlora_lab.data import DataError
from curlora_lab.data.encoding import Encoder, check_template, pair_separator, separator

PAIR = ("the cat sat on a mat", "he said that film was very good")


def ids(encoder: Encoder, *texts: str) -> list[int]:
    return encoder.encode([texts]).row(0).tolist()


@pytest.mark.parametrize(
    ("kind", "own", "used"),
    [
        ("gpt2", None, "\n"),
        ("llama", None, "\n"),
        ("bert", "[SEP]", "[SEP]"),
        ("roberta", "</s></s>", "</s></s>"),
        ("words", None, "</s>"),
    ],
)
def test_separator(kind: str, own: str | None, used: str, tokenizers: Any) -> None:
    assert pair_separator(tokenizers[kind]) == own
    assert separator(tokenizers[kind]) == used


def test_the_published_gluing_has_no_separator_and_the_template_has(tokenizers: Any) -> None:
    gpt2 = tokenizers["gpt2"]
    glued = ids(Encoder(gpt2, columns=["a", "b"], pairs="tokenizer", max_length=64), "He ran.", "She sat.")
    apart = ids(Encoder(gpt2, columns=["a", "b"], max_length=64), "He ran.", "She sat.")
    assert gpt2.decode(glued) == "He ran.She sat."
    assert gpt2.decode(apart) == "He ran.\nShe sat."


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_encoders_get_their_own_pair_encoding(kind: str, tokenizers: Any) -> None:
    assert (
        ids(Encoder(tokenizers[kind], columns=["a", "b"], max_length=64), *PAIR) == tokenizers[kind](*PAIR)["input_ids"]
    )


def test_a_llama_pair_stays_one_document(tokenizers: Any) -> None:
    llama = tokenizers["llama"]
    assert ids(Encoder(llama, columns=["a", "b"], max_length=64), *PAIR).count(llama.bos_token_id) == 1
    assert (
        ids(Encoder(llama, columns=["a", "b"], pairs="tokenizer", max_length=64), *PAIR).count(llama.bos_token_id) == 2
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "roberta", "words"])
def test_three_columns_are_separated_twice(kind: str, tokenizers: Any) -> None:
    tokenizer = tokenizers[kind]
    encoder = Encoder(tokenizer, columns=["a", "b", "c"], max_length=64)
    between = tokenizer(encoder.separator, add_special_tokens=False)["input_ids"]
    row = ids(encoder, "the cat", "the dog", "the house")
    places = [i for i in range(len(row)) if row[i : i + len(between)] == between]
    ends_with_separator = row[-len(between) :] == between
    assert len(places) - int(ends_with_separator) >= 2


def test_template(tokenizers: Any) -> None:
    encoder = Encoder(tokenizers["gpt2"], columns=["b", "a"], template="{a} question: {b}{sep}{{x}}", max_length=64)
    assert tokenizers["gpt2"].decode(ids(encoder, "why", "because")) == "because question: why\n{x}"


def test_one_column_is_the_tokenizers_own_encoding(tokenizers: Any) -> None:
    for tokenizer in tokenizers.values():
        assert ids(Encoder(tokenizer, columns=["a"], max_length=64), PAIR[0]) == tokenizer(PAIR[0])["input_ids"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["gpt2", "llama", "bert", "roberta"]), st.integers(0, 30), st.integers(0, 30), st.integers(6, 40)
)
def test_pairs_are_cut_as_the_tokenizer_cuts_longest_first(kind: str, first: int, second: int, max_length: int) -> None:
    from_conftest = _tokenizers()[kind]
    texts = " ".join(["cat"] * (first + 1)), " ".join(["dog"] * (second + 1))
    pairs: Any = "tokenizer" if kind in ("gpt2", "llama") else "template"
    ours = ids(Encoder(from_conftest, columns=["a", "b"], pairs=pairs, max_length=max_length), *texts)
    assert ours == from_conftest(*texts, truncation="longest_first", max_length=max_length)["input_ids"]


_CACHE: dict[str, Any] = {}


def _tokenizers() -> dict[str, Any]:
    return _CACHE


@pytest.fixture(autouse=True)
def _fill(tokenizers: Any) -> None:
    _CACHE.update(tokenizers)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["gpt2", "llama", "bert", "roberta", "words"]),
    st.lists(
        st.lists(st.sampled_from(["cat", "dog.", "é", "big\nred", "house"]), min_size=1, max_size=25),
        min_size=1,
        max_size=4,
    ),
    st.integers(24, 40),
)
def test_laws_of_truncation(kind: str, words: list[list[str]], max_length: int) -> None:
    tokenizer = _tokenizers()[kind]
    texts = tuple(" ".join(column) for column in words)
    columns = [f"c{i}" for i in range(len(texts))]
    whole = Encoder(tokenizer, columns=columns, max_length=None)
    cut = Encoder(tokenizer, columns=columns, max_length=max_length)
    full, result = whole.encode([texts]), cut.encode([texts])
    row, original = result.row(0).tolist(), full.row(0).tolist()
    assert len(row) == min(len(original), max_length)
    assert bool(result.truncated[0]) == (len(original) > max_length)
    remaining = iter(original)
    assert all(token in remaining for token in row)  # a subsequence: only left out, never changed
    for special in {tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id} - {
        None
    }:
        assert row.count(special) == original.count(special)
    if kind in ("bert", "roberta"):
        assert row[-1] == original[-1]


def test_the_longest_column_is_cut_and_the_template_stays(tokenizers: Any) -> None:
    gpt2 = tokenizers["gpt2"]
    encoder = Encoder(gpt2, columns=["long", "short"], template="Text: {long}{sep}Question: {short}", max_length=30)
    text = gpt2.decode(ids(encoder, "the cat sat on a mat " * 20, "was it good"))
    assert text.startswith("Text: the cat sat")
    assert text.endswith("\nQuestion: was it good")


def test_no_room(tokenizers: Any) -> None:
    with pytest.raises(
        DataError, match=r"max_length 3 has no room: special tokens.* take 3, and 2 texts need one each"
    ):
        Encoder(tokenizers["bert"], columns=["a", "b"], max_length=3).encode([PAIR])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": []}, "name at least one column"),
        ({"columns": ["a", "a"]}, "each once"),
        ({"columns": ["sep"]}, "none of them 'sep'"),
        ({"columns": ["a"], "pairs": "glue"}, "pairs is 'glue'; allowed: template, tokenizer"),
        ({"columns": ["a"], "pairs": "tokenizer"}, "glues two columns.*there are 1"),
        ({"columns": ["a", "b"], "pairs": "tokenizer", "template": "{a}{b}"}, "takes no template"),
        ({"columns": ["a", "b"], "template": "{a}"}, r"has the fields \['a'\]; needed: each of \['a', 'b'\]"),
        ({"columns": ["a"], "template": "{a} {c}"}, "has the fields"),
        ({"columns": ["a"], "template": "{a!r}"}, "has the fields"),
        ({"columns": ["a"], "template": "{a"}, "cannot be read"),
    ],
)
def test_templates_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_template(**{"template": None, "pairs": "template", **arguments})


def test_lengths_that_the_model_cannot_read(tokenizer: Any) -> None:
    for length in (0, 65):
        with pytest.raises(ValueError, match=f"max_length is {length}; the tokenizer's model reads 1 to 64 tokens"):
            Encoder(tokenizer, columns=["a"], max_length=length)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a fast one"):
        Encoder(object(), columns=["a"], max_length=8)


def test_identity_depends_on_what_determines_the_ids(tokenizers: Any) -> None:
    gpt2 = tokenizers["gpt2"]
    same = [Encoder(gpt2, columns=["a", "b"], max_length=8).identity]
    gpt2(["x", "the cat sat"], truncation=True, max_length=2, padding=True)  # leaves a state behind in the tokenizer
    same.append(Encoder(gpt2, columns=["a", "b"], max_length=8).identity)
    assert len(set(same)) == 1
    others = [
        Encoder(gpt2, columns=["a", "b"], max_length=9),
        Encoder(gpt2, columns=["a", "b"], max_length=8, template="{b}{sep}{a}"),
        Encoder(gpt2, columns=["a", "b"], max_length=8, pairs="tokenizer"),
        Encoder(tokenizers["llama"], columns=["a", "b"], max_length=8),
    ]
    assert len({*same, *(other.identity for other in others)}) == 5


def test_no_rows_encode_to_nothing(tokenizer: Any) -> None:
    encoded = Encoder(tokenizer, columns=["a"], max_length=8).encode([])
    assert len(encoded) == 0
    assert encoded.ids.dtype == np.int32
