import math

import pytest
import torch

from curlora_lab.metrics.language import bits_per_character, log_ratio, perplexity, unigram_nll


def test_perplexity_of_a_uniform_model_is_the_vocabulary_size() -> None:
    assert perplexity(1000 * math.log(4096), 1000) == pytest.approx(4096)


def test_a_destroyed_model_is_infinite_not_an_error() -> None:
    assert perplexity(1e6, 10) == math.inf


def test_bits_per_character_of_a_fair_coin() -> None:
    assert bits_per_character(8 * math.log(2), 8) == pytest.approx(1)


def test_log_ratio_adds_up() -> None:
    assert log_ratio(5, 10) + log_ratio(10, 40) == pytest.approx(log_ratio(5, 40)) == pytest.approx(math.log(8))


def test_unigram_known_answers() -> None:
    nothing = torch.tensor([], dtype=torch.long)
    assert unigram_nll(nothing, torch.tensor([0, 1]), vocab_size=4) == pytest.approx(math.log(4))
    train = torch.tensor([0, 0, 0, 1])  # smoothed: 4/8, 2/8, 1/8, 1/8
    expected = (math.log(2) + math.log(8)) / 2
    assert unigram_nll(train, torch.tensor([0, 3]), vocab_size=4) == pytest.approx(expected)
    with pytest.raises(ValueError, match="token id 4 is outside a vocabulary of 4"):
        unigram_nll(train, torch.tensor([4]), vocab_size=4)
    with pytest.raises(ValueError, match="no tokens to score"):
        unigram_nll(train, nothing, vocab_size=4)


@pytest.mark.parametrize("call", [lambda: perplexity(1, 0), lambda: bits_per_character(1, 0), lambda: log_ratio(0, 1)])
def test_nothing_to_measure_is_an_error(call) -> None:
    with pytest.raises(ValueError, match=r"not defined|positive"):
        call()
