"""The scripts on runs over local files: moved folders, other rows, language modelling."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from curlora_lab import config
from curlora_lab.data.builtin import documents, sentiment2
from curlora_lab.run import run

ROOT = Path(__file__).parents[2]
SMALL = ("rank=4", "train_rows=60", "eval_rows=20", "epochs=1", "probe=none", "trainer.accelerator=cpu", "name=small")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_local_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


evaluate, predict = script("evaluate"), script("predict")


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on sst2, one on tinystories, both with rows of local files, and the folder of these."""
    folder = tmp_path_factory.mktemp("local")
    for split, n in (("train", 90), ("validation", 60)):
        reviews = sentiment2("train" if split == "train" else "test", n, 0)
        write(folder / "data" / "sst2", split, reviews)
        stories = documents("train" if split == "train" else "test", n, 0)
        write(folder / "data" / "tinystories", split, [{"text": row["text"]} for row in stories])
    config.register()
    for task in ("sst2", "tinystories"):
        given = [f"task={task}", f"data_dir={folder / 'data'}", f"output_dir={folder / 'runs'}", *SMALL]
        with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
            run(config.validate(compose("train", overrides=given)))
    return {"data": folder / "data"} | {task: folder / "runs" / task / "small" for task in ("sst2", "tinystories")}


def scored(tmp_path: Path, *arguments: Any) -> dict[str, Any]:
    out = tmp_path / "scores.json"
    assert evaluate.main([*map(str, arguments), "--device", "cpu", "--json", str(out)]) == 0
    (task,) = json.loads(out.read_text())["tasks"].values()
    return task


@pytest.mark.parametrize("task", ["sst2", "tinystories"])
def test_moved_data_are_the_rows_of_the_run(made: dict[str, Path], task: str, tmp_path: Path) -> None:
    moved = shutil.copytree(made["data"], tmp_path / "moved")
    for arguments in ([], ["--data-dir", moved]):
        found = scored(tmp_path, made[task], *arguments)
        assert (found["equal"], found["changed_predictions"], found["rows"]) == (True, 0, 20)
    record = json.loads((made[task] / "results.json").read_text())
    assert found["constant"] == record["baselines"][task]["constant"]


@pytest.mark.parametrize("task", ["sst2", "tinystories"])
def test_other_rows_are_scored_and_not_compared(made: dict[str, Path], task: str, tmp_path: Path) -> None:
    lines = (made["data"] / task / "validation.jsonl").read_text().splitlines(keepends=True)[:7]
    (tmp_path / "other" / task).mkdir(parents=True)
    (tmp_path / "other" / task / "validation.jsonl").write_text("".join(lines))
    found = scored(tmp_path, made[task], "--data-dir", tmp_path / "other")
    assert (found["rows"], found["recorded"], found["equal"]) == (7, None, None)


def test_data_that_are_gone_are_named(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = made["data"].rename(tmp_path / "hidden")
    try:
        assert evaluate.main([str(made["sst2"])]) == 2
    finally:
        hidden.rename(made["data"])
    error = capsys.readouterr().err
    assert "is not a folder" in error
    assert "--data-dir" in error


def test_language_modelling_has_no_labels_to_predict(made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(made["tinystories"]), "once upon a time"]) == 2
    assert "LanguageModeling: it has no labels to predict; scripts/evaluate.py scores it" in capsys.readouterr().err
    assert evaluate.main([str(made["tinystories"]), "--max-rows", "5"]) == 0
