"""An object that carries the hash of the rest of it."""

import copy

import pytest

from curlora_lab.integrity import SEAL, is_whole, record_seal, seal_of, sealed, sealed_record

VALUE = {"stage": 1, "loss": 0.1 + 0.2, "name": "schön \u2028", "nested": [{"b": None, "a": True}]}


def test_a_sealed_value_is_whole_whatever_the_order_of_its_keys():
    assert is_whole(sealed(VALUE))
    assert is_whole(dict(reversed(sealed(VALUE).items())))
    assert sealed(sealed(VALUE)) == sealed(VALUE)


@pytest.mark.parametrize("change", [{"stage": 2}, {"loss": 0.3}, {"more": 1}, {SEAL: "0" * 16}, {SEAL: None}])
def test_a_changed_value_is_not_whole(change):
    assert not is_whole({**sealed(VALUE), **change})


def test_a_value_without_a_seal_is_not_whole():
    assert not is_whole(VALUE)


def test_keys_that_json_makes_texts_of():
    assert seal_of({"map": {10: "a", 2: "b"}}) == seal_of({"map": {"10": "a", "2": "b"}})


def test_a_record_has_its_seal_in_its_provenance():
    record = sealed_record({"scores": [[0.5]], "provenance": {"host": "x"}})
    assert record["provenance"][SEAL] == record_seal(record)
    changed = copy.deepcopy(record)
    changed["scores"][0][0] = 0.6
    assert changed["provenance"][SEAL] != record_seal(changed)
