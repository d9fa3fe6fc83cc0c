"""A run with ``logger=many``, read back from what the loggers wrote: W&B's offline file and TensorBoard's event files."""

import base64
import hashlib
import json
import struct
from collections import defaultdict
from pathlib import Path

import pytest
import wandb
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from curlora_lab import config
from curlora_lab.run import run

OVERRIDES = (
    "logger=many",
    "logger.wandb.offline=true",
    "logger.wandb.tags=[trial]",
    "~sequence.tasks.sentiment3",
    "train_rows=64",
    "eval_rows=32",
    "epochs=1",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "probe.probes.builtin.source.sizes.test=10",
    "probe.probes.builtin.shift_positions=32",
)
BLOCK, HEADER = 32768, 7


def records(path):
    """All records of an offline run's file: W&B's own messages in the blocks of LevelDB's log format."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, message = HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        message += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


def values(items):
    """Key-value items as a dict; nested keys become nested dicts."""
    found = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        node = found
        for key in path:
            node = node.setdefault(key, {})
        node[last] = json.loads(item.value_json)
    return found


class OfflineRun:
    """What an offline run holds."""

    def __init__(self, folder):
        (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        self.files = path.parent / "files"
        by_kind = defaultdict(list)
        for found in records(path):
            by_kind[found.WhichOneof("record_type")].append(getattr(found, found.WhichOneof("record_type")))
        self.run = by_kind["run"][-1]
        self.config = values(self.run.config.update)
        self.history = [values(row.item) for row in by_kind["history"]]
        self.summary = {}
        for part in by_kind["summary"]:
            self.summary |= values(part.update)
        self.axes = {metric.glob_name or metric.name: metric for metric in by_kind["metric"]}
        self.artifacts = {artifact.type: artifact for artifact in by_kind["artifact"] if artifact.type != "run_table"}
        self.exit_code = by_kind["exit"][-1].exit_code

    def table(self, name):
        """Columns and rows of a logged table."""
        content = json.loads((self.files / self.summary[name]["path"]).read_text())
        return content["columns"], content["data"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run folder of one small run with both loggers."""
    place = tmp_path_factory.mktemp("loggers")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("DATA", "CACHE", "CONFIG"):
            patched.setenv(f"WANDB_{name}_DIR", str(place / name.lower()))
        patched.setenv("WANDB_SILENT", "true")
        patched.delenv("WANDB_MODE", raising=False)
        config.register()
        with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
            composed = compose("train", overrides=[*OVERRIDES, f"output_dir={place / 'runs'}"])
        run(config.validate(composed), overrides=OVERRIDES)
    (found,) = place.glob("runs/*/*/results.json")
    return found.parent


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def sent(folder):
    return OfflineRun(folder)


def test_the_run_says_what_it_is(sent, record, folder):
    assert sent.run.run_id == record["provenance"]["identity"][:16]
    assert (sent.run.display_name, sent.run.run_group, sent.run.job_type) == (folder.name, "demo", "train")
    assert sent.run.project == "curlora_lab"
    assert list(sent.run.tags) == ["curlora", "tiny", "demo", "trial"]
    assert sent.exit_code == 0
    assert wandb.run is None, "the next job of a multirun must start its own run"


def test_the_config_is_resolved_and_whole(sent, record):
    for key, value in record["config"].items():
        assert sent.config[key] == value, key
    assert "${" not in json.dumps({key: sent.config[key] for key in record["config"]})
    assert sent.config["parameters"] == record["parameters"]


def test_every_kind_of_metric_has_its_axis(sent):
    expected = {
        **dict.fromkeys(["train/*", "choose/*"], "trainer/global_step"),
        **dict.fromkeys(["eval/*", "probe/*", "shift/*", "continual/*"], "stage"),
    }
    assert {name: metric.step_metric for name, metric in sent.axes.items() if name.endswith("*")} == expected
    assert sent.axes["train/*"].summary.min
    assert sent.axes["stage"].options.hidden


def test_history_has_every_step_of_every_stage(sent, record):
    for task in record["tasks"]:
        losses = [row for row in sent.history if f"train/{task}/loss" in row]
        assert [row["trainer/global_step"] for row in losses] == list(range(len(losses)))
        assert len(losses) >= 2
        assert sent.summary[f"train/{task}/loss"]["min"] == min(row[f"train/{task}/loss"] for row in losses)


def test_history_has_the_score_matrix_over_stages(sent, record):
    for task, rows in record["metrics"].items():
        for metric in rows[0]:
            key = f"eval/{task}/{metric}"
            found = [(row["stage"], row[key]) for row in sent.history if key in row]
            assert found == [(stage, row[metric]) for stage, row in enumerate(rows)]
    probed = [
        (row["stage"], row["probe/builtin/perplexity"]) for row in sent.history if "probe/builtin/perplexity" in row
    ]
    assert probed == list(enumerate(record["probes"]["perplexity"]["builtin"]))
    assert [row["stage"] for row in sent.history if "continual/average" in row] == [2]


def test_the_summary_is_the_records(sent, record):
    for name, value in record["continual"].items():
        assert sent.summary.get(f"continual/{name}") == value, name
    assert sent.summary["adapter/trainable_parameters"] == record["parameters"]["adapter"]
    assert sent.summary["head/trainable_parameters"] == record["parameters"]["head"]
    before, after = record["probes"]["perplexity"]["builtin"][0], record["probes"]["perplexity"]["builtin"][-1]
    assert sent.summary["probe/builtin/perplexity_ratio"] == after / before
    assert sent.summary["cost/seconds"] == record["cost"]["seconds"]
    assert sent.summary["parameters/total"] == record["parameters"]["total"]
    chosen = [record["choose"][task][record["metric"][task]] for task in record["tasks"]]
    assert sent.summary["choose/learning"] == pytest.approx(sum(chosen) / len(chosen)), "what a sound sweep maximises"
    for task, name in record["metric"].items():
        assert sent.summary[f"eval/{task}/{name}"] == record["scores"][-1][record["tasks"].index(task)]


def test_tables(sent, record):
    columns, rows = sent.table("score_matrix")
    assert columns == ["stage", "after", *record["tasks"]]
    assert [row[2:] for row in rows] == record["scores"]
    columns, rows = sent.table("warnings")
    assert [dict(zip(columns, row, strict=True)) for row in rows] == record["warnings"]
    columns, rows = sent.table("predictions")
    for task in record["tasks"]:
        correct = [row[columns.index("correct")] for row in rows if row[0] == task]
        assert sum(correct) / len(correct) == pytest.approx(record["scores"][-1][record["tasks"].index(task)])


def test_the_long_table_of_scores_and_the_chart_of_trajectories(sent, record):
    columns, rows = sent.table("scores")
    assert columns == ["stage", "after", "task", "metric", "score", "constant", "best", "learnt_in"]
    found = {(row[0], row[2]): row[4] for row in rows}
    stages = range(len(record["scores"]))
    assert found == {(i, task): record["scores"][i][j] for i in stages for j, task in enumerate(record["tasks"])}
    columns, rows = sent.table("score_trajectories_table")
    drawn = {(row[columns.index("step")], row[columns.index("lineKey")]): row[columns.index("lineVal")] for row in rows}
    assert drawn == found


def test_artifacts_say_what_they_come_from(sent, record):
    for artifact in sent.artifacts.values():
        about = json.loads(artifact.metadata)
        assert about["identity"] == record["provenance"]["identity"]
        assert about["continual"] == record["continual"]
        assert about["rank"] == record["config"]["rank"]


def test_pictures_and_pages(sent, folder):
    assert sent.summary["score_heatmap"]["_type"] == "image-file"
    assert (sent.files / sent.summary["score_heatmap"]["path"]).read_bytes().startswith(b"\x89PNG")
    page = (sent.files / sent.summary["report"]["path"]).read_text(encoding="utf-8")
    assert page == (folder / "report.html").read_text(encoding="utf-8")


def test_artifacts_are_the_run_folders_files(sent, folder):
    assert sorted(sent.artifacts) == ["adapter", "report", "result"]
    names = {kind: {entry.path for entry in found.manifest.contents} for kind, found in sent.artifacts.items()}
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "head.safetensors"} <= names["adapter"]
    assert {"results.json", "config.yaml", "metrics.csv"} == names["result"]
    for artifact in sent.artifacts.values():
        for entry in artifact.manifest.contents:
            file = Path(entry.local_path)
            assert file.is_relative_to(folder), "a sync must find the file where it is"
            assert base64.b64encode(hashlib.md5(file.read_bytes()).digest()).decode() == entry.digest


def test_tensorboard_has_the_same_numbers(folder, record):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for task, rows in record["metrics"].items():
        for metric in rows[0]:
            found = [(event.step, event.value) for event in events.Scalars(f"eval/{task}/{metric}")]
            assert found == [(stage, pytest.approx(row[metric], abs=1e-6)) for stage, row in enumerate(rows)]
        assert len(events.Scalars(f"train/{task}/loss")) >= 2
    assert len(events.Scalars("probe/builtin/perplexity")) == len(record["scores"])
    assert "hp_metric" not in events.Tags()["scalars"]
