"""Equal parameters: rank, or layers, chosen so that the counts agree, and a clear word where they can't."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from transformers import GPT2Config

from curlora_lab.adapters.attach import attach, trainable_state
from curlora_lab.backbone import load_backbone
from curlora_lab.budget import fit_budget, is_met, meet_budget
from curlora_lab.build import make_adapter
from curlora_lab.config import ConfigError

Compose = Callable[..., DictConfig]


@given(st.integers(1, 10**6), st.integers(1, 64), st.integers(1, 200))
def test_the_nearest_rank_is_found(budget, per_rank, most):
    """On a method of so many parameters a rank, up to a largest rank: no other rank is nearer."""

    def count(rank, layers):
        if rank > most:
            raise ValueError(f"rank {rank} is larger than {most}")
        return per_rank * rank

    fit = fit_budget(count, budget=budget, layers=0)
    assert fit.parameters == per_rank * fit.rank
    assert all(abs(fit.parameters - budget) <= abs(per_rank * rank - budget) for rank in range(1, most + 1))
    assert fit.reached is (abs(fit.parameters - budget) <= 0.1 * budget)


def test_fewer_layers_where_rank_one_is_too_many():
    fit = fit_budget(lambda rank, layers: 1000 * rank * (12 if layers is None else len(layers)), budget=3100, layers=12)
    assert (fit.rank, fit.layers, fit.parameters, fit.reached) == (1, 3, 3000, True)
    fit = fit_budget(lambda rank, layers: 1000 * rank * (12 if layers is None else len(layers)), budget=400, layers=12)
    assert (fit.layers, fit.parameters, fit.reached) == (1, 1000, False)


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 40), st.integers(2, 6), st.sampled_from([1, 2]))
def test_a_budget_is_met_wherever_it_can_be(budget, each, fixed, layers, power):
    """By so many layers of `each * rank**power + fixed` parameters, compared with all ranks and numbers of layers."""

    def count(rank, chosen):
        return (layers if chosen is None else len(chosen)) * (each * rank**power + fixed)

    fit = fit_budget(count, budget=budget, layers=layers)
    kept = layers if fit.layers is None else fit.layers
    everything = {
        (rank, n): n * (each * rank**power + fixed) for rank in range(1, budget + 2) for n in range(1, layers + 1)
    }
    assert fit.parameters == everything[fit.rank, kept]
    within = {n for (_, n), parameters in everything.items() if is_met(budget, parameters)}
    assert fit.reached is bool(within)
    if within:
        assert kept == max(within)
    else:
        assert abs(fit.parameters - budget) == min(abs(parameters - budget) for parameters in everything.values())


@pytest.mark.parametrize(
    ("adapter", "rank", "layers"),
    [
        ("curlora", 16, None),
        ("lora_xs", 16, None),
        ("lora", 1, None),
        ("rslora", 1, None),
        ("pissa", 1, None),
        ("milora", 1, None),
        ("vera", 128, None),
        ("lora_frozen_a", 2, None),
        ("dora", 1, [1, 2, 3]),
    ],
)
def test_methods_meet_lora_1_on_the_built_in_model(
    compose: Compose, adapter: str, rank: int, layers: list[int] | None
) -> None:
    """12 matrices of 128 x 128: 12 r² = 12 · 256 = 12 · (128 + 128) = 12 · 2 · 128 = 12 · (r + 128)."""
    cfg = compose("experiment=matched/parameters", f"adapter={adapter}")
    assert cfg.budget == 3072
    met = meet_budget(cfg)
    assert met.rank == met.adapter.r == rank
    assert met.adapter.layers_to_transform == layers
    if adapter == "lora":
        assert met.adapter.lora_alpha == rank
    assert cfg.rank == 16  # the given configuration is left as it was


def test_a_method_without_a_rank_stays_as_it_is(compose: Compose) -> None:
    cfg = compose("experiment=matched/parameters", "adapter=ia3")
    assert meet_budget(cfg) is cfg
    assert not is_met(cfg.budget, 12 * 128)


@pytest.mark.parametrize(("adapter", "parameters"), [("pissa", 3072), ("milora", 3072), ("osf", 3084)])
def test_what_starts_from_the_weights_has_the_parameters_that_were_fitted_without_them(
    compose: Compose, adapter: str, parameters: int
) -> None:
    node: Any = OmegaConf.to_container(
        meet_budget(compose("experiment=matched/parameters", f"adapter={adapter}")).adapter, resolve=True
    )
    backbone = load_backbone("builtin", target_modules=["q_proj", "k_proj", "v_proj"])
    attach(backbone, make_adapter(node), seed=0, start=node.get("start"))
    assert sum(tensor.numel() for tensor in trainable_state(backbone).values()) == parameters


def test_osf_is_fitted_by_the_directions_that_it_trains(compose: Compose) -> None:
    """One of 128 directions of 12 matrices: 12 · (128 + 1 + 128) = 3,084; three of them 9,252."""
    cfg = compose("experiment=matched/parameters", "adapter=osf")
    assert meet_budget(cfg).adapter.effective_rank == 127
    cfg = compose("experiment=matched/parameters", "adapter=osf", "budget=9000")
    assert meet_budget(cfg).adapter.effective_rank == 125


def test_a_higher_rank_in_fewer_layers_where_no_rank_in_all_is_near(compose: Compose) -> None:
    """LoRA has 768 r parameters a layer: 3,072 and 6,144 in all four, 2 · 3 · 768 = 4,608 of the 4,500 asked for."""
    met = meet_budget(compose("experiment=matched/parameters", "adapter=lora", "budget=4500"))
    assert (met.rank, met.adapter.layers_to_transform) == (2, [1, 2, 3])


def test_a_higher_rank_in_fewer_layers_of_gpt2(compose: Compose, tmp_path: Path) -> None:
    """LoRA-FA has 2304 r a layer: 27,648 and 55,296 in all twelve, 2 · 8 · 2304 = 36,864."""
    GPT2Config(vocab_size=8).save_pretrained(tmp_path)
    cfg = compose("experiment=matched/parameters", "model=gpt2", "adapter=lora_frozen_a", "budget=36864")
    met = meet_budget(with_path(cfg, tmp_path))
    assert (met.rank, met.adapter.layers_to_transform) == (2, list(range(4, 12)))


def test_all_layers_stay_where_fewer_are_no_nearer(compose: Compose) -> None:
    """3,072 in all four layers and 2,304 in three are both too far from 2,720, the first less."""
    met = meet_budget(compose("experiment=matched/parameters", "adapter=lora", "budget=2720"))
    assert (met.rank, met.adapter.layers_to_transform) == (1, None)


def test_layers_that_were_chosen_are_kept(compose: Compose) -> None:
    overrides = ("experiment=matched/parameters", "adapter=lora", "adapter.layers_to_transform=[0,1]", "budget=2000")
    met = meet_budget(compose(*overrides))
    assert (met.rank, met.adapter.layers_to_transform) == (1, [0, 1])


def test_an_adapter_that_does_not_fit_the_model_is_a_fault_of_the_configuration(
    compose: Compose, tmp_path: Path
) -> None:
    GPT2Config(vocab_size=8, n_layer=2).save_pretrained(tmp_path)
    cfg = compose("experiment=matched/parameters", "model=gpt2", "adapter=osf")
    with pytest.raises(ConfigError, match=r"budget: OSF adapts none of the 2 modules .*Conv1D"):
        meet_budget(with_path(cfg, tmp_path))


def with_path(cfg: DictConfig, folder: Path) -> DictConfig:
    """The same configuration with the model's files in a folder."""
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_readonly(cfg, False)
    cfg.model.path = str(folder)
    return cfg
