"""What an adapter costs, in time, memory and bytes on disk, as ratios measured in one process.

    python benchmarks/adapter_cost.py                    # three quarters of an hour on two cores; a GPU where there is one
    python benchmarks/adapter_cost.py --quick            # half a minute: does it run?
    python benchmarks/adapter_cost.py --sizes gpt2 --only training --steps 200 --closer --add    # more rounds, beside the others

Writes `<out>/adapter_cost-<device>.json` and `.md`. The times of different machines, or of different runs, do not
compare; the ratios within a run do.
"""

import argparse
import datetime
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from costing import report
from costing.attaching import MATRICES_7B, MATRICES_SMALL, measure_attaching
from costing.filesize import measure_files
from costing.inference import measure_inference
from costing.machine import describe
from costing.shapes import Shape, gpt2_small, llama_small, mistral_7b
from costing.timing import Setting
from costing.training import Case, measure_training
from costing.variants import CURLORA, FLOAT32_VARIANTS, FROZEN, HALF_VARIANTS, LORA

RESULTS = Path(__file__).parent / "results"
SIZES = ("gpt2", "llama", "mistral-7b")
BATCHES = {"gpt2": [(8, 128), (8, 256)], "llama": [(8, 128)], "mistral-7b": [(1, 128)]}
SECTIONS = ("training", "inference", "attaching", "files")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure, write, and print the page.

    Args:
        arguments: Command line; None takes that of the process.

    Returns:
        The JSON file.
    """
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    path = options.out / f"adapter_cost-{_slug(describe(device))}{'-quick' if options.quick else ''}.json"
    command = " ".join(["python benchmarks/adapter_cost.py", *(sys.argv[1:] if arguments is None else arguments)])
    record = _started(path if options.add else None, command, device, quick=options.quick)
    for section in options.only or SECTIONS:
        _measure(section, record, path, options, device)
        _write(record, path)
    print(report.markdown(record))
    print(f"written to {path} and {path.with_suffix('.md').name}")
    return path


def _started(path: Path | None, command: str, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """An empty record, or the one at `path` to be added to."""
    record: dict[str, Any] = {"commands": [], "training": [], "inference": [], "attaching": [], "files": []}
    if path is not None and path.exists():
        record = json.loads(path.read_text())
    record["commands"].append(command)
    record["quick"] = quick
    record["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    record["machine"] = describe(device)
    return record


def _put(entries: list[dict[str, Any]], entry: dict[str, Any], *keys: str) -> None:
    """Add an entry in place of an earlier one of the same things."""
    place = [entry[key] for key in keys]
    entries[:] = [other for other in entries if [other[key] for key in keys] != place] + [entry]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models and few rounds, to see whether it runs")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="model shapes (CPU: gpt2 llama; GPU: mistral-7b)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to measure; default: all")
    parser.add_argument("--steps", type=int, help="rounds of training steps (50; quick: 3)")
    parser.add_argument("--closer", action="store_true", help="only all linear layers; frozen, LoRA and CURLoRA alone")
    parser.add_argument("--rank", type=int, default=16, help="rank r (16)")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU even where there is a GPU")
    parser.add_argument("--add", action="store_true", help="keep what the results file holds of other cases")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (benchmarks/results)")
    return parser


def _measure(
    section: str, record: dict[str, Any], path: Path, options: argparse.Namespace, device: torch.device
) -> None:
    gpu, quick = device.type == "cuda", options.quick
    setting = Setting(
        r=options.rank,
        rounds=options.steps or (3 if quick else 50),
        warmup=1 if quick else 3,
        device=device,
        dtype=torch.bfloat16 if gpu else torch.float32,
    )
    shapes = _shapes(options, device)
    if section == "training":
        variants = (FROZEN, CURLORA, LORA) if options.closer else HALF_VARIANTS if gpu else FLOAT32_VARIANTS
        for case in _cases(shapes, quick=quick, gpu=gpu):
            if options.closer and case.which != "all":
                continue
            _say(f"{case.shape.title}; {case.shape.title_of(case.which)}; {case.batch} x {case.length}")
            entry = measure_training(case, variants, setting)
            _put(record["training"], entry, "title", "targets", "batch", "length", "rounds")
            _write(record, path)
    elif section == "inference":
        batch, length, new_tokens = (2, 8, 4) if quick else (8, 64, 32)
        for shape in shapes:
            _say(f"{shape.title}; inference")
            entry = measure_inference(shape, setting, batch=batch, length=length, new_tokens=new_tokens)
            _put(record["inference"], entry, "title")
    elif section == "attaching":
        _say("attaching")
        matrices, repeats = (MATRICES_SMALL, 1) if quick else (MATRICES_7B, 5)
        record["attaching"] = measure_attaching(matrices, r=options.rank, repeats=repeats, device=device)
    else:
        _say("files")
        shape = gpt2_small(layers=1, width=128) if quick else gpt2_small(layers=12)
        record["files"] = measure_files(shape, r=options.rank)


def _say(what: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {what} ...", file=sys.stderr, flush=True)


def _shapes(options: argparse.Namespace, device: torch.device) -> list[Shape]:
    sizes = options.sizes or (["mistral-7b"] if device.type == "cuda" else ["gpt2", "llama"])
    if options.quick:
        small = {"gpt2": gpt2_small(layers=1, width=128), "llama": llama_small(layers=1, width=192)}
        return [small["gpt2" if size == "gpt2" else "llama"] for size in sizes]
    layers = 32 if device.type == "cpu" or torch.cuda.get_device_properties(device).total_memory > 60e9 else 8
    made = {"gpt2": gpt2_small, "llama": llama_small, "mistral-7b": lambda: mistral_7b(layers=layers)}
    return [made[size]() for size in sizes]


def _cases(shapes: Sequence[Shape], *, quick: bool, gpu: bool) -> list[Case]:
    cases = []
    for shape in shapes:
        batches = [(2, 16)] if quick else [(4, 512), (1, 512)] if gpu else BATCHES[shape.name]
        cases += [Case(shape, "all", *batch) for batch in batches]
        cases.append(Case(shape, "attention", *batches[0]))
    return cases


def _write(record: dict[str, Any], path: Path) -> None:
    record["goals"] = [] if record["quick"] else report.goals(record)  # tiny models say nothing about them
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(report.markdown(record))


def _slug(machine: dict[str, Any]) -> str:
    name = machine["processor"] if machine["device"] == "CPU" else machine["device"]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
