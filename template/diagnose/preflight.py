"""Preflight: a few minutes in which most mistakes show, before a run that takes hours.

After Karpathy 2019, "A recipe for training neural networks". Nothing here changes what a run will do; the features that
it computes, a run finds.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from .. import runs
from ..config import Config, Stage
from ..data.dataset import ArrayDataset, evenly_spaced, subsample
from ..data.examples import PARTS, DataError, Examples
from ..data.images.load import BadImageError, load
from ..data.load import load_data
from ..model.backbones import build_backbone
from ..model.blocks import boundary, find_blocks, freeze
from ..model.build import attach
from ..model_selection.auto import (
    init_model,
    probe_features,
    select_levels,
    set_seed_and_precision,
    standardise_input,
    starts_from_probe,
    with_stages,
    without_auto,
)
from ..train.features import FeatureCache
from ..train.one_stage import mixing_of
from . import baselines, checks, forecast

MOST = 500
"""Images of each part for the probe and the small network; more would take longer and show the same."""


def preflight(config: Config, folder: Path) -> bool:
    """Check data, labels, network and machine; print, and write preflight.json and two grids of images into a folder.

    Args:
        config: as for a run.
        folder: to write to.

    Returns:
        Whether every check passed.

    Raises:
        DataError: if the images cannot be trained on.
        WeightsError: if the pretrained weights are not to be had.
    """
    found, numbers, images = inspect(config)
    for check in found:
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.found} (expected: {check.expected})")
        if not check.passed:
            print(f"        {check.advice}")
    for name, value in numbers.items():
        print(f"      {name}: {value:.3g}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        with runs.replacing(folder / name) as temporary:
            image.save(temporary, format="PNG")
    table = [dataclasses.asdict(check) for check in found]
    runs.write_json(folder / "preflight.json", {"checks": table, "numbers": numbers})
    print(f"look at {' and '.join(str(folder / name) for name in images)}: are these the images, and their labels?")
    return all(check.passed for check in found)


def inspect(config: Config) -> tuple[list[checks.Check], dict[str, float], dict[str, Image.Image]]:
    """All checks; baselines and the forecast of seconds; images by file name."""
    open_config, config = config, without_auto(config)
    open_config = dataclasses.replace(open_config, backbone=config.backbone)  # the first of several
    set_seed_and_precision(config.train)
    config, parts = load_data(config, config.data)
    examples, pixels, part = parts.examples, parts.pixels(config.data), {name: parts.rows(name) for name in PARTS}
    train, val = (parts.plain(name, config.data) for name in ("train", "val"))
    augmented = parts.augmented("train", config)
    config = with_stages(config, len(train))
    names, pretrained = examples.class_names, config.backbone.weights != "none"
    cache = FeatureCache.of(config)
    base = build_backbone(config.backbone, config.data.image_size)
    standardise_input(base, config, train)
    stage = config.stages[0] if config.stages else Stage(unfreeze=1)
    unfrozen = stage.unfreeze or 1  # training the head alone, which the probe fits, would show little

    def fresh(**head: float):
        settings = dataclasses.replace(config.head, **head)
        model = attach(base, config.backbone, settings, np.bincount(train.labels, minlength=len(names)))
        freeze(model, find_blocks(model, config.backbone), unfrozen)
        return model

    mixing = mixing_of(config.train, stage, 0, maps=stage.unfreeze != 0)
    pixels_in_range, first_batch = checks.input_grid(augmented, names, config.train, mixing)
    off = ("dropout", "gaussian_dropout", "drop_block", "drop_connect", "l1", "l2", "max_norm")
    unregularised, model = fresh(**dict.fromkeys(off, 0.0)), fresh()
    at_init = checks.loss_at_init(unregularised, train)
    blocks = find_blocks(unregularised, config.backbone)
    bottom = boundary(unregularised, blocks, unfrozen)
    memorised, drawn = checks.overfit_small_batch(unregularised, bottom, train, names)
    served = [_served(examples, row, config) for row in part["val"][:8]]
    decoded, weights = len(pixels) * pixels[[0]].nbytes, 4 * model.count_params()  # bytes
    found = [
        pixels_in_range,
        checks.train_serve_parity(val.read(0, np.arange(len(served))), np.stack(served)),
        checks.float32_logits(model),
        at_init,
        checks.no_batch_leakage(model, train),
        memorised,
        checks.frozen_unchanged(model, train, len(names), pretrained),
        checks.disk_space(cache.folder, 3 * 6 * weights + max(cache.limit_bytes, decoded)),
        checks.memory(min(config.data.memory_gb * 2**30, decoded) + cache.limit_bytes / 8 + 6 * weights + 2**30),
    ]
    numbers = {
        "validation accuracy of the majority class": (val.labels == np.bincount(train.labels).argmax()).mean(),
        "validation accuracy of colour histograms": baselines.color_baseline(train, val) / len(val),
    }
    few, held_out = subsample(train, MOST), subsample(val, MOST)
    right = baselines.scratch_baseline(few, held_out, config)
    numbers["validation accuracy of a small network from scratch"] = right / len(held_out)
    if starts_from_probe(config):
        probed = init_model(base, config, [few], cache)
        features = [
            select_levels(probe_features(base, config, [part], cache), config.head)[0] for part in (few, held_out)
        ]
        rows = part["train"][evenly_spaced(len(train), MOST)], part["val"][evenly_spaced(len(val), MOST)]
        labels = [checks.random_labels(examples.digests[mine], len(names), config.train.seed) for mine in rows]
        found += [
            checks.depends_on_input(probed, few),
            checks.random_label_accuracy(features[0][0], labels[0], features[1][0], labels[1]),
        ]
        kernel, bias = probed.get_layer("logits").get_weights()
        right = ((features[1][0] @ kernel + bias).argmax(axis=1) == held_out.labels).mean()
        numbers["validation accuracy of the linear probe"] = right
    counts = {name: len(rows) for name, rows in part.items()}
    numbers |= _seconds(dataclasses.replace(open_config, stages=config.stages), config, fresh, train, counts)
    images = {"preflight.png": first_batch, "memorised.png": drawn}
    return found, {name: float(value) for name, value in numbers.items()}, images


def _served(examples: Examples, row: int, config: Config) -> np.ndarray:
    """The pixels of an example as predict.py would see them."""
    try:
        return load(examples.images[row], config.data)[0]
    except BadImageError as error:
        raise DataError(f"{str(examples.ids[row])!r} was read, and cannot be any more: {error}") from error


def _seconds(
    open_config: Config, config: Config, fresh: Callable[[], keras.Model], train: ArrayDataset, counts: dict[str, int]
) -> dict[str, float]:
    """How long an epoch, each phase and the whole run will take.

    Args:
        open_config: with its `auto`, and its stages.
        config: without.
        fresh: makes a model as training begins with it.
        train: training images as they are.
        counts: images of each part.
    """
    model, batch_size = fresh(), config.train.batch_size
    blocks = find_blocks(model, config.backbone)
    paces = [(stage, forecast.measure_stage(fresh(), blocks, stage, train, batch_size)) for stage in config.stages]
    per_image = forecast.seconds_per_image(model, train, batch_size)
    seconds = forecast.forecast(open_config, counts, per_image, paces)
    numbers = {f"seconds of the {name}, about": value for name, value in seconds.items()}
    if paces:
        _, pace = paces[0]
        numbers["seconds of an epoch of stage 1"] = pace.training * counts["train"] + pace.validation * counts["val"]
    return {**numbers, "seconds of the whole run, about": sum(seconds.values())}
