"""What an adapter costs, in time, memory and bytes on disk, as ratios measured in one process.

    python benchmarks/adapter_cost.py                    # half an hour on two cores; on a GPU where there is one
    python benchmarks/adapter_cost.py --quick            # half a minute: does it run?
    python benchmarks/adapter_cost.py --sizes gpt2 --steps 100

Writes `<out>/adapter_cost-<device>.json` and `.md`. The times of different machines, or of different runs, do not
compare; the ratios within a run do.
"""

import argparse
import datetime
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from costing import report
from costing.attaching import MATRICES_7B, MATRICES_SMALL, measure_attaching
from costing.filesize import measure_files
from costing.inference import measure_inference
from costing.machine import describe
from costing.shapes import Shape, gpt2_small, llama_small, mistral_7b
from costing.training import measure_training
from costing.variants import FLOAT32_VARIANTS, HALF_VARIANTS

RESULTS = Path(__file__).parent / "results"
SIZES = ("gpt2", "llama", "mistral-7b")
SECTIONS = ("training", "inference", "attaching", "files")


@dataclass(frozen=True)
class Case:
    """One training comparison: a shape, its targets ("attention" or "all") and a batch."""

    shape: Shape
    which: str
    batch: int
    length: int


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
    record: dict[str, Any] = {
        "command": " ".join(["python benchmarks/adapter_cost.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe(device),
        "training": [],
        "inference": [],
        "attaching": [],
        "files": [],
    }
    path = options.out / f"adapter_cost-{_slug(record['machine'])}{'-quick' if options.quick else ''}.json"
    for section in options.only or SECTIONS:
        _measure(section, record, options, device)
        _write(record, path)
    print(report.markdown(record))
    print(f"written to {path} and {path.with_suffix('.md').name}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models and few rounds, to see whether it runs")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="model shapes (CPU: gpt2 llama; GPU: mistral-7b)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to measure; default: all")
    parser.add_argument("--steps", type=int, help="rounds of training steps (50; quick: 3)")
    parser.add_argument("--rank", type=int, default=16, help="rank r (16)")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU even where there is a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (benchmarks/results)")
    return parser


def _measure(section: str, record: dict[str, Any], options: argparse.Namespace, device: torch.device) -> None:
    gpu = device.type == "cuda"
    rounds = options.steps or (3 if options.quick else 50)
    common = {
        "r": options.rank,
        "rounds": rounds,
        "warmup": 1 if options.quick else 3,
        "device": device,
        "dtype": torch.bfloat16 if gpu else torch.float32,
    }
    shapes = _shapes(options, device)
    if section == "training":
        variants = HALF_VARIANTS if gpu else FLOAT32_VARIANTS
        for case in _cases(shapes, quick=options.quick, gpu=gpu):
            print(f"{case.shape.title}; {case.which}; {case.batch} x {case.length} ...", file=sys.stderr, flush=True)
            size = {"which": case.which, "batch": case.batch, "length": case.length}
            record["training"].append(measure_training(case.shape, variants=variants, **size, **common))
    elif section == "inference":
        size = {"batch": 2, "length": 8, "new_tokens": 4} if options.quick else {"batch": 8, "length": 64, "new_tokens": 32}
        for shape in shapes:
            print(f"{shape.title}; inference ...", file=sys.stderr, flush=True)
            record["inference"].append(measure_inference(shape, **size, **common))
    elif section == "attaching":
        matrices = MATRICES_SMALL if options.quick else MATRICES_7B
        repeats = 1 if options.quick else 5
        record["attaching"] = measure_attaching(matrices, r=options.rank, repeats=repeats, device=device)
    else:
        shape = gpt2_small(layers=1, width=128) if options.quick else gpt2_small(layers=12)
        record["files"] = measure_files(shape, r=options.rank)


def _shapes(options: argparse.Namespace, device: torch.device) -> list[Shape]:
    sizes = options.sizes or (["mistral-7b"] if device.type == "cuda" else ["gpt2", "llama"])
    if options.quick:
        small = {"gpt2": gpt2_small(layers=1, width=128), "llama": llama_small(layers=1, width=192)}
        return [small["gpt2" if size == "gpt2" else "llama"] for size in sizes]
    layers = 32 if device.type == "cpu" or torch.cuda.get_device_properties(device).total_memory > 60e9 else 8
    made = {"gpt2": gpt2_small, "llama": llama_small, "mistral-7b": lambda: mistral_7b(layers=layers)}
    return [made[size]() for size in sizes]


def _cases(shapes: Sequence[Shape], *, quick: bool, gpu: bool) -> list[Case]:
    batches = [(2, 16)] if quick else [(4, 512), (1, 512)] if gpu else [(8, 128), (8, 256)]
    cases = []
    for shape in shapes:
        cases += [Case(shape, "all", *batch) for batch in batches]
        cases.append(Case(shape, "attention", *batches[0]))
    return cases


def _write(record: dict[str, Any], path: Path) -> None:
    record["goals"] = report.goals(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(report.markdown(record))


def _slug(machine: dict[str, Any]) -> str:
    name = machine["processor"] if machine["device"] == "CPU" else machine["device"]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
