"""Which images to label next: those that will teach a run most, out of many without labels.

    python scripts/label_next.py --run runs/RUN --pool FOLDER --number 50

writes next.csv and next.html, and changes nothing else. Chosen are the images of which the run is least certain, as
different from each other as can be; copies of what is labelled are left out. Label them with

    python scripts/annotate.py --run runs/RUN --images next.csv --out labels.csv

or in a spreadsheet (column `label`), and train again: `python scripts/train.py --data.path=labels.csv`.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from template import config as configuration
from template import runs


@runs.script()
def main() -> None:
    """Look at all of them, choose, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--pool", type=Path, nargs="+", required=True, metavar="FOLDER", help="images without labels")
    parser.add_argument("--number", type=int, default=50, help="how many to label (default: 50)")
    parser.add_argument("--data.path", dest="path", help="where the labelled images are now, if they were moved")
    parser.add_argument("--out", type=Path, default=Path("next.csv"), help="CSV to write; a page beside it (next.html)")
    arguments = parser.parse_args()
    if arguments.number < 1:
        parser.error(f"--number: expected at least 1. Received: {arguments.number}")
    page = arguments.out.with_suffix(".html")
    runs.check_output(arguments.out, "file")
    runs.check_output(page, "file")

    from template.config import ConfigError
    from template.data.sources.files import collect_files, describe_skipped
    from template.data.sources.names import DataError

    try:
        files, left = collect_files(arguments.pool)
        chosen, lines = select_images(arguments, files)
    except (ConfigError, DataError) as error:
        sys.exit(str(error))
    rows = [("path", "label", "predicted", "probability", "runner_up", "its_probability"), *(row for row, _ in chosen)]
    with runs.replacing(arguments.out) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(rows)
    runs.write_text(page, render(f"{len(chosen)} images to label next", lines, chosen))
    for line in [*lines, *describe_skipped(left)]:
        print(line)
    print(f"{len(chosen)} to label: {arguments.out}, to look at: {page}")
    print(f"next: python scripts/annotate.py --run {arguments.run} --images {arguments.out} --out labels.csv")


def select_images(arguments: argparse.Namespace, files: list[Path]) -> tuple[list[tuple[tuple, np.ndarray]], list[str]]:
    """Rows of the table with a small image each, the least certain first; and what there is to say."""
    runs.import_tensorflow()
    from template.data.dataset import eval_dataset
    from template.deploy.label_next import copies, predict_with_features, select_next, unlabelled, views_of
    from template.deploy.predictor import load_run

    config, classes, model = load_run(arguments.run)
    configuration.require_single_label(config, "label_next.py")
    pool, pixels = unlabelled([file.resolve() for file in files], config)
    known, known_pixels, known_digests = labelled(arguments, config)
    if not len(pool):
        sys.exit(f"None of {len(files)} files in {', '.join(map(str, arguments.pool))} can be read as an image.")
    decided, size = arguments.run / "calibration.json", config.train.batch_size  # of an old run: as the network says
    temperature = runs.read_json(decided)["temperature"] if decided.exists() else 1.0
    probabilities, features = predict_with_features(model, views_of(pool, pixels, config), size, temperature)
    seen = features[:0]
    if len(known):
        plain = eval_dataset(known_pixels, np.arange(len(known)), known.labels)
        seen = predict_with_features(model, [plain], size)[1]
    free = np.flatnonzero(~copies(features, seen, pool.digests, known_digests))
    rows = free[select_next(probabilities[free], features[free], arguments.number)]
    lines = [
        f"{len(files)} images found; {len(pool)} can be read, {len(pool) - len(free)} show what is labelled already"
    ]
    lines += [f"  {name!r} cannot be read: {reason}" for name, reason in pool.skipped[:10]]
    if not len(known):
        lines.append("the labelled images are not where they were: only exact copies were looked for (--data.path)")
    counts = np.bincount(probabilities[rows].argmax(axis=1), minlength=len(classes))
    lines.append("chosen, by predicted class: " + ", ".join(f"{n} {c}" for n, c in zip(classes, counts, strict=True)))
    return [(row_of(pool.ids[row], probabilities[row], classes), pixels[np.array([row])][0]) for row in rows], lines


def labelled(arguments: argparse.Namespace, config) -> tuple:
    """The labelled images of the run with their pixels, none if they are gone; and the digests that the run kept."""
    from template.data.decode import decode
    from template.data.examples import DataError, load_examples

    with (arguments.run / "split.csv").open(newline="", encoding="utf-8") as file:
        digests = np.array([row["sha256"] for row in csv.DictReader(file)])
    try:
        found = load_examples(arguments.path or config.data.path, config.data.class_folders)
        examples, pixels = decode(found, config.data)
    except DataError:
        if arguments.path:
            raise
        return (), None, digests
    return examples, pixels, digests


def row_of(name: str, probabilities: np.ndarray, classes: tuple[str, ...]) -> tuple:
    """Path, a label to be filled in, and the two likeliest classes."""
    first, second = np.argsort(-probabilities, kind="stable")[:2]
    likeliest = [cell for i in (first, second) for cell in (classes[i], f"{probabilities[i]:.4f}")]
    return (str(name), "", *likeliest)


def render(title: str, lines: list[str], chosen: list[tuple[tuple, np.ndarray]]) -> str:
    """A self-contained page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from template.data.images.load import data_url

    images = [
        {
            "image": data_url(pixels),
            "reason": f"{row[2]} {float(row[3]):.0%} or {row[4]} {float(row[5]):.0%}",
            "widths": [round(100 * float(row[i])) for i in (3, 5)],
            "name": Path(row[0]).name,
        }
        for row, pixels in chosen
    ]
    environment = Environment(loader=PackageLoader("template.deploy", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("label_next.html").render(title=title, lines=lines, images=images)


if __name__ == "__main__":
    main()
