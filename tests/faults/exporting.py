"""The scripts that open a finished run, called in process."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str) -> ModuleType:
    """A script of the project as a module."""
    key = f"curlora_lab_script_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, SCRIPTS / f"{name}.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"scripts/{name}.py is not there")
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]


def export(run: Path, out: Path, *, to: str = "lora") -> int:
    """``python scripts/export.py <run> --to lora --out <out>``; the exit code."""
    code: int = script("export").main([str(run), "--to", to, "--out", str(out)])
    return code
