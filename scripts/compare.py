"""Is one run better than another, or only luckier?

    python scripts/compare.py RUN RUN ...

Each against the first, on the images that both predicted: the exact test of McNemar for accuracy (corrected by Holm
where there are several), and the difference of each score with its 95 % interval, of both on the same bootstrap
samples. RUN is the folder of a run (its test predictions, or those of validation where it had no test part), of an
evaluation (`evaluate.py --path`), or a predictions.npz. Needs no TensorFlow.
"""

import argparse
import sys
from pathlib import Path

from template import runs
from template.evaluate.compare import NAMES, align, compare, holm
from template.evaluate.predictions import Predictions

SIGNIFICANT = 0.05


@runs.script()
def main() -> None:
    """Compare, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    if len(arguments.runs) < 2:
        parser.error("Expected at least two runs. Received: one")
    if arguments.out:
        runs.check_output(arguments.out, "file")
    try:
        first, *others = align([_load(path) for path in arguments.runs])
    except ValueError as error:
        sys.exit(str(error))
    if first.multi:
        sys.exit("compare.py counts right answers of one class each, and these images may have several labels.")
    results = [compare(first, other) for other in others]
    corrected = holm([result["mcnemar"]["p"] for result in results])
    print(f"{len(first.ids)} images; first: {arguments.runs[0]}")
    for path, result, p in zip(arguments.runs[1:], results, corrected, strict=True):
        _print(path, result, p)
    if arguments.out:
        named = zip(map(str, arguments.runs[1:]), results, corrected, strict=True)
        table = [{"run": name, **result, "p_corrected": p} for name, result, p in named]
        runs.write_json(arguments.out, {"first": str(arguments.runs[0]), "others": table})


def _load(path: Path) -> Predictions:
    file = path / "predictions.npz" if path.is_dir() else path
    if not file.is_file():
        sys.exit(f"{str(path)!r} holds no predictions. Expected the folder of a finished run, or a predictions.npz.")
    return Predictions.load(file)


def _print(path: Path, result: dict, p: float) -> None:
    """One run against the first, and in words what it comes to."""
    test = result["mcnemar"]
    print(f"\n{path}\n  {'':<20}{'first':>8}{'this':>8}   difference")
    for name in NAMES:
        row, difference = result[name], result[name]["difference"]
        if difference["value"] is None:
            print(f"  {name.replace('_', ' '):<20}undefined")
            continue
        significant = difference["low"] > 0 or difference["high"] < 0
        print(f"  {name.replace('_', ' '):<20}{row['first']:8.4f}{row['second']:8.4f}   {difference['value']:+.4f} "
              f"[{difference['low']:+.4f}, {difference['high']:+.4f}]{' *' if significant else ''}")  # fmt: skip
    only = f"only the first correct on {test['only_first']} images, only this on {test['only_second']}"
    print(f"  McNemar: {only}; p = {p:.3g}")
    if p >= SIGNIFICANT:
        print("  no significant difference in accuracy")
    else:
        print(f"  {'this run' if test['only_second'] > test['only_first'] else 'the first'} is more accurate")


if __name__ == "__main__":
    main()
