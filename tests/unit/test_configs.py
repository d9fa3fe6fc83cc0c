"""Every YAML says what it is and how it is used; every option and every command in a header composes and is valid."""

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from curlora_lab import config
from curlora_lab.backbone import BUILTIN_FOLDER
from curlora_lab.config import ConfigError

CONF = config.conf_dir()
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
PLACEHOLDER = re.compile(r"<[^>]*>|\bDIR\b|\.\./shared\S*")

#: What an option needs from the machine, and the fault that says so where it is not there.
NEEDS_GPU = "No supported gpu backend found"
NEEDS_BITSANDBYTES = "model.quantization needs bitsandbytes"


def header(file: Path) -> list[str]:
    """The comment at the top, without the package directive."""
    lines = (CONF / file).read_text().splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line for line in lines[:end] if not line.startswith("# @package")]


def commands(file: Path) -> list[list[str]]:
    """Overrides of the commands in a header; those of a sweep with all its values."""
    found = []
    for line in header(file):
        match = re.match(r"#\s+python train\.py(.*)", line)
        if not match or "--help" in line or " -sc " in line:
            continue
        words = shlex.split(
            re.split(r"\s{2,}", PLACEHOLDER.sub("FOLDER", match[1].strip()))[0].replace("--cfg job", "")
        )
        found.append([word for word in words if not word.startswith("-")])
    return found


def own(words: list[str]) -> list[str]:
    """The overrides without Hydra's own settings."""
    return [word for word in words if not word.startswith("hydra.")]


def jobs_of(words: list[str]) -> list[list[str]]:
    """Jobs that together have every value of a command at least once, seeds aside; one where nothing is swept."""
    given = {word.split("=")[0] for word in words}
    chosen = [word.removeprefix("sweep=") for word in words if word.startswith("sweep=")]
    for option in chosen:
        grid = yaml.safe_load((CONF / "sweep" / f"{option}.yaml").read_text())["hydra"]["sweeper"]["params"]
        words = [*words, *(f"{key}={value}" for key, value in grid.items() if key not in given)]
    alternatives = [each_value(override) for override in OverridesParser.create().parse_overrides(own(words))]
    longest = max(map(len, alternatives), default=1)
    return [[found[k % len(found)] for found in alternatives] for k in range(longest)]


def each_value(override: Override) -> list[str]:
    """One override for each value, as the sweeper makes them; of an interval its ends."""
    if override.is_interval_sweep():
        interval = override.value()
        return [f"{override.key_or_group}={end}" for end in (interval.start, interval.end)]
    if not override.is_sweep_override():
        return [str(override.input_line)]
    values = [word for (word,) in BasicSweeper.split_arguments([override], None)[0]]
    return values[:1] if override.key_or_group == "seed" else values


def option_of(file: Path) -> str | None:
    """``group=option``, or ``None`` for a file that is no choice of its own."""
    group, *inside = file.with_suffix("").parts
    return None if not inside or group == "hydra" or inside[0] == "base" else f"{group}={'/'.join(inside)}"


def jobs() -> list[Any]:
    """The commands of every header, and every option that no command of its file chooses."""
    found: dict[str, Any] = {}
    for file in FILES:
        listed = [jobs_of(words) for words in commands(file)]
        option = option_of(file)
        if option and not any(option in job for swept in listed for job in swept):
            listed.append([[option]])
        for swept in listed:
            for number, job in enumerate(swept):
                is_new = not any(groups(job) == groups(other) for other in swept[:number])
                marks = [] if is_new else [pytest.mark.slow]  # values alone: half of the time for little
                name = f"{file}: {' '.join(job)}"
                found.setdefault(name, pytest.param(job, id=name, marks=marks))
    return list(found.values())


def groups(words: list[str]) -> list[str]:
    """The choices among them; what else there is sets values."""
    return [word for word in words if (CONF / word.lstrip("+~").split("=")[0].split("@")[0]).is_dir()]


def provide(cfg: DictConfig, folder: Path) -> None:
    """Make empty files where the configuration expects local data."""

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("splits"), dict) and node.get("name") and not node.get("generator"):
                (folder / node["name"]).mkdir(exist_ok=True)
                for split in filter(None, node["splits"].values()):
                    (folder / node["name"] / f"{split}.jsonl").touch()
            for child in node.values():
                walk(child)

    parts = ("task", "sequence", "probe", "strategy")
    walk({key: OmegaConf.to_container(cfg[key], resolve=True) for key in parts if cfg[key]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder that stands for every placeholder."""
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("words", jobs())
def test_option_or_command_is_valid(words: list[str], compose: Callable[..., DictConfig], folder: Path) -> None:
    overrides = []
    for word in words:
        where = BUILTIN_FOLDER if word.startswith("model.path=") else folder
        overrides.append(word.replace("FOLDER", str(where)))
    if "model=local" in words and not any(word.startswith("model.path=") for word in words):
        overrides.append(f"model.path={BUILTIN_FOLDER}")
    if not any(word.startswith("data_dir=") for word in words):
        overrides.append(f"data_dir={folder}")
    config.check_overrides(overrides)
    cfg = compose(*overrides)
    provide(cfg, folder)
    plain_faults = []
    try:
        plain = config.validate(cfg)
        assert config.tasks_of(plain)
    except ConfigError as error:
        plain_faults = str(error).splitlines()[1:]
    expected = []
    if any(word in ("trainer=gpu", "trainer=ddp") for word in words) and not torch.cuda.is_available():
        expected.append(NEEDS_GPU)
    if "model=mistral_7b_4bit" in words and importlib.util.find_spec("bitsandbytes") is None:
        expected.append(NEEDS_BITSANDBYTES)
    assert len(plain_faults) == len(expected), plain_faults
    assert all(any(want in fault for fault in plain_faults) for want in expected), plain_faults


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=" ".join(words))
        for words in sorted({tuple(words) for file in FILES for words in commands(file)})
        if own(list(words)) != list(words)
    ],
)
def test_hydras_own_settings_are_known_to_its_plugins(words: tuple[str, ...], folder: Path) -> None:
    """Hydra checks them against the launcher's and the sweeper's own schema."""
    settings = [word for word in words if word.startswith("hydra.")]
    first = jobs_of([word for word in words if not word.startswith("sweep=")])[0]
    chosen = [word for word in words if word.startswith("sweep=")]
    overrides = [word.replace("FOLDER", str(folder)) for word in (*chosen, *first, *settings)]
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("train", overrides=overrides, return_hydra_config=True)
    for word in settings:
        key, _, value = word.partition("=")
        assert OmegaConf.select(cfg, key, throw_on_missing=True) == yaml.safe_load(value), word


def test_every_value_of_a_sweep_is_checked() -> None:
    """Values behind the first comma, lists in quotes, intervals, and grids that a file brings."""
    assert jobs_of(["adapter=curlora,lora", "seed=0,1,2"]) == [
        ["adapter=curlora", "seed=0"],
        ["adapter=lora", "seed=0"],
    ]
    assert jobs_of(["rank=1,2", "lr=0.1,0.2,0.3"])[2] == ["rank=1", "lr=0.3"]
    assert jobs_of(["order=[a,b]", "rank=8"]) == [["order=[a,b]", "rank=8"]]
    assert jobs_of(["lr=tag(log,interval(1e-3,3e-2))"]) == [["lr=0.001"], ["lr=0.03"]]
    tuned = jobs_of(["sweep=tune", "adapter=lora"])
    assert [job[2] for job in tuned] == [f"lr={lr}" for lr in (0.0003, 0.001, 0.003, 0.01, 0.03)]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_header(file: Path) -> None:
    lines = header(file)
    assert lines, "no comment at the top"
    assert len(lines[0]) > 20, "the first line says what it is"
    assert not lines[0].startswith("#   python")
    assert any("python train.py" in line for line in lines), "no command that uses it"


def test_every_option_is_named_by_a_command_of_its_file() -> None:
    silent = [
        option
        for file in FILES
        if (option := option_of(file)) and not any(option in job for words in commands(file) for job in jobs_of(words))
    ]
    assert not silent


def test_defaults_are_those_of_the_schema(compose: Callable[..., DictConfig]) -> None:
    cfg = compose()
    schema = OmegaConf.structured(config.RootConfig)
    own = {"lr"}  # the adapter brings its own
    for key in schema:
        if not OmegaConf.is_missing(schema, key) and not OmegaConf.is_config(cfg[key]) and key not in own:
            assert cfg[key] == schema[key], key


def test_the_adapter_brings_its_learning_rate_and_the_command_line_wins(compose: Callable[..., DictConfig]) -> None:
    rates = {name: compose(f"adapter={name}").lr for name in ("curlora", "lora", "full")}
    assert len(set(rates.values())) == 3
    assert compose("adapter=lora", "lr=0.25").lr == 0.25


def test_root_keys_are_documented_where_they_are_set() -> None:
    text = (CONF / "train.yaml").read_text()
    for key in ("seed", "rank", "alpha", "lr", "head_lr", "epochs", "batch_size", "data_dir", "output_dir", "fresh"):
        assert re.search(rf"^{key}: .* # \S+", text, re.MULTILINE), key
