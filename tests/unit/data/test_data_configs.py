"""Every task YAML composes where it can be mounted, and builds data without reading any."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from curlora_lab.data import (
    ClassificationData,
    DataSource,
    InstructionData,
    LanguageModelData,
    QuestionData,
    RegressionData,
    TokenData,
)

CONF = Path(__file__).parents[3] / "conf"
TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml") if not path.stem.startswith("builtin"))
ROOT = [
    "+heads=own",
    "++max_length=32",
    "++train_rows=10",
    "++shots=null",
    "++draw=0",
    "++eval_rows=7",
    "++evaluate_on=test",
    "++data_dir=some/folder",
]


@pytest.fixture(scope="module", autouse=True)
def conf() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.parametrize("task", TASKS)
def test_task_data(task: str) -> None:
    alone = compose(overrides=[f"+task={task}", *ROOT]).task
    mounted = compose(overrides=[f"+task@sequence.tasks.other={task}", *ROOT]).sequence.tasks.other
    assert alone == mounted
    assert alone.name == task
    data: Any = instantiate(mounted.data)
    assert data.name == task
    assert data.max_length == 32
    assert data.source.data_dir == Path("some/folder")
    assert alone.data._target_ == f"curlora_lab.data.{type(data).__name__}"


@pytest.mark.parametrize("task", TASKS)
def test_the_header_says_what_and_how(task: str) -> None:
    first, second = (CONF / "task" / f"{task}.yaml").read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert len(first) > 20
    assert second.startswith(f"#   python train.py task={task}")


def test_the_keys_of_the_base_are_the_arguments() -> None:
    import inspect

    kinds = {
        "classification": ClassificationData,
        "instruction": InstructionData,
        "language_modeling": LanguageModelData,
        "question_answering": QuestionData,
        "regression": RegressionData,
        "token_classification": TokenData,
    }
    for base, kind in kinds.items():
        node = compose(overrides=[f"+task/base@task={base}", *ROOT]).task.data
        assert set(node) - {"_target_"} == set(inspect.signature(kind).parameters)
        assert set(node.source) - {"_target_"} == set(inspect.signature(DataSource).parameters)


def test_roles_on_the_hub_and_in_a_folder() -> None:
    hub: Any = instantiate(compose(overrides=["+task=mnli", *ROOT[:-1], "++data_dir=null"]).task.data)
    assert [hub.source.split(role) for role in ("train", "test", "choose")] == [
        "train[:3000]",
        "validation_matched",
        None,
    ]
    local: Any = instantiate(compose(overrides=["+task=mnli", *ROOT]).task.data)
    assert [local.source.split(role) for role in ("train", "test", "choose")] == ["train", "test", None]
