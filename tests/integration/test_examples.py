import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Merge .*:UserWarning"),
]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_example_is_tested_and_short():
    tested = {"plain_loop", "generate", "qlora_like", "hf_trainer"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
    for name in tested:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert len(text.splitlines()) < 100
        assert f"python examples/{name}.py" in text


def test_plain_loop_learns_saves_and_loads():
    losses = example("plain_loop").main(steps=15)
    assert losses["after"] < 0.5 * losses["before"]
    assert losses["disabled"] == losses["before"]
    assert losses["loaded"] == pytest.approx(losses["after"], abs=1e-6)


def test_generate_with_adapter_disabled_mixed_and_merged():
    module = example("generate")
    texts = module.main(steps=40)
    assert texts["pleased"] == module.ENDINGS["pleased"].removesuffix(".")
    assert texts["cross"] == module.ENDINGS["cross"].removesuffix(".")
    assert texts["merged"] == texts["pleased"]
    assert texts["disabled"] not in (texts["pleased"], texts["cross"])
    assert texts["mixed"].split(" | ") == [texts["disabled"], texts["pleased"], texts["cross"]]


def test_qlora_like_trains_and_says_what_ran(capsys):
    result = example("qlora_like").main(steps=15)
    assert result["after"] < 0.5 * result["before"]
    assert result["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    said = capsys.readouterr().out
    assert ("No GPU here" in said) == (result["device"] == "cpu")
    assert ("bitsandbytes is not installed" in said) == (not result["quantized"])


def test_hf_trainer_trains_and_loads_what_it_saved():
    scores = example("hf_trainer").main(rows=64, epochs=1, test_rows=60)
    assert scores["loaded"] == scores["after"]


@pytest.mark.slow  # half a minute of training
def test_hf_trainer_learns_sentiment():
    scores = example("hf_trainer").main()
    assert scores["before"] < 0.6
    assert scores["after"] > 0.75
    assert scores["loaded"] == scores["after"]
