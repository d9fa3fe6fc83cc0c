"""Bad configurations, each with what it is told: which key, what is wrong with it, what is allowed.

Hydra composes first and stops at its first fault; what composes is checked by ``config.validate``, which lists all.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hydra.errors import HydraException
from omegaconf import DictConfig

from curlora_lab import config
from curlora_lab.config import ConfigError

Compose = Callable[..., DictConfig]

#: Overrides -> what the message must say. One fault each.
FAULTS: dict[str, tuple[list[str], list[str]]] = {
    # keys that nothing takes
    "unknown key of the model": (
        ["model.pth=gpt2"],
        ["model.pth is unknown. Did you mean 'path'? Allowed: dtype, kind, name, path"],
    ),
    "unknown key of the adapter": (["adapter.flor=0.1"], ["adapter.flor is unknown. Did you mean 'floor'?"]),
    "unknown key of a PEFT adapter": (
        ["adapter=lora", "adapter.lora_dropuot=0.1"],
        ["adapter.lora_dropuot is unknown. Did you mean 'lora_dropout'?"],
    ),
    "unknown key of the data": (
        ["task=sst2", "task.data.colums=[sentence]"],
        ["task.data.colums is unknown. Did you mean 'columns'?"],
    ),
    "unknown key of the source": (
        ["task=sst2", "task.data.source.split={train: train}"],
        ["task.data.source.split is unknown. Did you mean 'splits'?"],
    ),
    "unknown key of the optimiser": (
        ["optimizer.weight_decy=0.1"],
        ["optimizer.weight_decy is unknown. Did you mean 'weight_decay'?"],
    ),
    "unknown key of the scheduler": (
        ["scheduler.warm_up=0.1"],
        ["scheduler.warm_up is unknown. Did you mean 'warmup'? Allowed: count, shape, warmup, warmup_steps"],
    ),
    "unknown key of the trainer": (
        ["trainer.presicion=32"],
        ["trainer.presicion is unknown. Did you mean 'precision'?"],
    ),
    "unknown key of a probe": (
        ["probe.probes.builtin.strid=2"],
        ["probe.probes.builtin.strid is unknown. Did you mean 'stride'?"],
    ),
    "unknown key of the sequence": (["sequence.task=[a]"], ["sequence.task is unknown. Did you mean 'tasks'?"]),
    "unknown key of the probe group": (["probe.window=7"], ["probe.window is unknown. Allowed: probes."]),
    "unknown key added at the root": (["+rnak=8"], ["rnak is unknown. Did you mean 'rank'?"]),
    "a root key removed": (["~num_workers"], ["num_workers was removed", "set num_workers=..."]),
    "a callback that was not chosen": (
        ["callbacks.early_stopping.patience=3"],
        ["callbacks.early_stopping has no _target_", "choose one of conf/callbacks"],
    ),
    "a logger that was not chosen": (["logger.somewhere.project=x"], ["logger.somewhere has no _target_"]),
    "a probe that was not chosen": (
        ["probe.probes.wikitext2.stride=3"],
        ["probe.probes.wikitext2 has no _target_", "probe=wikitext2 first"],
    ),
    # values of the wrong type or outside their range
    "text for a number": (["adapter.floor=foo"], ["adapter.floor='foo': must be a number."]),
    "a fraction for a count": (
        ["adapter=lora", "adapter.r=2.5"],
        ["adapter.r=2.5: must be a whole number."],
    ),
    "text for a switch": (["adapter.replacement=often"], ["adapter.replacement='often': must be true or false."]),
    "a number for a list": (["adapter.target_modules=3"], ["adapter.target_modules=3: must be", "a list", "text"]),
    "rank 0": (["rank=0"], ["rank=0 must be at least 1."]),
    "negative batch": (["batch_size=-4"], ["batch_size=-4 must be at least 1."]),
    "no rows": (["train_rows=0"], ["train_rows=0 must be at least 1."]),
    "negative learning rate": (["lr=-1"], ["lr=-1.0 must be a positive number", "adapter=none"]),
    "infinite head rate": (["head_lr=inf"], ["head_lr=inf must be a positive number"]),
    "alpha 0": (["alpha=0"], ["alpha=0.0 must be a number other than 0", "adapter=none"]),
    "negative epochs": (["epochs=-1"], ["epochs=-1 must not be negative."]),
    "negative seed": (["seed=-1"], ["seed=-1 must be a whole number from 0 to 4294967295"]),
    "no room for a text": (["max_length=2"], ["max_length=2 leaves no room", "at least 4"]),
    "a path for a name": (["name=a/b"], ["name='a/b' names a folder", "no slashes"]),
    "negative floor": (["adapter.floor=-1"], ["adapter", "floor=-1", "at least 0"]),
    "warm-up longer than the stage": (["scheduler.warmup=3"], ["scheduler.warmup=3", "between 0 and 1"]),
    "betas that AdamW refuses": (["optimizer.betas=[2,3]"], ["optimizer: Invalid beta parameter"]),
    "no accumulation": (
        ["trainer.accumulate_grad_batches=0"],
        ["trainer.accumulate_grad_batches=0 must be at least 1"],
    ),
    "more than all batches": (["trainer.limit_train_batches=1.5"], ["trainer", "1.5", "limit_train_batches"]),
    # words that are not known
    "unknown basis": (
        ["adapter.basis=invers_norm"],
        ["basis='invers_norm'", "choose one of inverse_norm, norm, uniform"],
    ),
    "unknown pooling": (
        ["model.pooling=lst_token"],
        ["model.pooling='lst_token': choose one of last_token, cls, mean, last_position", "Did you mean 'last_token'?"],
    ),
    "unknown dtype": (["model.dtype=float31"], ["model.dtype='float31': choose one of float32, bfloat16, float16"]),
    "unknown kind of model": (["model.kind=decoder"], ["model.kind='decoder': choose one of auto, causal, encoder"]),
    "unknown metric": (
        ["task=sst2", "task.metrics=[accuracy,acuracy]"],
        ["task.metrics: there is no metric 'acuracy'", "Did you mean 'accuracy'?", "mcc"],
    ),
    "unknown metric of language modelling": (
        ["task=tinystories", "task.metrics=[negative_nll,accuracy]"],
        ["task.metrics: there is no metric 'accuracy'", "Choose from negative_nll, perplexity, token_accuracy"],
    ),
    "a metric that falls in the score matrix": (
        ["task=tinystories", "task.metric=perplexity"],
        ["task.metric: there is no metric 'perplexity' to use there", "negative_nll"],
    ),
    "a metric that is not computed": (
        ["task=sst2", "task.metric=mcc"],
        ["task.metric='mcc' is not among task.metrics=['accuracy', 'balanced_accuracy']"],
    ),
    "unknown policy": (
        ["task=sst2", "task.data.bad_rows=ignore"],
        ["task.data.bad_rows='ignore': choose one of stop, skip"],
    ),
    "unknown subset": (
        ["task=sst2", "task.data.subset=last"],
        ["task.data.subset='last': choose one of random, first"],
    ),
    "unknown scheduler": (
        ["scheduler.shape=liner"],
        ["scheduler.shape='liner': choose one of constant, linear, cosine. Did you mean 'linear'?"],
    ),
    "unknown precision": (["trainer.precision=bf15"], ["trainer.precision='bf15': choose one of", "bf16-mixed"]),
    "unknown accelerator": (["trainer.accelerator=abacus"], ["trainer", "accelerator='abacus'", "cpu"]),
    "unknown strategy of the trainer": (["trainer.strategy=dpp"], ["trainer", "strategy='dpp'"]),
    "unknown initialisation of LoRA": (
        ["adapter=lora", "adapter.init_lora_weights=pisa"],
        ["adapter.init_lora_weights='pisa': choose one of gaussian", "Did you mean 'pissa'?"],
    ),
    "unknown documents": (
        ["probe.probes.builtin.documents=all"],
        ["probe.probes.builtin.documents='all': choose one of each, joined"],
    ),
    "unknown role": (
        ["task=sst2", "task.data.source.splits.tset=validation"],
        ["task.data", "'tset'", "train, test, choose"],
    ),
    # things to be built
    "unknown class": (
        ["optimizer._target_=torch.optim.AdamV"],
        ["optimizer._target_='torch.optim.AdamV': torch.optim has no 'AdamV'. Did you mean 'Adam"],
    ),
    "unknown package": (
        ["strategy._target_=no_such_package.Strategy"],
        ["strategy._target_=", "no module 'no_such_package'"],
    ),
    "unknown module": (
        ["strategy._target_=curlora_lab.continual.strategis.Strategy"],
        ["curlora_lab.continual has no 'strategis'. Did you mean 'strategies'?"],
    ),
    "not a class": (["strategy._target_=math.pi"], ["strategy._target_='math.pi': it can't be called"]),
    "an argument too few": (
        ["task=sst2", "~task.data.labels"],
        ["task.data.labels has no value", "set task.data.labels=..."],
    ),
    "missing value": (["model=local"], ["model.path has no value; set it with model.path=..."]),
    "missing value in a task": (["task=sst2", "task.data.columns=???"], ["task.data.columns has no value"]),
    "interpolation to nothing": (["adapter.r=${ranck}"], ["adapter.r: Interpolation key 'ranck' not found."]),
    # arguments that the run supplies
    "epochs by Lightning's name": (["trainer.max_epochs=3"], ["trainer.max_epochs has no effect here: set epochs."]),
    "a rate in the optimiser": (["optimizer.lr=1"], ["optimizer.lr has no effect here: set lr (adapter) and head_lr"]),
    "Lightning's callbacks": (["trainer.callbacks=[]"], ["trainer.callbacks has no effect here", "callbacks="]),
    # tasks
    "nothing to train on": (
        ["~sequence.tasks.paraphrase", "~sequence.tasks.sentiment2", "~sequence.tasks.sentiment3"],
        ["sequence.tasks is empty", "task=sst2"],
    ),
    "a word for a task": (
        ["+sequence.tasks.sst2=sst2"],
        ["sequence.tasks.sst2 is no task", "+task@sequence.tasks.sst2="],
    ),
    "the same task twice": (
        ["+task@sequence.tasks.again=builtin_sentiment2"],
        ["stands there 2 times", "sequence.tasks.<key>.name="],
    ),
    "a path for a task": (
        ["task=sst2", "task.name=glue/sst2"],
        ["'glue/sst2' can't be the name of a task", "no slashes"],
    ),
    "one label": (["task=sst2", "task.data.labels=[positive]"], ["task.data: labels is ['positive']", "at least two"]),
    "a template without its column": (
        ["task=mrpc", "task.data.template='{sentence1}'"],
        ["task.data: template has the fields ['sentence1']", "sentence2"],
    ),
    "the whole of train for choosing": (
        ["task=sst2", "task.data.choose_fraction=1.0"],
        ["task.data: choose_fraction is 1.0", "below 1"],
    ),
    "language modelling on an encoder": (
        ["model=roberta_base", "probe=none", "task=tinystories"],
        ["task needs the LM head, but model.kind=encoder has none", "choose a causal model"],
    ),
    "first token of a decoder": (["model.pooling=cls"], ["model.pooling=cls reads the first token", "last_token"]),
    # callbacks
    "an unknown thing to watch": (
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val_loss"],
        ["callbacks.early_stopping.monitor='val_loss' is not logged in every stage", "choose/score"],
    ),
    "a direction that does not exist": (
        ["callbacks=early_stopping", "callbacks.early_stopping.mode=up"],
        ["callbacks.early_stopping: `mode` can be min, max, got up"],
    ),
    "no rows for choosing": (
        ["callbacks=best", "task=sst2", "task.data.choose_fraction=0"],
        ["callbacks.best_of_stage needs rows set aside for choosing", "task.data.choose_fraction=0"],
    ),
    "choosing rows left out": (
        ["callbacks=best", "trainer.limit_val_batches=0"],
        ["callbacks.best_of_stage needs scores on the choosing rows", "trainer.limit_val_batches=0"],
    ),
    "choosing rows left out at equal score": (
        ["experiment=matched/plasticity", "trainer.limit_val_batches=0"],
        ["callbacks.stop_at_score needs scores on the choosing rows", "trainer.limit_val_batches=0"],
    ),
    # adapters
    "nothing to continue": (
        ["adapter=none", "adapter.init_from=."],
        ["adapter.init_from is set, but adapter=none has nothing to continue"],
    ),
    "nowhere to continue from": (
        ["adapter.init_from=no/such/run"],
        ["adapter.init_from='no/such/run': there is no such folder"],
    ),
    "replacement in a basis that draws nothing": (
        ["adapter.basis=deim", "adapter.replacement=true"],
        ["adapter", "replacement=True has no effect on basis='deim'"],
    ),
    "a compact file of a basis that can't be rebuilt": (
        ["adapter=lora_xs", "adapter.save_basis=false"],
        ["adapter", "save_basis=False needs a basis that can be rebuilt"],
    ),
    "two adapters": (["adapter=[lora,curlora]"], ["adapter.lora_alpha is unknown"]),
    # places
    "no such model folder": (
        ["model=local", "model.path=./no/model"],
        ["model.path='./no/model': there is no such folder"],
    ),
    "no model in the folder": (
        ["model=local", "model.path=."],
        ["model.path='.' holds no config.json, no *.safetensors"],
    ),
    "no such data folder": (["data_dir=no/such/data"], ["data_dir='no/such/data': there is no such folder"]),
    "a task that is not on the hub": (
        ["task=trace_fomc"],
        ["task.data.source: 'trace_fomc' is not on the hub", "data_dir=<folder with trace_fomc/>"],
    ),
    # probes
    "no window": (["probe.probes.builtin.window=0"], ["probe.probes.builtin", "window", "is 0; must be at least 1"]),
    "a bos that is neither": (["probe.probes.builtin.add_bos=maybe"], ["probe.probes.builtin.add_bos='maybe'", "auto"]),
}

#: What Hydra itself refuses while composing.
COMPOSITION: dict[str, tuple[list[str], list[str]]] = {
    "a fraction for the rank": (["rank=2.5"], ["rank=2.5", "Value '2.5'", "Integer"]),
    "text for epochs": (["epochs=x"], ["epochs=x", "Integer"]),
    "text for alpha": (["alpha=big"], ["alpha=big", "Float"]),
    "no rank": (["rank=null"], ["rank=null", "not Optional"]),
    "neither true nor false": (["fresh=perhaps"], ["fresh=perhaps", "bool"]),
    "unknown root key": (["rankk=8"], ["Could not override 'rankk'"]),
    "unknown adapter": (["adapter=lorra"], ["adapter/lorra", "Available options", "curlora", "vera"]),
    "unknown task in a sequence": (["+task@sequence.tasks.x=sst3"], ["task/sst3", "Available options", "sst2"]),
    "a sweep without -m": (["rank=8,16"], ["rank=8,16", "--multirun"]),
    "a key without a value": (["adapter.floor"], ["adapter.floor", "EQUAL"]),
    "swapping a task that is not there": (["task@sequence.tasks.no=sst2"], ["task@sequence.tasks.no", "Did you mean"]),
}

#: Keys that Hydra would refuse without a hint; checked before it composes.
MISTYPED: dict[str, list[str]] = {
    "rankk=8": ["rankk (in 'rankk=8') is unknown. Did you mean 'rank'?", "batch_size"],
    "adaptr=lora": ["adaptr (in 'adaptr=lora') is unknown. Did you mean 'adapter'?"],
    "+sequense.tasks.x=y": ["sequense", "Did you mean 'sequence'?"],
    "tasks@sequence.tasks.x=sst2": ["tasks", "Did you mean 'task'?"],
    "learning_rate=1": ["learning_rate", "Allowed:", "lr"],
}


def faults_of(compose: Compose, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.validate(compose(*overrides))
    first, *faults = str(caught.value).splitlines()
    assert first == f"The configuration has {len(faults)} fault{'s' if len(faults) > 1 else ''}:"
    return faults


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str, compose: Compose) -> None:
    overrides, parts = FAULTS[name]
    faults = faults_of(compose, *overrides)
    assert all(part in faults[0] for part in parts), faults
    assert len(faults) == 1 or name == "two adapters", faults


@pytest.mark.parametrize("name", COMPOSITION)
def test_composition_refuses(name: str, compose: Compose) -> None:
    overrides, parts = COMPOSITION[name]
    with pytest.raises(HydraException) as caught:
        compose(*overrides)
    text = f"{caught.value} {caught.value.__cause__}"
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("override", MISTYPED)
def test_mistyped_root_key(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.check_overrides(["seed=1", override])
    assert "1 fault:" in str(caught.value)
    assert all(part in str(caught.value) for part in MISTYPED[override]), str(caught.value)


def test_good_overrides_are_left_to_hydra() -> None:
    given = [
        "-m",
        "--cfg",
        "job",
        "rank=1,2",
        "adapter=lora",
        "+task@sequence.tasks.x=sst2",
        "~sequence.tasks.x",
        "hydra.verbose=true",
    ]
    config.check_overrides([*given, "hydra/job_logging=none", "debug=fdr", "experiment=null"])


def test_at_least_forty() -> None:
    assert len(FAULTS) + len(COMPOSITION) + len(MISTYPED) >= 100


def test_all_faults_at_once(compose: Compose, tmp_path: Path) -> None:
    found = faults_of(
        compose,
        "rank=0",
        "lr=-1",
        "model=local",
        f"model.path={tmp_path}",
        "model.pooling=first",
        "adapter.flor=1",
        "optimizer._target_=torch.optim.AdamV",
        "scheduler.shape=liner",
        "callbacks=early_stopping",
        "callbacks.early_stopping.monitor=loss",
        "sequence.tasks.paraphrase.metrics=[acuracy,accuracy]",
        "trainer.precision=bf15",
        "trainer.max_epochs=1",
        "adapter.init_from=${nowhere}",
        "+foo=1",
    )  # fmt: skip
    keys = ("rank", "lr", "model.path", "model.pooling", "adapter.flor", "optimizer._target_", "scheduler.shape", "foo")
    keys = (*keys, "callbacks.early_stopping.monitor", "sequence.tasks.paraphrase.metrics", "trainer.precision")
    for key in (*keys, "trainer.max_epochs", "adapter.init_from"):
        assert sum(fault.startswith(f"  - {key}") for fault in found) == 1, (key, found)
    assert len(found) == len(keys) + 2


def test_folder_of_a_task_is_missing(compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "sst").mkdir()
    (fault,) = faults_of(compose, "task=sst2", f"data_dir={tmp_path}")
    assert (
        f"task.data.source: data_dir={str(tmp_path)!r} has no folder 'sst2'. Did you mean 'sst'? It has sst." in fault
    )


def test_split_of_a_task_is_missing(compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl.gz").touch()
    (fault,) = faults_of(compose, "task=sst2", f"data_dir={tmp_path}")
    assert "task.data.source.splits.test='validation'" in fault
    assert "has no validation.jsonl.gz or the like; it has train.jsonl.gz." in fault


def test_text_of_a_probe_is_missing(compose: Compose, tmp_path: Path) -> None:
    (fault,) = faults_of(compose, "probe=tinystories", f"data_dir={tmp_path}")
    assert "probe.probes.tinystories.source: data_dir=" in fault
    assert "has no folder 'tinystories'" in fault


def test_output_dir_is_a_file(compose: Compose, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    file.touch()
    (fault,) = faults_of(compose, f"output_dir={file}")
    assert f"output_dir={str(file)!r} is a file; give a folder." in fault


def test_full_fine_tuning_of_rounded_weights(compose: Compose) -> None:
    faults = faults_of(compose, "model=mistral_7b_4bit", "adapter=full")
    assert any("adapter=full trains the weights that model.quantization rounds" in fault for fault in faults)


def test_faults_of_a_sequence_that_is_not_used_do_not_count(compose: Compose) -> None:
    plain = config.validate(compose("task=sst2", "sequence.tasks.paraphrase.metric=???"))
    assert list(config.tasks_of(plain)) == ["sst2"]


def test_validation_loads_nothing(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("validation loads no model, no tokenizer and no data")

    for loader in (transformers.AutoModelForCausalLM, transformers.AutoModel, transformers.AutoTokenizer):
        monkeypatch.setattr(loader, "from_pretrained", refuse)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr("curlora_lab.data.source.DataSource.read", refuse)
    assert config.validate(compose())["model"]["path"] == "builtin"
    assert config.validate(compose("sequence=paper", "model=mistral_7b", "probe=wikitext2"))


def test_validation_changes_nothing(compose: Compose) -> None:
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    first = config.validate(compose())
    assert config.validate(compose()) == first
    assert torch.are_deterministic_algorithms_enabled() is before


def test_any_argument_of_a_part_is_given_without_a_plus(compose: Compose) -> None:
    plain = config.validate(compose("optimizer.amsgrad=true", "trainer.detect_anomaly=true", "adapter.leverage_rank=3"))
    assert plain["optimizer"]["amsgrad"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rank=0", "adapter.flor=1"], ["The configuration has 2 faults", "rank=0 must be", "Did you mean 'floor'"]),
        (["epochs=x"], ["epochs=x", "Integer"]),
        (["rankk=8"], ["rankk"]),
    ],
)
def test_command_line(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "train.py"
    done = subprocess.run(
        [sys.executable, str(script), *arguments, f"output_dir={tmp_path / 'runs'}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in said
    assert all(part in said for part in parts), said
    assert not (tmp_path / "runs").exists()
