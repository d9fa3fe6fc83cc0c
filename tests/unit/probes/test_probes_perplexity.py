import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from curlora_lab.probes.perplexity import PerplexityProbe, summed_nll
from curlora_lab.probes.windows import sliding_windows

VOCAB = 64


def tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a character, with offsets; `<s>` in front where asked."""
    vocabulary = {"<s>": 0, "<unk>": 1, **{chr(97 + i): 2 + i for i in range(26)}, " ": 28, "\n": 29, "é": 30}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>" if bos else None, unk_token="<unk>")


@dataclass
class Source:
    texts: list[Any]
    asked: list[str] = field(default_factory=list)

    def rows(self, role: str) -> list[Any]:
        self.asked.append(role)
        return [Line(f"lines.txt:{i + 1}", {"text": text}) for i, text in enumerate(self.texts)]


@dataclass(frozen=True)
class Line:
    where: str
    values: dict[str, Any]


class FakeModel:
    """Stands in for a backbone; ``logits`` gives (batch, seq, vocab)."""

    is_causal, context, vocab_size, name = True, 32, VOCAB, "fake"

    def __init__(self, logits: Any = None, *, bos: bool = True) -> None:
        self.tokenizer = tokenizer(bos=bos)
        self.logits = logits
        self.batches: list[tuple[Tensor, Tensor]] = []

    def lm_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.batches.append((input_ids, attention_mask))
        return torch.zeros(*input_ids.shape, VOCAB) if self.logits is None else self.logits(input_ids)


class SmallBackbone(nn.Module):
    is_causal, context, vocab_size, name = True, 32, VOCAB, "small"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=2,
                hidden_size=16,
                intermediate_size=24,
                num_attention_heads=2,
                vocab_size=VOCAB,
                initializer_range=0.5,
                attention_dropout=0.5,
            )
        )
        self.tokenizer = tokenizer()

    def lm_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


TEXTS = ["the cat sat on the mat and then it went out again to see", "a", "dogs bark", "", "it rained\n"]


def probe(texts: list[Any] = TEXTS, **arguments: Any) -> PerplexityProbe:
    return PerplexityProbe("lines", Source(texts), **{"window": 16, "stride": 5, **arguments})


@pytest.mark.parametrize("arguments", [{"documents": "each"}, {"documents": "joined"}, {"window": 1, "stride": 1}])
def test_perplexity_of_a_uniform_model_is_the_vocabulary_size(arguments: dict[str, Any]) -> None:
    subject, model = probe(**arguments), FakeModel()
    subject.prepare(model)
    result = subject.measure(model)
    assert result.perplexity == pytest.approx(VOCAB)
    assert result.nats_per_token == pytest.approx(math.log(VOCAB))
    assert result.bits_per_character == pytest.approx(math.log2(VOCAB))  # one token a character, all scored after bos
    assert result.reasons == {}


def test_a_model_that_knows_the_text_has_perplexity_one() -> None:
    text = "abcabcabc"

    def next_letter(ids: Tensor) -> Tensor:
        follows = torch.tensor([2] * VOCAB)
        follows[torch.tensor([2, 3])] = torch.tensor([3, 4])
        return 100 * nn.functional.one_hot(follows[ids], VOCAB).float()

    subject, model = probe([text]), FakeModel(next_letter)
    subject.prepare(model)
    assert subject.measure(model).perplexity == pytest.approx(1)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 8, 20])
def test_every_token_but_the_first_is_scored_exactly_once(window: int, length: int) -> None:
    ids = torch.arange(length)
    for stride in range(1, window + 1):
        windows = sliding_windows(ids, window=window, stride=stride)
        scored = [int(t) for w in windows for t in w.targets[w.skip :]]
        assert scored == list(range(1, length))
        assert sum(w.scored for w in windows) == max(0, length - 1)
        assert all(len(w.inputs) <= window for w in windows)
        for w in windows:
            assert torch.equal(w.inputs + 1, w.targets)
            if w.targets[w.skip] > window - stride:
                assert w.skip >= window - stride  # at least this much context before the first scored token


def test_result_does_not_depend_on_batch_size_or_padding() -> None:
    backbone = SmallBackbone()
    results = []
    for batch_size in (1, 2, 5, None):
        subject = probe(documents="each", batch_size=batch_size)
        subject.prepare(backbone)
        results.append(subject.measure(backbone))
    for result in results[1:]:
        assert result.tokens == results[0].tokens
        assert result.window_nll == pytest.approx(results[0].window_nll, rel=1e-5)


def test_windows_agree_with_one_long_read_where_the_context_suffices() -> None:
    backbone = SmallBackbone()
    subject = probe([TEXTS[0][:30]], window=32, stride=32)
    subject.prepare(backbone)
    ids = torch.tensor([backbone.tokenizer(TEXTS[0][:30])["input_ids"]])
    backbone.eval()
    with torch.no_grad():
        logits = backbone.lm_logits(ids, torch.ones_like(ids))[0, :-1]
    expected = nn.functional.cross_entropy(logits, ids[0, 1:])
    assert subject.measure(backbone).nats_per_token == pytest.approx(float(expected), rel=1e-5)


def test_measuring_is_repeatable_and_leaves_the_mode_and_no_gradient() -> None:
    backbone = SmallBackbone().train()
    backbone.model.lm_head.eval()
    modes = [module.training for module in backbone.modules()]
    subject = probe()
    subject.prepare(backbone)
    assert subject.measure(backbone) == subject.measure(backbone)  # attention dropout is off
    assert [module.training for module in backbone.modules()] == modes
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_details_state_the_protocol() -> None:
    subject, model = probe(documents="each", max_documents=3, max_tokens=10), FakeModel()
    subject.prepare(model)
    details = subject.details()
    assert details["protocol"] == ("first 3 rows read one by one, first 10 tokens each; window 16, stride 5, bos auto")
    assert (details["window"], details["stride"], details["documents"]) == (16, 5, 3)
    assert details["tokens"] == 9 + 1 + 9  # bos in front, itself never scored
    assert details["characters"] == 19
    assert subject.source.asked == ["test"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("bos", "add_bos", "scored"), [(True, "auto", 3), (False, "auto", 2), (True, False, 2)])
def test_the_first_token_is_scored_only_after_a_bos(bos: bool, add_bos: Any, scored: int) -> None:
    subject, model = probe(["abc"], add_bos=add_bos), FakeModel(bos=bos)
    subject.prepare(model)
    assert subject.details()["tokens"] == subject.details()["characters"] == scored


def test_joining_rows_and_the_published_prefix() -> None:
    def read(**arguments: Any) -> str:
        subject, model = probe(["ab\n", " ", "cd\n"], window=32, stride=32, **arguments), FakeModel()
        subject.prepare(model)
        subject.measure(model)
        ids = [*model.batches[0][0][0].tolist()[1:]]
        return "".join(model.tokenizer.convert_ids_to_tokens(ids))

    # The last token is a target only, so it is not among what the model reads.
    assert read() == "ab\n \nc"
    assert read(separator="\n\n", strip_newline=False) == "ab\n\n\n \n\ncd"
    assert read(separator="", strip_newline=False, drop_empty=True) == "ab\ncd"
    assert read(separator="", strip_newline=False, drop_empty=True, max_tokens=4) == "ab"


def test_an_encoder_has_no_perplexity() -> None:
    model = FakeModel()
    model.is_causal = False
    subject = probe()
    subject.prepare(model)
    subject.prepare_reference(model)
    result = subject.measure(model)
    assert result.perplexity is result.bits_per_character is None
    assert "encoder without a next-token head" in result.reasons["perplexity"]
    assert subject.measure_shift(model)[0] is None
    assert subject.details() == {}


def test_a_destroyed_model_is_null_with_a_reason() -> None:
    model = FakeModel(lambda ids: torch.full((*ids.shape, VOCAB), math.nan))
    subject = probe()
    subject.prepare(model)
    result = subject.measure(model)
    assert result.perplexity is None
    assert "destroyed" in result.reasons["perplexity"]


def test_shift_is_zero_for_the_base_model_and_known_for_a_shifted_one() -> None:
    model = FakeModel()
    subject = probe(shift_positions=7)
    subject.prepare(model)
    assert subject.measure_shift(model) == (
        None,
        "no reference: the base model's distributions were not stored at row 0",
    )
    subject.prepare_reference(model)
    assert subject.measure_shift(model) == (0.0, None)
    logits = torch.linspace(-1, 1, VOCAB)
    model.logits = lambda ids: logits.expand(*ids.shape, VOCAB)
    # KL from the uniform distribution: -ln V - mean of the new log-probabilities.
    expected = -math.log(VOCAB) - float(logits.log_softmax(-1).mean())
    assert subject.measure_shift(model)[0] == pytest.approx(expected, rel=1e-5)
    assert subject.details()["shift_positions"] == 7


def test_shift_ignores_what_the_base_model_rules_out() -> None:
    ruled_out = torch.zeros(VOCAB)
    ruled_out[5:] = -math.inf
    model = FakeModel(lambda ids: ruled_out.expand(*ids.shape, VOCAB))
    subject = probe()
    subject.prepare(model)
    subject.prepare_reference(model)
    model.logits = None
    assert subject.measure_shift(model)[0] == pytest.approx(math.log(VOCAB / 5), rel=1e-5)


def test_shift_agrees_between_batch_sizes() -> None:
    backbone = SmallBackbone()
    values = []
    for batch_size in (1, 4):
        torch.manual_seed(0)
        subject = probe(documents="each", batch_size=batch_size)
        start = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        subject.prepare(backbone)
        subject.prepare_reference(backbone)
        with torch.no_grad():
            backbone.model.lm_head.weight.add_(0.1)
            backbone.model.lm_head.weight[3] *= 2
        values.append(subject.measure_shift(backbone)[0])
        backbone.load_state_dict(start)
    assert values[0] > 0
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_nll_in_chunks_equals_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2500, 11), torch.randint(11, (2500,))
    expected = nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    assert summed_nll(logits, targets) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": "all"}, "documents of probe 'lines' is 'all'; allowed: each, joined"),
        ({"window": 0}, "window of probe 'lines' is 0; must be at least 1"),
        ({"max_tokens": 1}, "max_tokens of probe 'lines' is 1; must be at least 2"),
        ({"add_bos": "yes"}, "add_bos of probe 'lines' is 'yes'; allowed: auto, true, false"),
        ({"window": 4, "stride": 5}, "stride 5 of probe 'lines' is larger than its window 4"),
        ({"window": 64}, "window 64 of probe 'lines' is longer than the 32 positions of 'fake'"),
        ({"add_bos": True}, "the tokenizer has no bos token"),
        ({"texts": ["", ""]}, "probe 'lines' has no text to score in 2 rows of column 'text'"),
        ({"texts": ["ab", None]}, "lines.txt:2: column 'text' of a probe must be text; this row holds NoneType"),
        ({"column": "body"}, "lines.txt:1: column 'body' of a probe must be text; this row has only text"),
    ],
)
def test_what_cannot_be_measured_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(**{"separator": "", **arguments}).prepare(FakeModel(bos=False))
