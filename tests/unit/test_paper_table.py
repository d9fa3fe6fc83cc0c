"""Every row of the table in docs/paper.md: `paper/...` has its published value, and its last column takes it out alone."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from curlora_lab import config

Compose = Callable[..., DictConfig]
Words = tuple[str, ...]
TABLE = Path(__file__).parents[2] / "docs" / "paper.md"
TASKS = ("mrpc", "sst2", "sentiment140")
TWEETS = "sequence.tasks.sentiment140"
#: With Mistral's left padding position -1 is sound, and its schedule was on.
ONLY_GPT2 = "(GPT-2 only)"
#: The sound side where it is no value: it has a test of its own below.
IN_WORDS = ("each adapter's own, found by a search", "several seeds, intervals")
#: What a key that is null by default stands for in a causal model.
UNSET = {"model.pooling": "last_token"}


@dataclass(frozen=True)
class Fault:
    """One row; each side is a list of alternatives, and each of them is words of a command line."""

    what: str
    published: list[Words]
    sound: list[Words]

    @property
    def chooses(self) -> bool:
        """Whether it takes a choice of a group: then other keys follow from it."""
        return any(is_choice(word) for words in self.sound for word in words)

    @property
    def of_lora(self) -> bool:
        """Whether it is about the baseline, which is not the adapter of `paper/...` unless it is asked for."""
        return ("adapter=lora_published",) in self.published


def is_choice(word: str) -> bool:
    key = word.split("=")[0]
    return "@" in key or key in ("adapter", "probe")


def alternatives(cell: str) -> list[Words]:
    """`a=1 b=2` or `c=3`, as a shell would read it; what stands in brackets is said by the way."""
    return [tuple(shlex.split(span)) for span in re.findall(r"`([^`]+)`", re.sub(r"\([^()`]*`[^)]*\)", "", cell))]


def faults() -> list[Fault]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert all(len(row) == 4 and ("`" in row[3] or row[3] in IN_WORDS) for row in rows)
    return [Fault(what, alternatives(published), alternatives(sound)) for what, _, published, sound in rows]


FAULTS = faults()
VALUES = [fault for fault in FAULTS if fault.sound and not fault.chooses]


def row(start: str) -> Fault:
    """The row whose first column starts so."""
    (found,) = [fault for fault in FAULTS if fault.what.startswith(start)]
    return found


def values(words: Words) -> dict[str, Any]:
    """Key -> value of words that set values."""
    return {found.key_or_group: found.value() for found in OverridesParser.create().parse_overrides(list(words))}


def flat(cfg: DictConfig) -> dict[str, Any]:
    """Path -> value of every leaf."""

    def leaves(node: Any, path: str) -> dict[str, Any]:
        if not isinstance(node, dict) or not node:
            return {path: node}
        return {key: value for name, part in node.items() for key, value in leaves(part, f"{path}.{name}").items()}

    return {key.lstrip("."): value for key, value in leaves(OmegaConf.to_container(cfg, resolve=True), "").items()}


def differences(one: DictConfig, other: DictConfig) -> set[str]:
    first, second = flat(one), flat(other)
    return {key for key in first.keys() | second.keys() if first.get(key, "-") != second.get(key, "-")}


def test_the_table_is_read_whole() -> None:
    assert len(FAULTS) >= 19
    assert {fault.what for fault in FAULTS if not fault.sound} == {"one learning rate for all methods", "one run"}
    assert sum(ONLY_GPT2 in fault.what for fault in FAULTS) == 2


@pytest.mark.parametrize("experiment", ["paper/gpt2_large", "paper/mistral_7b"])
def test_the_experiment_has_the_published_values(compose: Compose, experiment: str) -> None:
    """Set once more, they change nothing."""
    mistral = experiment == "paper/mistral_7b"
    rows = [fault for fault in FAULTS if not fault.of_lora and not (mistral and ONLY_GPT2 in fault.what)]
    words = [word for fault in rows for word in fault.published[-1 if mistral else 0]]
    assert differences(compose(f"experiment={experiment}"), compose(f"experiment={experiment}", *words)) == set()


def test_the_defaults_are_the_sound_values(compose: Compose) -> None:
    tweets = row("… neutral")
    for fault in VALUES:
        given = [f"task@{TWEETS}=sentiment140_hand"] if fault is tweets else []
        cfg = compose("sequence=paper", *given)
        for key, value in values(fault.sound[0]).items():
            found = OmegaConf.select(cfg, key, throw_on_missing=True)
            found = UNSET.get(key) if found is None else found
            parts = OmegaConf.to_container(found) if isinstance(found, DictConfig) else found
            assert parts == value or (isinstance(value, dict) and value.items() <= parts.items()), key


@pytest.mark.parametrize("fault", VALUES, ids=lambda fault: fault.what)
def test_set_back_only_what_the_row_names_differs(compose: Compose, fault: Fault) -> None:
    (words,) = fault.sound
    published = compose("experiment=paper/gpt2_large")
    found = differences(published, compose("experiment=paper/gpt2_large", *words))
    keys = {key: next((name for name in values(words) if f"{key}.".startswith(f"{name}.")), None) for key in found}
    assert None not in keys.values(), keys
    assert set(keys.values()) == set(values(words)), "each key of the row is needed"


def test_of_the_baseline_too(compose: Compose) -> None:
    published = compose("experiment=paper/gpt2_large", "adapter=lora_published")
    for start, expected in (
        ("LoRA's A", {"adapter.name", "adapter.start"}),
        ("LoRA's product", {"adapter.lora_alpha"}),
    ):
        found = differences(published, compose("experiment=paper/gpt2_large", *row(start).sound[0]))
        assert {key for key in found if not key.startswith("adapter.tuned_on")} == expected


@pytest.mark.parametrize("alternative", [0, 1])
def test_the_exchange_set_back_leaves_all_but_the_rows(compose: Compose, alternative: int) -> None:
    """Epochs, batches, schedule and rows to train on, and so the steps, are those of the published protocol."""
    published = compose("experiment=paper/gpt2_large")
    found = differences(published, compose("experiment=paper/gpt2_large", *row("Sentiment140").sound[alternative]))
    data = {
        f"data.{key}" for key in ("name", "train_rows", "label_map", "drop_labels", "subset", "sort_by", "eval_rows")
    }
    allowed = {f"{TWEETS}.{key}" for key in ("name", *data, "data.source.splits", "data.source.hub.splits")}
    assert not [key for key in found if not any(f"{key}.".startswith(f"{name}.") for name in allowed)]


def test_choices(compose: Compose) -> None:
    starts = [compose(f"adapter={name}").adapter.get("start") for name in ("lora_published", "lora")]
    assert (starts[0], starts[1] == "published") == ("published", False)
    both = compose("experiment=paper/gpt2_large", "adapter=curlora").adapter
    assert (both.floor_absolute, both.replacement) == (None, False), "as the table says by the way"


SET_BACK = [(fault, words) for fault in FAULTS for words in fault.sound]


@pytest.mark.parametrize("experiment", ["paper/gpt2_large", pytest.param("paper/mistral_7b", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=" ".join(words), marks=[] if fault.chooses else [pytest.mark.slow])
        for fault, words in SET_BACK
    ],
)
def test_each_can_be_set_back_and_the_rest_stays_valid(compose: Compose, words: Words, experiment: str) -> None:
    plain = config.validate(compose(f"experiment={experiment}", *words))
    assert config.tasks_of(plain).keys() <= {*TASKS, "sentiment140_published", "sentiment140_hand"}


def test_each_adapter_has_a_rate_of_its_own(compose: Compose) -> None:
    assert len({compose(f"adapter={name}").lr for name in ("curlora", "lora", "full")}) == 3
    assert {compose("experiment=paper/gpt2_large", f"adapter={name}").lr for name in ("curlora", "lora", "full")} == {
        2.5e-4
    }


def test_methods_are_compared_over_several_seeds() -> None:
    params = yaml.safe_load((config.conf_dir() / "sweep" / "compare.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert len(params["seed"].split(",")) >= 3
