"""The published orders of the benchmarks, written out here a second time, against what the configuration composes."""

from collections.abc import Callable

import pytest
from hydra import compose as compose_alone
from hydra import initialize_config_dir
from omegaconf import DictConfig

from curlora_lab import config

Compose = Callable[..., DictConfig]
# a sequence composed alone is not made for it
pytestmark = pytest.mark.filterwarnings("ignore:In 'sequence/.*missing `_self_`:UserWarning")
SLOW = pytest.mark.slow  # composing fifteen tasks with everything else takes its time

#: Orders 1 to 3: O-LoRA's four tasks; 4 to 6: its fifteen.
ORDERS = {
    1: "dbpedia amazon yahoo agnews",
    2: "dbpedia amazon agnews yahoo",
    3: "yahoo amazon agnews dbpedia",
    4: "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo",
    5: "multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo",
    6: "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolq wic",
}
MISSING = {1: {"yahoo"}, 2: {"yahoo"}, 3: {"yahoo"}, **{order: {"wic", "imdb", "yahoo"} for order in (4, 5, 6)}}
TRAIN_ROWS = {
    **{"agnews": 4000, "amazon": 5000, "yelp": 5000, "dbpedia": 14000, "yahoo": 10000},
    **{"mnli": 3000, "qqp": 2000, "rte": 2000, "sst2": 2000, "cb": 250, "copa": 400, "wic": 2000, "boolq": 2000},
    **{"multirc": 2000, "imdb": 2000},
}
#: TRACE's tasks in its order, with its epochs.
TRACE = {
    **{"c_stance": 5, "fomc": 3, "meetingbank": 7, "py150": 5},
    **{"scienceqa": 3, "numglue_cm": 5, "numglue_ds": 5, "20minuten": 7},
}
TRACE_MISSING = {"meetingbank", "py150"}


def sequence(name: str) -> DictConfig:
    """One sequence alone, its tasks in their order."""
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return compose_alone(f"sequence/{name}").sequence


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_is_the_published_one(order: int) -> None:
    assert [node.name for node in sequence(f"order{order}").tasks.values()] == ORDERS[order].split()


@pytest.mark.parametrize("order", [order if order in (1, 4) else pytest.param(order, marks=SLOW) for order in ORDERS])
def test_the_experiment_has_the_order_and_its_rows(compose: Compose, order: int) -> None:
    found = compose(f"experiment=benchmark/order{order}").sequence.tasks
    assert [(node.name, node.data.train_rows) for node in found.values()] == [
        (name, TRAIN_ROWS[name]) for name in ORDERS[order].split()
    ]
    assert {node.data.eval_rows for node in found.values()} == {7600}


@pytest.mark.parametrize("order", ORDERS)
def test_a_local_part_lacks_what_it_says_and_keeps_the_order(order: int) -> None:
    local, whole = sequence(f"order{order}_local"), ORDERS[order].split()
    assert set(whole) - set(local.tasks) == set(local.missing) == MISSING[order]
    assert [node.name for node in local.tasks.values()] == [name for name in whole if name not in MISSING[order]]
    assert local.name == f"order{order}_local"


def test_trace_has_its_tasks_and_epochs(compose: Compose) -> None:
    found = compose("experiment=benchmark/trace").sequence.tasks
    assert [(node.name, node.epochs) for node in found.values()] == [(f"trace_{name}", n) for name, n in TRACE.items()]


def test_the_local_part_of_trace() -> None:
    local = sequence("trace_local")
    assert set(local.missing) == TRACE_MISSING
    assert list(local.tasks) == [f"trace_{name}" for name in TRACE if name not in TRACE_MISSING]
