"""Score a finished run: on another folder of labelled pictures, or again on its own test predictions.

python scripts/evaluate.py --run runs/RUN --path other_pictures/
python scripts/evaluate.py --run runs/RUN                          # needs no TensorFlow
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from template import runs
from template.evaluate import metrics, plots
from template.evaluate.predictions import Predictions
from template.evaluate.report import percent


def main() -> None:
    """Parse, predict where needed, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--path", help="labelled pictures: a folder, CSV file or tfds:NAME, as in training")
    parser.add_argument("--out", type=Path, help="where to write (default: RUN/evaluation-NAME)")
    arguments = parser.parse_args()
    if not arguments.path:
        saved, said = arguments.run / "predictions.npz", arguments.run / "metrics.json"
        missing = [file.name for file in (saved, said) if not file.is_file()]
        if missing:
            sys.exit(f"{str(arguments.run)!r} does not hold a finished run: it has no {', '.join(missing)}.")
        part = "test" if runs.read_json(said)["test"] else "validation"
        _print(metrics.score(Predictions.load(saved)), f"{part} predictions of the run")
        return
    predictions = _predict(arguments.run, arguments.path)
    folder = arguments.out or arguments.run / f"evaluation-{Path(arguments.path.replace(':', '-')).name}"
    folder.mkdir(parents=True, exist_ok=True)
    scores = metrics.score(predictions)
    predictions.save(folder / "predictions.npz")
    plots.confusion_matrix(
        metrics.confusion_counts(predictions), predictions.class_names, folder / "confusion_matrix.png"
    )
    runs.write_json(folder / "metrics.json", scores)
    _print(scores, arguments.path)
    print(f"written: {folder}")


def _predict(run: Path, path: str) -> Predictions:
    """Decode another folder exactly as the training did, and run the model over it."""
    from template.config import ConfigError
    from template.data.examples import DataError, load_examples

    try:
        examples = load_examples(path)
        runs.import_tensorflow()
        from template.data.decode import decode
        from template.deploy.predictor import load_run
        from template.recipe import say

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
    return say(model, examples, pixels, np.arange(len(examples)), config)


def _print(scores: dict, title: str) -> None:
    print(f"{title}: {scores['images']} pictures, majority class {100 * scores['majority']:.1f} %")
    for key in ("accuracy", "macro_f1", "top_k"):
        name = f"top-{scores[key]['k']} accuracy" if key == "top_k" else key.replace("_", " ")
        print(f"  {name:<16} {percent(scores[key])}")
    loss = scores["cross_entropy"]
    print(f"  {'cross-entropy':<16} {loss['value']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}]")


if __name__ == "__main__":
    main()
