"""What a model says that is no number is never scored, and what a strategy keeps of it never stored."""

import json

import pytest
import torch

from curlora_lab import run as runner
from curlora_lab.adapters.attach import find_adapter
from curlora_lab.config import RunError
from curlora_lab.continual.joint import JointTask
from curlora_lab.continual.strategies import Ewc, Mas
from curlora_lab.tasks import TaskModule

#: A task for each head, with what makes it quick.
HEADS = {
    "classification": ("task=builtin_sentiment2",),
    "regression": ("task=builtin_similarity",),
    "words": ("task=builtin_words",),
    "questions": ("task=builtin_questions",),
    "label words": ("task=builtin_sentiment2", "heads=label_words"),
    "instructions": ("task=builtin_instructions",),
    "language model": ("task=wiki_demo", "task.data.documents=each"),
}
FEW = ("train_rows=16", "eval_rows=8", "batch_size=8", "trainer.log_every_n_steps=1")


@pytest.fixture
def documents(tmp_path):
    """Text for language modelling, as a data folder."""
    (tmp_path / "data" / "wiki_demo").mkdir(parents=True)
    lines = [json.dumps({"text": f"the dog number {number} saw a cat and slept"}) for number in range(40)]
    (tmp_path / "data" / "wiki_demo" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def spoilt(monkeypatch, *, row, after=0):
    """Let the model read a NaN in one row of each batch, from the ``after``-th batch that it reads; gives the run's parts."""
    real, built, calls = runner.build, [], []

    def build(config):
        parts = real(config)

        def hook(module, inputs, output):
            calls.append(0)
            if len(calls) > after and len(output) > row:
                output = output.clone()
                output[row] = float("nan")
            return output

        parts.backbone.transformers_model.get_input_embeddings().register_forward_hook(hook)
        built.append(parts)
        return parts

    monkeypatch.setattr(runner, "build", build)
    return built


@pytest.mark.parametrize("head", HEADS)
def test_a_row_that_is_no_number_ends_the_run_with_its_name(small_run, monkeypatch, tmp_path, documents, head):
    built = spoilt(monkeypatch, row=1)
    more = (f"data_dir={documents}",) if head == "language model" else ()
    with pytest.raises(RunError, match="is no number") as caught:
        small_run(*FEW, *HEADS[head], *more)
    (task,) = built[0].tasks
    assert (
        f"Task {task.name!r}, stage 0, test rows: what the model says of row {task.data.row_ids('test')[1]!r}"
        in str(caught.value)
    )
    folder = next(tmp_path.glob("runs/*/*/results.json")).parent
    record = json.loads((folder / "results.json").read_text())
    assert record["status"] == "failed"
    assert all(score is None for row in record["scores"] for score in row)
    assert not (folder / "stage_00").exists()


@pytest.mark.slow
def test_it_is_a_number_again_and_the_same_command_goes_on(small_run, monkeypatch, tmp_path):
    given = (*FEW, "task=builtin_sentiment2", "epochs=2", "on_nonfinite=rollback", "checkpoint.every_steps=1")
    with monkeypatch.context() as patch:
        spoilt(patch, row=0, after=3)  # test, and two training batches; the choosing rows are not to be scored
        real = TaskModule.training_step
        patch.setattr(TaskModule, "training_step", lambda *a: torch.nan_to_num(real(*a)) * 0)
        patch.setattr(TaskModule, "on_before_optimizer_step", lambda task, optimizer: optimizer.zero_grad())
        with pytest.raises(RunError, match="stage 1, choose rows: what the model says of row"):
            small_run(*given)
    assert small_run(*given)["status"] == "finished"


def test_tasks_that_are_trained_together_name_the_task_too(small_run, monkeypatch):
    real = JointTask.predict

    def predict(task, batch):
        records = real(task, batch)
        records[2]["log_probabilities"][0] = float("nan")
        return records

    monkeypatch.setattr(JointTask, "predict", predict)
    with pytest.raises(RunError, match="Task 'joint', stage 1, choose rows: what the model says of row 'paraphrase:"):
        small_run(*FEW, "scenario=joint", "~sequence.tasks.sentiment3")


def test_a_score_that_is_no_number_ends_the_run_too(small_run, monkeypatch):
    monkeypatch.setattr(
        "curlora_lab.tasks.SequenceClassification.score", lambda task, records: {"accuracy": float("nan")}
    )
    with pytest.raises(RunError, match=r"Task 'sentiment2', stage 0, test rows: the score accuracy is nan"):
        small_run(*FEW, "task=builtin_sentiment2")


def test_a_probe_that_is_no_number_is_named(small_run, monkeypatch):
    real = runner.Stages

    def stages(**arguments):
        made = real(**arguments)
        measure = made._measure.measure

        def measured(stage):
            row = measure(stage)
            row.probes["builtin"]["perplexity"] = float("inf")
            return row

        made._measure.measure = measured
        return made

    monkeypatch.setattr(runner, "Stages", stages)
    with pytest.raises(RunError, match=r"measured before any training is not finite: probes.builtin.perplexity is inf"):
        small_run(*FEW, "task=builtin_sentiment2")


@pytest.mark.parametrize(("strategy", "kind"), [("ewc", Ewc), pytest.param("mas", Mas, marks=pytest.mark.slow)])
def test_an_importance_that_overflowed_is_not_stored(small_run, monkeypatch, tmp_path, strategy, kind):
    real = kind.after_stage

    def after_stage(self, task, *, stage):
        real(self, task, stage=stage)
        next(iter(next(iter(self._pulls.values())).importance.values())).view(-1)[0] = float("inf")

    monkeypatch.setattr(kind, "after_stage", after_stage)
    with pytest.raises(RunError, match=rf"(?i)stage 1 \(task 'paraphrase'\): what strategy {strategy} keeps of it"):
        small_run(*FEW, f"strategy={strategy}", "strategy.rows=4", "~sequence.tasks.sentiment3")
    folder = next(tmp_path.glob("runs/*/*/results.json")).parent
    assert not (folder / "stage_01").exists()
    assert find_adapter(folder / "stopped" / "adapter").is_dir(), "the weights are numbers, and kept to look at"


@pytest.mark.slow
def test_a_class_that_is_ruled_out_may_be_kept(small_run):
    given = ("strategy=derpp", "strategy.rows_per_task=8", "strategy.replay_rows=4", "task=builtin_questions")
    assert small_run(*FEW, *given)["status"] == "finished"
