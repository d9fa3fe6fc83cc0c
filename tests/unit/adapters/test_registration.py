"""The contract with PEFT's internals: fails loudly on an upgrade that breaks it."""

import peft
import pytest
from packaging.version import Version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

from curlora_lab import CurLoraConfig, CurLoraModel
from curlora_lab.adapters import registration


def test_peft_knows_the_method():
    assert PeftType("CURLORA") is PeftType.CURLORA
    assert PeftType.CURLORA.value == PeftType.CURLORA.name == "CURLORA"
    assert PeftType.CURLORA in list(PeftType)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.CURLORA] is CurLoraConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["CURLORA"] is CurLoraModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.CURLORA] == CurLoraModel.prefix == "curlora_"


def test_registering_again_changes_nothing():
    before = list(PeftType)
    registration.add_peft_type()
    registration.register()
    assert list(PeftType) == before


def test_other_methods_are_untouched():
    assert PeftType("LORA") is PeftType.LORA
    assert peft.LoraConfig().peft_type == PeftType.LORA


def test_the_version_is_the_one_this_was_tested_with():
    assert Version("0.21.2") <= Version(peft.__version__) < Version("0.22")


def test_a_peft_that_refuses_gives_a_clear_message(monkeypatch):
    monkeypatch.setattr(registration, "register_peft_method", lambda **_: (_ for _ in ()).throw(ValueError("closed")))
    monkeypatch.delitem(PEFT_TYPE_TO_TUNER_MAPPING, PeftType.CURLORA)
    with pytest.raises(ImportError, match=r"installed peft .* \(closed\); it is tested with peft>=0.21.2,<0.22"):
        registration.register()
