"""Every strategy with two kinds of adapter through two stages, what it costs, and that an interrupted run ends as a whole one."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from curlora_lab.config import ConfigError
from curlora_lab.report import validate_record
from curlora_lab.tasks import SequenceClassification

#: Two stages of seconds.
TWO = (
    "~sequence.tasks.sentiment3",
    "sequence.name=two",
    "train_rows=24",
    "eval_rows=16",
    "batch_size=8",
    "trainer.log_every_n_steps=1",
    "probe.probes.builtin.source.sizes.test=8",
    "probe.probes.builtin.shift_positions=32",
)
SAME_BUT_FOR = ("cost", "provenance", "overrides", "folder", "name", "config")

#: Options of ``strategy`` with what makes them quick, and whether they keep something for later stages.
STRATEGIES = {
    "ewc": (("strategy.rows=8",), True),
    "mas": (("strategy.rows=8",), True),
    "lwf": ((), True),
    "agem": (("strategy.rows_per_task=8", "strategy.memory_batch=4"), True),
    "anchor": (("strategy.text.source.sizes.train=16", "strategy.batch_size=2"), False),
    "replay": (("strategy.rows_per_task=8", "strategy.replay_rows=4"), True),
    "derpp": (("strategy.rows_per_task=8", "strategy.replay_rows=4"), True),
    "olora": (("strategy.lambda2=0.01",), True),
    "nlora": ((), True),
    "per_task": ((), True),
}
#: What a strategy refuses, and in which words: adapters of which there can't be several, heads over the whole vocabulary.
SEVERAL = {"full": "full or none", "none": "full or none", "pissa": "changes the base weight"}
REFUSED = {("olora", "curlora"): "CURLORA"} | {
    (strategy, adapter): words for strategy in ("olora", "nlora", "per_task") for adapter, words in SEVERAL.items()
}


#: Five heads in seconds; DER++ takes no task that the LM head answers.
MIXED = ("sequence=mixed_demo", "rank=4", "train_rows=16", "eval_rows=8", *TWO[4:])
LEFT_OUT = {"derpp": ("~sequence.tasks.instructions",)}


def pairs(*adapters):
    """Each strategy with each adapter that it takes."""
    return [
        (strategy, adapter) for strategy in STRATEGIES for adapter in adapters if (strategy, adapter) not in REFUSED
    ]


def overrides(strategy, adapter, *more):
    return [*TWO, f"adapter={adapter}", f"strategy={strategy}", *STRATEGIES[strategy][0], *more]


def comparable(record):
    return {key: value for key, value in record.items() if key not in SAME_BUT_FOR}


@pytest.mark.parametrize(("strategy", "adapter"), pairs("curlora", "lora"))
def test_two_stages(small_run, strategy, adapter):
    record = small_run(*overrides(strategy, adapter))
    folder = record.pop("folder")
    validate_record(record)
    assert record["status"] == "finished"
    assert all(score is not None for row in record["scores"] for score in row)
    cost = record["cost"]["strategy"]
    assert len(cost["stages"]) == 3
    assert cost["seconds"] == pytest.approx(sum(stage["seconds"] for stage in cost["stages"]))
    assert cost["seconds"] >= cost["outside_seconds"] > 0
    assert cost["stored_bytes"] > 0
    state = folder / "stage_01" / "strategy.safetensors"
    assert state.is_file() == STRATEGIES[strategy][1]
    if strategy in ("agem", "replay", "derpp"):
        assert cost["stored_rows"] == 16
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("train/sentiment2/penalty" in line for line in lines) == (strategy not in ("agem", "per_task"))


@pytest.mark.parametrize(
    "strategy",
    [name if name in ("ewc", "olora") else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES],
)
def test_interrupted_between_stages_it_ends_as_a_whole_run(small_run, monkeypatch, tmp_path, strategy):
    given = overrides(strategy, "lora", "trainer.accumulate_grad_batches=2", "callbacks=best")
    whole = small_run(*given)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    real = SequenceClassification.training_step

    def fails_in_stage_2(task, batch, batch_idx):
        if task.stage == 2 and batch_idx == 1:
            raise OSError("the machine was taken away")
        return real(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassification, "training_step", fails_in_stage_2)
        with pytest.raises(OSError, match="taken away"):
            small_run(*given)
    again = small_run(*given)
    assert comparable(again) == comparable(whole)
    for file in (tmp_path / "whole").rglob("stage_02/**/*.safetensors"):
        twin = tmp_path / "runs" / file.relative_to(tmp_path / "whole")
        one, other = load_file(file), load_file(twin)
        assert one.keys() == other.keys()
        assert all((one[name] == other[name]).all() for name in one), file.name


@pytest.mark.parametrize(("strategy", "adapter"), pairs("full", "pissa", "none"))
@pytest.mark.slow  # the cross of all strategies with further adapters: half a minute
def test_other_adapters(small_run, strategy, adapter):
    record = small_run(*overrides(strategy, adapter))
    validate_record({key: value for key, value in record.items() if key != "folder"})
    assert record["status"] == "finished"


@pytest.mark.parametrize(
    ("strategy", "adapter", "more"),
    [
        ("per_task", "curlora", "strategy.start=previous"),
        pytest.param("replay", "curlora", "strategy.heads=trained", marks=pytest.mark.slow),
        pytest.param("derpp", "lora", "strategy.selection=class_balanced", marks=pytest.mark.slow),
        pytest.param("olora", "lora", "strategy.form=reference", marks=pytest.mark.slow),
        pytest.param("nlora", "curlora", "strategy.lam=0.01", marks=pytest.mark.slow),
        pytest.param("ewc", "curlora", "strategy.fisher=block", marks=pytest.mark.slow),
        pytest.param("mas", "curlora", "strategy.decay=0.5", marks=pytest.mark.slow),
        pytest.param("lwf", "lora", "adapter.lora_dropout=0.3", marks=pytest.mark.slow),
        pytest.param("agem", "lora", "strategy.selection=class_balanced", marks=pytest.mark.slow),
        pytest.param("anchor", "lora", "adapter.lora_dropout=0.3", marks=pytest.mark.slow),
    ],
)
def test_interrupted_inside_a_stage_it_goes_on_with_the_same_bits(
    small_run, monkeypatch, tmp_path, strategy, adapter, more
):
    given = overrides(strategy, adapter, more, "checkpoint.every_steps=1")
    whole = small_run(*given)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    real, trained = SequenceClassification.training_step, []

    def fails_in_stage_2(task, batch, batch_idx):
        trained.append((task.stage, batch_idx))
        if trained.count((2, 2)) == 1 and batch_idx == 2 and task.stage == 2:
            raise OSError("the machine was taken away")
        return real(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassification, "training_step", fails_in_stage_2)
        with pytest.raises(OSError, match="taken away"):
            small_run(*given)
        trained[:] = [(2, 2), (2, 2)]
        again = small_run(*given)
    assert trained[2:] == [(2, 2)], "only what was not done yet"
    assert comparable(again) == comparable(whole)
    for file in (tmp_path / "whole").rglob("stage_02/**/*.safetensors"):
        one, other = load_file(file), load_file(tmp_path / "runs" / file.relative_to(tmp_path / "whole"))
        assert one.keys() == other.keys()
        assert all((one[name] == other[name]).all() for name in one), file.name


@pytest.mark.parametrize(("strategy", "adapter"), [("olora", "curlora"), ("per_task", "none")])
def test_what_a_strategy_cannot_do_is_said_before_anything_is_trained(small_run, strategy, adapter):
    with pytest.raises(ConfigError, match=REFUSED[strategy, adapter]):
        small_run(*overrides(strategy, adapter))


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("derpp", "olora")])
@pytest.mark.slow  # two tasks of language modelling for each strategy: half a minute
def test_language_modelling(small_run, tmp_path, strategy):
    folder = tmp_path / "texts"
    for name, word in (("one", "river"), ("two", "stone")):
        (folder / name).mkdir(parents=True)
        for split in ("train", "test"):
            rows = [{"text": f"The {word} was {split} number {i} of all."} for i in range(16)]
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [
        *("~sequence.tasks.paraphrase", "~sequence.tasks.sentiment2"),
        "+task@sequence.tasks.one=tinystories",
        "+task@sequence.tasks.two=tinystories",
        *(f"sequence.tasks.{name}.name={name}" for name in ("one", "two")),
        *(f"sequence.tasks.{name}.data.source.splits.test=test" for name in ("one", "two")),
        f"data_dir={folder}",
    ]
    record = small_run(*overrides(strategy, "curlora", *tasks))
    assert record["status"] == "finished"
    assert record["scores"][1][0] > record["scores"][0][0]


@pytest.mark.parametrize(
    ("strategy", "adapter"),
    [
        pair if pair == ("replay", "curlora") else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in pairs("curlora", "lora")
    ],
)
def test_heads_of_five_kinds(small_run, strategy, adapter):
    left_out = LEFT_OUT.get(strategy, ())
    record = small_run(*MIXED, *left_out, f"adapter={adapter}", f"strategy={strategy}", *STRATEGIES[strategy][0])
    folder = record.pop("folder")
    validate_record(record)
    assert record["status"] == "finished"
    assert len(record["tasks"]) == 5 - len(left_out)
    assert all(score is not None for row in record["scores"] for score in row)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for task in record["tasks"][1:]:  # every head was protected while another one learnt
        assert any(f"train/{task}/penalty" in line for line in lines) == (strategy not in ("agem", "per_task")), task


def test_text_of_the_probe_is_no_text_to_anchor_on(small_run):
    given = overrides("anchor", "lora", "strategy.text.source.splits.train=test", "strategy.text.source.sizes.train=8")
    with pytest.raises(ConfigError, match="every document is part of a probe's text"):
        small_run(*given)


def test_a_text_file_counts_by_its_content(small_run, tmp_path):
    one, same, other = (tmp_path / name for name in ("one.txt", "same.txt", "other.txt"))
    for path in (one, same):
        path.write_text("The farmer fed the horse.\n\nThe sailor steered the ship into the harbour at night.\n")
    other.write_text("The teacher read a book.\n")

    def anchored(path):
        return small_run(
            *TWO, "task=builtin_sentiment2", "adapter=lora", "strategy=anchor_file", f"strategy.text.source.path={path}"
        )

    first = anchored(one)
    assert anchored(same)["folder"] == first["folder"], "where it lies does not matter"
    assert anchored(other)["folder"] != first["folder"]


def test_a_text_file_that_is_not_there_is_named_at_once(configured):
    with pytest.raises(ConfigError, match=r"strategy\.text\.source\.path='nowhere\.txt': there is no such file"):
        configured("strategy=anchor_file", "strategy.text.source.path=nowhere.txt")


def test_where_nothing_is_learnt_after_another_there_is_nothing_to_protect(configured):
    for scenario in ("joint", "independent"):
        with pytest.raises(ConfigError, match=rf"scenario={scenario} .* strategy=none"):
            configured(f"scenario={scenario}", "strategy=ewc")
        configured(f"scenario={scenario}", "strategy=anchor")


def test_a_block_that_does_not_fit_is_refused_without_a_traceback(small_run):
    with pytest.raises(ConfigError, match=r"strategy\.fisher=block: .* at most 4096"):
        small_run(*overrides("ewc", "full", "strategy.fisher=block"))
