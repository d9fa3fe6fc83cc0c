"""The fault harness in full; writes ``docs/reliability.md``.

python -m tests.faults                          all kinds, as `make faults` does
python -m tests.faults --only kills --kills 50  one kind, fewer; prints and writes nothing unless --out says where
"""

import argparse
import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("kills", "damage", "inputs", "disk full", "concurrency", "overrides", "data files", "hostile", "services")


def main() -> int:
    """Run the harness; 1 if anything ended wrongly."""
    options = _parser().parse_args()
    for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ.setdefault(name, value)  # before anything is imported that reads them
    import torch

    torch.set_num_threads(1)
    from tests.faults import table
    from tests.faults.tally import Tally

    root = options.workplace or Path(tempfile.mkdtemp(prefix="faults-"))
    chosen = options.only or list(KINDS)
    if set(chosen) - {"overrides", "data files"}:
        _warm_up(root / "warm")
    tallies: dict[str, Tally] = {}
    for kind in chosen:
        tally = _kinds(options)[kind](root / kind.replace(" ", "_"))
        tally.command = _command(options)
        tallies = {**table.load(options.tallies), **tallies, kind: tally}
        table.save(tallies, options.tallies)
        print(f"{kind}: {tally.tried} tried, {len(tally.failures)} ended wrongly, {tally.seconds:.0f} s", flush=True)
        for failure in tally.failures[:20]:
            print(f"  {failure}", flush=True)
        if options.out:
            ordered = [tallies[kind] for kind in KINDS if kind in tallies]
            options.out.write_text(table.page(ordered), encoding="utf-8")
    if not options.workplace:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if any(tallies[kind].failures for kind in chosen) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help=f"kinds: {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws")
    parser.add_argument("--kills", type=int, default=220, help="SIGKILLs in all, at least")
    parser.add_argument("--cuts", type=int, default=10, help="truncations of each kind of file and adapter")
    parser.add_argument("--flips", type=int, default=50, help="bit flips of each kind of file and adapter")
    parser.add_argument("--resumes", type=int, default=30, help="damaged unfinished runs that are resumed to the end")
    parser.add_argument(
        "--writes", type=int, default=None, help="writes at which the disk is full (default: every one)"
    )
    parser.add_argument("--processes", type=int, default=16, help="processes that start at once")
    parser.add_argument("--overrides", type=int, default=240, help="mutated overrides")
    parser.add_argument("--out", type=Path, help="page to write, e.g. docs/reliability.md")
    parser.add_argument("--tallies", type=Path, help="JSON file of counts: kinds of earlier calls are kept in the page")
    parser.add_argument("--workplace", type=Path, help="folder to work in, kept (default: a temporary one)")
    return parser


def _command(options: argparse.Namespace) -> str:
    """The command that does the same for all kinds: numbers that differ from the defaults."""
    usual = vars(_parser().parse_args([]))
    given = [
        f"--{name} {value}" for name, value in vars(options).items() if isinstance(value, int) and value != usual[name]
    ]
    return f"make faults ARGS='{' '.join(given)}'" if given else "make faults"


def _kinds(options: argparse.Namespace) -> dict[str, Callable[[Path], Any]]:
    """Each kind as it is run in full."""
    from tests.faults import cases, crowd, damage, hostile, inputs, kills, overrides, rows, services, space, specimens
    from tests.faults.tally import Tally

    def damages(place: Path) -> Tally:
        tally = Tally("truncations and bit flips", damage.LAW)
        for case in damage.CASES:
            made = specimens.specimen(kills.plan(case, place / case.name), place / case.name)
            damage.damaged(tally, made, seed=options.seed, cuts=options.cuts, flips=options.flips)
            damage.done_again(
                tally, made, place / case.name, seed=options.seed, count=options.resumes // len(damage.CASES)
            )
        return tally

    def full(place: Path) -> Tally:
        tally = Tally("disk full", space.LAW)
        for case in space.CASES:
            made = kills.plan(case, place / case.name)
            space.disk_full(tally, place / case.name, made=made, seed=options.seed, count=options.writes)
            space.export_full(tally, place / case.name, made=made, seed=options.seed, count=options.writes)
        return tally

    return {
        "kills": lambda place: kills.kills(
            Tally("SIGKILL", kills.LAW), place, seed=options.seed, count=options.kills, chosen=cases.available()
        ),
        "damage": damages,
        "inputs": lambda place: inputs.changed(Tally("changed inputs", inputs.LAW), place),
        "disk full": full,
        "concurrency": lambda place: crowd.crowds(
            Tally("concurrency", crowd.LAW), place, processes=options.processes, rounds=10, jobs=4
        ),
        "overrides": lambda place: overrides.mutated(
            Tally("mutated overrides", overrides.LAW), place, seed=options.seed, count=options.overrides
        ),
        "data files": lambda place: rows.bad_files(Tally("bad data files", rows.LAW), place),
        "hostile": lambda place: hostile.hostile(Tally("hostile adapters and run folders", hostile.LAW), place),
        "services": lambda place: services.all_down(Tally("services down", services.LAW), place),
    }


def _warm_up(place: Path) -> None:
    """Do one run in this process, so that what is imported on the way is there when it forks."""
    from tests.faults import cases
    from tests.faults.exporting import script

    for name in ("evaluate", "export", "report"):
        script(name)
    configuration = cases.configured(cases.CASES[0], place / "models")
    before = Path.cwd()
    os.chdir(place)
    try:
        cases.do_run(copy.deepcopy(configuration))
    finally:
        os.chdir(before)
    shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
