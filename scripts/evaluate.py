"""Score a finished run: on another folder of labelled pictures, or again on its own test predictions.

python scripts/evaluate.py --run runs/RUN --path other_pictures/
python scripts/evaluate.py --run runs/RUN                          # needs no TensorFlow
python scripts/evaluate.py --run runs/RUN runs/OTHER runs/THIRD    # the mean of what several say

"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from template import runs
from template.evaluate import metrics, plots
from template.evaluate.compare import aligned
from template.evaluate.predictions import Predictions, average
from template.evaluate.report import OTHERS, SHARES, number, percent


def main() -> None:
    """Parse, predict where needed, print and write."""
    runs.any_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="folder of a finished run, or of several")
    parser.add_argument("--path", help="labelled pictures: a folder, CSV file or tfds:NAME, as in training")
    parser.add_argument("--top-k", type=int, help="k of top-k accuracy (default: 5, or one less than classes)")
    parser.add_argument("--out", type=Path, help="where to write (default: RUN/evaluation-NAME)")
    arguments = parser.parse_args()
    first = arguments.run[0]
    said = [_predict(run, arguments.path) if arguments.path else _saved(run) for run in arguments.run]
    try:
        predictions = average(aligned(said))
    except ValueError as error:
        sys.exit(str(error))
    if not arguments.path:
        part = "test" if runs.read_json(first / "metrics.json")["test"] else "validation"
        _print(_score(predictions, arguments.top_k), f"{part} predictions of {', '.join(map(str, arguments.run))}")
        return
    folder = arguments.out or first / f"evaluation-{runs.short(Path(arguments.path.replace(':', '-')).name)}"
    folder.mkdir(parents=True, exist_ok=True)
    scores, counts = _score(predictions, arguments.top_k), metrics.confusion_counts(predictions)
    predictions.save(folder / "predictions.npz")
    plots.save(plots.confusion_matrix(counts, predictions.class_names), folder / "confusion_matrix.png")
    runs.write_json(folder / "metrics.json", scores)
    _print(scores, arguments.path)
    print(f"written: {folder}")


def _saved(run: Path) -> Predictions:
    """What a run said of its own test pictures."""
    missing = [name for name in ("predictions.npz", "metrics.json") if not (run / name).is_file()]
    if missing:
        sys.exit(f"{str(run)!r} does not hold a finished run: it has no {', '.join(missing)}.")
    return Predictions.load(run / "predictions.npz")


def _predict(run: Path, path: str) -> Predictions:
    """Decode another folder exactly as the training did, and run the model over it."""
    from template.config import ConfigError
    from template.data.examples import DataError, load_examples

    try:
        examples = load_examples(path)
        runs.import_tensorflow()
        from template.data.decode import decode
        from template.deploy.predictor import load_run
        from template.recipe import looks, say

        config, classes, model = load_run(run)
        absent = sorted(set(classes) - set(examples.class_names))
        examples, pixels = decode(examples.with_classes(classes), dataclasses.replace(config.data, path=path))
    except (DataError, ConfigError) as error:
        sys.exit(str(error))
    print(f"{path}: {len(examples) + len(examples.skipped)} found = {len(examples)} used "
          f"+ {len(examples.skipped)} skipped")  # fmt: skip
    for name, reason in examples.skipped:
        print(f"  skipped {name!r}: {reason}")
    if not len(examples):
        sys.exit(f"{path}: none of the pictures could be read.")
    if absent:
        print(f"no pictures of {absent}: these classes are not measured")
    return say(model, examples, looks(examples, pixels, np.arange(len(examples)), config), config)


def _score(predictions: Predictions, k: int | None) -> dict:
    try:
        return metrics.score(predictions, k)
    except ValueError as error:
        sys.exit(str(error))


def _print(scores: dict, title: str) -> None:
    """Every score with its interval."""
    print(f"{title}: {scores['images']} pictures, majority class {100 * scores['majority']:.1f} %")
    for name, key in {**SHARES, **OTHERS}.items():
        cell = percent if key in SHARES.values() else number
        print(f"  {name.format(k=scores['top_k']['k']):<38}{cell(scores[key])}")


if __name__ == "__main__":
    main()
