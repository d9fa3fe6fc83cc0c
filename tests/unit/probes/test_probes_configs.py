"""The shipped probe files: they compose, alone and together, and give probes that measure."""

import os
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from curlora_lab.backbone import load_backbone
from curlora_lab.probes import PerplexityProbe

FOLDER = Path(__file__).parents[3] / "conf" / "probe"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(*names: str) -> DictConfig:
    parts = [OmegaConf.create({"probe": OmegaConf.load(FOLDER / f"{name}.yaml")}) for name in names]
    merged = OmegaConf.merge({"data_dir": "data"}, *parts)
    assert isinstance(merged, DictConfig)
    return merged


@pytest.mark.parametrize("name", NAMES)
def test_each_file_opens_with_its_command_and_builds_its_probes(name: str) -> None:
    header = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert header[0].startswith("# ")
    assert any(f"python train.py probe={name}" in line for line in header)
    probes = hydra.utils.instantiate(load(name).probe.probes)
    assert set(probes) == (set() if name == "none" else {name})
    assert all(isinstance(probe, PerplexityProbe) and probe.name == key for key, probe in probes.items())


def test_several_probes_add_up() -> None:
    assert set(load("builtin", "tinystories", "none").probe.probes) == {"builtin", "tinystories"}


def test_the_default_probe_measures_the_built_in_backbone() -> None:
    config = load("builtin")
    config.probe.probes.builtin.source.sizes.test = 12
    probe = hydra.utils.instantiate(config.probe.probes).builtin
    backbone = load_backbone("builtin")
    probe.prepare(backbone)
    probe.prepare_reference(backbone)
    result = probe.measure(backbone)
    assert result.reasons == {}
    assert 1 < result.perplexity < 0.1 * backbone.vocab_size  # pretrained: far from uniform
    assert probe.measure_shift(backbone) == (0.0, None)


REALITY = os.environ.get("CURLORA_LAB_REALITY")


@pytest.mark.reality
@pytest.mark.skipif(not REALITY, reason="CURLORA_LAB_REALITY names no folder with models/ and data/")
@pytest.mark.parametrize(("model", "perplexity", "bits"), [("stories3m", 4.704, 0.575), ("stories260k", 4.337, 1.052)])
def test_the_tinystories_file_gives_the_stated_perplexities(model: str, perplexity: float, bits: float) -> None:
    config = load("tinystories")
    config.data_dir = str(Path(str(REALITY)) / "data")
    probe = hydra.utils.instantiate(config.probe.probes).tinystories
    backbone = load_backbone(str(Path(str(REALITY)) / "models" / model))
    probe.prepare(backbone)
    result = probe.measure(backbone)
    assert result.perplexity == pytest.approx(perplexity, abs=0.0006)
    assert result.bits_per_character == pytest.approx(bits, abs=0.0006)
