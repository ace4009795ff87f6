"""The whole story of a run, from pictures on disk to a report, in one function."""

import dataclasses
import hashlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from . import config as configuration
from . import runs
from .config import Config, Train
from .data.decode import decode
from .data.examples import PARTS, DataError, Examples, load_examples
from .data.pipeline import ordered_batches, plain_source, training_source
from .data.split import split, to_csv
from .evaluate import metrics, plots, report
from .evaluate.predictions import Predictions, predict
from .model.backbones import WeightsError
from .model.build import build
from .train.stages import fit

ERRORS = (DataError, WeightsError, configuration.ConfigError)
"""What a user can mend; the message says how."""


def run(config: Config, folder: Path, clock: runs.Clock | None = None) -> dict:
    """Train and evaluate a classifier, and write everything about it into a folder.

    Args:
        config: all settings.
        folder: the run's own. If an interrupted run with this configuration left checkpoints there, it goes on.
        clock: already running, if the seconds before this call shall be counted.

    Returns:
        The metrics, as in metrics.json.

    Raises:
        DataError: if the pictures cannot be trained on, or are not those that the interrupted run began with.
        WeightsError: if the pretrained weights are not to be had.
    """
    clock = clock or runs.Clock()
    prepare(config.train)

    with clock("decode"):
        examples, pixels = decode(load_examples(config.data.path), config.data)
        fractions = {"val_fraction": config.data.val_fraction, "test_fraction": config.data.test_fraction}
        examples = split(examples, **fractions, seed=config.data.split_seed)
    part = {name: np.flatnonzero(examples.parts == name) for name in ("train", "val", "test")}
    labels, classes = examples.labels, examples.class_names
    _record(config, examples, folder)

    with clock("build"):
        model = build(config.backbone, config.head, config.data.image_size, np.bincount(labels[part["train"]]))
    train = training_source(pixels, part["train"], labels, config.augment, config.train.seed)
    plain = {name: plain_source(pixels, rows, labels) for name, rows in part.items()}

    with clock("training"):
        how = {"backbone": config.backbone, "stages": config.stages, "settings": config.train}
        history = fit(model, train, plain["val"], **how, folder=folder)
        with runs.replacing(folder / "model.keras") as file:
            model.save(file)

    with clock("evaluation"):
        said = {}
        for name in ("test", "val"):
            batches = ordered_batches(plain[name], len(classes), config.train.batch_size)
            said[name] = predict(model, batches, examples.ids[part[name]], labels[part[name]], classes)
        return _report(config, said, history, examples, clock, folder)


def prepare(settings: Train) -> None:
    """Seed Python, NumPy and TensorFlow, and set the arithmetic."""
    keras.utils.set_random_seed(settings.seed)
    keras.config.set_dtype_policy(settings.precision)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()


def load(folder: Path) -> tuple[Config, tuple[str, ...], keras.Model]:
    """Rebuild a finished run: its configuration, class names and model.

    The model is built by our own code and only its weights are read from the file: nothing in the file is executed.

    Raises:
        DataError: if the folder does not hold a finished run.
    """
    missing = [name for name in ("config.toml", "classes.json", "model.keras") if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{str(folder)!r} is not a finished run: {missing} not found in it.")
    config = configuration.load(folder / "config.toml")
    class_names = tuple(runs.read_json(folder / "classes.json"))
    backbone = dataclasses.replace(config.backbone, weights="none")
    model = build(backbone, config.head, config.data.image_size, np.ones(len(class_names)))
    model.load_weights(folder / "model.keras")
    return config, class_names, model


def _record(config: Config, examples: Examples, folder: Path) -> None:
    """Print what was found, and write what the run is made from; refuse to go on with other pictures than before."""
    used = examples.parts != ""
    table = to_csv(examples)
    if (folder / "split.csv").exists() and (folder / "split.csv").read_text(encoding="utf-8") != table:
        raise DataError(f"The pictures or their split have changed since {str(folder)!r} began. Start a new run.")
    sizes = ", ".join(f"{(examples.parts == name).sum()} {name}" for name in PARTS)
    left_out = len(examples.skipped)
    print(f"{config.data.path}: {used.sum() + left_out} found = {used.sum()} used + {left_out} skipped; {sizes}")
    for name, reason in examples.skipped[:10]:
        print(f"  skipped {name!r}: {reason}")
    if left_out > 10:
        print(f"  and {left_out - 10} more: {folder / 'skipped.json'}")
    runs.write_text(folder / "config.toml", configuration.to_toml(config))
    runs.write_text(folder / "split.csv", table)
    runs.write_json(folder / "classes.json", list(examples.class_names))
    runs.write_json(folder / "skipped.json", [{"id": name, "reason": reason} for name, reason in examples.skipped])
    digest = hashlib.sha256(table.encode()).hexdigest()
    runs.write_json(folder / "run.json", {"environment": runs.environment(), "split_sha256": digest})


def _report(config: Config, said: dict[str, Predictions], history: list, examples: Examples, clock: runs.Clock,
            folder: Path) -> dict:  # fmt: skip
    """Score the predictions and write predictions, metrics, plots and the report."""
    scores = {name: metrics.score(p) if len(p.ids) else None for name, p in said.items()}
    best = said["test"] if scores["test"] else said["val"]
    best.save(folder / "predictions.npz")
    said["val"].save(folder / "predictions_val.npz")
    plots.confusion_matrix(metrics.confusion_counts(best), best.class_names, folder / "confusion_matrix.png")
    plots.learning_curves(history, folder / "learning_curves.png")
    result = scores | {"seconds": {**clock.seconds, "total": clock.total()}}
    counts = {name: int((examples.parts == name).sum()) for name in PARTS}
    what = (
        f"{config.backbone.name} ({config.backbone.weights} weights), {config.data.image_size} pixels, trained on "
        f"{counts['train']} pictures of {len(examples.class_names)} classes from `{config.data.path}`."
    )
    runs.write_json(folder / "metrics.json", result)
    runs.write_text(folder / "report.md", report.markdown(result, what, history, examples.skipped))
    return result
