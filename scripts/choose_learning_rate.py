"""Choose a learning rate for each method from finished runs, by scores on rows set aside from train and never reported.

    python train.py -m sweep=tune adapter=curlora,lora            does all of this at its end
    python scripts/choose_learning_rate.py runs/demo              for runs that were made one by one
    python scripts/choose_learning_rate.py runs/demo --out tuned.json

The rule and the file are those of sweep=tune (curlora_lab.sweeps.tuning). Of runs that were evaluated on test, only what they
noted on their choosing rows while they trained is looked at.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from curlora_lab.report import RecordError, find_runs, read_record
from curlora_lab.report.tables import markdown_table
from curlora_lab.sweeps.tuning import RULE, attempt_of, tune
from curlora_lab.sweeps.tuning_table import COLUMNS, remarks, rows, write


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 2 where the runs do not allow a choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="how far below the best score still counts as equal"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what sweep=compare tuned=FILE reads, too")
    arguments = parser.parse_args(argv)
    try:
        records = [read_record(folder / "results.json") for folder in find_runs(arguments.runs)]
    except RecordError as error:
        print(error, file=sys.stderr)
        return 2
    finished = [record for record in records if record["status"] == "finished"]
    if not finished:
        print("No finished runs there.", file=sys.stderr)
        return 2
    methods = tune([attempt_of(record) for record in finished], tolerance=arguments.tolerance)
    print(markdown_table(COLUMNS, rows(methods), [*remarks(methods), RULE.format(tolerance=arguments.tolerance)]))
    if arguments.out is not None:
        write(arguments.out, methods, tolerance=arguments.tolerance, command=[str(path) for path in arguments.runs])
    return 0 if all(method["status"] == "tuned" for method in methods) else 2


if __name__ == "__main__":
    sys.exit(main())
