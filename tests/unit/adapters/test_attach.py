"""Putting adapters on backbones: what is matched, what is refused, what continues from where; and the paper's counts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, PretrainedConfig

from curlora_lab import CurLoraConfig, config
from curlora_lab.adapters.attach import (
    FULL_WEIGHTS,
    FullFineTuning,
    HeadOnly,
    attach,
    find_adapter,
    load_adapter,
    save_adapter,
    trainable_state,
)
from curlora_lab.backbone import Backbone
from curlora_lab.continual.record import count_parameters
from curlora_lab.tasks import SequenceClassification
from curlora_lab.tasks.base import Training

Make = Callable[..., Backbone]


def adapted(make_backbone: Make, adapter: Any, kind: str = "llama", **more: Any) -> Backbone:
    backbone = make_backbone(kind, **more)
    attach(backbone, adapter, seed=0)
    return backbone


def fill(backbone: Backbone, value: float) -> None:
    for tensor in trainable_state(backbone).values():
        tensor.fill_(value)


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj"}),
        ("gpt2", {"c_attn"}),
        ("bert", {"query", "key", "value"}),
        ("roberta", {"query", "key", "value"}),
        ("distilbert", {"q_lin", "k_lin", "v_lin"}),
    ],
)
def test_attention_inputs_by_default(kind: str, names: set[str], make_backbone: Make) -> None:
    backbone = adapted(make_backbone, CurLoraConfig(r=2), kind)
    assert {key.split(".curlora_U")[0].rpartition(".")[2] for key in trainable_state(backbone)} == names
    assert len(trainable_state(backbone)) == 2 * len(names)


def test_targets_of_the_adapter_win(make_backbone: Make) -> None:
    backbone = adapted(make_backbone, CurLoraConfig(r=2, target_modules=["down_proj"]))
    assert all("down_proj" in key for key in trainable_state(backbone))


def test_targets_of_the_model_are_the_default(make_backbone: Make) -> None:
    backbone = adapted(make_backbone, LoraConfig(r=2), target_modules=["o_proj"])
    assert all("o_proj" in key for key in trainable_state(backbone))


def test_one_layer_of_all(make_backbone: Make) -> None:
    backbone = adapted(make_backbone, CurLoraConfig(r=2, layers_to_transform=[1]))
    assert all(".layers.1." in key for key in trainable_state(backbone))


@pytest.mark.parametrize("adapter", [CurLoraConfig, LoraConfig], ids=["curlora", "lora"])
def test_all_linear_leaves_the_lm_head_alone(adapter: Any, make_backbone: Make) -> None:
    for kind in ("llama", "gpt2"):
        backbone = adapted(make_backbone, adapter(r=2, target_modules="all-linear"), kind)
        touched = {key.split(".curlora_")[0].split(".lora_")[0].rpartition(".")[2] for key in trainable_state(backbone)}
        assert touched == (
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
            if kind == "llama"
            else {"c_attn", "c_proj", "c_fc"}
        )


@pytest.mark.parametrize("targets", [["q_proj", "qkv"], r".*\.qkv"], ids=["list", "pattern"])
@pytest.mark.parametrize("adapter", [CurLoraConfig, LoraConfig], ids=["curlora", "lora"])
def test_targets_that_match_nothing(adapter: Any, targets: Any, make_backbone: Make) -> None:
    with pytest.raises(ValueError, match="matches no module of LlamaForCausalLM") as caught:
        attach(make_backbone("llama"), adapter(r=2, target_modules=targets), seed=0)
    assert "qkv" in str(caught.value)
    assert "'q_proj'" not in str(caught.value)
    assert "Linear modules there are: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head." in str(
        caught.value
    )


@pytest.mark.parametrize(
    "adapter",
    [CurLoraConfig(r=40), LoraConfig(r=40, init_lora_weights="pissa"), LoraConfig(r=17, init_lora_weights="olora")],
    ids=["curlora", "pissa", "olora"],
)
def test_rank_larger_than_a_module_allows(adapter: Any, make_backbone: Make) -> None:
    said = r"rank \d+ is larger than '.*(q_proj|k_proj)' allows \(shape (32|16) x 32, at most (32|16)\); lower rank or exclude"
    with pytest.raises(ValueError, match=said):
        attach(make_backbone("llama"), adapter, seed=0)


def test_a_module_too_small_is_excluded(make_backbone: Make) -> None:
    for adapter in (CurLoraConfig(r=20, exclude_modules=["k_proj", "v_proj"]), None):
        pissa = LoraConfig(r=20, init_lora_weights="pissa", exclude_modules=["k_proj", "v_proj"])
        backbone = adapted(make_backbone, adapter or pissa)
        assert all("q_proj" in key for key in trainable_state(backbone))


# -- what requires gradients -------------------------------------------------------------------------------------------


def test_a_second_adapter_is_refused(make_backbone: Make) -> None:
    backbone = adapted(make_backbone, LoraConfig(r=2))
    with pytest.raises(ValueError, match="has an adapter already"):
        attach(backbone, CurLoraConfig(r=2), seed=0)


@pytest.mark.parametrize("adapter", [HeadOnly(), LoraConfig(r=2), CurLoraConfig(r=2)], ids=["none", "lora", "curlora"])
def test_a_base_that_required_gradients_no_longer_does(adapter: Any, make_backbone: Make, make_model: Any) -> None:
    backbone = adapted(make_backbone, adapter, model=make_model("llama").requires_grad_(True))
    assert not any("base_layer" in key or "norm" in key or "embed" in key for key in trainable_state(backbone))


def test_full_trains_everything_and_none_nothing(make_backbone: Make) -> None:
    assert all(p.requires_grad for p in adapted(make_backbone, FullFineTuning()).parameters())
    assert not trainable_state(adapted(make_backbone, HeadOnly()))


def test_the_given_configuration_is_not_changed(make_backbone: Make) -> None:
    given = LoraConfig(r=2)
    before = given.to_dict()
    backbone = adapted(make_backbone, given, "gpt2")
    assert given.to_dict() == before
    assert backbone.model.peft_config["default"].fan_in_fan_out is True
    assert backbone.model.peft_config["default"].task_type == peft.TaskType.CAUSAL_LM
    encoder = adapted(make_backbone, given, "bert")
    assert encoder.model.peft_config["default"].fan_in_fan_out is False
    assert encoder.model.peft_config["default"].task_type == peft.TaskType.FEATURE_EXTRACTION


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_peft_folder_that_plain_peft_loads(make_backbone: Make, make_model: Any, batch: Any, tmp_path: Path) -> None:
    for name, adapter in (("lora", LoraConfig(r=2)), ("curlora", CurLoraConfig(r=2))):
        backbone = adapted(make_backbone, adapter)
        fill(backbone, 0.1)
        save_adapter(backbone, tmp_path / name)
        assert {file.name for file in (tmp_path / name).iterdir()} >= {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        model = PeftModel.from_pretrained(make_model("llama"), tmp_path / name)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, backbone.lm_logits(**batch))


def test_full_and_none_files(make_backbone: Make, tmp_path: Path) -> None:
    full = adapted(make_backbone, FullFineTuning())
    save_adapter(full, tmp_path / "full")
    assert set(load_file(tmp_path / "full" / FULL_WEIGHTS)) == set(trainable_state(full))
    none = adapted(make_backbone, HeadOnly())
    save_adapter(none, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())
    load_adapter(none, tmp_path / "none")


def test_continuing(make_backbone: Make, batch: Any, tmp_path: Path) -> None:
    for name, adapter in (("lora", LoraConfig(r=2)), ("curlora", CurLoraConfig(r=2)), ("full", FullFineTuning())):
        backbone = adapted(make_backbone, adapter)
        fill(backbone, 0.1)
        save_adapter(backbone, tmp_path / name)
        again = make_backbone("llama")
        attach(again, adapter, seed=9, init_from=tmp_path / name)
        assert torch.equal(again.lm_logits(**batch), backbone.lm_logits(**batch))
        assert trainable_state(again).keys() == trainable_state(backbone).keys()


@pytest.mark.parametrize(
    ("stored", "wanted", "said"),
    [
        (LoraConfig(r=2), CurLoraConfig(r=2), "holds a LORA adapter, but this run's is CURLORA; choose that adapter"),
        (CurLoraConfig(r=2), LoraConfig(r=2), "holds a CURLORA adapter, but this run's is LORA"),
        (
            LoraConfig(r=2),
            LoraConfig(r=3),
            r"does not fit this run's adapter in 12 tensors \(.*here \(3, 32\), there \(2, 32\)",
        ),
        (CurLoraConfig(r=2), CurLoraConfig(r=3), r"does not fit .*Use the same rank and target modules"),
        (LoraConfig(r=2), LoraConfig(r=2, target_modules=["q_proj"]), "here absent, there"),
        (CurLoraConfig(r=2, basis="svd_top"), CurLoraConfig(r=2), "does not fit this run's adapter"),
        (
            CurLoraConfig(r=2, alpha=2),
            CurLoraConfig(r=2),
            r"was trained with alpha=2 \(here 1.0\): the same tensors would mean",
        ),
        (LoraConfig(r=2, lora_alpha=2), LoraConfig(r=2, lora_alpha=4), r"was trained with lora_alpha=2 \(here 4\)"),
        (LoraConfig(r=2, use_rslora=True), LoraConfig(r=2), r"use_rslora=True \(here False\)"),
        (LoraConfig(r=2, init_lora_weights="pissa"), LoraConfig(r=2), r"init_lora_weights='pissa' \(here None\)"),
        (LoraConfig(r=2), FullFineTuning(), "does not fit this run's adapter"),
        (FullFineTuning(), LoraConfig(r=2), r"is no PEFT folder \(no adapter_config.json\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_continuing_from_something_else(
    stored: Any, wanted: Any, said: str, make_backbone: Make, tmp_path: Path
) -> None:
    save_adapter(adapted(make_backbone, stored), tmp_path / "adapter")
    backbone = make_backbone("llama")
    with pytest.raises(ValueError, match=said):
        attach(backbone, wanted, seed=0, init_from=tmp_path / "adapter")


def test_lora_may_continue_from_another_random_start(make_backbone: Make, tmp_path: Path) -> None:
    save_adapter(adapted(make_backbone, LoraConfig(r=2, init_lora_weights="gaussian")), tmp_path / "adapter")
    attach(make_backbone("llama"), LoraConfig(r=2), seed=0, init_from=tmp_path / "adapter")


def test_find_adapter(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"is neither a PEFT folder .* nor a run folder with a finished stage"):
        find_adapter(run)
    (run / "stage_00").mkdir(parents=True)
    (run / "stage_00" / "MANIFEST.json").touch()
    with pytest.raises(ValueError, match=r"adapter\.init_from="):
        find_adapter(run)  # nothing was trained yet
    for stage, whole in (("stage_01", True), ("stage_02", True), ("stage_03", False)):
        (run / stage / "adapter").mkdir(parents=True)
        (run / stage / "adapter" / "adapter_config.json").write_text(json.dumps({}))
        if whole:
            (run / stage / "MANIFEST.json").touch()
    assert find_adapter(str(run)) == run / "stage_02" / "adapter"
    assert find_adapter(run / "stage_01" / "adapter") == run / "stage_01" / "adapter"
    shutil.rmtree(run / "stage_02" / "adapter")  # full fine-tuning and none write no PEFT folder
    assert find_adapter(run) == run / "stage_01" / "adapter"


# -- the paper's counts ------------------------------------------------------------------------------------------------

MISTRAL = MistralConfig(
    vocab_size=32768,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
GPT2_LARGE = GPT2Config(n_embd=1280, n_layer=36, n_head=20)


@pytest.mark.parametrize(
    ("model", "shape", "rank", "curlora", "lora", "head"),
    [
        ("mistral_7b", MISTRAL, 16, 24_576, 9_437_184, 8_194),
        ("gpt2_large", GPT2_LARGE, 8, 2_304, 1_474_560, 2_562),
    ],
)
def test_counts_of_the_paper(
    model: str,
    shape: PretrainedConfig,
    rank: int,
    curlora: int,
    lora: int,
    head: int,
    compose: Callable[..., DictConfig],
    builtin_tokenizer: Any,
) -> None:
    """Trainable numbers as in the paper's table, by the real YAML files, without any weights (meta device)."""
    for name, expected in (("curlora", curlora), ("lora", lora)):
        cfg = compose(f"model={model}", f"adapter={name}", f"rank={rank}")
        with torch.device("meta"):
            backbone = Backbone(
                AutoModelForCausalLM.from_config(shape),
                builtin_tokenizer,
                name=model,
                fingerprint="",
                is_causal=True,
                pooling="last_token",
                target_modules=list(cfg.model.target_modules),
            )
        node = OmegaConf.to_container(cfg.adapter, resolve=True)
        assert isinstance(node, dict)
        adapter = instantiate(
            {key: value for key, value in node.items() if key not in config.ADAPTER_KEYS}, _convert_="all"
        )
        attach(backbone, adapter, seed=0)
        counted = count_parameters(backbone, [two_labels(backbone)])
        assert (counted["adapter"], counted["head"], counted["trainable"]) == (expected, head, expected + head)


def two_labels(backbone: Backbone) -> SequenceClassification:
    """A task with a head for two labels."""
    numbers = dict.fromkeys(("batch_size", "eval_batch_size"), 1)
    training = Training(optimizer=torch.optim.AdamW, scheduler=None, lr=1, head_lr=1, num_workers=0, seed=0, **numbers)
    data: Any = SimpleNamespace(labels=("no", "yes"))
    return SequenceClassification(
        data=data, name="two", backbone=backbone, training=training, metric="accuracy", metrics=["accuracy"]
    )
