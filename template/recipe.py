"""The whole story of a run, from images on disk to a report, in one function."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from . import config as configuration
from . import device, disk, messages, progress, runs, suggest
from .config import Config
from .data.audit.facts import facts_from_pixels
from .data.dataset import ArrayDataset
from .data.examples import DataError, Examples, first_lines
from .data.load import Parts, load_data
from .data.split import differences
from .deploy.novelty import Novelty
from .deploy.predictor import save_model
from .deploy.tta import build_views, predict_tta
from .diagnose.baselines import color_baseline, learning_curve, train_accuracy
from .diagnose.forecast import seconds_left
from .distillation import Teacher, load_teachers, taught
from .evaluate.predictions import Predictions
from .experiments import tracking
from .experiments.read import read
from .labels import is_multi
from .model.blocks import find_blocks
from .model.layers import strip_training_layers
from .model.weights import WeightsError
from .model_selection.auto import (
    head_inputs,
    init_head_from_probe,
    init_model,
    never_trained,
    resolve_auto,
    set_seed_and_precision,
    starts_from_probe,
    without_auto,
)
from .model_selection.backbone import choose_backbone
from .model_selection.depth import choose_stages
from .model_selection.unlabelled import choose_unlabelled
from .publish import TrainedRun, publish
from .train.checkpoint import TrainState
from .train.distribute import on_devices
from .train.features import FeatureCache, from_boundary
from .train.nonfinite import NonFiniteError
from .train.one_stage import TrainContext, assign
from .train.stages import fit, refit

ERRORS = (DataError, WeightsError, configuration.ConfigError, disk.DiskError, disk.DamagedError, NonFiniteError)
"""Errors that a user can correct; the message says how."""


def run(config: Config, folder: Path, clock: progress.Timer | None = None) -> dict:
    """Train and evaluate a classifier, and write everything about it into a folder.

    Args:
        config: all settings.
        folder: the run's own. If an interrupted run with this configuration left checkpoints there, it goes on.
        clock: already running, if the seconds before this call shall be counted.

    Returns:
        The metrics, as in metrics.json.

    Raises:
        DataError: if the images cannot be trained on, or are not those that the interrupted run began with.
        WeightsError: if the pretrained weights are not to be had.
        ConfigError: if the run has begun with settings that must not change, or a package that they need is missing.
        DiskError: if another process writes to the folder, it cannot be written to, or there is too little room.
        DamagedError: if the run was interrupted, and none of its checkpoints is whole.
        NonFiniteError: if a loss, weight or score became NaN or infinite.
    """
    tracked = config.train.track == "mlflow"
    if tracked:
        tracking.require()
    with writing(config, folder), on_devices(config.train):
        metrics = _run(config, folder, clock or progress.Timer())
    if tracked:
        tracking.log(read(folder))
    return metrics


@contextlib.contextmanager
def writing(config: Config, folder: Path) -> Iterator[None]:
    """Keep a folder to ourselves for the block, and say where a disk is full.

    Raises:
        DiskError: if another process writes to the folder, it cannot be written to, or a disk is full.
    """
    cache = Path(config.data.cache).expanduser()
    with disk.locked(folder):
        disk.sweep(cache)
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if not disk.is_full(error):
                raise
            raise disk.DiskError(
                f"The disk of {str(folder)!r} or {str(cache)!r} is full. What was saved before is whole, the best "
                "weights among it. Delete old runs, or the cache folder (it is made again); then resume."
            ) from error


def _run(config: Config, folder: Path, clock: progress.Timer) -> dict:
    """`run`, in a folder that is ours alone."""
    messages.print_device(config)
    cache = FeatureCache.of(config, clock)
    with clock("decode"):
        config, parts = load_data(config, without_auto(config).data)
    progress.expect(seconds_left(config, parts.counts, cache))
    with clock("audit"):  # now, while the files are there: nothing after the choices opens one of them
        pixels = parts.all_pixels(without_auto(config).data)
        facts = facts_from_pixels(parts.examples, pixels, np.arange(len(parts.examples)))
    messages.print_found(config, parts, folder)
    refuse_changes(config, parts, folder)
    with clock("audit"):
        messages.print_audit(parts.examples, facts, config, folder)
    begun = prepare(config, parts, cache, folder)
    config, train = begun.config, parts.plain("train", begun.config.data)
    progress.expect(seconds_left(config, parts.counts, cache, begun=True))
    with clock("diagnosis"):
        val = parts.plain("val", config.data)
        probed = starts_from_probe(config)
        single = not is_multi(train.labels)  # several labels an image have no accuracy to extrapolate
        curve = learning_curve(begun.model, begun.base, config, train, val, cache) if probed and single else None
    model, chosen, state, predictions = fit_and_predict(begun, folder)
    with clock("diagnosis"):
        _fit_novelty(model, config, [part for part in (train, val) if len(part)], cache).save(folder)
        if not len(predictions["test"].ids):  # what a report shows beside predictions of validation is of their network
            model.set_weights(chosen)
        held_out = parts.plain("test", config.data) if len(predictions["test"].ids) else val
        learned = train_accuracy(model, train, config, cache) if single else None
        colors = color_baseline(train, held_out) if single else None
    others = len(begun.parts.unlabelled or ())
    trained = TrainedRun(
        config, parts.examples, parts.all_pixels(config.data), facts, model, state, curve, learned, colors, others
    )
    return publish(trained, predictions, clock, folder)


@dataclass(frozen=True)
class Prepared:
    """A run in which nothing is left to choose, before it trains.

    Args:
        config: without `auto`, and with stages.
        parts: its images.
        base: the backbone.
        model: to train.
        context: of the training; as `pretrained`, it has the weights to begin a refit with.
        views: of the images of `val` and `test`, as they are predicted.
        teachers: runs to learn from.
    """

    config: Config
    parts: Parts
    base: keras.Model
    model: keras.Model
    context: TrainContext
    views: dict[str, list[ArrayDataset]]
    teachers: tuple[Teacher, ...]


def prepare(config: Config, parts: Parts, cache: FeatureCache, folder: Path) -> Prepared:
    """Choose what the settings leave open, from the training images alone, and record it in the folder of the run.

    Args:
        config: with or without `auto`.
        parts: the images.
        cache: for features.
        folder: of the run.
    """
    loaded, teachers = parts, load_teachers(config, parts.examples)
    config, parts, base, model, choices = _choose(config, loaded, cache)
    initial = [variable.numpy() for variable in model.variables]
    blocks = find_blocks(model, config.backbone)
    context = TrainContext(blocks, (), config.train, cache, initial, parts.examples.class_names)
    config, depths = choose_stages(model, base, config, parts.train, context, parts.without_labels)
    set_seed_and_precision(config.train)  # a resumed run has nothing to choose, and must draw the same numbers
    _record(config, choices | depths, loaded, teachers, folder)
    context = dataclasses.replace(context, stages=configuration.settled(config.stages))
    with cache.clock("decode"):
        views = {name: build_views(parts, name, config) for name in ("val", "test")}
    return Prepared(config, parts, base, model, context, views, teachers)


def fit_and_predict(
    begun: Prepared, folder: Path
) -> tuple[keras.Model, list[np.ndarray], TrainState, dict[str, Predictions]]:
    """Train, refit if the settings say so, write model.keras, and predict.

    Args:
        begun: from `prepare`.
        folder: of the run; an interrupted one goes on from its checkpoints.

    Returns:
        The model in the file; the weights that it had before the refit; the state of the training; and predictions of
        `val`, which are from before the refit, of `test` (perhaps of no images), and of `probe` on validation if there
        was one.
    """
    config, parts, model, context = begun.config, begun.parts, begun.model, begun.context
    train, augmented = parts.plain("train", config.data), _augmented(begun, "train")
    val, probed = parts.plain("val", config.data), starts_from_probe(config)
    predictions = {"probe": _predict(model, begun, "val")} if probed else {}
    if config.stages:
        messages.print_class_weights(config.train, train.labels, parts.examples.class_names)
    state = fit(model, augmented, val, context, folder)
    predictions["val"] = _predict(model, begun, "val") if config.stages or not probed else predictions["probe"]
    chosen = strip_training_layers(model).get_weights()
    if suggest.refits(config, int((parts.examples.parts != "").sum())):
        with context.cache.clock("refit"):
            print(f"refit on training and validation images together: {len(train) + len(val)}")
            assign(model.variables, context.pretrained)
            if probed:
                others = parts.without_labels(config.data)
                init_head_from_probe(model, begun.base, config, [train], context.cache, val, others)
            refit(model, [augmented, _augmented(begun, "val")], state.plan, context, folder)
    model = save_model(model, folder)  # from here on that is measured which will be used
    predictions["test"] = _predict(model, begun, "test")
    return model, chosen, state, predictions


def _augmented(begun: Prepared, part: str) -> ArrayDataset:
    """What the stages of a run learn from."""
    teachers = begun.teachers if begun.config.stages else ()
    return taught(begun.parts, part, begun.config, teachers, begun.context.cache)


def _predict(model: keras.Model, begun: Prepared, part: str) -> Predictions:
    """Predictions of a model as it is at inference; from the activations of what no stage trains, if those recur."""
    parts, config, cache = begun.parts, begun.config, begun.context.cache
    recur = part == "val" or parts.pool is not None
    with cache.clock("evaluation"):
        model = strip_training_layers(model)
        model, views = from_boundary(model, never_trained(model, config) if recur else None, begun.views[part], cache)
        return predict_tta(model, parts.examples.take(parts.rows(part)), views, config)


def _fit_novelty(model: keras.Model, config: Config, learned: Sequence[ArrayDataset], cache: FeatureCache) -> Novelty:
    """What knows the images that a model has learned from."""
    seen = [head_inputs(model, config, [part], cache)[0] for part in learned]
    return Novelty.fit(np.concatenate(seen), np.concatenate([part.groups for part in learned]))


def _choose(config: Config, parts: Parts, cache: FeatureCache) -> tuple[Config, Parts, keras.Model, keras.Model, dict]:
    """What linear probes choose: the configuration without `auto`, the images without labels that are of use, the
    backbone, a model to start from, and why.
    """
    with cache.clock("probe"):
        set_seed_and_precision(config.train)
        images = functools.partial(parts.plain, "train")
        config, networks = choose_backbone(config, images, cache)
        config, base, settings = resolve_auto(config, images, cache)
        parts, taught = choose_unlabelled(base, config, parts, cache)
        set_seed_and_precision(config.train)  # a resumed run has nothing to choose, and must draw the same numbers
        model = init_model(base, config, [images(config.data)], cache, parts.without_labels(config.data))
        return config, parts, base, model, networks | settings | taught


def refuse_changes(config: Config, parts: Parts, folder: Path) -> None:
    """A run that has begun goes on with its images and settings, and says which of those that may change have."""
    begun = folder / "begun.toml"
    for name, table in parts.tables().items():
        recorded = folder / name
        before = recorded.read_text(encoding="utf-8") if recorded.exists() else "" if begun.exists() else table
        if before != table:
            raise DataError(
                f"The images or their split have changed since {str(folder)!r} began ({name}):\n  "
                f"{first_lines(differences(before, table))}\nPut them back as they were and resume, or start a new run."
            )
    for line in configuration.changed(configuration.load(begun), config) if begun.exists() else ():
        print(f"goes on with {line}")


def _record(config: Config, choices: dict, parts: Parts, teachers: Sequence[Teacher], folder: Path) -> None:
    """Write what the run is made from."""
    tables, begun, chosen = parts.tables(), folder / "begun.toml", folder / "choices.json"
    for name, table in tables.items():
        if table:
            runs.write_text(folder / name, table)
    runs.write_text(folder / "config.toml", configuration.to_toml(config))
    if not begun.exists():
        runs.write_text(begun, configuration.to_toml(config))
    if choices:  # a resumed run finds little left to choose
        runs.write_json(chosen, (runs.read_json(chosen) if chosen.exists() else {}) | choices)
    runs.write_json(folder / "classes.json", list(parts.examples.class_names))
    _write_skipped(parts.examples, folder / "skipped.json")
    if parts.unlabelled:
        _write_skipped(parts.unlabelled.examples, folder / "unlabelled_skipped.json")
    digests = {name: hashlib.sha256(table.encode()).hexdigest() for name, table in tables.items() if table}
    made_on = {"environment": runs.environment(), "device": device.describe(config.train.precision)}
    if teachers:
        made_on["teachers"] = {str(each.folder): disk.sha256(each.folder / "model.keras") for each in teachers}
    runs.write_json(
        folder / "run.json", made_on | {f"{Path(name).stem}_sha256": digest for name, digest in digests.items()}
    )


def _write_skipped(examples: Examples, file: Path) -> None:
    runs.write_json(file, [{"id": name, "reason": reason} for name, reason in examples.skipped])
