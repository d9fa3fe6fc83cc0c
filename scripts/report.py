"""Write the report of finished runs again, from their results.json files alone.

python scripts/report.py runs/demo/tiny-curlora-r16-a1-lr0.005-s0-1a2b3c4d     # report.html in that folder
python scripts/report.py runs/demo                                             # of every run below, and a comparison
python scripts/report.py runs/a runs/b --output study                          # comparison.html and .md in study/
"""

import argparse
import sys
from pathlib import Path

from curlora_lab.reopen_cli import printable
from curlora_lab.report import RecordError, find_runs, write_comparison, write_report


def main(arguments: list[str] | None = None) -> int:
    """Write the reports.

    Args:
        arguments: Command line without the program's name.

    Returns:
        0, or 1 when a record could not be read.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold run folders")
    parser.add_argument("--output", type=Path, help="folder of the comparison (default: the first folder given)")
    options = parser.parse_args(arguments)
    faults = 0
    try:
        runs = find_runs(options.folders)
        for run in runs:
            try:
                print(write_report(run))
            except RecordError as error:
                faults += 1
                print(printable(str(error), lines=True), file=sys.stderr)
        if len(runs) > 1:
            for path in write_comparison(runs, options.output or options.folders[0]):
                print(path)
    except RecordError as error:
        print(printable(str(error), lines=True), file=sys.stderr)
        return 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
