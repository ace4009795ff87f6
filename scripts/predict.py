"""Classify images with a finished run: one row per image, unreadable images as rows with a reason.

python scripts/predict.py --run runs/RUN photo.jpg folder/ --out predictions.csv

What is left out of a folder (hidden files, system files, links to folders) is named, and so is what had to be
assumed to read an image (the first of several pages, 12 of 16 bits). Exit code: 0, or 1 if nothing
could be classified, or if something named is not there or cannot be listed; the other rows are written all the same.
"""

import argparse
import csv
import os
import sys
from pathlib import Path

import numpy as np

from template import runs


@runs.exit_if_damaged()
def main() -> None:
    """Parse, classify, write."""
    runs.any_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, help="CSV file to write; by default the rows are printed")
    parser.add_argument("--top-k", type=int, default=3, help="how many classes per image (default: 3)")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    arguments = parser.parse_args()
    if arguments.out:
        runs.check_output(arguments.out, "file")

    from template.config import ConfigError
    from template.data.examples import DataError
    from template.data.sources.files import collect_files, describe_notes, describe_skipped, failure_reason

    try:
        files, left = collect_files(arguments.inputs)
        runs.import_tensorflow()
        from template.deploy.predictor import classify, load_run

        config, classes, model = load_run(arguments.run)
        decided = arguments.run / "calibration.json"  # of a run from before there was any: as the network says
        temperature = runs.read_json(decided)["temperature"] if decided.exists() else 1.0
    except (DataError, ConfigError) as error:
        sys.exit(str(error))
    k = max(1, min(arguments.top_k, len(classes)))
    header = ["path", *(f"{what}_{i + 1}" for i in range(k) for what in ("class", "probability")), "problem"]
    rows, bad, notes = [header], 0, []
    for file, result in classify(model, config, files, temperature, lambda file, note: notes.append((str(file), note))):
        if isinstance(result, np.ndarray):
            best = np.argsort(-result, kind="stable")[:k]
            cells = [cell for i in best for cell in (_cell(classes[i]), f"{result[i]:.6f}")]
            rows.append([_cell(str(file)), *cells, ""])
        else:
            bad += 1
            rows.append([_cell(str(file)), *[""] * (2 * k), _cell(str(result))])
    if arguments.out:
        with runs.replacing(arguments.out) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows(rows)
        print(f"{len(files)} images, {len(files) - bad} classified, {bad} could not be read: {arguments.out}")
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        sys.stdout.flush()  # before what is said below
    for line in [*describe_notes(notes), *describe_skipped(left)]:
        print(line, file=sys.stdout if arguments.out else sys.stderr)
    if problem := failure_reason(arguments.inputs, left, len(files) - bad):
        sys.exit(problem)


def _cell(text: str) -> str:
    """A spreadsheet runs cells that begin like a formula; an apostrophe makes them text. The table itself is UTF-8."""
    text = runs.legible(text)  # names of files may be bytes of another encoding
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # of `| head`: no error, but Python would write of one when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
