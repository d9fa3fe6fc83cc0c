"""Compiled models: values and gradients of the eager ones without a graph break, and no adapter that was not checked."""

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from curlora_lab import CurLoraConfig
from curlora_lab.adapters import CurLoraLinear
from curlora_lab.adapters.compact import fingerprint_of


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def adapted_layer(base=None, **options):
    base = nn.Linear(16, 24) if base is None else base
    base = copy.deepcopy(base).requires_grad_(False)
    base.requires_grad_(False)
    layer = CurLoraLinear(base, "default", CurLoraConfig(**({"r": 4} | options)), module_name="layer")
    nn.init.normal_(layer.curlora_U["default"])
    return layer


def pair(first=None, second=None, **options):
    second = nn.Linear(24, 8, bias=False) if second is None else second
    return nn.Sequential(adapted_layer(first, **options), nn.Tanh(), adapted_layer(second, **options))


def two_adapters():
    model = pair()
    for layer in (model[0], model[2]):
        layer.update_layer("other", config=CurLoraConfig(r=8, seed=1, alpha=0.5))
        nn.init.normal_(layer.curlora_U["other"])
        layer.set_adapter(["default", "other"])
    return model


def one_merged():
    model = two_adapters()
    for layer in (model[0], model[2]):
        layer.merge(adapter_names=["other"])
    return model


def in_bfloat16(*, bias):
    return pair(nn.Linear(16, 24, bias=bias).bfloat16(), nn.Linear(24, 8, bias=bias).bfloat16())


MODELS = {
    "linear": pair,
    "orthonormal": lambda: pair(orthonormal=True),
    "gaussian": lambda: pair(basis="gaussian"),
    "compact": lambda: pair(save_basis=False),
    "conv1d": lambda: pair(Conv1D(24, 16), Conv1D(8, 24)),
    "bfloat16 with bias": lambda: in_bfloat16(bias=True),
    "bfloat16 without bias": lambda: in_bfloat16(bias=False),
    "autocast": pair,
    "two adapters": two_adapters,
    "one merged": one_merged,
    "alpha 2": lambda: pair(alpha=2.0),
    "dropout": lambda: pair(dropout=0.5).train(),
    "dropout in evaluation": lambda: pair(dropout=0.5).eval(),
}


@pytest.mark.parametrize("name", MODELS)
def test_compiled_without_graph_breaks(name):
    model = MODELS[name]()
    x = torch.randn(2, 5, 16).to(model[0].base_layer.weight.dtype)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        torch.manual_seed(3)  # of dropout
        with torch.autocast("cpu", torch.bfloat16) if name == "autocast" else nullcontext():
            y = run(x)
        y.float().square().sum().backward()
        results.append(
            [y.detach()] + [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        )
    assert len(results[0]) == (5 if name == "two adapters" else 3)
    half = results[0][0].dtype == torch.bfloat16
    for found, expected in zip(results[1], results[0], strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).abs().max() <= (0.02 if half else 1e-5) * expected.abs().max()


def test_merging_after_compiling_is_noticed():
    model = pair()
    x = torch.randn(2, 5, 16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = compiled(x)
    for layer in (model[0], model[2]):
        layer.merge()
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-4)
    for layer in (model[0], model[2]):
        layer.unmerge()
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-4)


def loaded_past_peft(case, folder, train_a_little):
    """A base and another one, each with the compact adapter of the first, as transformers loads it: not yet checked."""
    base = case.build()
    model = copy.deepcopy(base)
    model.add_adapter(case.config(save_basis=False), "mine")
    train_a_little(model, "mine").save_pretrained(folder)
    models = base, case.build()  # the second has other random weights
    for model in models:
        model.load_adapter(str(folder), "theirs")
    return models


def test_a_compact_adapter_that_was_not_checked_is_not_compiled(gpt2_case, output, train_a_little, tmp_path):
    base, other = loaded_past_peft(gpt2_case, tmp_path, train_a_little)
    for model in (base, other):
        with pytest.raises(Exception, match=r"'transformer.h.0.attn.c_attn' .* run one eager forward first"):
            output(torch.compile(model, backend="eager", fullgraph=True), gpt2_case.batch())
    with pytest.raises(ValueError, match="was saved without its basis"):
        output(other, gpt2_case.batch())
    expected = output(base, gpt2_case.batch())
    torch.testing.assert_close(output(torch.compile(base, backend="eager"), gpt2_case.batch()), expected)


@pytest.mark.slow  # the compiler tries to follow the check itself
def test_where_graphs_may_break_it_is_checked_in_the_break():
    """Without `fullgraph` the compiler hands the frame that raises back to Python, where the check is made."""
    layer, other = adapted_layer(save_basis=False), adapted_layer(save_basis=False)
    other.curlora_fingerprint["default"] = fingerprint_of(layer, "default")
    with pytest.raises(ValueError, match="'layer' was saved without its basis"):
        torch.compile(other, backend="eager")(torch.randn(3, 16))
    layer.curlora_fingerprint["default"] = fingerprint_of(layer, "default")
    x = torch.randn(3, 16)
    found = torch.compile(layer, backend="eager")(x)
    torch.testing.assert_close(found, layer(x))


def test_a_compact_adapter_loaded_by_peft_may_be_compiled_at_once(gpt2_case, output, train_a_little, tmp_path):
    base = gpt2_case.build()
    train_a_little(get_peft_model(copy.deepcopy(base), gpt2_case.config(save_basis=False))).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(base, tmp_path)
    found = output(torch.compile(model, backend="eager"), gpt2_case.batch())
    torch.testing.assert_close(found, output(model, gpt2_case.batch()))
