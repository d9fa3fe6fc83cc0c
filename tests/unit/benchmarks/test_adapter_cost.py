"""The benchmark's arithmetic at once; the benchmark itself, in its quick mode, among the slow tests."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def costing(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import costing.timing
    import costing.training
    import costing.variants

    return costing


def test_ratios_within_rounds_ignore_what_slows_a_whole_round(costing):
    slowness = np.random.default_rng(0).uniform(1, 5, size=60)
    result = costing.timing.compare(
        {"base": slowness, "rival": 1.10 * slowness, "mine": 1.02 * slowness}, base="base", rival="rival"
    )
    assert result["mine"]["times_base"]["value"] == pytest.approx(1.02)
    assert result["mine"]["times_base"]["interval"] == pytest.approx([1.02, 1.02])
    assert result["mine"]["share_of_rival"]["value"] == pytest.approx(0.2)
    assert "share_of_rival" not in result["rival"]


def test_interval_covers_the_truth_and_narrows_with_rounds(costing):
    draw = np.random.default_rng(1)

    def width(rounds):
        noise = 1.05 * draw.lognormal(0, 0.05, rounds)
        low, high = costing.timing.paired(noise, np.ones(rounds))["interval"]
        assert low < 1.05 < high
        return high - low

    assert width(1000) < 0.5 * width(50)


def test_every_piece_runs_once_a_round(costing):
    ran = {"a": 0, "b": 0}

    def count(name):
        ran[name] += 1

    setting = costing.timing.Setting(r=1, rounds=4, warmup=2, device=torch.device("cpu"), dtype=torch.float32)
    seconds = costing.timing.in_turn({"a": lambda: count("a"), "b": lambda: count("b")}, setting)
    assert ran == {"a": 6, "b": 6}
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 6, bias=False)
        self.second = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_saved_bytes_counts_inputs_of_trained_layers_only(costing):
    model, x = Two(), torch.randn(5, 8, requires_grad=True)
    model.first.requires_grad_(False)

    def kept(*targets):
        return costing.training.saved_bytes(model, targets, lambda: model(x).sum().backward())

    assert kept("first") == 0  # frozen: its weight alone is kept
    assert kept("second") == 5 * 6 * 4  # its input, in float32
    assert kept("first", "second") == 5 * 6 * 4
    assert "forward" not in model.first.__dict__


def test_peak_bytes_is_the_most_that_is_held_at_a_time(costing):
    def step():
        for _ in range(3):
            torch.empty(1 << 18).fill_(0.0)  # 1 MiB, freed before the next

    assert costing.training.peak_bytes(step, torch.device("cpu")) == 1 << 20


def test_the_published_form_is_the_same_function(costing):
    torch.manual_seed(0)
    base = nn.Linear(12, 10)
    published = costing.variants.PublishedCurLora(base, 3)
    with torch.no_grad():
        published.U.normal_()
    x = torch.randn(4, 12)
    torch.testing.assert_close(published(x), base(x) + x @ published.R.T @ published.U.T @ published.C.T)


@pytest.mark.slow  # a whole quick run in a process of its own: half a minute
def test_quick_mode_writes_a_page_and_its_figures(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "adapter_cost.py"), "--quick", "--cpu", "--threads", "1"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, timeout=500, capture_output=True)
    (path,) = tmp_path.glob("adapter_cost-*-quick.json")
    record = json.loads(path.read_text())
    assert {entry["shape"] for entry in record["training"]} == {"gpt2", "llama"}
    for entry in record["training"]:
        variants = entry["variants"]
        assert variants["frozen"]["saved_bytes"] == 0
        assert variants["curlora"]["saved_bytes"] < variants["lora"]["saved_bytes"]
        assert variants["curlora"]["trained"] < variants["lora"]["trained"]
    assert record["machine"]["torch"] == torch.__version__
    assert record["goals"] == []  # tiny models say nothing about them
    page = path.with_suffix(".md").read_text()
    assert "CURLoRA, by output" in page
    assert "python benchmarks/adapter_cost.py" in page
