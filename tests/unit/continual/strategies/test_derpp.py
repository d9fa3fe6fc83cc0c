"""DER++: the distance to stored logits, what is stored with which row, and heads that it refuses."""

from types import SimpleNamespace

import pytest
import torch

from curlora_lab.adapters.attach import HeadOnly, attach
from curlora_lab.backbone import load_backbone
from curlora_lab.continual.strategies import DarkReplay
from curlora_lab.continual.strategies.gradients import row_batch
from curlora_lab.data import DataSource, QuestionData, RegressionData, TokenData
from curlora_lab.data.builtin import questions, similarity, words
from curlora_lab.tasks import QuestionAnswering, Regression, TokenClassification
from curlora_lab.tasks.outputs import Outputs


@pytest.fixture
def pair(lora_backbone, classify):
    return classify(lora_backbone, "first"), classify(lora_backbone, "second", rows=16)


def begun(strategy, first, second):
    """In the second stage, the first one done."""
    strategy.begin([first, second], first.backbone)
    for stage, task in enumerate([first, second], start=1):
        task.start_stage(stage, strategy)
        strategy.before_stage(task, stage=stage)
        if task is first:
            strategy.after_stage(task, stage=stage)
    return strategy


def test_nothing_shared_means_that_it_has_no_effect_and_says_so(classify, caplog):
    backbone = load_backbone("builtin")
    attach(backbone, HeadOnly(), seed=0)
    caplog.set_level("WARNING", logger="curlora_lab")
    DarkReplay().begin([classify(backbone, "first")], backbone)
    assert "darkreplay has no effect: only task heads are trained" in caplog.text


def shift(backbone, by):
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(by)


def test_right_after_rows_are_put_in_the_distance_is_zero_and_grows_as_the_model_moves(pair):
    first, second = pair
    strategy = begun(DarkReplay(alpha=2.0, beta=0.0), first, second)
    batch = row_batch(second, [0, 1])
    first.eval()
    assert strategy.penalty(second, batch).item() == pytest.approx(0.0, abs=1e-10)
    shift(first.backbone, 0.05)
    assert strategy.penalty(second, batch).item() > 1e-4


def test_the_terms_are_the_mean_square_and_the_mean_loss(pair):
    first, second = pair
    rows = range(24)
    with torch.no_grad():
        stored = first.eval().logits(row_batch(first, rows))
    strategy = begun(DarkReplay(rows_per_task=24, replay_rows=24, alpha=0.7, beta=0.3), first, second)
    shift(first.backbone, 0.05)
    found = strategy.penalty(second, row_batch(second, [0]))
    batch = row_batch(first, rows)
    expected = 0.7 * (first.logits(batch) - stored).square().mean() + 0.3 * first.batch_loss(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_both_draws_are_their_own(pair, monkeypatch):
    strategy = begun(DarkReplay(replay_rows=4), *pair)
    drawn = []
    monkeypatch.setattr(strategy.memory, "sample", lambda *position, without: drawn.append(position) or {})
    assert strategy.penalty(pair[1], row_batch(pair[1], [0])) is None
    assert drawn[0] != drawn[1]


def test_earlier_heads_get_no_gradient(pair):
    first, second = pair
    strategy = begun(DarkReplay(), first, second)
    strategy.penalty(second, row_batch(second, [0])).backward()
    assert all(parameter.grad is None for parameter in first.head.parameters())


def test_logits_leave_with_their_rows(lora_backbone, classify):
    tasks = [classify(lora_backbone, name) for name in ("first", "second", "third")]
    strategy = DarkReplay(rows_per_task=None, total=20)
    strategy.begin(tasks, lora_backbone)
    stored = {}
    for stage, task in enumerate(tasks, start=1):
        strategy.after_stage(task, stage=stage)
        state = strategy.state()
        assert sum(len(state[f"derpp/{name}/counts"]) for name in strategy.memory.rows) == 20
        for name, rows in strategy.memory.rows.items():
            for row, value in zip(rows, state[f"derpp/{name}/values"], strict=True):
                assert torch.equal(stored.setdefault((name, row), value), value), "those of the moment it was put in"
        shift(lora_backbone, 0.02)
    size = 20 * 2 * 4
    assert strategy.cost()["stored_bytes"] == strategy.memory.cost()["stored_bytes"] + size


def test_state_restores_the_penalties(pair):
    first, second = pair
    strategy = begun(DarkReplay(rows_per_task=10), first, second)
    shift(first.backbone, 0.05)
    other = DarkReplay(rows_per_task=10)
    other.begin([first, second], first.backbone)
    other.load_state(strategy.state())
    batch = row_batch(second, [5])
    assert torch.equal(other.penalty(second, batch), strategy.penalty(second, batch))
    other.load_state({})
    assert other.penalty(second, batch) is None


def test_a_head_over_the_vocabulary_is_refused_before_anything_is_trained(lora_backbone, classify, language):
    with pytest.raises(ValueError, match=r"task 'text' has \d+ for each token"):
        DarkReplay().begin([classify(lora_backbone), language(lora_backbone)], lora_backbone)


def test_several_outputs_of_a_row_and_classes_that_are_ruled_out(linear):
    """The mean is over rows first: a row with many things to say weighs as much as one with few."""
    first = linear([[1.0], [2.0]], [0, 1], weight=[[1.0], [0.5], [0.0]], each=2)
    first.backbone.vocab_size = 100
    real = first.outputs

    def ruled_out(batch):
        outputs = real(batch)
        ruled = torch.tensor([0.0, 0.0, -torch.inf])
        return Outputs(values=outputs.values + ruled, rows=outputs.rows, targets=outputs.targets)

    first.outputs, first.training_plan.eval_batch_size, first.current_epoch = ruled_out, 8, 0  # a stub of a task
    first.modules, first.train = first.backbone.modules, first.backbone.train
    strategy = DarkReplay(replay_rows=8, beta=0.0, alpha=1.0)
    strategy.begin([first], first.backbone)
    strategy.after_stage(first, stage=1)
    with torch.no_grad():
        first.backbone.weight.add_(0.1)  # each of the two remaining logits moves by 0.1 x
    expected = (0.1**2 + 0.2**2) / 2
    second = SimpleNamespace(name="second", stage=2, current_epoch=0)
    assert strategy.penalty(second, {"row": torch.tensor([0])}).item() == pytest.approx(expected, rel=1e-5)
    assert strategy.penalty(first, {"row": torch.tensor([0])}) is None, "its own rows are not those of another task"


TAGS = ["O", "B-person", "B-animal", "B-object", "B-place", "I-place"]


def unequal(split, n, seed):
    """Pairs of which some have longer sentences than others."""
    rows = similarity(split, n, seed)
    return [{**row, "sentence1": row["sentence1"] + " here" * (index % 3)} for index, row in enumerate(rows)]


HEADS = {
    "regression": (Regression, RegressionData, unequal, "pearson", {"columns": ["sentence1", "sentence2"]}),
    "tokens": (TokenClassification, TokenData, words, "entity_f1", {"labels": TAGS}),
    "questions": (QuestionAnswering, QuestionData, questions, "f1", {"no_answer": True}),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("eval_batch_size", [4, 1])
def test_the_distance_is_zero_for_heads_that_say_several_things_of_rows_of_unequal_length(
    lora_backbone, classify, name, eval_batch_size
):
    head, data_of, generator, metric, arguments = HEADS[name]
    sizes = {"train": 9, "test": 4}
    source = DataSource(name=name, splits={"train": "train", "test": "test"}, generator=generator, sizes=sizes)
    data = data_of(name=name, source=source, choose_fraction=0.0, **arguments)
    data.prepare(lora_backbone.tokenizer, seed=0)
    plan = classify(lora_backbone, eval_batch_size=eval_batch_size).training_plan
    task = head(name=name, data=data, backbone=lora_backbone, training=plan, metric=metric, metrics=[metric]).eval()
    strategy = DarkReplay(replay_rows=4)
    strategy.begin([task], lora_backbone)
    strategy.after_stage(task, stage=1)
    other = DarkReplay(replay_rows=4)
    other.begin([task], lora_backbone)
    other.load_state(strategy.state())
    draws = [{name: strategy.memory.rows[name][start : start + 4]} for start in (0, 4, 8)]
    assert len({len(data.rows("train").encoded.row(row)) for row in draws[0][name]}) > 1, "unequal rows"
    for drawn in draws:
        assert strategy.distance(drawn).item() == other.distance(drawn).item() == pytest.approx(0.0, abs=1e-9)
    shift(lora_backbone, 0.05)
    assert all(other.distance(drawn).item() > 1e-8 for drawn in draws)
    alone = [other.distance({name: [row]}) for row in draws[0][name]]
    torch.testing.assert_close(other.distance(draws[0]), torch.stack(alone).mean(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fisher": torch.zeros(1)}, "holds fisher, which is not its state"),
        ({"memory/first/rows": torch.tensor([1]), "memory/first/priorities": torch.rand(1)}, "without their logits"),
    ],
)
def test_state_that_is_not_its_own_is_refused(pair, state, message):
    strategy = begun(DarkReplay(), *pair)
    with pytest.raises(ValueError, match=message):
        strategy.load_state(state)


@pytest.mark.parametrize("arguments", [{"alpha": -0.1}, {"beta": float("nan")}, {"replay_rows": 0}])
def test_settings_without_meaning_are_refused(arguments):
    with pytest.raises(ValueError, match=rf"strategy\.{next(iter(arguments))}="):
        DarkReplay(**arguments)
