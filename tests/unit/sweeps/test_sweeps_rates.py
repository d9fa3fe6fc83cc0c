"""Which learning rates have a recorded search behind them."""

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import DictConfig

from curlora_lab import config
from curlora_lab.cli import settle
from curlora_lab.sweeps.rates import unsearched

Compose = Callable[..., DictConfig]


def said(compose: Compose, *overrides: str, model: str = "tiny") -> str | None:
    return unsearched(settle(compose(*overrides)), model=model, overrides=overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("adapter=curlora", "rank=16", "seed=3"),
        ("adapter=lora", "lr=2e-3"),
        ("adapter.save_basis=false",),
        ("adapter=lora", "epochs=2", "task=builtin_topic"),
    ],
)
def test_the_rate_that_was_searched_for_goes_without_saying(compose: Compose, overrides: tuple[str, ...]) -> None:
    assert said(compose, *overrides) is None


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("adapter.basis=norm",), "lr=0.005 was found for curlora with basis=inverse_norm (here norm)"),
        (("rank=8", "alpha=2"), "lr=0.005 was found for curlora with r=16 (here 8), alpha=1.0 (here 2.0)"),
        (("adapter.orthonormal=true",), "lr=0.005 was found for curlora with orthonormal=False (here True)"),
        (("adapter=lora", "rank=8"), "lr=0.002 was found for lora with r=16 (here 8), lora_alpha=16.0 (here 8.0)"),
        (("adapter.target_modules=all-linear",), "target_modules=None (here all-linear)"),
        (("lr=1e-3",), "lr=0.001 was given by hand, and this run knows of no search that found it for curlora on tiny"),
        (("adapter=lora_xs", "lr=9.0"), "lr=9 was given by hand"),
        (("adapter=lora_xs",), "lr=0.003 was not tuned for lora_xs on tiny"),
        (("adapter=dora",), "lr=0.002 was not tuned for dora on tiny"),
    ],
)
def test_any_other_says_what_is_known_of_it(compose: Compose, overrides: tuple[str, ...], reason: str) -> None:
    assert reason in str(said(compose, *overrides))


def test_a_search_holds_for_its_model(compose: Compose) -> None:
    assert said(compose, model="mymodel") == "lr=0.005 was not tuned for curlora on mymodel"


def test_a_yaml_of_ones_own_is_taken_at_its_word(compose: Compose) -> None:
    own: dict[str, Any] = settle(compose("lr=7e-3"))
    own["adapter"] |= {"name": "mine", "tuned_on": ["mymodel"], "basis": "norm"}
    assert unsearched(own, model="mymodel", overrides=()) is None
    assert "not tuned for mine on tiny" in str(unsearched(own, model="tiny", overrides=()))
    assert "by hand" in str(unsearched(own, model="mymodel", overrides=("lr=7e-3",)))


@pytest.mark.parametrize("name", sorted(path.stem for path in (config.conf_dir() / "adapter").glob("*.yaml")))
def test_silent_only_where_a_search_is_recorded(compose: Compose, name: str) -> None:
    cfg = compose(f"adapter={name}")
    reason = unsearched(settle(cfg), model="tiny", overrides=())
    assert (reason is None) == ("tiny" in cfg.adapter.get("tuned_on", []))
