"""The learning rates that adapters bring: for which of them a search is recorded, and whether it holds for a run."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from curlora_lab.config import conf_dir, register
from curlora_lab.sweeps.methods import NOT_OF_ADAPTER

#: Keys of an adapter that have no bearing on its rate.
NO_BEARING = (*NOT_OF_ADAPTER, "init_from", "save_basis")


def unsearched(config: Mapping[str, Any], *, model: str, overrides: Sequence[str]) -> str | None:
    """Why no recorded search stands behind the learning rate of a run that takes none from ``tuned``.

    A search holds for a model (``tuned_on``), for the rate that it found and for the adapter's settings as its YAML has them:
    rank, alpha and every option but seeds and where it continues from. What is trained on, for how long and with which
    optimiser is not compared. A rate equal to the one that was found counts as found, whoever gave it.

    Args:
        config: the resolved configuration.
        model: name of the backbone.
        overrides: what was given on the command line.

    Returns:
        The reason in words, or ``None`` where the search holds.
    """
    adapter, lr = config["adapter"], config["lr"]
    name = adapter["name"]
    by_hand = any(override.lstrip("+").startswith("lr=") for override in overrides)
    brought = _brought(name)
    if brought is None or brought["tuned_on"] != adapter.get(
        "tuned_on"
    ):  # a YAML of the user's: its word is all there is
        brought = {"lr": None if by_hand else lr, "adapter": adapter, "tuned_on": adapter.get("tuned_on", [])}
    if lr != brought["lr"] and by_hand:
        return f"lr={lr:g} was given by hand, and this run knows of no search that found it for {name} on {model}"
    if lr != brought["lr"] or model not in brought["tuned_on"]:
        return f"lr={lr:g} was not tuned for {name} on {model}"
    if differing := _differing(brought["adapter"], adapter):
        return f"lr={lr:g} was found for {name} with {', '.join(differing)}"
    return None


@cache
def _brought(name: str) -> dict[str, Any] | None:
    """Rate, settings and models in the package's YAML of an adapter, at the defaults of the root keys."""
    folder = conf_dir()
    if name not in {path.stem for path in (folder / "adapter").glob("*.yaml")}:
        return None
    register()
    whole = OmegaConf.merge(OmegaConf.load(folder / "train.yaml"), OmegaConf.load(folder / "adapter" / f"{name}.yaml"))
    adapter: Any = OmegaConf.to_container(whole.adapter, resolve=True)
    return {"lr": whole.lr, "adapter": adapter, "tuned_on": adapter.get("tuned_on", [])}


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """``basis=inverse_norm (here norm)`` for each setting that differs."""
    return [
        f"{key}={there.get(key)} (here {here.get(key)})"
        for key in dict.fromkeys((*there, *here))
        if key not in NO_BEARING and there.get(key) != here.get(key)
    ]
