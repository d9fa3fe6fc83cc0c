"""A finished run opens as it was, and only if it is what the run wrote; a record is data, whatever it says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from curlora_lab import config, rebuild
from curlora_lab.backbone import BUILTIN_FOLDER, load_backbone
from curlora_lab.continual import files
from curlora_lab.continual.store import read_predictions
from curlora_lab.data.loading import make_loader
from curlora_lab.integrity import sealed_record
from curlora_lab.reopen import OpenRun, RunFolderError, open_run
from curlora_lab.run import run

SMALL = ("task=builtin_sentiment2", "rank=4", "train_rows=64", "eval_rows=40", "epochs=1", "probe=none")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one stage."""
    output = tmp_path_factory.mktemp("reopen")
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        given = [*SMALL, "trainer.accelerator=cpu", f"output_dir={output}", "name=small"]
        run(config.validate(compose("train", overrides=given)))
    return output / "sentiment2" / "small"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "small"))


def edit_record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Forge a record so that every hash holds."""
    record = json.loads((folder / "results.json").read_text())
    change(record)
    files.write_json(folder / "results.json", sealed_record(record))
    manifest = files.read_json(folder / "RUN_MANIFEST.json")
    manifest["files"]["results.json"] = files.hash_file(folder / "results.json")
    files.write_json(folder / "RUN_MANIFEST.json", manifest)


def sign(stage: Path) -> None:
    """Forge a stage's manifest for the files as they are."""
    about = {key: value for key, value in files.read_json(stage / files.MANIFEST).items() if key != "files"}
    (stage / files.MANIFEST).unlink()
    files.write_manifest(stage, about)


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# -- as it was ---------------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_run_bit_for_bit(finished: Path) -> None:
    opened = open_run(finished, device="cpu")
    task = opened.task("sentiment2")
    task.data.prepare(opened.backbone.tokenizer, seed=0, cache_dir=None)
    records = opened.records(task)
    assert records == read_predictions(finished / "stage_01" / "predictions" / "sentiment2.jsonl.gz")
    assert task.score(records) == opened.record["metrics"]["sentiment2"][1]


def test_nothing_of_the_backbone_is_trainable_and_the_adapter_acts(finished: Path) -> None:
    opened = open_run(finished, device="cpu")
    assert (opened.stage, opened.learnt) == (1, ("sentiment2",))
    assert not any(parameter.requires_grad for parameter in opened.backbone.parameters())
    ids = torch.arange(5, 25)[None]
    adapted = opened.backbone.lm_logits(ids, torch.ones_like(ids))
    with opened.backbone.adapter_disabled():
        base = opened.backbone.lm_logits(ids, torch.ones_like(ids))
    assert (adapted - base).abs().max() > 1e-4


def test_texts_are_encoded_as_in_training(finished: Path) -> None:
    opened = open_run(finished, device="cpu")
    task: Any = opened.task("sentiment2")
    task.data.prepare(opened.backbone.tokenizer, seed=0, cache_dir=None)
    examples = task.data.examples("test")
    theirs = next(iter(make_loader(task.data.rows("test"), batch_size=40)))
    ours = next(iter(make_loader(task.data.only(opened.backbone.tokenizer, examples).rows("test"), batch_size=40)))
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_an_unfinished_run_opens_at_a_finished_stage_only(copied: Path) -> None:
    (copied / "RUN_MANIFEST.json").unlink()
    with pytest.raises(RunFolderError, match=r"not finished .*--stage"):
        open_run(copied)
    assert open_run(copied, stage=1).stage == 1


def test_the_model_may_lie_elsewhere_but_must_be_the_same(finished: Path, tmp_path: Path) -> None:
    model = shutil.copytree(BUILTIN_FOLDER, tmp_path / "model")
    assert isinstance(open_run(finished, model_path=str(model)), OpenRun)
    flip(model / "model.safetensors")
    with pytest.raises(RunFolderError, match=r"another model .* fingerprint .*--model-path"):
        open_run(finished, model_path=str(model))


# -- not what the run wrote --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 2, -1])
def test_a_stage_that_is_not_there(finished: Path, stage: int) -> None:
    with pytest.raises(RunFolderError, match=f"stage is {stage}; small has stages 1 to 1"):
        open_run(finished, stage=stage)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(finished: Path) -> None:
    with pytest.raises(ValueError, match="torch finds no GPU"):
        open_run(finished, device="cuda")


def test_a_model_that_is_not_there(finished: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no such folder .*--model-path"):
        open_run(finished, model_path="./nowhere")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a folder"):
        open_run(tmp_path / "none")
    with pytest.raises(ValueError, match="does not exist"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    "name", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "head.safetensors"]
)
def test_a_flipped_bit_is_found(copied: Path, name: str) -> None:
    flip(copied / "stage_01" / name, position=-3)
    with pytest.raises(RunFolderError, match="is damaged"):
        open_run(copied)


def test_a_changed_record_is_found(copied: Path) -> None:
    record = json.loads((copied / "results.json").read_text())
    record["scores"][1][0] = 1.0
    files.write_json(copied / "results.json", sealed_record(record))
    with pytest.raises(RunFolderError, match=r"is not what the run wrote: sha256 .*expected"):
        open_run(copied)


def test_links_are_refused(copied: Path, tmp_path: Path) -> None:
    moved = (copied / "stage_01" / "head.safetensors").rename(tmp_path / "elsewhere")
    (copied / "stage_01" / "head.safetensors").symlink_to(moved)
    with pytest.raises(RunFolderError, match="is a link"):
        open_run(copied)


def test_a_pickle_beside_the_adapter_is_refused(copied: Path) -> None:
    (copied / "stage_01" / "adapter" / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(RunFolderError, match=r"adapter_model.bin was not written by the run"):
        open_run(copied)


def test_a_pickle_instead_of_the_adapter_is_refused(copied: Path) -> None:
    adapter = copied / "stage_01" / "adapter"
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    sign(adapter.parent)
    with pytest.raises(RunFolderError, match=r"has no adapter_model\.safetensors"):
        open_run(copied)


@pytest.mark.parametrize("field", ["megatron_config", "auto_mapping", "corda_config", "adapters"])
def test_an_adapter_that_would_import_or_read_elsewhere_is_refused(copied: Path, field: str) -> None:
    path = copied / "stage_01" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "LORA", field: {"a": "b"}}))
    sign(copied / "stage_01")
    with pytest.raises(RunFolderError, match=f"{field} is set"):
        open_run(copied)


@pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "head.safetensors"])
def test_tensors_that_are_missing_are_named(copied: Path, file: str) -> None:
    path = copied / "stage_01" / file
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})
    sign(copied / "stage_01")
    with pytest.raises(
        ValueError,
        match=r"columns and rows without C|does not fit this run's adapter in 1 tensors|does not hold the head of task",
    ):
        open_run(copied)


def test_a_file_that_is_no_safetensors_is_named(copied: Path) -> None:
    (copied / "stage_01" / "head.safetensors").write_bytes(b"\xff" * 64)
    sign(copied / "stage_01")
    with pytest.raises(RunFolderError, match=r"head\.safetensors cannot be loaded \(SafetensorError"):
        open_run(copied)


def test_a_forged_record_is_not_obeyed(copied: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    node = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(touched)]}}

    def forge(record: dict[str, Any]) -> None:
        record["config"]["task"]["data"]["source"]["generator"] = node

    edit_record(copied, forge)
    with pytest.raises(RunFolderError, match=r"_target_ is 'pathlib\.Path\.touch'"):
        open_run(copied)
    assert not touched.exists()


def test_remote_code_needs_the_user_and_not_the_record(copied: Path) -> None:
    edit_record(copied, lambda record: record["config"]["model"].update(trust_remote_code=True))
    with pytest.raises(RunFolderError, match="--trust-remote-code"):
        open_run(copied)


def test_a_strategy_that_prepares_each_task_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curlora_lab.continual import strategies

    class Switching(strategies.Strategy):
        def before_evaluation(self, task: Any) -> None: ...

    monkeypatch.setattr(strategies, "Switching", Switching, raising=False)
    target = "curlora_lab.continual.strategies.Switching"
    edit_record(copied, lambda record: record["config"]["strategy"].update(_target_=target))
    with pytest.raises(RunFolderError, match="Switching prepares the model for each task"):
        open_run(copied)


# -- a record is data --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(finished: Path) -> dict[str, Any]:
    record = json.loads((finished / "results.json").read_text())
    return rebuild.task_nodes(record["config"])["sentiment2"]


def built(node: dict[str, Any]) -> Any:
    settings = {"batch_size": 8, "eval_batch_size": 8, "seed": 0}
    backbone = load_backbone("builtin")
    return rebuild.build_task(node, backbone=backbone, training=rebuild.evaluation_plan(settings))


HOSTILE = [
    "os.system",
    "builtins.eval",
    "curlora_lab.run.run",
    "curlora_lab.tasks.TaskModule",
    "curlora_lab.tasks.base.position_seed",
    "curlora_lab.data.source.read_records",
    "curlora_lab.backbone.load_backbone",
    "",
    None,
    3,
    ["os.system"],
]
HOSTILE_GENERATORS = [
    *HOSTILE,
    "curlora_lab.data.builtin",
    "curlora_lab.data.builtin.",
    "curlora_lab.data.builtin.tasks",
    "curlora_lab.data.builtin.tasks._rows",
    "curlora_lab.data.builtin.tasks.chain",
    "curlora_lab.data.builtin.tasks.Draw",
    "curlora_lab.data.builtin.tasks.review",
    "curlora_lab.data.builtin.draw.hashlib.sha256",
    "curlora_lab.data.builtin.draw.belongs",
    "curlora_lab.data.builtin.__import__",
    "curlora_lab.data.builtin.tasks.__builtins__",
    "curlora_lab.data.builtin...backbone.load_backbone",
    "curlora_lab.data.builtin.nothing.sentiment2",
]


def with_target(node: dict[str, Any], path: tuple[str, ...], target: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(node))
    inner = changed
    for key in path:
        inner = inner[key]
    inner["_target_"] = target
    return changed


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("path", [(), ("data",), ("data", "source")], ids=["task", "data", "source"])
def test_only_named_classes_are_built(node: dict[str, Any], path: tuple[str, ...], target: Any) -> None:
    with pytest.raises(RunFolderError, match=r"_target_ is .* A run folder is data"):
        built(with_target(node, path, target))


@pytest.mark.parametrize("target", HOSTILE_GENERATORS)
def test_only_generators_of_built_in_rows_are_called(node: dict[str, Any], target: Any) -> None:
    with pytest.raises(RunFolderError, match=r"_target_ is .* A run folder is data"):
        built(with_target(node, ("data", "source", "generator"), target))


@pytest.mark.parametrize("place", ["metrics", "data.labels", "data.label_map", "data.source.hub", "data.source.sizes"])
def test_a_target_where_a_value_belongs_is_refused(node: dict[str, Any], place: str) -> None:
    changed = json.loads(json.dumps(node))
    *outer, last = place.split(".")
    inner = changed
    for key in outer:
        inner = inner[key]
    inner[last] = {"deeper": [{"_target_": "os.system", "command": "true"}]}
    with pytest.raises(RunFolderError, match="where plain values belong"):
        built(changed)


@pytest.mark.parametrize(
    ("key", "value"),
    [("labels", 5), ("columns", None), ("source", "nowhere"), ("unknown", 1), ("labels", ["one"])],
)
def test_values_that_do_not_fit_are_one_error(node: dict[str, Any], key: str, value: Any) -> None:
    changed = json.loads(json.dumps(node))
    changed["data"][key] = value
    with pytest.raises(ValueError, match=r"does not fit|must be an object|at least two"):
        built(changed)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", None, 3, ".."])
def test_task_names_must_be_fit_for_files(node: dict[str, Any], name: Any) -> None:
    with pytest.raises(RunFolderError, match="a name is a text that could be a file's"):
        rebuild.task_nodes({"task": {**node, "name": name}})


def test_both_ways_to_name_a_generator(node: dict[str, Any]) -> None:
    for target in ("curlora_lab.data.builtin.sentiment2", "curlora_lab.data.builtin.tasks.sentiment2"):
        task = built(with_target(node, ("data", "source", "generator"), target))
        assert len(task.data.source.rows("test")) == node["data"]["source"]["sizes"]["test"]


@pytest.mark.parametrize("value", [None, "8", 0, True, 1.5])
def test_numbers_of_the_plan_are_checked(value: Any) -> None:
    with pytest.raises(RunFolderError, match="eval_batch_size is"):
        rebuild.evaluation_plan({"batch_size": 8, "eval_batch_size": value, "seed": 0})
