"""Published benchmarks: what is a part of one says so, and their settings go with every adapter and with local samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from curlora_lab import config
from curlora_lab.guards import _not_the_benchmark

Compose = Callable[..., DictConfig]
ADAPTERS = sorted(path.stem for path in (config.conf_dir() / "adapter").glob("*.yaml"))
ORDERS = [f"order{number}" for number in range(1, 7)]


def with_folders(compose: Compose, folder: Path, *overrides: str) -> dict[str, Any]:
    """Validate, with folders for all that the tasks read."""
    cfg = compose(*overrides, f"data_dir={folder}")
    tasks = OmegaConf.to_container(cfg.sequence.tasks, resolve=True).values()  # type: ignore[union-attr]
    for node in tasks:
        if "data" in node and "source" in node["data"]:
            place = folder / node["data"]["source"]["name"]
            place.mkdir(exist_ok=True)
            for split in node["data"]["source"]["splits"].values():
                (place / f"{split}.jsonl").touch()
    return config.validate(cfg)


@pytest.mark.parametrize("name", [*ORDERS, "trace"])
def test_a_benchmark_is_its_tasks_in_its_order(name: str, compose: Compose) -> None:
    sequence: Any = OmegaConf.to_container(compose(f"sequence={name}").sequence, resolve=True)
    tasks = [node["name"] for node in sequence["tasks"].values()]
    assert _not_the_benchmark(sequence, tasks) is None
    lacks = _not_the_benchmark(sequence, tasks[1:])
    assert lacks == (
        f"this run is not the benchmark {name}: it lacks {tasks[0]}; don't hold its scores against published ones"
    )
    assert f"its order is {', '.join(tasks)}, not {tasks[1]}, {tasks[0]}" in str(
        _not_the_benchmark(sequence, [tasks[1], tasks[0], *tasks[2:]])
    )
    assert "sst5 is no part of it" in str(_not_the_benchmark(sequence, [*tasks, "sst5"]))
    swapped = _not_the_benchmark(sequence, ["sst5", *tasks[1:]])
    assert f"it lacks {tasks[0]} and sst5 is no part of it" in str(swapped)


@pytest.mark.parametrize("name", [*ORDERS, "trace"])
def test_what_a_folder_has_of_it_never_is(name: str, compose: Compose) -> None:
    sequence: Any = OmegaConf.to_container(compose(f"sequence={name}_local").sequence, resolve=True)
    tasks = [node["name"] for node in sequence["tasks"].values()]
    assert str(_not_the_benchmark(sequence, tasks)).startswith(f"{name}_local is not the benchmark: it lacks ")


def test_other_sequences_stand_for_no_benchmark(compose: Compose) -> None:
    sequence: Any = OmegaConf.to_container(compose("sequence=demo").sequence, resolve=True)
    assert _not_the_benchmark(sequence, ["sentiment2"]) is None
    assert _not_the_benchmark({}, ["sst2"]) is None


@pytest.mark.parametrize(
    ("name", "adapter"),
    [("order1", name) for name in ADAPTERS]
    + [("order4", "full"), ("order6", "none"), ("trace", "full"), ("trace", "none")],
)
def test_its_settings_go_with_every_adapter(name: str, adapter: str, compose: Compose, tmp_path: Path) -> None:
    given = (f"experiment=benchmark/{name}", f"adapter={adapter}")
    if adapter in ("none", "curlora_frozen_u"):
        with pytest.raises(config.ConfigError, match=r"trains nothing: there is nothing to train\..* heads=own"):
            with_folders(compose, tmp_path, *given)
        if name == "trace":  # texts that are made have no heads of their own
            return
        given += ("heads=own",)
    plain = with_folders(compose, tmp_path, *given)
    assert plain["model"]["target_modules"] == ["q_proj", "v_proj"]
    assert plain["adapter"].get("target_modules") is None


@pytest.mark.parametrize("name", [*ORDERS, "trace"])
def test_its_settings_go_with_local_samples(name: str, compose: Compose, tmp_path: Path) -> None:
    local = (f"experiment=benchmark/{name}", f"sequence={name}_local", "adapter=lora")
    with pytest.raises(config.ConfigError, match=r"is no task, only settings \(.*data.*\) that another part"):
        with_folders(compose, tmp_path, *local)
    sequence = compose(f"sequence={name}_local").sequence
    lacking = [f"~sequence.tasks.{'trace_' if name == 'trace' else ''}{task}" for task in sequence.missing]
    assert with_folders(compose, tmp_path, *local, *lacking)["sequence"]["name"] == f"{name}_local"


@pytest.mark.parametrize("probe", ["wikitext2", "builtin", "none", "wikitext2_published"])
def test_another_probe_goes_with_the_published_mistral(probe: str, compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "validation.jsonl").touch()
    plain = with_folders(compose, tmp_path, "experiment=paper/mistral_7b", f"probe={probe}")
    assert list(plain["probe"]["probes"]) == ([] if probe == "none" else [probe])
    published: Any = compose("experiment=paper/mistral_7b").probe.probes.wikitext2_published_10k
    assert [published[key] for key in ("max_tokens", "window", "stride")] == [10000] * 3


@pytest.mark.parametrize("key", ["benchmark", "missing"])
def test_names_of_tasks_are_a_list(key: str, compose: Compose) -> None:
    with pytest.raises(config.ConfigError, match=rf"sequence\.{key}='agnews' must be a list of names"):
        config.validate(compose(f"+sequence.{key}=agnews"))
