"""Anchoring on text: nothing to pay while the model is the base, the plain LM loss in replay, and never the probe's text."""

from types import SimpleNamespace

import peft
import pytest
import torch
from torch.nn import functional as F

from curlora_lab import CurLoraConfig
from curlora_lab.adapters.attach import FullFineTuning, HeadOnly, attach
from curlora_lab.backbone import load_backbone
from curlora_lab.continual.strategies import Anchor, GenericText
from curlora_lab.continual.strategies.generic_text import held_apart
from curlora_lab.continual.strategies.gradients import row_batch, shared_parameters
from curlora_lab.data import DataSource
from curlora_lab.data.builtin import corpus
from curlora_lab.probes import PerplexityProbe


def source(split="train", n=24):
    role = "train" if split == "train" else "test"
    return DataSource(
        name="builtin",
        splits={"train": "train", role: split},
        sizes={"train": n, role: n},
        generator=corpus.documents,
    )


def anchored(adapter, *, text=None, **arguments):
    """A strategy that has begun, and its backbone."""
    backbone = load_backbone("builtin")
    attach(backbone, adapter, seed=0)
    strategy = Anchor(text or GenericText(source(), max_length=32), batch_size=4, **arguments)
    fingerprint = strategy.prepare(backbone, {})
    assert len(fingerprint) == 64
    strategy.begin([], backbone)
    return strategy, backbone.eval()


def shift(backbone, by=0.05):
    with torch.no_grad():
        for seed, parameter in enumerate(shared_parameters(backbone).values()):
            parameter.add_(by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))


ADAPTERS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=4),
    "curlora": CurLoraConfig(r=8, seed=0),
    "pissa": peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights="pissa"),
    "full": FullFineTuning(),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_distil_is_zero_with_zero_gradient_before_training(adapter, classify):
    strategy, backbone = anchored(ADAPTERS[adapter])
    task = classify(backbone)
    assert (strategy._base is None) == (adapter in ("lora", "curlora")), "stored only where there is no other way"
    penalty = strategy.penalty(task, row_batch(task, [0, 1]))
    assert abs(penalty.item()) < 1e-6
    gradients = torch.autograd.grad(penalty, list(shared_parameters(backbone).values()), allow_unused=True)
    assert max(g.abs().max().item() for g in gradients if g is not None) < 1e-4


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distil_is_the_divergence_from_the_base_model(adapter, temperature, classify):
    strategy, backbone = anchored(ADAPTERS[adapter], weight=3.0, temperature=temperature)
    base = load_backbone("builtin")
    shift(backbone, by={"full": 0.02, "pissa": 0.02, "lora": 0.1, "curlora": 0.3}[adapter])
    task = classify(backbone)
    batch = row_batch(task, [3, 5])
    flags = [parameter.requires_grad for parameter in backbone.parameters()]
    found = strategy.penalty(task, batch)
    assert [parameter.requires_grad for parameter in backbone.parameters()] == flags
    assert not backbone.training
    _, ids, mask = strategy.text.batch(4, 0, 0, 0, 3, 5)
    real = mask[:, 1:] == 1
    with torch.no_grad():
        p, q = ((m.lm_logits(ids, mask)[:, :-1][real] / temperature).log_softmax(-1) for m in (base, backbone))
    expected = 3.0 * temperature**2 * (p.exp() * (p - q)).sum(-1).mean()
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    assert expected > 1e-4
    found.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in shared_parameters(backbone).values())


def test_replay_is_the_mean_loss_of_a_token(classify):
    strategy, backbone = anchored(ADAPTERS["lora"], mode="replay", weight=0.5)
    task = classify(backbone)
    found = strategy.penalty(task, row_batch(task, [1]))
    _, ids, mask = strategy.text.batch(4, 0, 0, 0, 1)
    labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    expected = 0.5 * F.cross_entropy(backbone.lm_logits(ids, mask)[:, :-1].transpose(1, 2), labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_frozen_factor_stays_frozen(classify):
    """PEFT's switch makes all of an adapter trainable when it is put back."""
    strategy, backbone = anchored(ADAPTERS["lora"])
    for name, parameter in backbone.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    trained = set(shared_parameters(backbone))
    task = classify(backbone)
    strategy.penalty(task, row_batch(task, [0])).backward()
    assert set(shared_parameters(backbone)) == trained
    assert all(parameter.grad is None for name, parameter in backbone.named_parameters() if "lora_A" in name)


def test_windows_follow_from_the_position(classify):
    strategy, backbone = anchored(ADAPTERS["lora"], mode="replay")
    task = classify(backbone)
    one, again, other = (strategy.penalty(task, row_batch(task, rows)).item() for rows in ([0], [0], [1]))
    assert one == again != other
    task.stage = 5
    assert strategy.penalty(task, row_batch(task, [0])).item() != one


def test_a_continued_adapter_is_not_its_base(classify):
    """With adapter.init_from the model before training is not the model without its adapter."""
    backbone = load_backbone("builtin")
    attach(backbone, ADAPTERS["lora"], seed=0)
    shift(backbone, by=0.1)
    strategy = Anchor(GenericText(source(), max_length=32), batch_size=4)
    strategy.prepare(backbone, {})
    strategy.begin([], backbone)
    assert strategy._base is not None
    task = classify(backbone.eval())
    assert abs(strategy.penalty(task, row_batch(task, [0])).item()) < 1e-6
    assert strategy.cost()["stored_bytes"] > 24 * 10 * backbone.vocab_size * 4


def test_what_a_probe_reports_on_is_left_out(caplog):
    backbone = load_backbone("builtin")
    probe = PerplexityProbe("p", source("test"), documents="each", shift_positions=0)
    probe.prepare(backbone)
    same = GenericText(source("test"), role="test")
    with pytest.raises(ValueError, match=r"every document is part of a probe's text \(24 rows read\)"):
        same.prepare(backbone.tokenizer, context=64, probes={"p": probe})
    reported = probe.source.rows("test")
    rows = [SimpleNamespace(where="x:1", values={"text": "Something that no probe has ever seen in all of its rows."})]
    both = GenericText(SimpleNamespace(rows=lambda role: [*rows, *reported]), documents="joined")
    caplog.set_level("WARNING", logger="curlora_lab")
    both.prepare(backbone.tokenizer, context=64, probes={"p": probe})
    assert both.left_out == 24
    assert "24 of 25 documents are left out, because a probe (p) reports on them" in caplog.text
    assert len(both.windows) == 1


def test_lines_are_compared_without_case_and_blanks_and_short_ones_not_at_all():
    line = "One two three four five six seven eight."
    probe = SimpleNamespace(
        fingerprint="x",
        source=SimpleNamespace(rows=lambda role: [SimpleNamespace(where="", values={"text": f"= A =\n{line}\n"})]),
        role="test",
        column="text",
        max_documents=None,
    )
    texts = ["= A =", "one  TWO three four five six seven eight.", f"Other.\n{line}", "New words only."]
    assert held_apart(texts, {"p": probe}) == ["= A =", "New words only."]
    probe.fingerprint = None  # an encoder: the probe measures nothing
    assert held_apart(texts, {"p": probe}) == texts


def test_the_default_text_is_apart_from_the_default_probe(compose):
    from hydra.utils import instantiate

    cfg = compose("strategy=anchor")
    backbone = load_backbone("builtin")
    probe = instantiate(cfg.probe.probes.builtin)
    probe.prepare(backbone)
    strategy = instantiate(cfg.strategy, _convert_="all")
    strategy.prepare(backbone, {"builtin": probe})
    assert strategy.text.left_out <= 5
    assert len(strategy.text.windows) > 400


def test_windows_of_text():
    backbone = load_backbone("builtin")
    text = GenericText(source(n=3), max_length=8)
    text.prepare(backbone.tokenizer, context=64, probes={})
    assert all(2 <= len(window) <= 8 for window in text.windows)
    drawn, ids, mask = text.batch(1000, 0)
    assert sorted(drawn) == list(range(len(text.windows)))
    assert mask.sum() == sum(len(window) for window in text.windows)
    assert ids.shape == mask.shape
    with pytest.raises(ValueError, match=r"max_length=100 is longer than the 64 tokens"):
        GenericText(source(), max_length=100).prepare(backbone.tokenizer, context=64, probes={})
    empty = SimpleNamespace(rows=lambda role: [SimpleNamespace(where="x", values={"text": ""})])
    with pytest.raises(ValueError, match="no document has two tokens"):
        GenericText(empty).prepare(backbone.tokenizer, context=64, probes={})


def test_no_language_model_no_anchor(make_backbone):
    with pytest.raises(ValueError, match="needs a next-token LM head; 'small-bert' is an encoder"):
        Anchor(GenericText(source())).prepare(make_backbone("bert"), {})


def test_a_store_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("curlora_lab.continual.strategies.anchor.LARGEST_STORE", 1000)
    with pytest.raises(ValueError, match=r"would store .* GiB .*lower strategy\.text\.max_documents"):
        anchored(FullFineTuning())
    anchored(FullFineTuning(), mode="replay")


def test_nothing_shared_means_nothing_to_do(classify):
    strategy, backbone = anchored(HeadOnly())
    task = classify(backbone)
    assert strategy.penalty(task, row_batch(task, [0])) is None
    strategy.load_state(strategy.state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, r"strategy\.weight=-1\.0"),
        ({"mode": "kl"}, r"strategy\.mode='kl' is unknown; choose one of distil, replay"),
        ({"temperature": -1.0}, r"strategy\.temperature=-1\.0"),
        ({"batch_size": 0}, r"strategy\.batch_size=0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Anchor(GenericText(source()), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": "all"}, r"strategy\.text\.documents='all' is unknown"),
        ({"max_documents": 0}, r"strategy\.text\.max_documents=0"),
        ({"max_length": 1}, r"strategy\.text\.max_length=1"),
    ],
)
def test_text_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GenericText(source(), **arguments)
