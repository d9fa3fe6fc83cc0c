"""What published measurements say of the machine: what bears on the numbers, and nothing that only names it."""

import json
import platform
from pathlib import Path

import pytest
import torch
from tests.faults import table

ROOT = Path(__file__).parents[3]


def test_no_page_of_measurements_names_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import costing.machine

    monkeypatch.setattr(platform, "release", lambda: "6.1-of-somebody")
    monkeypatch.setattr(platform, "platform", lambda *args, **kwargs: "Linux-6.1-of-somebody")
    described = json.dumps(costing.machine.describe(torch.device("cpu"))) + table._machine()
    assert "of-somebody" not in described
    assert described.count(platform.system()) == described.count(platform.machine()) == 2
