"""A prefix in one window: as long as the model reads at once, and the record says how long that was."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from curlora_lab.probes import PerplexityProbe


class Line:
    where, values = "lines:1", {"text": "the king sings a song in town " * 400}


class Lines:
    def rows(self, role: str) -> list[Any]:
        return [Line()]


class Reader:
    """A model that reads so many tokens and finds all equally likely."""

    is_causal, vocab_size, name = True, 8, "reader"

    def __init__(self, context: int, tokenizer: Any) -> None:
        self.context, self.tokenizer = context, tokenizer
        self.lengths: list[int] = []

    def lm_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.lengths += [input_ids.shape[1]] * input_ids.shape[0]
        return torch.zeros(*input_ids.shape, len(self.tokenizer))


@pytest.fixture(scope="module")
def published(compose: Any) -> Any:
    """The probe of an experiment of the paper, on a text of some thousand tokens."""

    def make(experiment: str = "local", **changes: Any) -> PerplexityProbe:
        cfg: DictConfig = compose(f"experiment=paper/{experiment}", "model.path=nowhere")
        node: Any = OmegaConf.to_container(cfg.probe.probes.wikitext2_published, resolve=True)
        return instantiate({**node, "source": None, **changes}, source=Lines())

    return make


@pytest.mark.parametrize("experiment", ["local", "gpt2_large"])
@pytest.mark.parametrize(("context", "prefix"), [(64, 64), (512, 512), (1024, 1024), (32768, 1024)])
def test_the_published_prefix_is_what_the_model_reads_at_once(
    published: Any, builtin_tokenizer: Any, experiment: str, context: int, prefix: int
) -> None:
    model, probe = Reader(context, builtin_tokenizer), published(experiment)
    probe.prepare(model)
    result = probe.measure(model)
    assert model.lengths == [prefix - 1], "one forward pass; the last token is a target only"
    assert result.tokens == probe.details()["tokens"] == prefix - 1
    assert probe.details()["window"] == prefix
    assert f", first {prefix} tokens; window {prefix}" in probe.details()["protocol"]


def test_a_window_of_ones_own_carries_the_prefix_along(published: Any, builtin_tokenizer: Any) -> None:
    model, probe = Reader(1024, builtin_tokenizer), published(window=256)
    probe.prepare(model)
    assert (probe.details()["window"], probe.details()["tokens"]) == (256, 255)


def test_a_longer_text_is_read_in_windows_that_do_not_overlap(published: Any, builtin_tokenizer: Any) -> None:
    model, probe = Reader(64, builtin_tokenizer), published(max_tokens=193)
    probe.prepare(model)
    probe.measure(model)
    assert model.lengths == [64, 64, 64]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_tokens": "all"},
            "max_tokens of probe 'wikitext2_published' is 'all'; allowed: a number, window or null",
        ),
        ({"stride": "half"}, "stride of probe 'wikitext2_published' is 'half'; allowed: a number, window or null"),
        ({"window": "window"}, "window of probe 'wikitext2_published' is 'window'; allowed: a number or null"),
    ],
)
def test_other_words_are_refused(published: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        published(**changes)
