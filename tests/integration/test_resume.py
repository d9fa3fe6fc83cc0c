"""A run that was interrupted anywhere and started again leaves the same bytes as one that never was."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from curlora_lab.backbone import BUILTIN_FOLDER
from curlora_lab.config import RunError
from curlora_lab.continual.lock import is_held, lock, lock_file
from curlora_lab.continual.signals import Interrupted
from curlora_lab.continual.strategies import Strategy
from curlora_lab.continual.tensors import load_tensors
from curlora_lab.report import validate_record
from curlora_lab.tasks import SequenceClassification, TaskModule

TRAIN = Path(__file__).parents[2] / "train.py"

#: What makes any run small, as in conftest.
SMALL = ("trainer.accelerator=cpu", "probe.probes.builtin.source.sizes.test=3", "logger=none")

#: Two stages of 12 batches each, scored in a blink.
TINY = (
    "~sequence.tasks.sentiment3",
    "train_rows=24",
    "eval_rows=12",
    "batch_size=4",
    "epochs=2",
    "max_length=24",
    "probe.probes.builtin.source.sizes.test=3",
    "probe.probes.builtin.shift_positions=8",
    "trainer.log_every_n_steps=1",
)
SAME_BUT_FOR = ("cost", "provenance", "overrides", "config")


class Taken(BaseException):
    """The machine is gone."""


@pytest.fixture(scope="session")
def with_dropout(tmp_path_factory):
    """A small GPT-2 with dropout everywhere, as a local model."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_FOLDER)
    tokenizer.save_pretrained(folder)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)).save_pretrained(folder)
    return [f"model.path={folder}", "model=local", "model.name=dropout", "model.target_modules=[c_attn]"]


def everything(folder):
    """All that equal runs have equal, by file: bytes, but for times in records, scores and manifests."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix in {".safetensors", ".gz"} or name == "metrics.jsonl":
            found[name] = path.read_bytes()
        elif name == "results.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in SAME_BUT_FOR}
        elif path.name == "scores.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "cost"}
    return found


def strike(monkeypatch, owner, method, at, blow):
    """From its ``at``-th call on, ``method`` of ``owner`` suffers ``blow()`` before it does anything."""
    real, calls = getattr(owner, method), []

    def struck(*arguments, **options):
        calls.append(None)
        if len(calls) == at:
            blow()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, method, struck)


def taken():
    raise Taken


def done_in_pieces(small_run, monkeypatch, overrides, *, steps, most=40):
    """Interrupt a run every few batches until it is finished; returns its record and how often it was interrupted."""
    for times in range(most):
        with monkeypatch.context() as patch:
            strike(patch, TaskModule, "training_step", steps(times), taken)
            try:
                return small_run(*overrides), times
            except Taken:
                continue
    raise AssertionError(f"not finished after {most} starts: nothing is kept")


def whole_and_pieces(small_run, monkeypatch, tmp_path, overrides, **pieces):
    """The same run twice, once interrupted; both folders' content and how often."""
    whole = small_run(*overrides)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    resumed, times = done_in_pieces(small_run, monkeypatch, overrides, **pieces)
    folder = whole["folder"].relative_to(tmp_path / "runs")
    return everything(tmp_path / "whole" / folder), everything(resumed["folder"]), times


ADAMW, SGD = ("scheduler=linear",), ("optimizer=sgd", "optimizer.momentum=0.9", "scheduler=constant", "lr=0.05")
CASES = {
    "curlora": ("adapter=curlora", "rank=4", *ADAMW, "checkpoint.every_steps=1"),
    "curlora-accumulate-sgd": (
        "adapter=curlora",
        *SGD,
        "trainer.accumulate_grad_batches=3",
        "checkpoint.every_steps=1",
    ),
    "lora-dropout": ("adapter=lora", "adapter.lora_dropout=0.5", *ADAMW, "checkpoint.every_steps=2"),
    "pissa-accumulate": ("adapter=pissa", *ADAMW, "trainer.accumulate_grad_batches=3", "checkpoint.every_steps=1"),
    "dora-best": ("adapter=dora", *ADAMW, "callbacks=best", "checkpoint.every_steps=2"),
    "vera-sgd": ("adapter=vera", *SGD, "checkpoint.every_steps=3"),
    "full-clipped": ("adapter=full", *ADAMW, "trainer.gradient_clip_val=0.1", "checkpoint.every_steps=2"),
    "none-early-stopping": ("adapter=none", *ADAMW, "callbacks=early_stopping", "epochs=4", "checkpoint.every_steps=2"),
    "curlora-workers": ("adapter=curlora", *ADAMW, "num_workers=1", "checkpoint.every_steps=2"),
    "validated-often": ("adapter=lora", "trainer.val_check_interval=2", "callbacks=best", "checkpoint.every_steps=1"),
}


def test_interrupted_in_both_stages_ends_with_the_same_bytes(small_run, monkeypatch, tmp_path):
    overrides = [*TINY, "adapter=lora", "adapter.lora_dropout=0.5", "checkpoint.every_steps=2", "callbacks=best"]
    whole, pieces, times = whole_and_pieces(small_run, monkeypatch, tmp_path, overrides, steps=lambda time: 11)
    assert times >= 2
    assert pieces == whole


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_interrupted_anywhere_ends_with_the_same_bytes(small_run, monkeypatch, tmp_path, case):
    whole, pieces, times = whole_and_pieces(
        small_run, monkeypatch, tmp_path, [*TINY, *CASES[case]], steps=lambda time: 4 + time % 3
    )
    assert times >= 3
    assert pieces.keys() == whole.keys()
    assert [name for name in whole if pieces[name] != whole[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["curlora", "full"])
def test_dropout_in_the_model(small_run, monkeypatch, tmp_path, with_dropout, adapter):
    overrides = [*TINY, *with_dropout, f"adapter={adapter}", "rank=4", "trainer.accumulate_grad_batches=2"]
    whole, pieces, times = whole_and_pieces(
        small_run, monkeypatch, tmp_path, [*overrides, "checkpoint.every_steps=1"], steps=lambda time: 5
    )
    assert times >= 3
    assert pieces == whole


@pytest.mark.slow
def test_taken_while_it_is_scored_only_scores_again(small_run, monkeypatch, tmp_path):
    overrides = [*TINY]
    whole = small_run(*overrides)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    for batch in (1, 4, 4):  # while row 0, the first stage and the second one are scored
        with monkeypatch.context() as patch:
            strike(patch, TaskModule, "test_step", batch, taken)
            with pytest.raises(Taken):
                small_run(*overrides)
    assert (next(tmp_path.glob("runs/*/*/checkpoints")) / "step_12").is_dir()
    with monkeypatch.context() as patch:
        strike(patch, TaskModule, "training_step", 1, taken)
        resumed = small_run(*overrides)  # everything is trained already
    folder = whole["folder"].relative_to(tmp_path / "runs")
    assert everything(resumed["folder"]) == everything(tmp_path / "whole" / folder)
    assert not (resumed["folder"] / "checkpoints").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(small_run, monkeypatch, tmp_path, caplog):
    overrides = [*TINY, "checkpoint.every_steps=2"]
    small_run(*overrides)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    with monkeypatch.context() as patch:
        strike(patch, TaskModule, "training_step", 8, taken)
        with pytest.raises(Taken):
            small_run(*overrides)
    checkpoints = next(tmp_path.glob("runs/*/*/checkpoints"))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_4", "step_6"]
    tensors = checkpoints / "step_6" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-5] ^= 4
    tensors.write_bytes(content)
    trained = []
    real = TaskModule.training_step
    monkeypatch.setattr(TaskModule, "training_step", lambda *a: trained.append(a[0].stage) or real(*a))
    caplog.set_level("WARNING", logger="curlora_lab")
    resumed = small_run(*overrides)
    assert f"{tensors}: expected sha256" in caplog.text
    assert trained.count(1) == 12 - 4
    assert everything(resumed["folder"]) == everything(next(tmp_path.glob("whole/*/tiny*")))


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_keeps_the_step_and_the_same_command_goes_on(small_run, monkeypatch, tmp_path, number):
    overrides = [*TINY, "task=builtin_sentiment2"][1:]
    small_run(*overrides)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    with monkeypatch.context() as patch:
        strike(patch, TaskModule, "training_step", 5, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted) as caught:
            small_run(*overrides)
    assert caught.value.code == (130 if number == signal.SIGINT else 143)
    folder = next(tmp_path.glob("runs/*/*/results.json")).parent
    record = json.loads((folder / "results.json").read_text())
    assert record["status"] == "interrupted"
    assert signal.Signals(number).name in record["message"]
    validate_record(record)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_5"]
    trained = []
    real = TaskModule.training_step
    monkeypatch.setattr(TaskModule, "training_step", lambda *a: trained.append(a[2]) or real(*a))
    resumed = small_run(*overrides)
    assert len(trained) == 12 - 5
    assert everything(resumed["folder"]) == everything(next(tmp_path.glob("whole/*/tiny*")))


def test_what_a_strategy_spent_before_a_run_was_taken_is_in_its_cost(small_run, monkeypatch, tmp_path):
    overrides = [*TINY[1:], "task=builtin_sentiment2", "checkpoint.every_steps=2"]
    with monkeypatch.context() as patch:
        patch.setattr(Strategy, "on_gradients", lambda self, task: time.sleep(0.2))
        strike(patch, TaskModule, "training_step", 6, taken)
        with pytest.raises(Taken):
            small_run(*overrides)
    state = next(tmp_path.glob("runs/*/*/checkpoints/step_4/state.json"))
    kept = json.loads(state.read_text())["state"]["strategy"]["seconds"]
    assert kept >= 4 * 0.2
    assert small_run(*overrides)["cost"]["strategy"]["seconds"] > kept


def test_a_signal_while_scoring_ends_at_once(small_run, monkeypatch, tmp_path):
    strike(monkeypatch, TaskModule, "test_step", 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        small_run(*TINY[1:], "task=builtin_sentiment2")
    assert json.loads(next(tmp_path.glob("runs/*/*/results.json")).read_text())["status"] == "interrupted"
    assert not list(tmp_path.glob("runs/*/*/stage_00"))


def test_a_killed_run_says_running_and_nobody_holds_its_lock(small_run, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        strike(patch, TaskModule, "test_step", 1, lambda: os._exit(9))
        child = os.fork()
        if child == 0:
            small_run(*TINY[1:], "task=builtin_sentiment2")
        os.waitpid(child, 0)
    folder = next(tmp_path.glob("runs/*/*/results.json")).parent
    assert json.loads((folder / "results.json").read_text())["status"] == "running"
    assert not is_held(lock_file(folder))
    with lock(lock_file(folder), run=folder):
        assert is_held(lock_file(folder))
    again = small_run(*TINY[1:], "task=builtin_sentiment2")
    assert (again["folder"], again["status"]) == (folder, "finished")


# -- numbers that are not finite -----------------------------------------------------------------------------------------


def spoil(monkeypatch, *, at, what, value=float("nan")):
    """Let the loss, or the weights after the step, of one place (stage, epoch, batch) be not finite."""
    real_loss, real_step = TaskModule.training_step, L.LightningModule.optimizer_step

    def loss(task, batch, batch_idx):
        found = real_loss(task, batch, batch_idx)
        here = (task.stage, task.current_epoch, batch_idx) == at
        if here and what == "gradient":
            handle = next(p for p in task.backbone.parameters() if p.requires_grad).register_hook(
                lambda gradient: (handle.remove(), gradient * value)[1]
            )
        return found

    def step(task, epoch, batch_idx, optimizer, closure=None):
        real_step(task, epoch, batch_idx, optimizer, closure)
        if (task.stage, epoch, batch_idx) == at and (epoch, batch_idx) not in task.guard.left_out:
            next(p for p in task.backbone.parameters() if p.requires_grad).data[0, 0] = value

    monkeypatch.setattr(TaskModule, "training_step", loss)
    if what == "weights":
        monkeypatch.setattr(L.LightningModule, "optimizer_step", step)
    if what == "loss":
        inner = SequenceClassification.batch_loss

        def batch_loss(task, batch):
            position = (task.stage, task.current_epoch, task._last_batch[1])
            return inner(task, batch) * (value if position == at else 1.0)

        monkeypatch.setattr(SequenceClassification, "batch_loss", batch_loss)


@pytest.mark.parametrize(
    "what", ["weights", *(pytest.param(what, marks=pytest.mark.slow) for what in ("loss", "gradient"))]
)
def test_what_is_not_finite_stops_within_one_step_and_names_the_rows(small_run, monkeypatch, tmp_path, what):
    spoil(monkeypatch, at=(1, 1, 2), what=what)
    with pytest.raises(RunError, match=rf"stage 1, epoch 1, batch 2: .*{what}.*(\n|.)*Rows: "):
        small_run(*TINY[1:], "task=builtin_sentiment2", "checkpoint.every_steps=1")
    folder = next(tmp_path.glob("runs/*/*/results.json")).parent
    assert json.loads((folder / "results.json").read_text())["status"] == "failed"
    for path in folder.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_tensors(path).values() if tensor.is_floating_point())
    assert (folder / "checkpoints" / "step_8").is_dir()
    assert (folder / "stopped").is_dir() == (what != "weights")


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ("rollback", "loss"),
        pytest.param("skip", "gradient", marks=pytest.mark.slow),
        pytest.param("skip", "loss", marks=pytest.mark.slow),
        pytest.param("rollback", "gradient", marks=pytest.mark.slow),
    ],
)
def test_a_step_is_left_out_counted_and_said(small_run, monkeypatch, policy, what):
    spoil(monkeypatch, at=(1, 1, 2), what=what)
    overrides = [*TINY[1:], "task=builtin_sentiment2", f"on_nonfinite={policy}", "checkpoint.every_steps=3"]
    record = small_run(*overrides)
    found = [warning for warning in record["warnings"] if warning["code"] == "steps_left_out"]
    assert found == [
        {
            "code": "steps_left_out",
            "task": "sentiment2",
            "stage": 1,
            "message": "1 optimiser steps of sentiment2 were left out, because their numbers were not finite: epoch 1, batch 2",
        }
    ]
    lines = [json.loads(line) for line in (record["folder"] / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/sentiment2/loss" in line]
    assert steps == list(range(12)), "a step that was gone through again is logged once"


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_with_a_step_left_out_is_resumed_exactly(small_run, monkeypatch, tmp_path, policy):
    spoil(monkeypatch, at=(1, 1, 2), what="gradient")
    overrides = [*TINY[1:], "task=builtin_sentiment2", f"on_nonfinite={policy}", "checkpoint.every_steps=3"]
    small_run(*overrides)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    resumed, times = done_in_pieces(small_run, monkeypatch, overrides, steps=lambda time: 6)
    assert times > 1
    assert everything(resumed["folder"]) == everything(next(tmp_path.glob("whole/*/tiny*")))


@pytest.mark.slow
def test_rolling_back_mends_weights_that_a_step_has_spoilt(small_run, monkeypatch):
    spoil(monkeypatch, at=(1, 1, 2), what="weights")
    overrides = [*TINY[1:], "task=builtin_sentiment2", "checkpoint.every_steps=3"]
    with pytest.raises(RunError, match="is not finite after the step"):
        small_run(*overrides, "on_nonfinite=skip")
    record = small_run(*overrides, "on_nonfinite=rollback")
    assert record["status"] == "finished"
    assert [w["code"] for w in record["warnings"] if w["code"] == "steps_left_out"] == ["steps_left_out"]


@pytest.mark.slow
def test_not_more_steps_are_left_out_than_allowed(small_run, monkeypatch):
    real = SequenceClassification.batch_loss
    monkeypatch.setattr(SequenceClassification, "batch_loss", lambda *a: real(*a) * math.nan)
    for policy in ("skip", "rollback"):
        with pytest.raises(RunError, match="3 steps of this stage were left out before"):
            small_run(*TINY[1:], "task=builtin_sentiment2", f"on_nonfinite={policy}", "nonfinite_limit=3")


@pytest.mark.slow
def test_another_policy_reuses_the_stages_that_had_no_such_step(small_run, monkeypatch):
    spoil(monkeypatch, at=(2, 0, 3), what="loss")
    with pytest.raises(RunError, match="on_nonfinite=skip"):
        small_run(*TINY)
    record = small_run(*TINY, "on_nonfinite=skip")
    assert [entry["stage"] for entry in record["provenance"]["reused_stages"]] == [0, 1]


# -- memory and room -----------------------------------------------------------------------------------------------------


def test_too_little_memory_says_what_helps(small_run, monkeypatch):
    def refused():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")

    overrides = [*TINY[1:], "task=builtin_sentiment2", "batch_size=6", "trainer.accumulate_grad_batches=2"]
    with monkeypatch.context() as patch:
        strike(patch, torch.Tensor, "backward", 2, refused)
        with pytest.raises(RunError) as caught:
            small_run(*overrides)
    text = str(caught.value)
    assert "Out of memory in training of task 'sentiment2', stage 1: a batch of 6 rows x" in text
    assert "batch_size=3 trainer.accumulate_grad_batches=4 (the same effective batch of 12)" in text
    assert "model.dtype=bfloat16" in text
    with monkeypatch.context() as patch:
        strike(patch, SequenceClassification, "predict", 2, refused)
        with pytest.raises(RunError, match=r"in evaluation of task 'sentiment2'.*eval_batch_size=32"):
            small_run(*overrides)


def test_a_full_disk_ends_the_run_with_path_and_bytes_and_the_same_command_goes_on(small_run, monkeypatch, tmp_path):
    overrides = [*TINY[1:], "task=builtin_sentiment2", "checkpoint.every_steps=2"]
    whole = small_run(*overrides)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 40:
            raise OSError(28, "No space left on device")
        return real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"could not be written \(No space left on device\)"):
            small_run(*overrides)
    folder = next(tmp_path.glob("runs/*/tiny*"))
    assert not list(folder.rglob("*.tmp"))
    resumed = small_run(*overrides)
    assert everything(resumed["folder"]) == everything(
        tmp_path / "whole" / whole["folder"].relative_to(tmp_path / "runs")
    )


# -- determinism ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_data_workers_do_not_change_a_byte(small_run, tmp_path):
    alone = small_run(*TINY)
    shutil.move(tmp_path / "runs", tmp_path / "alone")
    helped = small_run(*TINY, "num_workers=2")
    assert helped["name"] == alone["name"]
    assert everything(helped["folder"]) == everything(next(tmp_path.glob("alone/*/tiny*")))


# -- whole processes -----------------------------------------------------------------------------------------------------


def command(tmp_path, *overrides):
    return [sys.executable, str(TRAIN), f"output_dir={tmp_path / 'runs'}", *SMALL, *TINY[1:], *overrides]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_line_ends_with_the_code_that_is_the_custom(tmp_path, number, code):
    overrides = ["task=builtin_sentiment2", "epochs=200", "checkpoint.every_steps=5"]
    process = subprocess.Popen(command(tmp_path, *overrides), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/checkpoints/step_*")) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    assert "Traceback" not in out + err
    assert "the same command goes on from there" in out + err
    folder = next(tmp_path.glob("runs/*/*/results.json")).parent
    assert json.loads((folder / "results.json").read_text())["status"] == "interrupted"
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_that_train_together_go_on_with_the_same_bytes(tmp_path):
    overrides = ["task=builtin_sentiment2", "trainer=ddp_cpu", "checkpoint.every_steps=2", "epochs=3"]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    subprocess.run(command(whole, *overrides), check=True, capture_output=True, timeout=300)
    code = (
        "import os, sys; from curlora_lab.tasks import TaskModule; from curlora_lab.cli import main; calls = []\n"
        "real = TaskModule.training_step\n"
        "def step(*a):\n"
        "    calls.append(0)\n"
        "    if len(calls) == 8: os._exit(9)\n"
        "    return real(*a)\n"
        "TaskModule.training_step = step; main()\n"
    )
    script = tmp_path / "killed.py"
    script.write_text(code)
    line = command(pieces, *overrides)
    assert subprocess.run([line[0], str(script), *line[2:]], capture_output=True, timeout=300).returncode != 0
    assert list(pieces.glob("runs/*/*/checkpoints/step_*"))
    subprocess.run(line, check=True, capture_output=True, timeout=300)
    assert everything(next(pieces.glob("runs/*/tiny*"))) == everything(next(whole.glob("runs/*/tiny*")))
