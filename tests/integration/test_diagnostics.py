"""What a run measures of its adapter before each stage, and that measuring changes nothing."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Runner = Callable[..., dict[str, Any]]
TWO = ("~sequence.tasks.paraphrase", "gradient_batches=2")


def diagnostics(record: dict[str, Any], stage: int) -> dict[str, Any]:
    return json.loads((record["folder"] / f"stage_{stage:02d}" / "diagnostics.json").read_text())


def test_captured_energy_of_each_stage_and_quality_of_the_basis(small_run: Runner) -> None:
    record = small_run(*TWO, "rank=8")
    for stage in (1, 2):
        energy = diagnostics(record, stage)["gradient_energy"]
        assert len(energy) == 12  # q, k, v of four layers
        for one in energy.values():
            assert 0 <= one["captured"] <= one["ceiling"] + 1e-9 <= 1 + 2e-9
            assert one["gradient_norm"] > 0
    assert diagnostics(record, 1)["gradient_energy"] != diagnostics(record, 2)["gradient_energy"]
    basis = diagnostics(record, 1)["basis"]
    assert all(0 < one["reconstruction_error"] <= 1 and one["column_kl"] > 0 for one in basis.values())
    assert "basis" not in diagnostics(record, 2)


def test_the_control_draws_evenly(small_run: Runner) -> None:
    record = small_run(*TWO, "adapter.basis=uniform")
    assert all(one["column_kl"] == pytest.approx(0, abs=1e-12) for one in diagnostics(record, 1)["basis"].values())


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_other_adapters_have_a_reason(small_run: Runner, adapter: str) -> None:
    found = diagnostics(small_run(*TWO, f"adapter={adapter}"), 1)
    assert found["gradient_energy"] == {}
    assert "no frozen factors" in found["reason"]


@pytest.mark.parametrize("adapter", ["curlora", pytest.param("lora", marks=pytest.mark.slow)])
def test_measuring_changes_no_number(small_run: Runner, adapter: str) -> None:
    dropout = ["adapter.lora_dropout=0.1"] if adapter == "lora" else []
    measured = small_run(*TWO, f"adapter={adapter}", *dropout)
    folder = measured["folder"]
    plain = small_run(*TWO, f"adapter={adapter}", *dropout, "gradient_batches=0", "fresh=true")
    assert plain["folder"] == folder
    assert plain["scores"] == measured["scores"]
    assert plain["probes"] == measured["probes"]
    before = folder.with_name(f"{folder.name}.old1")
    for stage in ("stage_01", "stage_02"):
        for file in ("adapter/adapter_model.safetensors", "head.safetensors"):
            assert (folder / stage / file).read_bytes() == (before / stage / file).read_bytes()


def test_all_at_once_has_no_one_gradient(small_run: Runner) -> None:
    assert "no one gradient" in diagnostics(small_run(*TWO, "scenario=joint"), 1)["reason"]
