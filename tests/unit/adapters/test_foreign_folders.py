"""Adapter folders of anyone: what is refused before PEFT reads them."""

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from curlora_lab.adapters.foreign import AdapterFolderError, check_adapter_folder, check_source


@pytest.fixture
def folder(tmp_path):
    LoraConfig(r=4, target_modules=["q_proj"], rank_pattern={"v.*": 2}).save_pretrained(str(tmp_path))
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    return tmp_path


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_plain_folder_passes(folder):
    check_adapter_folder(folder)
    check_source(folder, full_weights="model.safetensors")


def test_full_weights_pass(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    check_source(tmp_path, full_weights="model.safetensors")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"auto_mapping": {"parent_library": "evil"}}, "auto_mapping is set"),
        ({"peft_type": None}, "peft_type is None"),
        ({"r": 10**9}, "a rank is at most"),
        ({"r": "8"}, "r is '8'; it must be a whole number"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"lora_alpha": 10**400}, "lora_alpha is not a number that makes sense"),
        ({"target_modules": 5}, "target_modules is 5"),
        ({"target_modules": [1]}, "target_modules is"),
        ({"target_modules": "("}, "is no pattern"),
        ({"rank_pattern": {"(": 2}}, "is no pattern"),
        ({"rank_pattern": {"a": 10**9}}, "a rank is at most"),
        ({"rank_pattern": [1]}, "rank_pattern is a list"),
        ({"lora_dropout": float("nan")}, "lora_dropout is nan"),
    ],
)
def test_a_configuration_that_is_none_is_refused(folder, fields, says):
    change(folder, **fields)
    with pytest.raises(AdapterFolderError, match=says):
        check_adapter_folder(folder)


@pytest.mark.parametrize("content", ["[1]", "{", '{"a":' * 100_000, " " * (1 << 21)])
def test_what_is_no_configuration_is_refused(folder, content):
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterFolderError, match=r"adapter_config\.json"):
        check_adapter_folder(folder)


def test_a_pickle_is_named_and_never_read(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterFolderError, match=r"adapter_model\.bin is a pickle, which is never read"):
        check_adapter_folder(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (200_000_000).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_none_are_refused(folder, content):
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(AdapterFolderError, match="cannot be loaded"):
        check_adapter_folder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    save_file({"a": torch.tensor([1.0, value])}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterFolderError, match="'a' is not finite"):
        check_adapter_folder(folder)
