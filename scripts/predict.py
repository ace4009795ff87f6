"""Classify images with a finished run: one row per image, unreadable images as rows with a reason.

python scripts/predict.py --run runs/RUN photo.jpg folder/ --out predictions.csv
python scripts/predict.py --run runs/RUN photo.jpg --runtime onnx   # what export.py has written; needs no TensorFlow

Where an image may have several labels (data.labels=multi), `labels` names those whose probability reaches the threshold
that validation chose for them, and the classes with their probabilities follow, each a question of its own.

`novelty` is the distance to the most similar image of training, as a part of what is usual: above 1, the image is like
nothing in training (5 % of images like those of training are), whatever class is named.

Where class names are a tree (dog/husky, dog/poodle), `answer` is the class if the network is sure enough of it (the
run's reject threshold), or else what is above it (dog) if it is sure enough of that, and empty if it is not.

What is left out of a folder (hidden files, system files, links to folders) is named, and so is what had to be
assumed to read an image (the first of several pages, 12 of 16 bits). Exit code: 0, or 1 if nothing
could be classified, or if something named is not there or cannot be listed; the other rows are written all the same.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from template import progress, runs
from template.deploy.runtime import FILES, Classifier
from template.evaluate.tree import sure_answer
from template.labels import thresholds_of


@runs.script()
def main() -> None:
    """Parse, classify, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, help="CSV file to write; by default the rows are printed")
    parser.add_argument("--top-k", type=int, default=3, help="how many classes per image (default: 3)")
    words = "onnx: with the run's export alone (default: keras)"
    parser.add_argument("--runtime", choices=("keras", "onnx"), default="keras", help=words)
    parser.add_argument("--precision", choices=tuple(FILES), default="float32", help="of the export (default: float32)")
    parser.add_argument("--quiet", action="store_true", help="no word of how far it is")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    arguments = parser.parse_args()
    if arguments.runtime == "keras" and arguments.precision != "float32":
        parser.error(f"--precision is that of an export. Received: {arguments.precision} without --runtime onnx")
    if arguments.out:
        runs.check_output(arguments.out, "file")

    from template.data.sources.files import collect_files, describe_notes, describe_skipped, failure_reason
    from template.data.sources.names import DataError

    notes = []
    try:
        files, left = collect_files(arguments.inputs)
        classes, answers = _classify(arguments, files, lambda file, note: notes.append((str(file), note)))
    except DataError as error:
        sys.exit(str(error))
    columns, cells = _columns(classes, _decided(arguments.run), max(1, min(arguments.top_k, len(classes))))
    header = ["path", *columns, "novelty", "problem"]
    rows, bad, strange = [header], 0, []
    for file, result in answers:
        if isinstance(result, Exception):
            bad += 1
            rows.append([_cell(str(file)), *[""] * (len(header) - 2), _cell(str(result))])
            continue
        probabilities, novelty = result
        rows.append([_cell(str(file)), *cells(probabilities), "" if np.isnan(novelty) else f"{novelty:.3f}", ""])
        strange += [file] * (novelty > 1)
    if arguments.out:
        with runs.replacing(arguments.out) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows(rows)
        print(f"{len(files)} images, {len(files) - bad} classified, {bad} could not be read: {arguments.out}")
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        sys.stdout.flush()  # before what is said below
    for line in [*_unlike(strange), *describe_notes(notes), *describe_skipped(left)]:
        print(line, file=sys.stdout if arguments.out else sys.stderr)
    if problem := failure_reason(arguments.inputs, left, len(files) - bad):
        sys.exit(problem)


def _decided(run: Path) -> dict[str, Any]:
    """The run's calibration; of a run from before there was any, none: as the network says."""
    file = run / "calibration.json"
    return runs.read_json(file) if file.exists() else {}


def _columns(
    classes: Sequence[str], decided: dict[str, Any], k: int
) -> tuple[list[str], Callable[[np.ndarray], list[str]]]:
    """Names of the columns about classes, and what stands in them, from the probabilities [classes] of an image."""
    several, tree = decided.get("labels") == "multi", "levels" in decided
    levels = thresholds_of(decided, classes) if several else None
    ranked = [f"{what}_{i + 1}" for i in range(k) for what in ("class", "probability")]

    def cells(probabilities: np.ndarray) -> list[str]:
        best = np.argsort(-probabilities, kind="stable")[:k]
        found = [cell for i in best for cell in (_cell(classes[i]), f"{probabilities[i]:.6f}")]
        if levels is not None:
            return [_cell(";".join(classes[i] for i in np.flatnonzero(probabilities >= levels))), *found]
        return found + (_answer(probabilities, classes, decided) if tree else [])

    return ["labels"] * several + ranked + ["answer", "answer_probability"] * tree, cells


def _answer(probabilities: np.ndarray, classes: Sequence[str], decided: dict[str, Any]) -> list[str]:
    """The finest name of which the network is sure, and its probability; or two empty cells."""
    thresholds = [level["confidence"] for level in decided["levels"]]
    found = sure_answer(probabilities, classes, decided["reject"]["confidence"], thresholds)
    return ["", ""] if found is None else [_cell(found[0]), f"{found[1]:.6f}"]


def _unlike(files: Sequence[Path], most: int = 10) -> Iterator[str]:
    """Images that are of no class, perhaps: their answers are those to a question that was never learned."""
    if files:
        named = ", ".join(runs.legible(str(file)) for file in files[:most])
        more = f" and {len(files) - most} more" if len(files) > most else ""
        yield f"like nothing in training (novelty above 1): {len(files)}: {named}{more}"


Answers = tuple[Sequence[str], Iterator[tuple[Path, Any]]]
"""Names of the classes; each file with its probabilities and its novelty, or the reason why there are none."""


def _classify(
    arguments: argparse.Namespace, files: list[Path], assumed: Callable[[Path, str], None]
) -> tuple[Sequence[str], list[tuple[Path, Any]]]:
    """All answers; says how far it is."""
    answer = _onnx if arguments.runtime == "onnx" else _keras
    with progress.without_messages(arguments.quiet):
        classes, answers = answer(arguments, files, assumed)
        return classes, list(progress.track(answers, "classifying", len(files)))


def _keras(arguments: argparse.Namespace, files: list[Path], assumed: Callable[[Path, str], None]) -> Answers:
    from template.config import ConfigError

    runs.import_tensorflow()
    from template.deploy.novelty import Novelty
    from template.deploy.predictor import classify_with_novelty, load_run

    try:
        config, classes, model = load_run(arguments.run)
    except ConfigError as error:
        sys.exit(str(error))
    temperature = _decided(arguments.run).get("temperature", 1.0)
    return classes, classify_with_novelty(model, config, files, temperature, Novelty.load(arguments.run), assumed)


def _onnx(arguments: argparse.Namespace, files: list[Path], assumed: Callable[[Path, str], None]) -> Answers:
    classifier = Classifier.of_run(arguments.run, arguments.precision)
    return classifier.class_names, classifier.classify_files(files, assumed)


def _cell(text: str) -> str:
    """A spreadsheet runs cells that begin like a formula; an apostrophe makes them text. The table itself is UTF-8."""
    text = runs.legible(text)  # names of files may be bytes of another encoding
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


if __name__ == "__main__":
    main()
