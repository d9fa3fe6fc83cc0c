"""Equal parameters: rank, or layers, chosen so that the counts agree, and a clear word where they can't."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from curlora_lab.budget import fit_budget, is_met, meet_budget

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


@pytest.mark.parametrize(
    ("adapter", "rank", "layers"),
    [
        ("curlora", 16, None),
        ("lora_xs", 16, None),
        ("lora", 1, None),
        ("lora_frozen_a", 2, None),
        ("dora", 1, [1, 2, 3]),
    ],
)
def test_methods_meet_lora_1_on_the_built_in_model(
    compose: Compose, adapter: str, rank: int, layers: list[int] | None
) -> None:
    """12 matrices of 128 x 128: 12 r² = 12 · 256 = 12 · (128 + 128) = 12 · 2 · 128."""
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
