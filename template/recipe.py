"""The whole story of a run, from pictures on disk to a report, in one function."""

import dataclasses
import hashlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from . import config as configuration
from . import runs, suggest
from .config import Config, Train
from .data.decode import decode
from .data.examples import PARTS, DataError, Examples, load_examples
from .data.pipeline import Source, mirrored, ordered_batches, plain_source, training_source
from .data.split import split, to_csv
from .evaluate import metrics, plots, report
from .evaluate.predictions import Predictions, average, predict
from .model.backbones import BACKBONES, WeightsError
from .model.build import build
from .train.probe import probe_head
from .train.stages import How, fit, repeat

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

    with clock("decode"):
        examples, pixels = decode(load_examples(config.data.path), config.data)
        fractions = {"val_fraction": config.data.val_fraction, "test_fraction": config.data.test_fraction}
        examples = split(examples, **fractions, seed=config.data.split_seed)
    part = {name: np.flatnonzero(examples.parts == name) for name in PARTS}
    part["train and val"] = np.concatenate([part["train"], part["val"]])
    config = suggested(config, len(part["train"]))
    _record(config, examples, folder)

    def augmented(name: str) -> Source:
        return training_source(pixels, part[name], examples.labels, config.augment, config.train.seed)

    def plain(name: str) -> Source:
        return plain_source(pixels, part[name], examples.labels)

    with clock("probe"):
        model, said = begin(config, plain("train")), {}
        if probes(config):
            said["probe"] = say(model, plain("val"), examples, part["val"], config)
    how = How(config.backbone, config.stages, config.train, Path(config.data.cache))
    with clock("training"):
        state = fit(model, augmented("train"), plain("val"), how, folder)
        said["val"] = say(model, plain("val"), examples, part["val"], config)
    if refits(config, examples):
        with clock("final fit"):
            model = begin(config, plain("train and val"))
            repeat(model, augmented("train and val"), state.plan, how)
    with clock("evaluation"):
        with runs.replacing(folder / "model.keras") as file:
            model.save(file)
        said["test"] = say(model, plain("test"), examples, part["test"], config)
    return _report(config, said, state.history, examples, clock, folder)


def suggested(config: Config, images: int) -> Config:
    """The configuration with stages, if it names none, chosen from the number of training pictures."""
    if config.stages:
        return config
    pretrained = config.backbone.weights != "none"
    stages = suggest.stages(images, config.train.batch_size, BACKBONES[config.backbone.name].blocks, pretrained)
    print("stages from the data: " + ", ".join(f"unfreeze {s.unfreeze} for {s.epochs} epochs" for s in stages))
    return dataclasses.replace(config, stages=stages)


def begin(config: Config, train: Source) -> keras.Model:
    """A model to start training from: pretrained, and with the head of a logistic regression if the recipe says so."""
    prepare(config.train)
    classes = int(train.labels.max()) + 1
    model = build(config.backbone, config.head, config.data.image_size, np.bincount(train.labels, minlength=classes))
    if probes(config):
        probe = probe_head(model, train, config.augment.flip, config.train.batch_size, config.train.seed)
        print(
            f"probe on {len(train)} pictures: accuracy {probe.accuracy:.3f}, cross-entropy {probe.cross_entropy:.3f} "
            f"(cross-validated; strength {probe.strength:.2g})"
        )
    return model


def probes(config: Config) -> bool:
    """Whether training begins with logistic regression: on pretrained features, and no hidden layer above them."""
    return config.train.probe and config.backbone.weights != "none" and not config.head.hidden


def say(model: keras.Model, source: Source, examples: Examples, rows: np.ndarray, config: Config) -> Predictions:
    """Predictions of these examples, of one view or averaged with their mirror image."""
    views = [source, mirrored(source)] if config.evaluate.mirror else [source]
    names = examples.class_names
    return average(
        [
            predict(model, ordered_batches(v, len(names), config.train.batch_size), examples.ids[rows], v.labels, names)
            for v in views
        ]
    )


def refits(config: Config, examples: Examples) -> bool:
    """Whether the recipe ends with a fit on training and validation pictures together."""
    few = (examples.parts == "val").sum() < 50 * len(examples.class_names)
    pretrained = config.backbone.weights != "none"
    return config.train.final_fit == "yes" or (config.train.final_fit == "auto" and pretrained and bool(few))


def prepare(settings: Train) -> None:
    """Seed Python, NumPy and TensorFlow, and set the arithmetic."""
    keras.utils.set_random_seed(settings.seed)
    keras.config.set_dtype_policy(settings.precision)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()


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
    weights = {"none": "from random weights", "imagenet": "from ImageNet weights"}
    learned = f"{counts['train']} pictures"
    if refits(config, examples):
        together = counts["train"] + counts["val"]
        learned = f"{together} pictures (with those of validation, after the validation column below was measured)"
    what = (
        f"{config.backbone.name}, {weights.get(config.backbone.weights, 'from given weights')}, "
        f"{config.data.image_size} pixels, trained on {learned} of {len(examples.class_names)} classes."
    )
    runs.write_json(folder / "metrics.json", result)
    runs.write_text(folder / "report.md", report.markdown(result, what, history, examples.skipped))
    return result
