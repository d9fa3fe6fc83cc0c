import json

import pytest
from peft import PeftConfig

from curlora_lab import CurLoraConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"CurLoraConfig: r=0 is not allowed; it must be a positive integer"),
        ({"r": 2.5}, r"r=2.5 is not allowed"),
        ({"alpha": float("nan")}, r"alpha=nan is not allowed; it must be a finite number"),
        ({"alpha": "1"}, r"alpha='1' is not allowed"),
        ({"floor": -1.0}, r"floor=-1.0 is not allowed; it must be a number, at least 0"),
        ({"leverage_rank": 0}, r"leverage_rank=0 is not allowed; it must be a positive integer, or None"),
        ({"floor_absolute": -1.0}, r"floor_absolute=-1.0"),
        ({"dropout": 1.0}, r"dropout=1.0 is not allowed; it must be at least 0 and below 1"),
        ({"basis": "cur"}, r"basis='cur' is unknown; choose one of inverse_norm, norm, uniform"),
        ({"u_init": "ones"}, r"u_init='ones' is unknown; choose one of zero, gaussian"),
        ({"duplicates": "drop"}, r"duplicates='drop' is unknown"),
        ({"basis": "deim", "replacement": True}, r"replacement=True has no effect on basis='deim'"),
        ({"duplicates": "merge"}, r"duplicates='merge' has no effect without replacement=True"),
        ({"basis": "gaussian", "save_basis": False}, r"save_basis=False needs a basis that can be rebuilt"),
        ({"layers_pattern": "h"}, r"layers_pattern needs layers_to_transform"),
    ],
)
def test_values_out_of_range_and_keys_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CurLoraConfig(**options)


def test_saved_and_loaded_it_is_equal(tmp_path):
    config = CurLoraConfig(r=3, alpha=0.5, target_modules=["a", "b"], basis="leverage", leverage_rank=7, seed=11)
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "CURLORA"


def test_sequences_of_any_kind_become_what_peft_expects():
    config = CurLoraConfig(target_modules=("a", "b"), modules_to_save=("head",), layers_to_transform=(0, 1))
    assert config.target_modules == {"a", "b"}
    assert config.modules_to_save == ["head"]
    assert config.layers_to_transform == [0, 1]
    assert CurLoraConfig(target_modules=".*q_proj").target_modules == ".*q_proj"
