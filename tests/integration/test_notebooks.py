"""The notebooks: kept without outputs, and each executed from its first cell to its last with less of everything."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

#: What the cell tagged ``parameters`` says in a test; ``{place}`` is a folder of the test's own.
QUICK = {
    "01_quickstart": 'RUNS = "{place}"\nSIZE = "train_rows=64 eval_rows=48 epochs=1"',
    "02_bring_your_own_model_and_data": 'RUNS = "{place}"\nSIZE = "epochs=1"',
    "03_reading_a_report": 'RUNS = "{place}"\nSIZE = "train_rows=64 eval_rows=48"\nEPOCHS = 1',
    "04_inside_curlora": "STEPS = 3\nROWS = 16",
    "05_export_and_serve": 'RUNS = "{place}"\nSIZE = "train_rows=64 eval_rows=10 epochs=1"',
}

#: What the outputs must show, whatever the numbers are, and how many pictures.
SHOWN = {
    "01_quickstart": (["after 3 · sentiment3", "report.html", "The soup was far from bad."], 1),
    "02_bring_your_own_model_and_data": (["poolside", "was not tuned for lora on mymodel", "text,department"], 0),
    "03_reading_a_report": (["not_learnt", "comparison.html", "weight shift"], 2),
    "04_inside_curlora": (["12 matrices x 16² = 3072", "inverse_norm", "captured"], 5),
    "05_export_and_serve": (["'peft_type': 'LORA'", "closed form", "largest difference of logits"], 0),
}


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_tested_and_listed() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(QUICK) == set(SHOWN)
    listed = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+)\.ipynb\)", listed) == sorted(QUICK)


@pytest.mark.parametrize("name", QUICK)
def test_kept_without_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert [
        cell.source.splitlines()[0].split(" = ")[0] for cell in code if "parameters" in cell.metadata.get("tags", [])
    ]


@pytest.mark.parametrize("name", QUICK)
def test_names_what_the_test_replaces(name: str) -> None:
    """A key that a notebook no longer has would let it run at its full size."""
    (cell,) = (cell for cell in read(name).cells if "parameters" in cell.metadata.get("tags", []))
    names = re.compile(r"^(\w+) = ", re.MULTILINE)
    assert names.findall(cell.source) == names.findall(QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_runs_from_the_first_cell_to_the_last(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows pictures in the notebook
    notebook = read(name)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = QUICK[name].replace("{place}", str(tmp_path / "runs"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.get("data", {}) for output in outputs]
    text = "\n".join([output.get("text", "") for output in outputs] + [one.get("text/plain", "") for one in data])
    expected, pictures = SHOWN[name]
    assert not [words for words in expected if words not in text], text[-3000:]
    assert sum("image/png" in one for one in data) == pictures
