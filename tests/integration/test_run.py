"""The main job: a sequence of tasks, scored after every stage, with everything that a run must leave behind."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from curlora_lab.config import ConfigError, RunError
from curlora_lab.continual import files
from curlora_lab.continual.store import read_predictions
from curlora_lab.data.builtin import sentiment2
from curlora_lab.report import validate_record
from curlora_lab.tasks import SequenceClassification

SAME_BUT_FOR = ("cost", "provenance", "overrides", "folder", "name", "config")


def comparable(record):
    """Everything that equal runs have equal."""
    return {key: value for key, value in record.items() if key not in SAME_BUT_FOR}


@pytest.mark.parametrize("adapter", ["curlora", "lora", "full", "none"])
def test_leaves_a_whole_run_folder(small_run, adapter):
    record = small_run(f"adapter={adapter}")
    folder = record.pop("folder")
    validate_record(record)
    assert record["status"] == "finished"
    assert len(record["scores"]) == 4
    assert all(score is not None for row in record["scores"] for score in row)
    for stage in range(4):
        path = folder / f"stage_{stage:02d}"
        assert files.read_manifest(path) is not None
        for task in record["tasks"]:
            rows = read_predictions(path / "predictions" / f"{task}.jsonl.gz")
            hits = [row["label"] == row["prediction"] for row in rows]
            column = record["tasks"].index(task)
            assert sum(hits) / len(hits) == pytest.approx(record["scores"][stage][column], abs=1e-6)
    for name in ("config.yaml", "train.log", "metrics.jsonl", "metrics.csv", "report.html", "RUN_MANIFEST.json"):
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("*.tmp")), "temporary files are left"
    assert not [p for p in folder.rglob("*") if p.suffix in {".pt", ".ckpt", ".bin", ".pkl"}], "a pickle was written"


def test_row_zero_is_untrained_and_nothing_has_shifted(small_run):
    record = small_run("adapter=lora")
    assert record["shift"]["weight"][0]["overall"] == 0.0
    assert record["shift"]["output"]["builtin"][0] == 0.0
    assert record["shift"]["weight"][3]["overall"] > 0
    assert record["shift"]["output"]["builtin"][3] > 0


def test_a_head_alone_leaves_the_language_model_as_it_was(small_run):
    record = small_run("adapter=none")
    perplexities = record["probes"]["perplexity"]["builtin"]
    assert perplexities == [perplexities[0]] * 4
    assert record["parameters"]["adapter"] == 0
    assert record["shift"]["output"]["builtin"] == [0.0] * 4
    # Heads are stored, and nothing else is trained: an old task can't be forgotten.
    assert record["continual"]["forgetting"] == 0.0


def test_parameters_are_counted_apart(small_run):
    record = small_run("adapter=curlora", "rank=4")
    modules = record["parameters"]["adapter"] // 16
    assert record["parameters"]["adapter"] == modules * 16
    assert modules == len(record["shift"]["weight"][0]["modules"])
    assert record["parameters"]["trainable"] == record["parameters"]["adapter"] + record["parameters"]["head"]


def test_the_same_command_in_fresh_folders_gives_the_same_bytes(small_run, tmp_path):
    first = small_run()
    shutil.move(tmp_path / "runs", tmp_path / "first")
    second = small_run()
    assert comparable(first) == comparable(second)
    for path in sorted((tmp_path / "first").rglob("stage_*/predictions/*")):
        twin = Path(str(path).replace(str(tmp_path / "first"), str(tmp_path / "runs")))
        assert path.read_bytes() == twin.read_bytes()


def test_another_seed_differs(small_run):
    assert small_run("seed=0")["scores"] != small_run("seed=1")["scores"]


def test_the_same_command_again_finds_the_finished_run(small_run, monkeypatch):
    first = small_run()
    monkeypatch.setattr(SequenceClassification, "training_step", _forbidden)
    again = small_run()
    assert again["folder"] == first["folder"]
    assert again["provenance"] == first["provenance"]


def test_fresh_does_it_again_and_keeps_the_old_run_aside(small_run, monkeypatch):
    first = small_run()
    trained = []
    monkeypatch.setattr(SequenceClassification, "start_stage", _remember(trained, SequenceClassification.start_stage))
    again = small_run("fresh=true")
    assert trained == [1, 2, 3]
    aside = first["folder"].with_name(first["folder"].name + ".old1")
    assert (aside / "results.json").is_file()
    assert comparable(again) == comparable(first)


def test_a_folder_named_by_hand_is_never_continued_by_another_run(small_run):
    small_run("name=mine", "task=builtin_sentiment2")
    with pytest.raises(ConfigError, match=r"holds another run(.|\n)*lr: 0\.005 there, 0\.02 here"):
        small_run("name=mine", "task=builtin_sentiment2", "lr=0.02")
    assert small_run("name=mine", "task=builtin_sentiment2", "lr=0.02", "fresh=true")["config"]["lr"] == 0.02


def test_a_stopped_run_goes_on_with_the_stage_that_was_not_finished(small_run, monkeypatch, tmp_path):
    whole = small_run("adapter=lora")
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    real = SequenceClassification.training_step

    def fails_in_stage_2(task, batch, batch_idx):
        if task.stage == 2:
            raise OSError("the machine was taken away")
        return real(task, batch, batch_idx)

    monkeypatch.setattr(SequenceClassification, "training_step", fails_in_stage_2)
    with pytest.raises(OSError, match="taken away"):
        small_run("adapter=lora")
    record = json.loads(next(tmp_path.glob("runs/*/*/results.json")).read_text())
    assert record["status"] == "failed"
    assert "taken away" in record["message"]
    monkeypatch.setattr(SequenceClassification, "training_step", real)
    trained = []
    monkeypatch.setattr(SequenceClassification, "start_stage", _remember(trained, SequenceClassification.start_stage))
    assert comparable(small_run("adapter=lora")) == comparable(whole)
    assert trained == [2, 3]


def test_a_damaged_stage_is_named_and_done_again(small_run, tmp_path, caplog):
    first = small_run()
    shutil.copytree(tmp_path / "runs", tmp_path / "first")
    folder = first["folder"]
    (folder / "RUN_MANIFEST.json").unlink()
    weights = folder / "stage_02" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    caplog.set_level("WARNING", logger="curlora_lab")
    again = small_run()
    assert "expected sha256" in caplog.text
    assert comparable(again) == comparable(first)


@pytest.mark.parametrize(
    "adapter", ["curlora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pissa", "full"))]
)
def test_a_longer_sequence_reuses_the_stages_it_shares(small_run, monkeypatch, tmp_path, adapter):
    three = small_run(f"adapter={adapter}")
    trained = []
    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassification, "start_stage", _remember(trained, SequenceClassification.start_stage))
        four = small_run(f"adapter={adapter}", "+task@sequence.tasks.topic=builtin_topic")
    assert trained == [4]
    assert [entry["stage"] for entry in four["provenance"]["reused_stages"]] == [0, 1, 2, 3]
    assert [row[:3] for row in four["scores"][:4]] == three["scores"]
    lines = [json.loads(line) for line in (four["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "eval/topic/accuracy" in line] == [0, 1, 2, 3, 4]
    (four["folder"] / "RUN_MANIFEST.json").unlink()
    shutil.rmtree(four["folder"] / "stage_04")
    resumed = small_run(f"adapter={adapter}", "+task@sequence.tasks.topic=builtin_topic")
    assert resumed["provenance"]["reused_stages"] == four["provenance"]["reused_stages"], "a resumed run still says so"
    assert comparable(resumed) == comparable(four)
    shutil.rmtree(tmp_path / "runs")
    from_scratch = small_run(f"adapter={adapter}", "+task@sequence.tasks.topic=builtin_topic")
    assert comparable(from_scratch) == comparable(four)


def test_a_run_by_other_code_is_named_and_not_reused(small_run, monkeypatch, caplog):
    first = small_run()
    caplog.set_level("WARNING", logger="curlora_lab")
    monkeypatch.setattr("curlora_lab.continual.identity.source_hash", lambda: "f" * 64)
    second = small_run()
    assert second["folder"] != first["folder"]
    assert first["name"] in caplog.text
    assert "made by other code" in caplog.text


def test_a_loss_that_is_not_finite_stops_with_the_batch_named(small_run, monkeypatch, tmp_path):
    real = SequenceClassification.batch_loss
    calls = []

    def explodes(task, batch):
        calls.append(batch)
        return real(task, batch) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(SequenceClassification, "batch_loss", explodes)
    with pytest.raises(RunError, match=r"stage 1, epoch 0, batch 1: loss is nan\. Rows: "):
        small_run()
    folder = next(tmp_path.glob("runs/*/*/results.json")).parent
    assert json.loads((folder / "results.json").read_text())["status"] == "failed"
    assert files.read_manifest(folder / "stopped") is not None
    assert (folder / "stopped" / "adapter" / "adapter_model.safetensors").is_file()


def test_best_epoch_is_chosen_on_rows_set_aside(small_run):
    record = small_run("callbacks=best", "epochs=3", "task=builtin_sentiment2", "lr=0.05")
    assert record["choose"]["sentiment2"] is not None
    assert record["provenance"]["data"]["sentiment2"]["rows"]["choose"] > 0


def test_continues_from_another_run(small_run):
    first = small_run("adapter=lora", "task=builtin_sentiment2")
    second = small_run("adapter=lora", "task=builtin_sentiment3", f"adapter.init_from={first['folder']}")
    assert second["probes"]["perplexity"]["builtin"][0] == first["probes"]["perplexity"]["builtin"][1]


def test_metrics_are_logged_by_stage(small_run):
    record = small_run()
    lines = [json.loads(line) for line in (record["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {0, 1, 2, 3}
    evaluations = [line for line in lines if any(key.startswith("eval/") for key in line)]
    assert [line["stage"] for line in evaluations] == [0, 1, 2, 3]


def test_predictions_are_compressed_reproducibly(small_run):
    record = small_run("task=builtin_sentiment2")
    path = record["folder"] / "stage_00" / "predictions" / "sentiment2.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert len(lines) == 48
    assert set(json.loads(lines[0])) == {"row", "label", "prediction", "log_probabilities"}


def _forbidden(*arguments):
    raise AssertionError("a finished run was trained again")


def _remember(stages, real):
    def start_stage(task, stage, hooks):
        stages.append(stage)
        return real(task, stage, hooks)

    return start_stage


def test_what_is_to_be_known_of_the_data_is_said_once(small_run, tmp_path, caplog):
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    for split, seed in (("train", 0), ("validation", 1)):
        rows = [*sentiment2("train", 60, seed), *sentiment2("train", 5, 2)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    caplog.set_level("INFO", logger="curlora_lab")
    record = small_run("task=sst2", f"data_dir={tmp_path / 'data'}", "train_rows=null")
    notes = record["provenance"]["data"]["sst2"]["notes"]
    assert any(note.startswith("leak: ") for note in notes)
    for note in notes:
        assert caplog.text.count(note) == 1, note
