"""Is this machine ready? Python, packages, GPU, memory, disk, weights: a line each, before a run stumbles over one.

    python scripts/doctor.py [--runs FOLDER] [--data.cache FOLDER]

Changes nothing. Exit code: 0 if a run can start, 1 if something is wrong (FAIL).
"""

import argparse
import sys
from pathlib import Path

from template import runs
from template.doctor import INSTALL, Line, examine


@runs.script()
def main() -> None:
    """Look, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
    parser.add_argument("--data.cache", dest="cache", type=Path, default=Path("cache"), help="as of train.py")
    arguments = parser.parse_args()
    wrong = False
    try:
        for line in examine(arguments.runs, arguments.cache):
            wrong |= show(line)
    except ImportError as error:
        wrong = show(Line("FAIL", "package", f"{error}. {INSTALL}"))
    sys.exit(int(wrong))


def show(line: Line) -> bool:
    """Print a line, and say whether it is of something wrong."""
    print(f"{line.level:<5} {line.name}: {line.found}", flush=True)
    return line.level == "FAIL"


if __name__ == "__main__":
    main()
