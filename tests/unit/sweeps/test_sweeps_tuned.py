"""The root key ``tuned``: what is read, what it sets, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from curlora_lab.config import ConfigError
from curlora_lab.integrity import sealed
from curlora_lab.sweeps.tuned import apply, find, provenance, read
from curlora_lab.sweeps.tuning import attempt_of, tune
from curlora_lab.sweeps.tuning_table import NAME, write

Maker = Callable[..., dict[str, Any]]


@pytest.fixture
def keep(make_record: Maker, tmp_path: Path) -> Callable[..., Path]:
    """Write what a sweep over these runs (arguments of ``make_record``) would have found."""

    def make(folder: str, *runs: dict[str, Any]) -> Path:
        (tmp_path / folder).mkdir(parents=True)
        methods = tune([attempt_of(make_record(**run)) for run in runs], tolerance=0.01)
        write(tmp_path / folder / NAME, methods, tolerance=0.01)
        return tmp_path / folder / NAME

    return make


@pytest.fixture
def config(make_record: Maker) -> Callable[..., dict[str, Any]]:
    """A configuration that names files."""

    def make(*tuned: Path, **settings: Any) -> dict[str, Any]:
        found: dict[str, Any] = make_record(lr=1.0, evaluate_on="test", **settings)["config"]
        return found | {"tuned": [str(path) for path in tuned] if len(tuned) > 1 else str(tuned[0])}

    return make


GRID = ({"lr": 1e-3, "score": 0.5}, {"lr": 1e-2, "score": 0.8}, {"lr": 1e-1, "score": 0.6})


def test_a_run_takes_the_rate_of_its_method(keep: Any, config: Any) -> None:
    path = keep("sweep", *GRID, {"lr": 5.0, "adapter": "curlora"})
    plain = config(path)
    cfg = OmegaConf.create({"lr": 1.0, "head_lr": plain["head_lr"]})
    assert apply(cfg, plain, ["adapter=lora", "seed=3"]) == {"lr": 1e-2, "head_lr": plain["head_lr"]}
    assert cfg.lr == 1.0, "what was composed stays as it was"
    assert apply(cfg, config(path, adapter="curlora"), []).lr == 5.0
    assert apply(cfg, {"tuned": None}, []) is cfg
    found = provenance({**plain, "lr": 1e-2}, fingerprint="f")
    assert found is not None
    assert (found["method"], found["edge"], len(found["sha256"])) == ("lora", False, 64)
    assert provenance({"tuned": None}, fingerprint="f") is None


def test_a_folder_and_a_list_mean_all_files(keep: Any, config: Any, tmp_path: Path) -> None:
    one, two = keep("sweeps/a", *GRID), keep("sweeps/b", {"lr": 5.0, "adapter": "curlora"})
    for named in ([tmp_path / "sweeps"], [one, two], [one.parent, two]):
        assert find(config(*named)).lr == 1e-2
        assert find(config(*named, adapter="curlora")).lr == 5.0
    assert len(read([str(one), str(one.parent)])) == 1, "the same file counts once"


def test_different_values_for_one_method_are_refused_and_equal_ones_are_not(keep: Any, config: Any) -> None:
    one, two, again = keep("a", *GRID), keep("b", {"lr": 0.5}), keep("c", *GRID)
    with pytest.raises(ConfigError, match=r"different results") as refused:
        find(config(one, two))
    assert str(one) in str(refused.value)
    assert str(two) in str(refused.value)
    assert find(config(one, again)).lr == 1e-2


def test_a_method_without_a_value_is_refused_and_another_file_may_have_it(keep: Any, config: Any) -> None:
    one = keep("a", *GRID)
    value = json.loads(one.read_text())
    for status, words in (("failed", "found no value"), ("unfinished", "did not end")):
        value["methods"][0] |= {"status": status, "lr": None, "head_lr": None}
        one.write_text(json.dumps(sealed(value)))
        with pytest.raises(ConfigError, match=words):
            find(config(one))
    assert find(config(one, keep("b", *GRID))).lr == 1e-2


def test_a_method_that_was_not_tuned_is_told_what_is_there_and_what_differs(keep: Any, config: Any) -> None:
    path = keep("a", *GRID, {"adapter": "curlora", "rank": 4})
    with pytest.raises(ConfigError) as refused:
        find(config(path, rank=1, epochs=2))
    message = str(refused.value)
    assert "lora (tuned), curlora (tuned)" in message
    assert "nearest, lora, it differs" in message
    assert "rank: 8 there, 1 here" in message
    assert "epochs: None there, 2 here" in message
    with pytest.raises(ConfigError, match=r"vera with .* not tuned. .* curlora \(tuned\)\. Tune this method too"):
        find(config(path, adapter="vera"))


def test_heads_must_have_the_rate_with_which_the_method_was_tuned(keep: Any, config: Any) -> None:
    fixed = keep("fixed", *({**run, "head_lr": 0.01} for run in GRID))
    assert find(config(fixed, head_lr=0.01)).lr == 1e-2
    with pytest.raises(ConfigError, match=r"head_lr: 0.01 there, 0.02 here"):
        find(config(fixed, head_lr=0.02))
    varied = keep("varied", *({**run, "head_lr": rate, "score": rate} for run in GRID for rate in (0.1, 0.9)))
    cfg = OmegaConf.create({"lr": 1.0, "head_lr": 0.5})
    assert apply(cfg, config(varied, head_lr=0.5), []) == {"lr": 1e-3, "head_lr": 0.9}
    with pytest.raises(ConfigError, match=r"head_lr=0.5 is given"):
        apply(cfg, config(varied), ["head_lr=0.5"])


def test_a_given_rate_is_refused(keep: Any, config: Any) -> None:
    cfg = OmegaConf.create({"lr": 1.0, "head_lr": 5e-3})
    with pytest.raises(ConfigError, match=r"lr=1 is given, .* \(0.01\); leave one of them out"):
        apply(cfg, config(keep("a", *GRID)), ["lr=1"])


def test_other_scenarios_take_the_rate_of_the_sequence_unless_they_have_their_own(keep: Any, config: Any) -> None:
    path = keep("a", *GRID)
    assert find(config(path, scenario="joint")).lr == 1e-2
    own = keep("b", {"lr": 0.5, "scenario": "joint"})
    assert find(config(path, own, scenario="joint")).lr == 0.5
    with pytest.raises(ConfigError, match=r"scenario: 'joint' there, 'sequential' here"):
        find(config(own))


def test_another_rate_or_another_model_than_was_tuned_is_refused(keep: Any, config: Any) -> None:
    plain = config(keep("a", *GRID))
    with pytest.raises(ConfigError, match=r"lr=1, .* says lr=0.01"):
        provenance(plain, fingerprint="f")
    with pytest.raises(ConfigError, match=r"another model of this name"):
        provenance({**plain, "lr": 1e-2}, fingerprint="g")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"schema_version": "1", "methods": [{}]}', '{"schema_version": "7", "methods": []}'],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, config: Any, content: str) -> None:
    path = tmp_path / NAME
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"tuned: {path}"):
        find(config(path))


def test_a_flipped_digit_is_refused_and_a_file_written_by_hand_is_not(keep: Any, config: Any) -> None:
    path = keep("sweep", *GRID)
    path.write_text(path.read_text().replace("0.01,", "0.03,"))
    with pytest.raises(ConfigError, match=r"tuned\.json was damaged or changed after sweep=tune wrote it"):
        find(config(path))
    by_hand = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    path.write_text(json.dumps(by_hand))
    assert find(config(path)).lr == 0.03


def test_values_of_the_wrong_kind_are_refused(keep: Any, config: Any) -> None:
    path = keep("a", *GRID)
    whole = json.loads(path.read_text())
    for key, wrong in (("lr", None), ("lr", -1.0), ("lr", "0.1"), ("edge", "no"), ("settings", None)):
        value = json.loads(json.dumps(whole))
        value["methods"][0][key] = wrong
        path.write_text(json.dumps(value))
        with pytest.raises(ConfigError, match=rf"methods\[0\]\.{key}"):
            find(config(path))


def test_a_folder_without_a_file_is_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ConfigError, match=r"there is no tuned\.json"):
        find(config(tmp_path))
