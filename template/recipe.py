"""The whole story of a run, from images on disk to a report, in one function."""

import dataclasses
import functools
import hashlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from . import config as configuration
from . import device, disk, runs, suggest
from .config import Config, Data, Train
from .data.audit import Facts, as_json, audit, facts_from_pixels
from .data.decode import decode, with_bits, with_digests
from .data.examples import PARTS, DataError, Examples, first_lines, load_examples
from .data.pipeline import ArrayDataset, center_zoom, eval_dataset, hflip, inference_batches, train_dataset
from .data.rows import ArrayFile
from .data.seen import warm_start
from .data.split import clusters, differences, group_names, split, to_csv
from .deploy.predictor import save_model
from .evaluate.predictions import Predictions, average, predict
from .model.backbones import BACKBONES, WeightsError
from .model.layers import strip_training_layers
from .publish import TrainedRun, publish
from .train.baselines import color_baseline, learning_curve, train_accuracy
from .train.begin import init_head_from_probe, init_model, resolve_auto, starts_from_probe, without_auto
from .train.features import FeatureCache
from .train.guard import NonFiniteError
from .train.losses import refuse_unknown, weight_table
from .train.stages import TrainContext, assign, fit, refit

ERRORS = (DataError, WeightsError, configuration.ConfigError, disk.DiskError, disk.DamagedError, NonFiniteError)
"""What a user can mend; the message says how."""


def run(config: Config, folder: Path, clock: runs.Timer | None = None) -> dict:
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
        ConfigError: if the run has begun with settings that must not change.
        DiskError: if another process writes to the folder, it cannot be written to, or there is too little room.
        DamagedError: if the run was interrupted, and none of its checkpoints is whole.
        NonFiniteError: if a loss, weight or score became NaN or infinite.
    """
    cache = Path(config.data.cache).expanduser()
    with disk.locked(folder):
        disk.sweep(cache)
        try:
            return _run(config, folder, clock or runs.Timer())
        except (OSError, tf.errors.OpError) as error:
            if not disk.is_full(error):
                raise
            raise disk.DiskError(
                f"The disk of {str(folder)!r} or {str(cache)!r} is full. What was saved before is whole, the best "
                "weights among it. Delete old runs, or the cache folder (it is made again); then resume."
            ) from error


def _run(config: Config, folder: Path, clock: runs.Timer) -> dict:
    """`run`, in a folder that is ours alone."""
    _print_device(config)
    store = FeatureCache(
        Path(config.data.cache).expanduser(), config.data.cache_gb * 2**30, config.train.batch_size, clock
    )

    with clock("decode"):
        config, examples, see = load_data(config)
    with clock("audit"):  # now, while the files are there: nothing after the choices opens one of them
        facts = facts_from_pixels(examples, see(without_auto(config).data), np.arange(len(examples)))
    part, together = {name: np.flatnonzero(examples.parts == name) for name in PARTS}, clusters(examples)

    def plain(name: str, data: Data) -> ArrayDataset:
        return eval_dataset(see(data), part[name], examples.labels, together)

    def augmented(name: str) -> ArrayDataset:
        rows, how = part[name], (config.augment, config.train.seed)
        return dataclasses.replace(
            train_dataset(see(config.data), rows, examples.labels, *how), names=examples.ids[rows]
        )

    def said(name: str) -> Predictions:
        with clock("evaluation"):
            return predict_tta(strip_training_layers(model), examples.take(part[name]), views[name], config)

    with clock("probe"):
        set_seed_and_precision(config.train)
        config, base, votes = resolve_auto(config, lambda data: plain("train", data), store)
        config = with_stages(config, len(part["train"]))
        _record(config, votes, examples, folder)
        with clock("decode"):
            views = {name: build_views(examples, see(config.data), part[name], config) for name in ("val", "test")}
        set_seed_and_precision(
            config.train
        )  # a resumed run has nothing to choose, and must draw the same numbers from here on
        model = init_model(base, config, [plain("train", config.data)], store)
        untouched = [variable.numpy() for variable in model.variables]
    with clock("audit"):
        _audit(examples, facts, config, folder)
    with clock("diagnosis"):
        train, val = plain("train", config.data), plain("val", config.data)
        curve = learning_curve(base, config, train, val, store) if starts_from_probe(config) else None
    all_said = {"probe": said("val")} if starts_from_probe(config) else {}
    how = TrainContext(
        config.backbone, config.head, config.stages, config.train, store, untouched, examples.class_names
    )
    if config.stages:
        _print_class_weights(config.train, train.labels, examples.class_names)
    state = fit(model, augmented("train"), val, how, folder)
    all_said["val"] = said("val") if config.stages else all_said["probe"]
    measured = strip_training_layers(model).get_weights()
    if suggest.refits(config, int((examples.parts != "").sum())):
        with clock("final fit"):
            print(f"once more, on training and validation images together: {len(part['train']) + len(part['val'])}")
            assign(model.variables, untouched)
            if starts_from_probe(config):
                init_head_from_probe(model, base, config, [train, val], store)
            refit(model, [augmented("train"), augmented("val")], state.plan, how, folder)
    model = save_model(model, folder)  # from here on that is measured which will be used
    all_said["test"] = said("test")
    if not len(part["test"]):  # what the report shows beside the answers to validation is of the network that gave them
        model.set_weights(measured)
    with clock("diagnosis"):
        learned = train_accuracy(model, train, config.train.batch_size)
        coloured = color_baseline(train, plain("test", config.data) if len(part["test"]) else val)
    trained = TrainedRun(config, examples, see(config.data), facts, model, state, curve, learned, coloured)
    return publish(trained, all_said, clock, folder)


def load_data(config: Config) -> tuple[Config, Examples, Callable[[Data], ArrayFile]]:
    """The images of a recipe, decoded and divided into parts.

    Args:
        config: with or without `auto`.

    Returns:
        The configuration with the bits of 16-bit files; examples, of those that can be read; and a function that gives
        their pixels for settings of size and squaring.
        It keeps the last.

    Raises:
        DataError: if they cannot be trained on.
        ConfigError: if there are weights for a class that there is not.
        DiskError: if there is no room for their pixels.
    """
    found = load_examples(config.data.path)
    refuse_unknown(config.train.class_weights, found.class_names)
    config, found = dataclasses.replace(config, data=with_bits(config.data, found.images)), with_digests(found)
    see = functools.lru_cache(maxsize=1)(lambda data: decode(found, data))
    examples, _ = see(without_auto(config).data)
    fractions = {"val_fraction": config.data.val_fraction, "test_fraction": config.data.test_fraction}
    examples = split(examples, **fractions, seed=config.data.split_seed)
    return config, examples, lambda data: _same(examples, *see(data))


def _same(examples: Examples, again: Examples, pixels: ArrayFile) -> ArrayFile:
    """The pixels, if they are those of the examples, row by row."""
    if again.ids.tolist() != examples.ids.tolist():
        reasons = [f"{name!r}: {reason}" for name, reason in again.skipped if (name, reason) not in examples.skipped]
        raise DataError(
            f"Images that are needed in another size or shape cannot be used in it:\n  {first_lines(reasons)}\nPut "
            "them back, or remove them, and start again."
        )
    return pixels


def with_stages(config: Config, images: int) -> Config:
    """The configuration with stages, if it names none, chosen from the number of training images.

    Says which settings have no effect with them.
    """
    if not config.stages:
        pretrained, blocks = config.backbone.weights != "none", BACKBONES[config.backbone.name].blocks
        how = {"pretrained": pretrained, "probed": starts_from_probe(config)}
        batch = config.train.batch_size * config.train.gradient_accumulation_steps
        stages = suggest.stages(images, batch, blocks, config.head.feature_levels, **how)
        said = ", ".join(f"unfreeze {s.unfreeze} for {s.epochs} epochs" for s in stages)
        print(f"stages from the data: {said or f'none; with {images} images the probe is the best there is'}")
        config = dataclasses.replace(config, stages=stages)
    for key, why in suggest.settings_without_effect(config, images).items():
        print(f"{key} has no effect: {why}")
    return config


def build_views(examples: Examples, pixels: ArrayFile, rows: np.ndarray, config: Config) -> list[ArrayDataset]:
    """What to look at to predict these rows of the examples and their pixels, as the settings ask for.

    Raises:
        DataError: if images that must be decoded once more cannot be read any more.
    """
    views = [eval_dataset(pixels, rows, examples.labels)]
    if config.tta.center_zoom:
        views.append(center_zoom(views[0]))
    if config.tta.full_image and config.data.resize == "crop":
        mine = examples.take(rows)
        stretched = _same(mine, *decode(mine, dataclasses.replace(config.data, resize="stretch", memory_gb=0.0)))
        views.append(eval_dataset(stretched, np.arange(len(mine)), mine.labels))
    return views + ([hflip(view) for view in views] if suggest.uses_hflip(config) else [])


def predict_tta(model: keras.Model, examples: Examples, views: Sequence[ArrayDataset], config: Config) -> Predictions:
    """Predictions of these examples, averaged over `count_forward_passes` at them."""
    batches = [inference_batches(view, config.train.batch_size) for view in views]
    said = average([predict(model, b, examples.ids, examples.labels, examples.class_names) for b in batches])
    return dataclasses.replace(said, groups=None if examples.groups is None else group_names(examples).astype(str))


def set_seed_and_precision(settings: Train) -> None:
    """Seed Python, NumPy and TensorFlow, and set the arithmetic."""
    keras.utils.set_random_seed(settings.seed)
    keras.config.set_dtype_policy(settings.precision)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()


def _print_device(config: Config) -> None:
    print(f"device: {device.summary(device.describe(config.train.precision))}")
    if warning := device.unused_gpu():
        print(f"warning: {warning}")
    if suggest.uses_hflip(config) and not config.augment.flips:
        print(
            "warning: tta.hflip=true answers by mirror images too, and training sees none (augment.flip=false or "
            "augment.policy=none). Where left and right differ that costs accuracy; tta.hflip=auto follows it"
        )


def _print_class_weights(settings: Train, labels: np.ndarray, class_names: Sequence[str]) -> None:
    if settings.class_weights != "none":
        counts = np.bincount(labels, minlength=len(class_names))
        print(weight_table(class_names, counts, settings.class_weights))


def _audit(examples: Examples, facts: Facts, config: Config, folder: Path) -> None:
    """Look for what commonly spoils a number, say what was found, and write audit.json."""
    rows = np.flatnonzero(examples.parts != "")
    used = dataclasses.replace(examples, skipped=()).take(rows)
    found = audit(used, facts.take(rows)) + warm_start(used, config.backbone.weights)
    runs.write_json(folder / "audit.json", as_json(used, found))
    worth_a_look = [finding for finding in found if finding.severity != "know"]
    for finding in worth_a_look:
        print(f"{finding.severity}: {finding.message}{f' {finding.advice}' * (finding.check == 'warm start')}")
    if worth_a_look:
        print(f"  (python scripts/audit.py {shlex.quote(config.data.path)} --out audit shows them)")


def _record(config: Config, votes: dict, examples: Examples, folder: Path) -> None:
    """Print what was found, and write what the run is made from; refuse to go on with other images than before."""
    used = examples.parts != ""
    table = to_csv(examples)
    before = (folder / "split.csv").read_text(encoding="utf-8") if (folder / "split.csv").exists() else table
    if before != table:
        raise DataError(
            f"The images or their split have changed since {str(folder)!r} began:\n  "
            f"{first_lines(differences(before, table))}\nPut them back as they were and resume, or start a new run."
        )
    begun = folder / "begun.toml"
    for line in configuration.changed(configuration.load(begun), config) if begun.exists() else ():
        print(f"goes on with {line}")
    sizes = ", ".join(f"{(examples.parts == name).sum()} {name}" for name in PARTS)
    left_out = len(examples.skipped)
    print(f"{config.data.path}: {used.sum() + left_out} found = {used.sum()} used + {left_out} skipped; {sizes}")
    for name, reason in examples.skipped[:10]:
        print(f"  skipped {name!r}: {reason}")
    if left_out > 10:
        print(f"  and {left_out - 10} more: {folder / 'skipped.json'}")
    runs.write_text(folder / "config.toml", configuration.to_toml(config))
    if not begun.exists():
        runs.write_text(begun, configuration.to_toml(config))
    if votes:  # a resumed run finds nothing left to choose
        runs.write_json(folder / "choices.json", votes)
    runs.write_text(folder / "split.csv", table)
    runs.write_json(folder / "classes.json", list(examples.class_names))
    runs.write_json(folder / "skipped.json", [{"id": name, "reason": reason} for name, reason in examples.skipped])
    digest = hashlib.sha256(table.encode()).hexdigest()
    made_on = {"environment": runs.environment(), "device": device.describe(config.train.precision)}
    runs.write_json(folder / "run.json", made_on | {"split_sha256": digest})
