"""Every row of the table in docs/paper.md: `paper/...` has its published value, the defaults have its sound one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from curlora_lab import config

Compose = Callable[..., DictConfig]
TABLE = Path(__file__).parents[2] / "docs" / "paper.md"
TASKS = ("mrpc", "sst2", "sentiment140")
#: Rows about what GPT-2's protocol alone has: with Mistral's left padding position -1 is sound, and its schedule was on.
GPT2_ONLY = ("model.pooling", "sequence.tasks.sentiment140.scheduled")
#: What a key that is null by default stands for in a causal model.
UNSET = {"model.pooling": "last_token"}
#: The sound side where it is no value of the key but its absence: the value that stands for it.
IN_WORDS: dict[str, Any] = {
    "not sorted, all rows": [None, None],
    "from seed and task": [None],
    "several seeds, intervals": None,  # see the tests of their own below
    "each adapter's own, found by a search": None,
}


@dataclass(frozen=True)
class Fault:
    """One row."""

    what: str
    keys: list[str]
    published: list[Any]
    sound: list[Any] | None  # None: in words that have a test of their own

    @property
    def chooses(self) -> bool:
        """Whether the key is a choice of a group."""
        return self.keys[0] in ("adapter", "probe") or self.keys[0].startswith("task@")

    def back(self) -> list[list[str]]:
        """What sets it back: overrides of each sound alternative."""
        if self.sound is None:
            return []
        if self.chooses:
            return [[f"{self.keys[0]}={option}"] for option in self.sound]
        values = [yaml.safe_dump(value, default_flow_style=True).split("\n")[0] for value in self.sound]
        together = [values[0]] * len(self.keys) if len(values) == 1 else values
        return [[f"{path}={value}" for key, value in zip(self.keys, together, strict=True) for path in paths(key)]]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def values(text: str) -> list[Any]:
    return [number(yaml.safe_load(span)) for span in spans(text)]


def number(value: Any) -> Any:
    """YAML 1.1 takes 2.5e-4 for a text."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value


def faults() -> list[Fault]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")][2:]
    found = []
    for line in lines:
        what, _, key, published, sound = (cell.strip() for cell in line.strip("|").split(" | "))
        keys = [f"sequence.tasks.sentiment140.{name}" if "(same)" in key else name for name in spans(key)]
        right = IN_WORDS[sound] if not spans(sound) else values(sound)
        found.append(Fault(what, keys, values(published), right))
    return found


FAULTS = faults()


def paths(key: str) -> list[str]:
    """A key of the table as it is written, for every task where it stands for one."""
    key = key.replace("…data", "sequence.tasks.<task>.data")
    return [key.replace("<task>", task) for task in TASKS] if "<task>" in key else [key]


def agrees(found: Any, expected: Any) -> bool:
    """The table names of a mapping only what matters."""
    if isinstance(found, DictConfig):
        parts = OmegaConf.to_container(found, resolve=True)
        return expected.items() <= parts.items() if isinstance(expected, dict) else expected in parts.values()  # type: ignore[union-attr]
    return bool(found == expected)


def others(cfg: DictConfig, fault: Fault, expected: list[Any]) -> list[str]:
    """Keys of the row that have another value than this."""
    together = expected * len(fault.keys) if len(expected) == 1 else expected
    wrong = []
    for key, value in zip(fault.keys, together, strict=True):
        for path in paths(key):
            found = OmegaConf.select(cfg, path, throw_on_missing=True)
            if not agrees(UNSET.get(path) if found is None else found, value):
                wrong.append(f"{path} is {found!r}, not {value!r}")
    return wrong


def test_the_table_is_read_whole() -> None:
    assert len(FAULTS) >= 17
    assert {key for fault in FAULTS for key in fault.keys} >= {"adapter", "seed", "probe", "shuffle", *GPT2_ONLY}


@pytest.mark.parametrize("experiment", ["paper/gpt2_large", "paper/mistral_7b"])
def test_the_experiment_has_the_published_values(compose: Compose, experiment: str) -> None:
    cfg, wrong = compose(f"experiment={experiment}"), []
    for fault in (fault for fault in FAULTS if not fault.chooses):
        is_sound = experiment == "paper/mistral_7b" and fault.keys[0] in GPT2_ONLY
        wrong += others(cfg, fault, fault.sound or [] if is_sound else fault.published)
    assert not wrong


def test_the_defaults_are_the_sound_values(compose: Compose) -> None:
    cfg, wrong = compose("sequence=paper"), []
    for fault in (fault for fault in FAULTS if not fault.chooses):
        if fault.sound is not None and not isinstance(fault.sound[0], dict):
            wrong += others(cfg, fault, fault.sound)
    assert not wrong


@pytest.mark.parametrize("experiment", ["paper/gpt2_large", "paper/mistral_7b"])
def test_choices(compose: Compose, experiment: str) -> None:
    cfg = compose(f"experiment={experiment}")
    chosen = {value for fault in FAULTS if fault.chooses for value in fault.published}
    tweets = cfg.sequence.tasks.sentiment140.name
    assert {cfg.adapter.name, tweets, *cfg.probe.probes} <= chosen | {"wikitext2_published_10k"}
    assert f"floor_absolute={cfg.adapter.floor_absolute}" in chosen
    sound = compose("sequence=paper")
    assert sound.adapter.name == "curlora"
    assert sound.adapter.floor_absolute is None
    assert sound.sequence.tasks.sentiment140.name == "sentiment140"
    starts = [compose(f"adapter={name}").adapter.get("start") for name in ("lora_published", "lora")]
    assert (starts[0], starts[1] == "published") == ("published", False)


SET_BACK = [(fault, back) for fault in FAULTS for back in fault.back() if "drop_labels" not in str(fault.sound)]


@pytest.mark.parametrize("experiment", ["paper/gpt2_large", pytest.param("paper/mistral_7b", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(back, id=" ".join(back), marks=[] if fault.chooses else [pytest.mark.slow])
        for fault, back in SET_BACK
    ],
)
def test_each_can_be_set_back_and_the_rest_stays_valid(compose: Compose, overrides: list[str], experiment: str) -> None:
    plain = config.validate(compose(f"experiment={experiment}", *overrides))
    assert config.tasks_of(plain).keys() <= {*TASKS, "sentiment140_published", "sentiment140_hand"}


def test_neutral_tweets_are_left_out_on_the_sound_side(compose: Compose) -> None:
    (fault,) = [fault for fault in FAULTS if fault.sound and isinstance(fault.sound[0], dict)]
    data = OmegaConf.to_container(compose("task=sentiment140_hand").task.data, resolve=True)
    assert fault.sound is not None
    assert fault.sound[0].items() <= data.items()  # type: ignore[union-attr]
    assert 2 not in compose("task=sentiment140").task.data.label_map


def test_each_adapter_has_a_rate_of_its_own(compose: Compose) -> None:
    assert len({compose(f"adapter={name}").lr for name in ("curlora", "lora", "full")}) == 3
    assert {compose("experiment=paper/gpt2_large", f"adapter={name}").lr for name in ("curlora", "lora", "full")} == {
        2.5e-4
    }


def test_methods_are_compared_over_several_seeds() -> None:
    params = yaml.safe_load((config.conf_dir() / "sweep" / "compare.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert len(params["seed"].split(",")) >= 3
