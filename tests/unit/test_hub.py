"""Which parts of a configuration need the hub, and what happens when it does not answer."""

import logging

import datasets.config
import pytest
from huggingface_hub import constants, is_offline_mode

from curlora_lab import hub

LOCAL = {"model": {"path": "builtin"}, "task": {"data": {"source": {"hub": {"path": "a/b"}, "data_dir": "here"}}}}
REMOTE = {"model": {"path": "gpt2"}, "sequence": {"tasks": [{"source": {"hub": {"path": "a/b"}, "generator": None}}]}}


def test_what_is_local_or_built_in_needs_no_hub(tmp_path):
    assert list(hub.needs(LOCAL)) == []
    assert list(hub.needs({"model": {"path": str(tmp_path)}})) == []
    assert (
        list(hub.needs({"model": None, "task": {"source": {"hub": {"path": "a/b"}, "generator": {"_target_": "x"}}}}))
        == []
    )


def test_what_is_on_the_hub_is_named():
    assert list(hub.needs(REMOTE)) == ["model gpt2", "data a/b"]
    assert list(hub.needs({**REMOTE, "task": {"source": {"hub": None}}})) == ["model gpt2"]  # the sequence is not used


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch, caplog):
    monkeypatch.setattr(hub, "fault_of", lambda url: "nobody is there")
    with caplog.at_level(logging.WARNING, logger="curlora_lab"), hub.answering_or_offline(REMOTE):
        assert is_offline_mode()
        assert datasets.config.HF_HUB_OFFLINE
    assert not is_offline_mode()
    assert "nobody is there" in caplog.text
    assert "model gpt2, data a/b" in caplog.text
    assert "HF_HUB_OFFLINE=1" in caplog.text


@pytest.mark.usefixtures("online")
def test_nobody_is_asked_without_need(monkeypatch):
    monkeypatch.setattr(hub, "fault_of", lambda url: pytest.fail("the hub was asked"))
    with hub.answering_or_offline(LOCAL):
        assert not is_offline_mode()


def test_nobody_is_asked_where_the_user_said_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "fault_of", lambda url: pytest.fail("the hub was asked"))
    with hub.answering_or_offline(REMOTE):
        assert is_offline_mode()
