"""Scores of generated texts: known values, limits, parity with the library's own edit distance."""

import itertools
import random

import pytest
from torchmetrics.functional.text import edit_distance

from curlora_lab.metrics.generation import (
    TEXT_METRICS,
    common_subsequence,
    edit_similarity,
    exact_match,
    first_character,
    generation_scores,
    normalized_match,
    rouge_l,
    sari,
)


def test_rouge_l_is_the_f1_of_the_common_subsequence_of_words():
    # the, cat, mat in order: 3 of 6 and 3 of 4 words
    assert rouge_l("The cat lay upon a mat.", "the cat, mat here") == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    assert rouge_l("A b c", "a B, c!") == pytest.approx(1.0)
    assert rouge_l("", "something") == 0.0
    assert rouge_l("über die Brücke", "ueber die Brücke") == pytest.approx(2 / 3)
    assert rouge_l("我支持你", "我反对你") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "normalised", "first"),
    [
        (" Very  good ", "Very good", 1, 1, 1),
        ("very good.", "Very good", 0, 1, 0),
        ("17.48", "1748", 0, 1, 1),
        ("A\nbecause it is", "A\nfor other reasons", 0, 0, 1),
        ("", "A", 0, 0, 0),
    ],
)
def test_matches(prediction, reference, exact, normalised, first):
    assert exact_match(prediction, reference) == exact
    assert normalized_match(prediction, reference) == normalised
    assert first_character(prediction, reference) == first


def test_edit_similarity_is_that_of_the_library_with_substitutions_of_cost_two():
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcé ", k=draw.randrange(1, 40))) for _ in range(60)]
    for left, right in itertools.pairwise(texts):
        distance = float(edit_distance(left, right, substitution_cost=2))
        assert len(left) + len(right) - 2 * common_subsequence(left, right) == distance
        assert edit_similarity(left, right) == pytest.approx(1 - distance / (len(left) + len(right)))
    assert edit_similarity("", "") == 1.0
    assert edit_similarity("abc", "") == 0.0
    assert edit_similarity("this is a test", "this is a test!") == pytest.approx(
        0.97, abs=0.005
    )  # fuzzywuzzy's example


def test_sari_is_that_of_the_reference_implementation():
    source, made = "About 95 species are currently accepted.", "About 95 you now get in."
    references = (
        "About 95 species are currently known.",
        "About 95 species are now accepted.",
        "95 species are now accepted.",
    )
    assert 100 * sari(source, made, *references) == pytest.approx(
        26.953601953601954
    )  # documented by Hugging Face's `sari`
    assert sari(source, source, source) == pytest.approx(1.0)
    # one word each: nothing to keep, the deletion is right, the addition wrong; longer n-grams do not exist and count as right
    assert sari("a", "b", "c") == pytest.approx((1 + 1 + (0 + 3) / 4) / 3)


def test_means_over_rows_and_refusals():
    scores = generation_scores(["exact_match", "rouge_l"], ["", ""], ["a", "b"], ["a", "c"])
    assert scores == {"exact_match": 0.5, "rouge_l": 0.5}
    with pytest.raises(ValueError, match=r"metric 'bleu' is not known for texts; choose from: rouge_l"):
        generation_scores(["bleu"], ["a"], ["a"], ["a"])
    with pytest.raises(ValueError, match="equally many"):
        generation_scores(["rouge_l"], [], ["a"], ["a"])
    assert all(metric("a b", "a b", "a b") == pytest.approx(1.0) for metric in TEXT_METRICS.values())
