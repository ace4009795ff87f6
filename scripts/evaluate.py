"""Score a finished run: on another folder of labelled images, or again on its own test predictions.

python scripts/evaluate.py --run runs/RUN --path other_images/
python scripts/evaluate.py --run runs/RUN                          # needs no TensorFlow
python scripts/evaluate.py --run runs/RUN runs/OTHER runs/THIRD    # an ensemble: mean of their probabilities

"""

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from template import config as configuration
from template import disk, runs
from template.evaluate import metrics, multilabel, plots
from template.evaluate.classification import confusion_counts
from template.evaluate.compare import align
from template.evaluate.intervals import percent, share_interval
from template.evaluate.predictions import Predictions, average
from template.labels import thresholds_of


@runs.script()
def main() -> None:
    """Parse, predict where needed, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="folder of a finished run, or of several")
    parser.add_argument("--path", help="labelled images: a folder, CSV file or tfds:NAME, as in training")
    parser.add_argument("--top-k", type=int, help="k of top-k accuracy (default: 5, or one less than classes)")
    parser.add_argument("--out", type=Path, help="where to write (default: in RUN, a folder for each path)")
    words = "folder for decoded images (default: the run's; `cache` where that cannot be written to)"
    parser.add_argument("--data.cache", dest="cache", help=words)
    arguments = parser.parse_args()
    first = arguments.run[0]
    if not arguments.path:
        predictions = _together([_saved(run) for run in arguments.run])
        part = "test" if runs.read_json(first / "metrics.json")["test"] else "validation"
        scores = _score(predictions, arguments.top_k, first)
        _print(scores, f"{part} predictions of {', '.join(map(str, arguments.run))}")
        return
    folder = _folder(arguments.out, first, arguments.path)
    predictions, parts = zip(*(_predict(run, arguments.path, arguments.cache) for run in arguments.run), strict=True)
    predictions = _together(predictions)
    scores = _score(predictions, arguments.top_k, first)
    scores |= {"path": _place(arguments.path), "seen": _seen(predictions, parts, first)}
    predictions.save(folder / "predictions.npz")
    if not predictions.multi:
        counts = confusion_counts(predictions)
        plots.save(plots.confusion_matrix(counts, predictions.class_names), folder / "confusion_matrix.png")
    runs.write_json(folder / "metrics.json", scores)
    _print(scores, arguments.path)
    if scores["seen"]["train"] + scores["seen"]["val"]:
        others = scores["seen"]["accuracy_on_others"]
        held_out = f"held-out accuracy, on test and new images alone: {percent(others)}" if others else ""
        print(held_out or "the run has trained on or selected its weights by all of these images: no held-out accuracy")
    print(f"written: {folder}")


def _together(several: Sequence[Predictions]) -> Predictions:
    """The ensemble: mean probabilities for the same images."""
    try:
        return average(align(several))
    except ValueError as error:
        sys.exit(str(error))


def _place(path: str) -> str:
    """A path by the one name that it has on this machine; what is no path stays as it is."""
    return path if path.startswith("tfds:") or path == "digits" else str(Path(path).expanduser().resolve())


def _folder(out: Path | None, run: Path, path: str) -> Path:
    """Where an evaluation goes: of each path into a folder of its own, which only the same path replaces."""
    short = hashlib.sha256(os.fsencode(_place(path))).hexdigest()[:8]
    folder = out or run / f"evaluation-{runs.short(Path(_place(path).replace(':', '-')).name)}-{short}"
    runs.check_output(folder, "folder")
    if (folder / "config.toml").exists():
        sys.exit(f"{str(folder)!r} is the folder of a run, which holds its own scores. Choose another with --out.")
    there = runs.read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    if there.get("path", _place(path)) != _place(path):
        sys.exit(f"{str(folder)!r} holds the evaluation of {there['path']!r}. Choose another folder with --out.")
    return folder


def _seen(predictions: Predictions, parts: Sequence[dict[str, str]], run: Path) -> dict:
    """How many images are in each part of the runs (in any of several), or `new`; and the accuracy on the others.

    `accuracy_on_others`: those that no run has learned from or chosen by, or null if there are none.
    """
    names = ("train", "val", "test", "new")
    part = np.array([min((known[name] for known in parts), key=names.index) for name in predictions.ids])
    others = predictions.take(np.isin(part, ["test", "new"]))
    correct = _correct(others, run)
    held_out = share_interval(correct, groups=others.groups) if len(others.ids) else None
    return {**{name: int((part == name).sum()) for name in names}, "accuracy_on_others": held_out}


def _correct(predictions: Predictions, run: Path) -> np.ndarray:
    """Whether the class of each image is right, or all its labels; bool [n]."""
    if not predictions.multi:
        return predictions.predicted == predictions.labels
    scaled, levels = _calibrated(predictions, run)
    return ((scaled.probabilities >= levels) == (scaled.labels > 0)).all(axis=1)


def _calibrated(predictions: Predictions, run: Path) -> tuple[Predictions, np.ndarray]:
    """At the temperature of a run; and its thresholds, float64 [classes]."""
    found = runs.read_json(run / "calibration.json")
    return predictions.scaled(found["temperature"]), thresholds_of(found, predictions.class_names)


def _saved(run: Path) -> Predictions:
    """Predictions of a run on its own test images."""
    missing = [name for name in ("predictions.npz", "metrics.json") if not (run / name).is_file()]
    if missing:
        sys.exit(f"{str(run)!r} does not hold a finished run: it has no {', '.join(missing)}.")
    return Predictions.load(run / "predictions.npz")


def _cache(of_run: str, asked: str | None) -> str:
    """A folder for decoded images that can be written to: a run may come from another machine."""
    if asked is None:
        try:
            disk.require_writable(Path(of_run).expanduser(), "folder", "--data.cache")
        except disk.DiskError:
            asked = "cache"
            print(f"the run's cache folder {of_run!r} cannot be written to here: {asked!r} is used (--data.cache)")
        else:
            return of_run
    disk.require_writable(Path(asked).expanduser(), "folder", "--data.cache")
    return asked


def _predict(run: Path, path: str, cache: str | None) -> tuple[Predictions, dict[str, str]]:
    """Decode another folder exactly as the training did, and run the model over it.

    Returns:
        Predictions, and by id the part of the run that each image is in: train, val, test, or `new`.
    """
    from template.config import ConfigError
    from template.data.examples import DataError, load_examples
    from template.data.sources.files import describe_notes

    try:
        settings = run / "config.toml"
        data = configuration.load(settings).data if settings.exists() else configuration.Data()
        examples = load_examples(path, data.class_folders, data.labels)
        runs.import_tensorflow()
        from template.data.decode import decode
        from template.data.lineage import parts_in_run
        from template.data.load import Parts
        from template.deploy.predictor import load_run
        from template.deploy.tta import build_views, predict_tta

        config, classes, model = load_run(run)
        absent = sorted(set(classes) - set(examples.class_names))
        data = dataclasses.replace(config.data, path=path, cache=_cache(config.data.cache, cache))
        config = dataclasses.replace(config, data=data)
        examples, pixels = decode(examples.with_classes(classes), config.data)
        views = build_views(Parts.of(examples, pixels, "test", config.data), "test", config)
    except (DataError, ConfigError, disk.DiskError) as error:
        sys.exit(str(error))
    print(f"{path}: {len(examples) + len(examples.skipped)} found = {len(examples)} used "
          f"+ {len(examples.skipped)} skipped")  # fmt: skip
    for name, reason in examples.skipped:
        print(f"  skipped {name!r}: {reason}")
    for line in describe_notes(zip(examples.ids.tolist(), examples.notes.tolist(), strict=True)):
        print(line)
    if not len(examples):
        sys.exit(f"{path}: none of the images could be read.")
    if absent:
        print(f"no images of {absent}: these classes are not measured")
    parts = [part or "new" for part in parts_in_run(run, examples.digests)]
    if learned := sum(part in {"train", "val"} for part in parts):
        print(f"warning: {run} has learned from or selected its weights by {learned} of these images "
              f"({parts.count('train')} of its train, {parts.count('val')} of its val part): scores on them "
              f"are optimistic. {parts.count('test')} are its test images, {parts.count('new')} are new")  # fmt: skip
    return predict_tta(model, examples, views, config), dict(zip(examples.ids, parts, strict=True))


def _score(predictions: Predictions, k: int | None, run: Path) -> dict:
    """All scores; where an image may have several labels, at the thresholds of this run."""
    if predictions.multi:
        return multilabel.score(*_calibrated(predictions, run))
    try:
        return metrics.score(predictions, k=k)
    except ValueError as error:
        sys.exit(str(error))


def _print(scores: dict, title: str) -> None:
    """Every score with its interval."""
    titles, most = (metrics.TITLES, "class") if "top_k" in scores else (multilabel.TITLES, "set of labels")
    print(f"{title}: {scores['images']} images, most frequent {most} {100 * scores['majority_baseline']:.1f} %")
    k = scores.get("top_k", {}).get("k")
    for name, (key, show) in titles.items():
        print(f"  {name.format(k=k):<36}{' '.join(show(scores[key]))}")
    for depth, level in enumerate(scores.get("levels", ()), 1):
        few = f"accuracy at level {depth} of {len(level['names'])} names"
        print(f"  {few:<36}{percent(level['accuracy'])}")


if __name__ == "__main__":
    main()
