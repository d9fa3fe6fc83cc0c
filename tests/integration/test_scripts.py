"""evaluate.py, predict.py and export.py on a finished run of two tasks."""

import gzip
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from curlora_lab import config
from curlora_lab.backbone import BUILTIN_FOLDER
from curlora_lab.run import run

ROOT = Path(__file__).parents[2]
SMALL = ("rank=4", "train_rows=64", "eval_rows=40", "epochs=1", "probe=none", "trainer.accelerator=cpu")
TWO_TASKS = ("~sequence.tasks.sentiment3", *SMALL)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


evaluate, predict, export = script("evaluate"), script("predict"), script("export")

Called = Callable[..., tuple[int, str, str]]


def make_run(output: Path, *overrides: str) -> Path:
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        plain = config.validate(compose("train", overrides=[f"output_dir={output}", "name=small", *overrides]))
    run(plain)
    return next(output.glob("*/small"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CURLoRA on a task of two columns, then one of one."""
    return make_run(tmp_path_factory.mktemp("scripts"), *TWO_TASKS)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Called:
    """Call a script's ``main`` and give its exit code and what it wrote."""
    monkeypatch.setenv("COLUMNS", "200")

    def called(module: ModuleType, *arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = module.main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return code, written.out, written.err

    return called


# -- evaluate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2])
def test_scores_are_those_of_the_record_bit_for_bit(finished: Path, call: Called, tmp_path: Path, stage: int) -> None:
    out = tmp_path / "scores.json"
    code, shown, _ = call(evaluate, finished, "--stage", stage, "--device", "cpu", "--json", out)
    record, found = json.loads((finished / "results.json").read_text()), json.loads(out.read_text())
    assert code == 0
    assert list(found["tasks"]) == ["paraphrase", "sentiment2"]
    for name, task in found["tasks"].items():
        assert task["metrics"] == record["metrics"][name][stage] == task["recorded"]
        assert (task["equal"], task["changed_predictions"], task["rows"]) == (True, 0, 40)
        assert task["learnt"] == (record["learnt_in"][name] <= stage)
    assert "bit for bit" in shown
    assert ("not learnt yet at stage 1" in shown) == (stage == 1)


def test_another_split_is_scored_but_not_compared(finished: Path, call: Called, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    code, _, _ = call(evaluate, finished, "--task", "sentiment2", "--split", "train", "--json", out)
    task = json.loads(out.read_text())["tasks"]["sentiment2"]
    assert (code, task["rows"], task["recorded"]) == (0, 64, None)


def test_fewer_rows_keep_the_share_of_each_label(finished: Path, call: Called, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    assert call(evaluate, finished, "--task", "sentiment2", "--max-rows", 10, "--json", out)[0] == 0
    task = json.loads(out.read_text())["tasks"]["sentiment2"]
    assert (task["rows"], task["constant"], task["recorded"]) == (10, 0.5, None)


def test_a_score_that_differs_from_the_record_is_exit_code_1(
    finished: Path, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = evaluate.open_named

    def forged(options: Any) -> Any:
        opened = read(options)
        opened.record["metrics"]["sentiment2"][2]["accuracy"] += 1e-9
        return opened

    monkeypatch.setattr(evaluate, "open_named", forged)
    code, shown, error = call(evaluate, finished, "--device", "cpu")
    assert code == 1
    assert "≠" in shown
    assert error.startswith("sentiment2: accuracy is ")
    assert call(evaluate, finished, "--device", "cpu", "--tolerance", 1e-6)[0] == 0


def other_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).mkdir(parents=True)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name / "test.jsonl.gz").write_bytes(gzip.compress(content.encode()))


def test_rows_of_another_folder_need_no_train_split(finished: Path, call: Called, tmp_path: Path) -> None:
    rows = [{"sentence": f"we liked the room {n} .", "label": "positive"} for n in range(3)]
    other_rows(tmp_path, "sentiment2", rows)
    out = tmp_path / "scores.json"
    code, _, _ = call(evaluate, finished, "--task", "sentiment2", "--data-dir", tmp_path, "--json", out)
    task = json.loads(out.read_text())["tasks"]["sentiment2"]
    assert (code, task["rows"], task["constant"], task["recorded"]) == (0, 3, 1.0, None)


def test_a_broken_row_of_another_folder_is_named(finished: Path, call: Called, tmp_path: Path) -> None:
    other_rows(tmp_path, "sentiment2", [{"sentence": "fine", "label": 0}, {"sentence": "odd", "label": "splendid"}])
    code, _, error = call(evaluate, finished, "--task", "sentiment2", "--data-dir", tmp_path)
    assert code == 2
    assert error.startswith("error: sentiment2/test.jsonl.gz:2: the label 'splendid' is not known")


def test_another_task_with_the_same_labels(finished: Path, call: Called, tmp_path: Path) -> None:
    other_rows(tmp_path, "sst2", [{"sentence": "a fine film", "label": 1}, {"sentence": "a dull film", "label": 0}])
    given = ["--with", "task=sst2", f"data_dir={tmp_path}", "task.data.source.splits.test=test"]
    out = tmp_path / "scores.json"
    code, _, _ = call(evaluate, finished, "--task", "sentiment2", *given, "--json", out)
    assert (code, json.loads(out.read_text())["tasks"]["sentiment2"]["rows"]) == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "nothing"], "has no task 'nothing'; it has paraphrase, sentiment2"),
        (["--stage", "9"], "stage is 9; small has stages 1 to 2"),
        (["--max-rows", "0"], "--max-rows is 0"),
        (["--with", "task=sst2"], "--with needs the task whose head is used"),
        (["--task", "sentiment2", "--with", "lr=1"], "names no task"),
        (["--task", "sentiment2", "--with", "task=nowhere"], "--with task=nowhere: "),
        (["--task", "sentiment2", "--with", "task=builtin_topic"], "the rows have the labels"),
        (["--task", "sentiment2", "--data-dir", "no/such/folder"], "is not a folder"),
    ],
)
def test_evaluate_says_what_is_wrong(finished: Path, call: Called, arguments: list[str], message: str) -> None:
    code, shown, error = call(evaluate, finished, *arguments)
    assert (code, shown) == (2, "")
    assert error.startswith("error: ")
    assert message in error


# -- predict -----------------------------------------------------------------------------------------------------------


def lines(shown: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shown.splitlines()]


def test_predictions_of_known_rows_are_those_of_the_run(finished: Path, call: Called, tmp_path: Path) -> None:
    opened = evaluate.open_named(predict._parser().parse_args([str(finished)]))
    task: Any = opened.task("paraphrase")
    task.data.prepare(opened.backbone.tokenizer, seed=0, cache_dir=None)
    file = tmp_path / "pairs.csv"
    rows = [f'"{one}","{two}"\n' for one, two in (example.texts for example in task.data.examples("test"))]
    file.write_text("a,b\n" + "".join(rows))
    code, shown, _ = call(
        predict, finished, "--task", "paraphrase", "--file", file, "--columns", "a,b", "--json", "--device", "cpu"
    )
    with gzip.open(finished / "stage_02" / "predictions" / "paraphrase.jsonl.gz", "rt") as stream:
        stored = [json.loads(line) for line in stream]
    assert code == 0
    assert [line["label"] for line in lines(shown)] == [task.labels[row["prediction"]] for row in stored]
    for line, row in zip(lines(shown), stored, strict=True):
        expected = torch.tensor(row["log_probabilities"]).exp()
        torch.testing.assert_close(torch.tensor(list(line["probabilities"].values())), expected)


def test_a_pair_in_each_of_its_forms_is_the_same(finished: Path, call: Called, tmp_path: Path) -> None:
    one, two = "the dog saw the cat .", "the cat saw the dog ."
    values = {"sentence1": one, "sentence2": two}
    (tmp_path / "rows.jsonl").write_text(json.dumps(values) + "\n")
    (tmp_path / "rows.txt").write_text(f"\n{one} || {two}\r\n")
    (tmp_path / "rows.tsv").write_text(f"left\tright\n{one}\t{two}\n")
    named = ["--columns", "sentence2=right,sentence1=left"]
    forms = [[f"{one} || {two}"], [json.dumps(values)], ["--file", tmp_path / "rows.jsonl"]]
    forms += [["--file", tmp_path / "rows.txt"], ["--file", tmp_path / "rows.tsv", *named]]
    found = [lines(call(predict, finished, "--json", "--task", "paraphrase", *form)[1]) for form in forms]
    assert all(form == found[0] for form in found)
    assert found[0][0]["sentence2"] == two
    assert sum(found[0][0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-6)


def test_standard_input_and_a_table(finished: Path, call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the room was [bold]lovely\n\nthe soup \x1b[31mwas cold\n"))
    code, shown, _ = call(predict, finished, "--task", "sentiment2")
    assert code == 0
    assert "[bold]lovely" in shown
    assert "\x1b[31m" not in shown
    assert "negative" in shown


def test_long_texts_are_cut_as_in_training_and_counted(finished: Path, call: Called) -> None:
    code, _, error = call(predict, finished, "--task", "sentiment2", "the room was lovely " * 100)
    assert (code, error) == (0, "truncated: 1 of 1 test rows to 128 tokens, as in training\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a text"], "name the task with --task"),
        (["--task", "sentiment2", " "], "text 1: the text 'sentence' is empty"),
        (["--task", "sentiment2", "--stage", "1", "a text"], "was not learnt by stage 1; it is learnt in stage 2"),
        (["--task", "paraphrase", "one text"], "has 1 parts; the task reads 2: sentence1 || sentence2"),
        (["--task", "sentiment2", "a", "--file", "b.txt"], "give texts or --file, not both"),
        (["--task", "sentiment2", "--file", "nowhere.csv"], "does not exist"),
        (["--task", "sentiment2", "--file", "nowhere.txt"], "nowhere.txt"),
        (["--task", "sentiment2", "--file", "rows.xlsx"], "the format is not known"),
        (["--task", "sentiment2", "--columns", "a", "text"], "--columns names columns of a file"),
    ],
)
def test_predict_says_what_is_wrong(finished: Path, call: Called, arguments: list[str], message: str) -> None:
    code, shown, error = call(predict, finished, *arguments)
    assert (code, shown) == (2, "")
    assert message in error


def test_columns_that_are_not_there(finished: Path, call: Called, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("review,stars\nfine,3\n")
    _, _, error = call(predict, finished, "--task", "sentiment2", "--file", tmp_path / "rows.csv")
    assert "rows.csv has the columns review, stars; the task needs sentence" in error
    code, shown, _ = call(
        predict, finished, "--task", "sentiment2", "--file", tmp_path / "rows.csv", "--columns", "review", "--json"
    )
    assert (code, lines(shown)[0]["sentence"]) == (0, "fine")


def test_rows_that_cannot_be_used_are_skipped_if_asked(finished: Path, call: Called, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"sentence": "fine"}\n{"sentence": ""}\n{"sentence": null}\nnot json\n')
    given = [finished, "--task", "sentiment2", "--file", tmp_path / "rows.jsonl", "--json"]
    code, _, error = call(predict, *given)
    assert code == 2
    assert "3 of 4 rows cannot be used" in error
    code, shown, error = call(predict, *given, "--bad-rows", "skip")
    assert (code, len(lines(shown))) == (0, 1)
    assert "3 (1 broken JSON, 1 empty text, 1 null text)" in error


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for kind in ("lora", "merged"):
        assert export.main([str(finished), "--to", kind, "--out", str(folder / kind)]) == 0
    return {kind: folder / kind for kind in ("lora", "merged")}


@pytest.mark.parametrize("kind", ["lora", "merged"])
def test_all_that_is_needed_lies_beside_the_export(exported: dict[str, Path], finished: Path, kind: str) -> None:
    folder = exported[kind]
    heads = json.loads((folder / "heads.json").read_text())
    stored = load_file(finished / "stage_02" / "head.safetensors")
    assert heads["pooling"] == "last_token"
    assert heads["tasks"]["paraphrase"]["labels"] == ["different", "same"]
    assert heads["tasks"]["paraphrase"]["text"].format(sentence1="A", sentence2="B") == "A B"
    for name, head in heads["tasks"].items():
        for key, tensor in load_file(folder / head["file"]).items():
            assert torch.equal(tensor, stored[f"{name}/{key}"])
    card = (folder / "README.md").read_text()
    assert "[fill in before publishing]" in card
    assert "| paraphrase | accuracy |" in card
    assert str(folder.parent) not in card
    files = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors" if kind == "lora" else "model.safetensors", "tokenizer.json"} <= files
    assert not list(folder.parent.glob(".*.tmp"))


def test_an_export_does_not_overwrite(exported: dict[str, Path], finished: Path, call: Called) -> None:
    code, _, error = call(export, finished, "--to", "lora", "--out", exported["lora"])
    assert code == 2
    assert "exists and is not an empty folder" in error


@pytest.mark.parametrize("kind", ["lora", "merged"])
def test_rounding_is_refused_unless_asked(finished: Path, call: Called, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "rounded"
    code, _, error = call(export, finished, "--to", kind, "--dtype", "bfloat16", "--out", out)
    assert code == 2
    assert "rounds" in error
    assert not list(tmp_path.iterdir())
    code, shown, _ = call(export, finished, "--to", kind, "--dtype", "bfloat16", "--allow-lossy", "--out", out)
    assert (code, out.is_dir()) == (0, True)
    assert "outputs differ by" in shown


def test_an_earlier_stage_has_its_heads_only(finished: Path, call: Called, tmp_path: Path) -> None:
    code, shown, _ = call(export, finished, "--to", "lora", "--stage", 1, "--out", tmp_path / "first")
    assert code == 0
    assert "heads: paraphrase\n" in shown
    assert [path.name for path in (tmp_path / "first" / "heads").iterdir()] == ["paraphrase.safetensors"]


OUTSIDE = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "curlora_lab":
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Forbidden())
import json, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
kind, folder, base, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
if kind == "lora":
    from peft import PeftModel
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    transformer = model.get_base_model().base_model
else:
    model = AutoModelForCausalLM.from_pretrained(folder)
    transformer = model.base_model
model.eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
about = json.loads((folder / "heads.json").read_text())["tasks"]["paraphrase"]
head = load_file(folder / about["file"])
text = about["text"].format(sentence1="the dog saw the cat .", sentence2="the cat saw the dog .")
inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    logits = model(input_ids=inputs["input_ids"]).logits
    hidden = transformer(input_ids=inputs["input_ids"]).last_hidden_state
    task = hidden[:, -1] @ head["weight"].T + head["bias"]
save_file({"logits": logits, "task": task}, out)
assert "curlora_lab" not in sys.modules
"""


@pytest.mark.slow  # a new process imports torch, transformers and PEFT
@pytest.mark.parametrize("kind", ["lora", "merged"])
def test_a_process_without_this_package_gets_the_same_logits(
    exported: dict[str, Path], finished: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "outputs.safetensors"
    command = [sys.executable, "-c", OUTSIDE, kind, str(exported[kind]), str(BUILTIN_FOLDER), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = load_file(out)
    opened = evaluate.open_named(predict._parser().parse_args([str(finished)]))
    task: Any = opened.task("paraphrase")
    encoder = task.data.encoder(opened.backbone.tokenizer)
    encoded = encoder.encode([("the dog saw the cat .", "the cat saw the dog .")]).row(0)
    ids = torch.from_numpy(encoded).long()[None]
    with torch.no_grad():
        logits = opened.backbone.lm_logits(ids, torch.ones_like(ids))
        head = task.logits({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        with opened.backbone.adapter_disabled():
            base = opened.backbone.lm_logits(ids, torch.ones_like(ids))
    assert (found["logits"] - logits).abs().max() <= 1e-5 * logits.abs().max()
    assert (found["task"] - head).abs().max() <= 1e-5 * head.abs().max()
    assert (base - logits).abs().max() > 1e-4 * logits.abs().max()  # the adapter does something


@pytest.mark.slow  # a run of each kind
@pytest.mark.parametrize("adapter", ["lora", "rslora", "dora", "pissa", "vera", "lora_xs", "full", "none"])
def test_every_adapter_opens_as_it_was_and_exports_what_it_can(adapter: str, tmp_path: Path, call: Called) -> None:
    folder = make_run(tmp_path, "task=builtin_sentiment2", f"adapter={adapter}", *SMALL)
    out = tmp_path / "scores.json"
    assert call(evaluate, folder, "--device", "cpu", "--json", out)[0] == 0
    task = json.loads(out.read_text())["tasks"]["sentiment2"]
    assert (task["equal"], task["changed_predictions"]) == (True, 0)
    assert call(export, folder, "--to", "merged")[0] == 0
    assert (folder / "export" / "stage_01-merged" / "model.safetensors").is_file()
    code, _, error = call(export, folder, "--to", "lora")
    assert (code == 0) == (adapter in ("lora", "rslora", "pissa", "lora_xs")), error
    assert code == 0 or "--to merged" in error


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for module in (evaluate, predict, export):
        with pytest.raises(SystemExit, match="0"):
            module.main(["--help"])
        assert "python scripts/" in capsys.readouterr().out
