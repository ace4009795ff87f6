"""Label images on a small local page: test images, as a human baseline, or new ones, to train on them.

    python scripts/annotate.py --run runs/RUN --count 50
    python scripts/annotate.py --run runs/RUN --images next.csv --out labels.csv

Open the address that it prints. Answers are saved one by one, so you may stop (Ctrl-C) and go on later.

The first line compares you with the labels and the classifier. If you are no better than the classifier, better labels
or other images will help more than a better network. The second labels the images of a list (from label_next.py, or
any CSV with a column `path`) or of a folder, and writes a table of the old labels and the new ones for `train.py`.
Several persons (`--annotator NAME`) label the same images each on their own; the table takes the label of the most, and
it is said how often they agree. Needs no TensorFlow.
"""

import argparse
import contextlib
import csv
import dataclasses
import re
import sys
from pathlib import Path

import numpy as np

from template import config as configuration
from template import runs
from template.data.examples import DataError, Examples, load_examples
from template.data.sources.files import collect_files
from template.deploy.annotate import NONE, Annotations, Server, compare, sample
from template.deploy.labels import agreement, answers_file, read_answers, settle, write_table
from template.evaluate.intervals import number, percent
from template.evaluate.predictions import Predictions


@runs.script()
def main() -> None:
    """Serve until Ctrl-C, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--data.path", dest="path", help="where the images are now, if the run comes from elsewhere")
    parser.add_argument("--images", type=Path, help="new images to label: a CSV with a column `path`, or a folder")
    parser.add_argument("--out", type=Path, help="CSV of old and new labels to write (with --images)")
    parser.add_argument("--annotator", default="me", metavar="NAME", help="who labels (with --images; default: me)")
    parser.add_argument("--count", type=int, default=50, help="how many images (default: 50)")
    parser.add_argument("--port", type=int, default=8000, help="of the page (default: 8000; 0 for any that is free)")
    arguments = parser.parse_args()
    run, file = arguments.run, arguments.run / "human.json"
    if not (run / "metrics.json").is_file():
        sys.exit(f"{str(run)!r} does not hold a finished run: it has no metrics.json.")
    if arguments.count < 1:
        parser.error(f"--count: expected at least 1. Received: {arguments.count}")
    if (arguments.images is None) != (arguments.out is None):
        parser.error("--images and --out go together")
    if arguments.images:
        label(arguments)
        return
    runs.check_output(file, "file", "--run (a copy of it)")
    predictions = Predictions.load(run / "predictions.npz")
    try:
        config = configuration.load(run / "config.toml")
        configuration.require_single_label(config, "annotate.py")
        data = config.data
        examples = load_examples(arguments.path or data.path, data.class_folders)
        examples = examples.with_classes(predictions.class_names)
        annotations = Annotations(sample(examples, predictions, arguments.count), file, data)
    except (configuration.ConfigError, DataError, ValueError) as error:
        sys.exit(f"{error}\n(Are the images elsewhere now? --data.path says where.)")
    serve(annotations, arguments.port)
    if annotations.labels:
        report(compare(annotations.labels, predictions))
        print(f"answers: {file}")


def serve(annotations: Annotations, port: int) -> None:
    """Until Ctrl-C."""
    try:
        server = Server(annotations, port)
    except OSError as error:
        sys.exit(f"Port {port} cannot be used ({error.strerror}). Choose another with --port.")
    left = annotations.answers().count(None)
    print(
        f"{left} images to label: http://127.0.0.1:{server.server_address[1]}  (Ctrl-C when you are done)", flush=True
    )
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


def label(arguments: argparse.Namespace) -> None:
    """Label new images, then write the table for the next training."""
    if not re.fullmatch(r"[\w-]{1,40}", arguments.annotator):
        sys.exit(f"--annotator: expected letters, digits, - and _. Received: {arguments.annotator!r}")
    file = answers_file(arguments.out, arguments.annotator)
    runs.check_output(arguments.out, "file")
    runs.check_output(file, "file")
    try:
        config = configuration.load(arguments.run / "config.toml")
        configuration.require_single_label(config, "annotate.py")
        data = config.data
        labelled = load_examples(arguments.path or data.path, data.class_folders)
        labelled = with_parts(labelled, arguments.run / "split.csv")
        names, paths = labelled.class_names, images_of(arguments.images)
        new = Examples(
            np.array(list(map(str, paths))), paths, np.zeros(len(paths), int), names, np.array([""] * len(paths))
        )
        annotations = Annotations(new, file, data, new_classes=True)
        serve(annotations, arguments.port)
        answers = read_answers(arguments.out)
        settled, disputed = settle(answers)
        write_table(arguments.out, labelled, settled)
    except (configuration.ConfigError, DataError, ValueError) as error:
        sys.exit(f"{error}\n(Are the images elsewhere now? --data.path says where.)")
    for row in agreement(answers):
        one, other = row["pair"]
        print(f"{one} and {other} agree on {row['agreed']:.0%} of {row['images']}, kappa {row['cohen_kappa']:.2f}")
    none = sum(label == NONE for label in settled.values())
    print(
        f"{len(settled) - none} new labels, {none} of no class, {len(disputed)} left out because opinions are divided"
    )
    print(f"{arguments.out}: {len(labelled)} old labels and the new ones")
    print(f"next: python scripts/train.py --data.path={arguments.out}")


def with_parts(examples: Examples, split: Path) -> Examples:
    """The images of a run in its parts; those that it left out are not among them."""
    with split.open(newline="", encoding="utf-8") as file:
        part = {row["id"]: row["part"] for row in csv.DictReader(file) if row["part"]}
    used = np.array([str(name) in part for name in examples.ids], bool)
    if not used.any():
        raise DataError(f"None of the images that the run was trained on ({split}) are there.")
    examples = examples.take(used)
    return dataclasses.replace(examples, parts=np.array([part[str(name)] for name in examples.ids]))


def images_of(given: Path) -> list[Path]:
    """The files of a folder, or those that a list names; a relative path is beside the list."""
    if given.is_dir():
        return [file.resolve() for file in collect_files([given])[0]]
    try:
        with given.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(given)!r} cannot be read as a list of images: {error}") from error
    if not rows or "path" not in rows[0]:
        raise DataError(f"{str(given)!r}: expected a CSV with a column `path`, and rows. Received: {list(rows[:1])}")
    return [(given.parent / row["path"]).resolve() for row in rows]


def report(found: dict) -> None:
    """Print who agrees with whom."""
    print(f"\n{found['images']} images labelled by you")
    print(f"  you          accuracy {percent(found['human'])}, Cohen's kappa {number(found['cohen_kappa'])}")
    print(f"  classifier   accuracy {percent(found['classifier'])}")
    print(f"  you and the classifier agree on {percent(found['agreement'])}")
    for name, label, answer in found["disagreements"][:10]:
        print(f"  {name!r} is labelled {label!r}, you chose {answer!r}")
    if len(found["disagreements"]) > 10:
        print(f"  and {len(found['disagreements']) - 10} more")


if __name__ == "__main__":
    main()
