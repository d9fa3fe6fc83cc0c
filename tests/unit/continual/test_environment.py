"""Which versions and devices a run's numbers come from, and what is said where they are several."""

import torch

from curlora_lab.continual.environment import environment_on, merged, mixed

HERE = {"device": "cpu AVX2", "torch": "2.13.0", "peft": "0.21.2"}
THERE = {"device": "NVIDIA H100", "torch": "2.12.0", "peft": "0.21.2"}


def test_where_one_is():
    found = environment_on(torch.device("cpu"))
    assert found["device"].startswith("cpu ")
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found == environment_on(torch.device("cpu"))
    assert environment_on(torch.device("meta"))["device"] == "meta"


def test_each_environment_counts_once():
    assert merged([HERE], [HERE, THERE], []) == [HERE, THERE]


def test_what_differs_is_said():
    assert mixed([]) is None
    assert mixed([HERE, dict(HERE)]) is None
    text = mixed([HERE, THERE])
    assert "device cpu AVX2 / NVIDIA H100; torch 2.13.0 / 2.12.0" in text
    assert "peft" not in text
