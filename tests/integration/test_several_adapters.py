"""Runs with several adapters after they have ended: scored again, exported, reused by a longer sequence, continued from."""

import json
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch

from curlora_lab.config import ConfigError
from curlora_lab.reopen import open_run
from curlora_lab.tasks import SequenceClassification

SCRIPTS = Path(__file__).parents[2] / "scripts"
TWO = (
    "~sequence.tasks.sentiment3",
    "sequence.name=two",
    "train_rows=32",
    "eval_rows=16",
    "batch_size=8",
    "lr=0.02",
    "probe.probes.builtin.source.sizes.test=8",
    "probe.probes.builtin.shift_positions=32",
)
KINDS = [("olora", "lora"), ("nlora", "curlora"), ("per_task", "lora")]


@pytest.fixture
def script(monkeypatch):
    """Run a script of the repository in this process: ``script("export", ...)``."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def call(name, *arguments):
        module = __import__(name)
        return module.main([str(argument) for argument in arguments])

    yield call
    for name in ("export", "evaluate"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("strategy", "adapter"), KINDS)
def test_it_can_be_scored_again_and_exported(small_run, script, tmp_path, capsys, strategy, adapter):
    folder = small_run(*TWO, f"adapter={adapter}", f"strategy={strategy}")["folder"]
    assert (folder / "stage_02" / "adapter" / "stage_2" / "adapter_model.safetensors").is_file()
    assert not (folder / "stage_01" / "adapter" / "stage_2").exists()
    assert script("evaluate", folder) == 0
    assert script("evaluate", folder, "--stage", "1") == 0
    assert capsys.readouterr().out.count("all are those of the run, bit for bit") == 4
    out = tmp_path / "lora"
    if strategy == "per_task":
        assert script("export", folder, "--to", "lora", "--out", out) == 2
        assert "name one with --task: paraphrase, sentiment2" in capsys.readouterr().err
        assert script("export", folder, "--to", "lora", "--out", out, "--task", "paraphrase") == 0
        assert [file.name for file in (out / "heads").iterdir()] == ["paraphrase.safetensors"]
    else:
        assert script("export", folder, "--to", "lora", "--out", out) == 0
    run = open_run(folder)
    run.switch_to(run.task("paraphrase"))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = run.backbone.lm_logits(ids, torch.ones_like(ids))
        base = open_run(folder).backbone
        with base.adapter_disabled():
            untouched = base.lm_logits(ids, torch.ones_like(ids))
        plain = base.model.unload()
        exported = peft.PeftModel.from_pretrained(plain, str(out))
        found = exported(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, untouched, atol=1e-3), "the adapter does something"
    if strategy == "olora":
        assert json.loads((out / "adapter_config.json").read_text())["r"] == 32
        assert script("export", folder, "--to", "merged", "--out", tmp_path / "merged") == 0


def test_nothing_is_forgotten_with_an_adapter_for_each_task(small_run):
    record = small_run(*TWO, "adapter=curlora", "strategy=per_task")
    assert record["continual"]["forgetting"] == 0.0
    one = [stage["adapter_parameters"] for stage in record["cost"]["strategy"]["stages"]]
    assert one == [3072, 3072, 2 * 3072], "before any training, and after each stage"
    assert record["parameters"]["adapter"] == 2 * 3072
    assert record["parameters"]["trainable"] == 2 * 3072 + record["parameters"]["head"]
    first = [record["folder"] / f"stage_0{stage}" / "predictions" / "paraphrase.jsonl.gz" for stage in (1, 2)]
    assert first[0].read_bytes() == first[1].read_bytes()


@pytest.mark.parametrize(("strategy", "adapter"), [KINDS[0], pytest.param(*KINDS[2], marks=pytest.mark.slow)])
def test_a_longer_sequence_reuses_its_stages(small_run, monkeypatch, tmp_path, strategy, adapter):
    given = (*TWO, f"adapter={adapter}", f"strategy={strategy}")
    longer = (*given, "+task@sequence.tasks.topic=builtin_topic")
    small_run(*given)
    trained, real = [], SequenceClassification.start_stage
    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassification, "start_stage", lambda *a: (trained.append(a[1]), real(*a))[1])
        reused = small_run(*longer)
    assert trained == [3]
    shutil.rmtree(tmp_path / "runs")
    whole = small_run(*longer)
    same = ("scores", "metrics", "continual", "probes", "shift", "warnings")
    assert {key: reused[key] for key in same} == {key: whole[key] for key in same}


def test_to_continue_from_several_adapters_one_must_be_named(small_run):
    folder = small_run(*TWO, "adapter=lora", "strategy=olora")["folder"]
    with pytest.raises(ConfigError, match=r"has 2 adapters, one for each stage \(default, stage_2\)"):
        small_run("adapter=lora", "task=builtin_topic", f"adapter.init_from={folder}")
    one = folder / "stage_02" / "adapter" / "stage_2"
    assert small_run("adapter=lora", "task=builtin_topic", f"adapter.init_from={one}")["status"] == "finished"
