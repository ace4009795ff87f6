"""What limits a finished run (bias, variance, labels), what twice the images would bring, how much is chance.

    python scripts/diagnose.py --run runs/RUN
    python scripts/diagnose.py --run runs/RUN runs/SAME_WITH_ANOTHER_SEED ...

The same stands in the report. With several runs, which should differ in `train.seed` alone, it also says how often they
disagree. Needs no TensorFlow.
"""

import argparse
import sys
from pathlib import Path

from template import runs
from template.evaluate.compare import align
from template.evaluate.diagnosis import disagreement
from template.evaluate.intervals import percent
from template.evaluate.predictions import Predictions


@runs.script()
def main() -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="folder of a finished run, or of several")
    folders = parser.parse_args().run
    for folder in folders:
        if not (folder / "metrics.json").is_file():
            sys.exit(f"{str(folder)!r} does not hold a finished run: it has no metrics.json.")
    metrics = runs.read_json(folders[0] / "metrics.json")
    if "diagnosis" not in metrics:
        sys.exit(
            f"{str(folders[0])!r} has no diagnosis: its images may have several labels, which have no one accuracy."
        )
    found, curve = metrics["diagnosis"], metrics["learning_curve"]
    print(f"{found['verdict']}: {found['because']}\ntry:" + "".join(f"\n  - {line}" for line in found["try_next"]))
    if curve:
        pairs = zip(curve["sizes"], curve["errors"], strict=True)
        print("linear probe, validation error: " + ", ".join(f"{100 * error:.1f} % of {n}" for n, error in pairs))
        print(f"twice the images, by the power law through these: {100 * curve['twice']:+.1f} points of accuracy")
    if len(folders) > 1:
        try:
            predictions = align([Predictions.load(folder / "predictions.npz") for folder in folders])
        except ValueError as error:
            sys.exit(str(error))
        shares = disagreement(predictions)
        print(
            f"{len(folders)} runs, on average of two: {percent(shares['differ'])} of the images predicted differently, "
            f"{percent(shares['both_wrong'])} with the same error\n"
            "the first is variance: more images, or an ensemble (evaluate.py --run A B C), lower it; the second "
            "is not: look at labels, classes and what the images show at all"
        )


if __name__ == "__main__":
    main()
