"""What a set of finished runs supports: tables, pictures and a verdict in plain words, from their folders alone.

python scripts/aggregate.py runs/demo                                        # analysis/ in the first folder given
python scripts/aggregate.py runs/a runs/b --out study --reference lora       # compared with lora instead of head only
"""

import argparse
import sys
from pathlib import Path

from curlora_lab.reopen_cli import printable
from curlora_lab.report import RecordError
from curlora_lab.report.aggregate import aggregate, write


def main(arguments: list[str] | None = None) -> int:
    """Analyse runs.

    Args:
        arguments: Command line without the program's name.

    Returns:
        0, or 1 when there is nothing to analyse.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold run folders")
    parser.add_argument("--out", type=Path, help="folder of the files (default: analysis/ in the first folder given)")
    parser.add_argument(
        "--reference", metavar="METHOD", help="what the others are compared with (default: head only, else the first)"
    )
    options = parser.parse_args(arguments)
    try:
        found = aggregate(options.folders, reference=options.reference)
        paths = write(found, options.out or options.folders[0] / "analysis")
    except (RecordError, OSError) as error:
        print(printable(str(error), lines=True), file=sys.stderr)
        return 1
    print(printable(found.text(), lines=True))
    if found.notes:
        print("\nNotes", *(f"  {printable(note)}" for note in found.notes), sep="\n")
    print("", *paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
