"""The card says what a reader needs, and quotes what comes from a record, which may be anyone's."""

import copy
from typing import Any

import pytest
import yaml

from curlora_lab.adapters.model_card import model_card

RECORD: dict[str, Any] = {
    "name": "small",
    "tasks": ["mrpc", "sst2"],
    "metric": {"mrpc": "f1", "sst2": "accuracy"},
    "learnt_in": {"mrpc": 1, "sst2": 2},
    "scores": [[0.1, 0.5], [0.8, 0.5], [0.7, None]],
    "baselines": {
        name: {"constant": 0.6, "constant_label": "yes", "best": None, "rows": 40} for name in ("mrpc", "sst2")
    },
    "probes": {"perplexity": {"wikitext2": [20.0, 21.0, 22.5]}},
    "parameters": {"adapter": 24576, "head": 1000, "trainable": 25576, "total": 124000000},
    "config": {
        "rank": 16,
        "lr": 0.01,
        "adapter": {"name": "curlora"},
        "sequence": {
            "tasks": {
                "mrpc": {"name": "mrpc", "data": {"source": {"hub": {"path": "nyu-mll/glue", "config": "mrpc"}}}},
                "sst2": {"name": "sst2", "data": {"source": {"name": "sst2", "data_dir": "/home/someone/data"}}},
            }
        },
    },
    "provenance": {
        "package_version": "0.1.0",
        "git_commit": "abc",
        "identity": "123",
        "versions": {"torch": "2", "transformers": "5", "peft": "0.21"},
        "model": {"path": "gpt2", "revision": "607a30d", "name": "gpt2", "fingerprint": "fff"},
        "data": {name: {"fingerprint": "e" * 64, "rows": {"train": 64}, "notes": []} for name in ("mrpc", "sst2")},
    },
}


def card(record: dict[str, Any] = RECORD, **changes: Any) -> str:
    given: dict[str, Any] = {
        "kind": "lora",
        "stage": 2,
        "is_causal": True,
        "pooling": "last_token",
        "heads": dict.fromkeys(("mrpc", "sst2"), 'logits = pooled @ head["weight"].T + head["bias"]'),
        "prompts": {},
        "how": "closed form",
        "error": 3e-7,
    }
    return model_card(record, **{**given, **changes})


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---")[1])


def test_scores_parameters_data_and_what_is_to_be_filled_in() -> None:
    text = card()
    assert front_matter(text) == {
        "library_name": "peft",
        "base_model": "gpt2",
        "license": "other",
        "license_name": "fill-in-before-publishing",
        "tags": ["curlora-lab", "continual-learning"],
    }
    assert "| mrpc | f1 | 0.7000 | 0.1000 | 0.6000 | 40 | stage 1 |" in text
    assert "| sst2 | accuracy | – | 0.5000 | 0.6000 | 40 | stage 2 |" in text
    assert "| wikitext2 | 20.0000 | 22.5000 |" in text
    assert "24,576 in the adapter, 1,000 in heads, of 124,000,000 in all" in text
    assert "| mrpc | nyu-mll/glue mrpc | train 64 |" in text
    assert text.count("[fill in before publishing]") == 4
    assert "differ by 3.0e-07" in text


def test_no_path_of_a_machine_is_told() -> None:
    record = copy.deepcopy(RECORD)
    record["provenance"]["model"] |= {"path": "/home/someone/gpt2", "revision": None}
    text = card(record)
    assert "/home" not in text
    assert "base_model" not in front_matter(text)
    assert 'from_pretrained("<folder of gpt2>")' in text


@pytest.mark.parametrize(("pooling", "expected"), [("cls", "hidden[:, 0]"), ("mean", "hidden.mean(dim=1)")])
def test_the_example_pools_as_the_run_did(pooling: str, expected: str) -> None:
    assert f"pooled = {expected}" in card(pooling=pooling, is_causal=False)
    assert "AutoModelForCausalLM" not in card(is_causal=False, kind="merged")


def test_where_a_prompt_ends_is_said_for_each_task_that_the_language_model_answers() -> None:
    assert "prompts.json" not in card()
    text = card(heads={}, prompts={"mrpc": "ask without the blanks at the end", "sst2": "ask with the text [as it is]"})
    assert "kept to the byte" in text
    assert "\n- mrpc: ask without the blanks at the end\n- sst2: ask with the text \\[as it is\\]\n" in text


def test_an_earlier_stage_says_what_was_not_learnt_yet() -> None:
    text = card(stage=1, heads={"mrpc": "logits"})
    assert "trained on mrpc." in text
    assert "| 40 | not yet |" in text


def test_what_a_record_says_is_quoted() -> None:
    record = copy.deepcopy(RECORD)
    evil = '<script>x</script>|](http://evil)\n# head\x1b[31m"\nlicense: mit'
    record["name"] = evil
    record["provenance"]["git_commit"] = evil
    record["provenance"]["model"]["path"] = evil
    record["provenance"]["data"]["mrpc"]["notes"] = [evil]
    record["config"]["adapter"]["name"] = evil
    text = card(record)
    body = text.split("---", 2)[2]
    assert "<script>" not in body
    assert "\x1b" not in text
    assert "\n# head" not in text
    assert "](http" not in body.replace("\\](http", "")
    assert 'from_pretrained("<folder of gpt2>")' in body
    assert front_matter(text)["license"] == "other"
    assert front_matter(text)["base_model"] == evil
