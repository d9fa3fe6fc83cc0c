"""Take the adapter of a finished run away: as a LoRA adapter for plain PEFT and vLLM, or as a whole model.

python scripts/export.py runs/demo/RUN --to lora                          # into runs/demo/RUN/export/stage_03-lora
python scripts/export.py runs/demo/RUN --to merged --out my_model
python scripts/export.py runs/demo/RUN --to lora --stage 1 --dtype bfloat16 --allow-lossy
python scripts/export.py runs/demo/RUN --to lora --task sentiment2        # of a run with an adapter for each task

Beside it: the tokenizer, the heads of the tasks with their label names, and a model card to fill in. What was written is
read back and must give the original's outputs on a batch (to 1e-5 relative), or nothing is written.
"""

import argparse
import contextlib
import glob
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from safetensors.torch import save_file
from torch import nn

from curlora_lab import rebuild
from curlora_lab.adapters.model_card import model_card
from curlora_lab.adapters.portable import Written, write_lora, write_merged
from curlora_lab.continual import files
from curlora_lab.reopen import OpenRun
from curlora_lab.reopen_cli import guarded, open_named, printable, run_parser
from curlora_lab.tasks import TaskModule

DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Export and say where it is.

    Args:
        arguments: Command line without the program's name.

    Returns:
        0, or 2 when nothing could be exported.
    """
    options = _parser().parse_args(arguments)
    return guarded(lambda: _export(options))


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__, device=False)
    parser.add_argument(
        "--to", choices=("lora", "merged"), required=True, help="LoRA adapter, or the whole model merged"
    )
    parser.add_argument("--task", metavar="NAME", help="take the task's own adapter, and its head only")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: in the run's folder export/)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of what is written (default: float32)"
    )
    parser.add_argument("--allow-lossy", action="store_true", help="accept a dtype that rounds the weights")
    return parser


def _export(options: argparse.Namespace) -> int:
    run = open_named(options)
    names = _learnt(run, options.task)
    chosen = f"-{options.task}" if options.task else ""
    out = options.out or run.folder / "export" / f"stage_{run.stage:02d}-{options.to}{chosen}"
    dtype = getattr(torch, options.dtype)
    with _whole(out, size=_size(run, options.to, dtype)) as folder:
        if options.to == "lora":
            written = write_lora(
                run.backbone, folder, base=lambda: _base(run, options), dtype=dtype, allow_lossy=options.allow_lossy
            )
            run.backbone.tokenizer.save_pretrained(str(folder))
        else:
            written = write_merged(run.backbone, folder, dtype=dtype, allow_lossy=options.allow_lossy)
        heads, asked = _write_heads(run, names, folder)
        _write_card(run, folder, options.to, heads, asked, written)
        files.write_manifest(folder, {"export": options.to, "stage": run.stage})
    console = Console(soft_wrap=True)
    console.print(Text(printable(f"{options.to} of {run.folder.name}, stage {run.stage}: {written.how}")))
    console.print(Text(f"checked on a batch: outputs differ by {written.error:.1e} (relative) from the run's model"))
    console.print(Text(printable(f"heads: {', '.join(heads) or 'none'}")))
    by_lm_head = [name for name in names if name not in heads]
    if by_lm_head:
        told = " (how: prompts.json)" if asked else ""
        console.print(Text(printable(f"answered by the LM head{told}: {', '.join(by_lm_head)}")))
    console.print(Text(printable(str(out)), style="bold"))
    return 0


def _learnt(run: OpenRun, name: str | None) -> list[str]:
    """The tasks whose heads go along; the backbone then carries the adapter that they were trained with.

    Raises:
        ValueError: the task was not learnt by then, or tasks have adapters of their own and none was named.
    """
    if name is None:
        if len({tuple(run.adapters[task]) for task in run.learnt if task in run.adapters}) > 1:
            raise ValueError(f"the run has an adapter for each task; name one with --task: {', '.join(run.learnt)}.")
        return list(run.learnt)
    if name not in run.learnt:
        raise ValueError(
            f"--task {name}: it was not learnt by stage {run.stage}; choose one of {', '.join(run.learnt)}."
        )
    run.switch_to(run.task(name))
    return [name]


def _base(run: OpenRun, options: argparse.Namespace) -> nn.Module:
    """The untouched base model, loaded anew."""
    backbone = rebuild.build_backbone(run.config, path=options.model_path, trust_remote_code=options.trust_remote_code)
    return backbone.model


def _size(run: OpenRun, kind: str, dtype: torch.dtype) -> int:
    """Bytes that the weights will take, about."""
    if kind == "lora":
        return files.size_below(run.folder / f"stage_{run.stage:02d}" / "adapter")
    return sum(parameter.numel() for parameter in run.backbone.parameters()) * dtype.itemsize


@contextlib.contextmanager
def _whole(out: Path, *, size: int) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name once all is written and checked; nothing half-done ever has that name."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; name another one with --out, or remove it.")
    mark = f".{out.name}.{socket.gethostname()}."
    for leftover in out.parent.glob(f"{glob.escape(mark)}*.part"):
        if not _is_alive(leftover.name.removeprefix(mark).removesuffix(".part")):  # of an export that was killed
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = out.with_name(f"{mark}{os.getpid()}.part")
    try:
        with files.naming_what_is_full(out, size):
            temporary.mkdir(parents=True)
            yield temporary
            if out.exists():
                out.rmdir()
            temporary.rename(out)
        files.sync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_alive(process: str) -> bool:
    """Whether a process of this machine, by its number, still runs."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        return True  # not ours to judge
    return True


def _write_heads(run: OpenRun, names: Sequence[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """The heads of these tasks, each a file, and what it takes to use them without this package.

    A task that the LM head answers has no file: how it is asked is all there is to know.

    Returns:
        The tasks with a head of their own; and of the others that are asked, where the prompt ends, in words.
    """
    heads = {name: run.tasks[name] for name in names if run.tasks[name].head is not None}
    asked = {name: about for name in names if name not in heads and (about := run.tasks[name].about())}
    if asked:
        files.write_json(folder / "prompts.json", asked)
    boundaries = {name: str(about["boundary"]) for name, about in asked.items() if "boundary" in about}
    if not heads:
        return [], boundaries
    (folder / "heads").mkdir()
    for name, task in heads.items():
        state = (task.head or nn.Identity()).state_dict()
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, folder / "heads" / f"{name}.safetensors")
    about = {
        "pooling": run.backbone.pooling,
        "features": "last hidden state of the transformer (before any LM head), pooled to one vector a text; heads of words and "
        "of spans read it as it is",
        "tasks": {name: _head(task) for name, task in heads.items()},
    }
    files.write_json(folder / "heads.json", about)
    return list(heads), boundaries


def _head(task: TaskModule) -> dict[str, Any]:
    """What one head reads and says: how a text is put together, what its outputs mean."""
    return {"file": f"heads/{task.name}.safetensors", "metric": task.metric, **task.about()}


def _write_card(
    run: OpenRun, folder: Path, kind: Any, heads: Sequence[str], prompts: Mapping[str, str], written: Written
) -> None:
    text = model_card(
        run.record,
        kind=kind,
        stage=run.stage,
        is_causal=run.backbone.is_causal,
        pooling=run.backbone.pooling,
        heads={name: str(run.tasks[name].about().get("output", "")) for name in heads},
        prompts=prompts,
        how=written.how,
        error=written.error,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
