"""README's commands: each is composed and checked here, and the ten things people do are done one after the other."""

import importlib.util
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from curlora_lab import cli, config
from curlora_lab.backbone import BUILTIN_FOLDER
from curlora_lab.report import read_record

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

#: What makes a run one of seconds.
SMALL = (
    "train_rows=48",
    "eval_rows=40",
    "epochs=1",
    "trainer.accelerator=cpu",
    "probe.probes.builtin.source.sizes.test=10",
    "probe.probes.builtin.shift_positions=32",
)
#: Shorter lists of a sweep; what is swept stays.
FEWER = {
    "seed=0,1,2": "seed=0,1",
    "rank=8,16,24 alpha=1,2 lr=2e-3,5e-3": "rank=2,4 alpha=1 lr=2e-3 hydra.launcher.n_jobs=2",
    "n_trials=20": "n_trials=2",
}
#: What a command leaves behind, by a part of it.
LEAVES = {
    "adapter=curlora rank=16": "runs/demo/tiny-curlora-r16-a1-lr0.005-s0-*/report.html",
    "adapter=curlora,lora,none": "runs/demo/tiny-none-*-s1-*/results.json",
    "report.py runs/demo\n": "runs/demo/comparison.html",
    "matched/parameters": "runs/demo/tiny-lora-r1-*/results.json",
    "task=complaints": "runs/complaints/tiny-curlora-*/RUN_MANIFEST.json",
    "model.path=mymodel": "runs/demo/mymodel-lora-r8-*/RUN_MANIFEST.json",
    "launch=joblib": "runs/demo/tiny-curlora-r4-a1-lr0.002-*/RUN_MANIFEST.json",
    "sweep=optuna": "runs/.multirun/*/study.db",
    "init_from": "runs/topic/tiny-curlora-*/RUN_MANIFEST.json",
    "wandb_offline": "runs/demo/*/wandb/offline-run-*",
    "dashboard.py": "dashboard/workspace.json",
    "--output study": "study/comparison.html",
    "figures.py": "figures/*.pdf",
    "--to lora": "runs/demo/*/export/stage_03-lora/adapter_model.safetensors",
    "--to merged": "runs/demo/*/export/stage_03-merged/model.safetensors",
    "strategy=stay_close": "runs/demo/tiny-loha-*/RUN_MANIFEST.json",
}


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def commands(text: str) -> list[str]:
    """The lines of the section's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line.split("   #")[0].rstrip() for block in blocks for line in block.splitlines()]


def written_out(text: str) -> dict[str, str]:
    """Files of the section: blocks that begin with a comment that is their path."""
    blocks = re.findall(r"```(?:yaml|python)\n(.*?)```", text, re.DOTALL)
    found = {}
    for block in blocks:
        path = re.match(r"(?:# @package _global_\n)?# (\S+\.(?:yaml|py))\n", block)
        if path:
            found[path[1]] = block
    return found


TEN = section("Ten things people do")
DONE, ASKED = commands(TEN), commands(section("Asking a sceptic's questions"))
TRAINED = [one for one in dict.fromkeys((*DONE, *ASKED)) if one.startswith("python train.py ") and "<" not in one]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that README writes out, a CSV of two departments and a model, to work in."""
    for name, content in written_out(TEN).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    for split, rows in (("train", 40), ("test", 20)):
        lines = [f"The {('soup', 'room')[n % 2]} was bad.,{('kitchen', 'rooms')[n % 2]}" for n in range(rows)]
        path = tmp_path / "mydata" / "complaints" / f"{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["text,department", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # where train.py lies in README: README's python file is beside it
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield tmp_path
    root.handlers[:] = handlers
    root.setLevel(level)


def test_ten_things_each_with_a_command() -> None:
    parts = re.split(r"^\*\*(\d+)\. ", TEN, flags=re.MULTILINE)
    assert [int(number) for number in parts[1::2]] == list(range(1, 11))
    assert all(commands(part) for part in parts[2::2])
    assert all(command.startswith("python ") for command in DONE + ASKED)
    assert not [part for part in LEAVES if not any(part in f"{command}\n" for command in fewer())]


def fewer() -> list[str]:
    shorter = []
    for command in DONE:
        for long, short in FEWER.items():
            command = command.replace(long, short)
        shorter.append(command)
    return shorter


@pytest.mark.parametrize("command", TRAINED)
def test_every_training_command_is_a_valid_configuration(command: str, place: Path) -> None:
    arguments = [word for word in shlex.split(command)[2:] if word != "-m"]
    if "--config-dir" in arguments:
        at = arguments.index("--config-dir")
        arguments[at : at + 2] = [f"hydra.searchpath=[file://{place / arguments[at + 1]}]"]
    config.register()
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(arguments), None)
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        config.validate(compose("train", overrides=jobs[-1]))


def test_every_script_has_the_options_that_are_given() -> None:
    for command in DONE:
        _, path, *arguments = shlex.split(command)
        source = (ROOT / path).read_text(encoding="utf-8")
        if path != "train.py":
            assert not [word for word in arguments if word.startswith("--") and f'"{word}"' not in source], command


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"(?:\(|`)((?:notebooks|docs|conf|scripts|examples)/[\w./]*)", README)))
)
def test_names_only_what_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_the_tuner_by_itself_leaves_an_adapter_that_peft_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEN.split("**The tuner by itself**")[1], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {"backbone": AutoModelForCausalLM.from_pretrained(BUILTIN_FOLDER)})
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BUILTIN_FOLDER), str(tmp_path / "exported"))
    assert isinstance(loaded.peft_config["default"], LoraConfig)


@pytest.mark.slow
def test_the_ten_things_one_after_the_other(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    AutoModelForCausalLM.from_pretrained(BUILTIN_FOLDER).save_pretrained(place / "mymodel")
    AutoTokenizer.from_pretrained(BUILTIN_FOLDER).save_pretrained(place / "mymodel")
    first, name = None, ""
    for command in fewer():
        before = None
        if command == first:  # "the same command": the run is as if killed in its last stage
            before = read_record(place / "runs/demo" / name)
            shutil.rmtree(place / "runs/demo" / name / "stage_03")
            (place / "runs/demo" / name / "RUN_MANIFEST.json").unlink()
        code = call(command.replace("<run>", name), monkeypatch)
        assert code == 0, f"{command}\n{capsys.readouterr().err[-3000:]}"
        for part, left in LEAVES.items():
            assert part not in f"{command}\n" or list(place.glob(left)), f"{command} left no {left}"
        if first is None:
            first, name = command, next((place / "runs/demo").glob("tiny-curlora-*")).name
        if before is not None:
            assert read_record(place / "runs/demo" / name)["scores"] == before["scores"]


def call(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Do a command in this process and give its exit code."""
    _, path, *arguments = shlex.split(command)
    if path == "train.py":
        monkeypatch.setattr(sys, "argv", [str(ROOT / path), *arguments, *SMALL])
        try:
            cli.main()
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 1
        return 0
    spec = importlib.util.spec_from_file_location(f"readme_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    code = module.main(arguments)
    return int(code or 0)
