"""Who may import whom: the table of the design, read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import curlora_lab

PACKAGE = Path(curlora_lab.__file__).parent
ROOT = PACKAGE.parents[1]

#: Parts of the package -> parts that they may import. What composes everything else stands on top.
MAY_IMPORT: dict[str, set[str]] = {
    **{part: set() for part in ("assets", "backbone", "config", "data", "integrity", "metrics", "optim")},
    "adapters": {"backbone"},
    "probes": {"backbone", "data", "metrics"},
    "report": {"integrity", "metrics"},
    "tasks": {"backbone", "data", "metrics", "optim"},
    "continual": {"adapters", "backbone", "data", "integrity", "metrics", "probes", "tasks"},
    "loggers": {"metrics", "report"},
}
ON_TOP = {
    "budget",
    "build",
    "cli",
    "guards",
    "hub",
    "publishing",
    "rebuild",
    "reopen",
    "reopen_cli",
    "run",
    "sweeps",
    "terminal",
}
COMPOSERS = {
    "budget",
    "build",
    "cli",
    "config",
    "publishing",
    "reopen",
    "run",
    "sweeps",
    "terminal",
}  # and train.py and scripts/: only they import Hydra
WITHOUT_MODELS = ("config", "data", "metrics")
MODEL_LIBRARIES = {"accelerate", "lightning", "peft", "pytorch_lightning", "transformers", "bitsandbytes"}

FILES = sorted(PACKAGE.rglob("*.py"))
PARTS = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
PARTS -= {"__init__", "__pycache__", "conf"}


def part_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Dotted names of all imports, wherever they stand, relative ones made absolute."""
    here = ["curlora_lab", *file.relative_to(PACKAGE).with_suffix("").parts] if PACKAGE in file.parents else []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: len(here) - node.level], *([node.module] if node.module else [])])
            module = base if node.level else str(node.module)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_parts(file: Path) -> set[str]:
    """Parts of the package that a file imports."""
    names = (name.split(".") for name in imports(file) if name.split(".")[0] == "curlora_lab")
    return {words[1] for words in names if len(words) > 1 and words[1] in PARTS} - {part_of(file)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_import_table(file: Path) -> None:
    part = part_of(file)
    if part == "__init__":
        assert own_parts(file) <= {"adapters"}
    elif part in ON_TOP:
        assert "cli" not in own_parts(file)
    else:
        assert part in MAY_IMPORT, f"{part} is new: give it a line in the table"
        assert own_parts(file) <= MAY_IMPORT[part]


def test_no_cycles() -> None:
    done: set[str] = set()
    left = dict(MAY_IMPORT)
    while left:
        free = [part for part, needed in left.items() if needed <= done]
        assert free, f"a cycle among {sorted(left)}"
        done |= set(free)
        left = {part: needed for part, needed in left.items() if part not in free}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_libraries(file: Path) -> None:
    roots = {name.split(".")[0] for name in imports(file)}
    if part_of(file) not in COMPOSERS:
        assert not roots & {"hydra", "omegaconf"}
    if part_of(file) in WITHOUT_MODELS:
        assert not roots & MODEL_LIBRARIES


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_size_and_name(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400
    assert file.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
    assert "from __future__ import annotations" not in file.read_text()


def test_train_py_is_a_page() -> None:
    train = ROOT / "train.py"
    assert len(train.read_text().splitlines()) <= 20
    assert {name for name in imports(train) if name.startswith("curlora_lab")} == {"curlora_lab.cli.main"}
