"""A frozen random U as a whole run: a backbone that is shifted and stays so, and heads that are trained on it."""

from collections.abc import Callable
from typing import Any

import pytest

Runner = Callable[..., dict[str, Any]]
TWO = ("~sequence.tasks.paraphrase", "adapter=curlora_frozen_u")


def test_only_heads_are_trained_and_the_backbone_stays_where_it_was_put(small_run: Runner) -> None:
    record = small_run(*TWO)
    assert small_run(*TWO)["folder"] == record["folder"]
    assert record["parameters"]["adapter"] == 0 < record["parameters"]["head"]
    assert record["shift"]["weight"][2]["overall"] == 0
    perplexities = record["probes"]["perplexity"]["builtin"]
    assert perplexities[0] == perplexities[1] == perplexities[2]
    untouched = small_run("task=builtin_sentiment2", "adapter=none")["probes"]["perplexity"]["builtin"][0]
    assert perplexities[0] != untouched, "row 0 is the shifted model already"
    assert record["scores"][1][0] == record["scores"][2][0], (
        "nothing that tasks share is trained, so nothing is forgotten"
    )
    assert "untuned_learning_rate" not in {warning["code"] for warning in record["warnings"]}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["replay", "derpp", "ewc", "mas", "lwf", "agem", "anchor", "per_task"])
def test_it_goes_with_strategies(small_run: Runner, strategy: str) -> None:
    record = small_run(*TWO, f"strategy={strategy}")
    assert record["parameters"]["adapter"] == 0
    assert record["scores"][1][0] == record["scores"][2][0]


@pytest.mark.slow
@pytest.mark.parametrize("override", ["scenario=joint", "scenario=independent", "repeats=2", "budget=3072"])
def test_it_goes_with_scenarios_and_budgets(small_run: Runner, override: str) -> None:
    record = small_run(*TWO, override)
    assert record["status"] == "finished"
    assert record["config"]["rank"] == 16
