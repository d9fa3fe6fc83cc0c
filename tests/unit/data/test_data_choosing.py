"""``evaluate_on=choose``: rows for testing are neither read nor there, whatever the head."""

from collections.abc import Callable
from typing import Any

import pytest
from hydra.utils import instantiate

from curlora_lab import config
from curlora_lab.data import DataSource
from curlora_lab.data.faults import DataError

BUILT_IN = sorted(path.stem for path in (config.conf_dir() / "task").glob("builtin_*.yaml"))
SMALL = ("train_rows=40", "eval_rows=12", "max_length=96")


def prepared(compose: Callable[..., Any], tokenizer: Any, *overrides: str) -> Any:
    data = instantiate(compose(*SMALL, *overrides).task.data, _convert_="all")
    data.prepare(tokenizer, seed=0)
    return data


@pytest.mark.parametrize("task", BUILT_IN)
def test_the_reported_split_is_not_read(
    task: str, compose: Any, builtin_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = prepared(compose, builtin_tokenizer, f"task={task}")
    assert usual.evaluated == "test"
    read = DataSource.read

    def guarded(source: DataSource, role: str) -> Any:
        assert role != "test"
        return read(source, role)

    monkeypatch.setattr(DataSource, "read", guarded)
    data = prepared(compose, builtin_tokenizer, f"task={task}", "evaluate_on=choose")
    assert data.evaluated == "choose"
    assert set(data.roles) == {"train", "choose"}
    with pytest.raises(ValueError, match=r"no rows for 'test'"):
        data.rows("test")
    for role in ("train", "choose"):
        assert data.row_ids(role) == usual.row_ids(role), "training and choosing rows are those of any run"
    assert data.fingerprint != usual.fingerprint
    assert data.only(builtin_tokenizer, data.examples("choose")[:2]).evaluated == "test", "rows given by hand"


def test_rows_held_back_for_testing_are_trained_on_by_nobody(compose: Any, builtin_tokenizer: Any) -> None:
    task = ("task=builtin_sentiment2", "task.data.source.splits.test=null", "task.data.source.splits.choose=null")
    usual = prepared(compose, builtin_tokenizer, *task)
    data = prepared(compose, builtin_tokenizer, *task, "evaluate_on=choose")
    for role in ("train", "choose"):
        assert data.row_ids(role) == usual.row_ids(role)
    held = set(usual.row_ids("test"))
    assert not held & {*data.row_ids("train"), *data.row_ids("choose")}


def test_no_row_to_choose_on_is_an_error(compose: Any, builtin_tokenizer: Any) -> None:
    task = ("task=builtin_sentiment2", "task.data.source.splits.choose=null", "train_rows=4")
    with pytest.raises(DataError, match=r"no usable row to choose on: evaluate_on=choose .*; raise choose_fraction"):
        prepared(compose, builtin_tokenizer, *task, "evaluate_on=choose")
