"""Preflight: a few minutes in which most mistakes show, before a run that takes hours.

After Karpathy 2019, "A recipe for training neural networks". Nothing here changes what a run will do; the features that
it computes, a run finds.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from .. import progress, runs
from ..config import Backbone, Config, Stage, require_single_label, settled
from ..data.dataset import ArrayDataset, evenly_spaced, subsample
from ..data.examples import DataError, Examples
from ..data.images.load import BadImageError, load
from ..data.load import Parts, load_data
from ..distillation import load_teachers
from ..model.at_hand import candidates
from ..model.backbones import build_backbone
from ..model.blocks import boundary, find_blocks, freeze
from ..model.build import attach
from ..model_selection.auto import (
    MAX_CV_IMAGES,
    count_forward_passes,
    count_probes,
    init_model,
    probe_features,
    probe_views,
    select_levels,
    set_seed_and_precision,
    standardise_input,
    starts_from_probe,
    unmirrored,
    without_auto,
)
from ..model_selection.depth import cross_validates_depth, depths, with_stages
from ..train.features import FeatureCache
from ..train.one_stage import TrainContext, batch_size, mixing_of
from ..train.stages import checkpoint_bytes, feature_bytes
from . import baselines, checks, forecast

FORECAST = "seconds of the run without its report, about"
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
        DataError: if the images cannot be trained on, or a run cannot teach.
        WeightsError: if the pretrained weights are not to be had.
        ConfigError: if an image may have several labels.
    """
    require_single_label(config, "preflight.py")
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
    clock = progress.Timer()
    begun = Begun.of(config, clock)
    with progress.step("checks"):
        found, images = _checks(begun)
    with progress.step("baselines"):
        numbers = _baselines(begun)
    if starts_from_probe(begun.config):
        more, numbers["validation accuracy of the linear probe"] = _probe(begun, clock)
        found += more
    with progress.step("forecast"):
        numbers |= _seconds(config, begun, clock)
    return found, {name: float(value) for name, value in numbers.items()}, images


@dataclass(frozen=True)
class Begun:
    """A run as it begins.

    Args:
        config: without `auto`, with stages.
        stages: those, or all that cross-validation will choose among.
        parts: the images.
        train: those of training, as they are.
        val: likewise.
        base: the backbone.
        cache: for features, which a run finds.
    """

    config: Config
    stages: tuple[Stage, ...]
    parts: Parts
    train: ArrayDataset
    val: ArrayDataset
    base: keras.Model
    cache: FeatureCache

    @classmethod
    def of(cls, config: Config, clock: progress.Timer) -> "Begun":
        """From settings, with the first option of every `auto`."""
        config = without_auto(config)
        set_seed_and_precision(config.train)
        with clock("decode"):
            config, parts = load_data(config, config.data)
        train, val = (parts.plain(name, config.data) for name in ("train", "val"))
        raced = depths(config, len(train)) if cross_validates_depth(config, len(train)) else ()
        config = with_stages(config, len(train))
        load_teachers(config, parts.examples)  # what is wrong with them is said now
        base = build_backbone(config.backbone, settled(config.data.image_size))
        standardise_input(base, config, train)
        return cls(config, raced or settled(config.stages), parts, train, val, base, FeatureCache.of(config, clock))

    @property
    def stage(self) -> Stage:
        """The first to train, or one that might."""
        return self.config.stages[0] if self.config.stages else Stage(unfreeze=1)

    @property
    def unfrozen(self) -> int | str:
        """What that stage trains; training the head alone, which the probe fits, would show little."""
        return self.stage.unfreeze or 1

    def model(self, **head: Any) -> keras.Model:
        """A new one, frozen as the stage wants it, with these settings of the head."""
        settings, classes = dataclasses.replace(self.config.head, **head), len(self.parts.examples.class_names)
        counts = np.bincount(self.train.labels, minlength=classes)
        model = attach(self.base, self.config.backbone, settings, counts)
        freeze(model, find_blocks(model, self.config.backbone), self.unfrozen)
        return model


def _checks(begun: Begun) -> tuple[list[checks.Check], dict[str, Image.Image]]:
    """Of data, network and machine; and images by file name."""
    config, train, val, examples = begun.config, begun.train, begun.val, begun.parts.examples
    names, pixels = examples.class_names, begun.parts.all_pixels(config.data)
    mixing = mixing_of(config.train, begun.stage, 0, maps=begun.stage.unfreeze != 0)
    settings = dataclasses.replace(config.train, batch_size=batch_size(begun.stage, config.train))
    in_range, first_batch = checks.input_grid(begun.parts.augmented("train", config), names, settings, mixing)
    off = ("dropout", "gaussian_dropout", "drop_block", "drop_connect", "l1", "l2", "max_norm")
    unregularised, model = begun.model(**dict.fromkeys(off, 0.0)), begun.model()
    at_init = checks.loss_at_init(unregularised, train)
    bottom = boundary(unregularised, find_blocks(unregularised, config.backbone), begun.unfrozen)
    memorised, drawn = checks.overfit_small_batch(unregularised, bottom, train, names)
    served = [_served(examples, row, config) for row in begun.parts.rows("val")[:8]]
    decoded = len(pixels) * pixels[np.array([0])].nbytes
    found = [
        in_range,
        checks.train_serve_parity(val.read(0, np.arange(len(served))), np.stack(served)),
        checks.float32_logits(model),
        at_init,
        checks.no_batch_leakage(model, train),
        memorised,
        checks.frozen_unchanged(model, train, len(names), config.backbone.weights != "none"),
        *_machine(begun, model, decoded),
    ]
    return found, {"preflight.png": first_batch, "memorised.png": drawn}


def _machine(begun: Begun, model: keras.Model, decoded: float) -> list[checks.Check]:
    """Whether the disk and the memory have room for a run.

    Args:
        begun: the run.
        model: of it.
        decoded: bytes of all images at one size. They are in the cache already; another size may be tried.
    """
    config, cache = begun.config, begun.cache
    context = TrainContext(find_blocks(model, config.backbone), begun.stages, config.train, cache)
    features, saved = feature_bytes(model, begun.train, begun.val, context), checkpoint_bytes(model, config.train)
    in_memory = min(config.data.memory_gb * 2**30, decoded) + cache.limit_bytes / 8
    return [
        checks.disk_space(cache.folder, 3 * saved + decoded + features),
        checks.memory(in_memory + saved + 2**30),
    ]


def _baselines(begun: Begun) -> dict[str, float]:
    """Accuracies that any network must beat, by name."""
    train, val = begun.train, begun.val
    few, held_out = subsample(train, MOST), subsample(val, MOST)
    from_scratch = baselines.scratch_baseline(few, held_out, begun.config) / len(held_out)
    return {
        "validation accuracy of the majority class": (val.labels == np.bincount(train.labels).argmax()).mean(),
        "validation accuracy of colour histograms": baselines.color_baseline(train, val) / len(val),
        "validation accuracy of a small network from scratch": from_scratch,
    }


def _probe(begun: Begun, clock: progress.Timer) -> tuple[list[checks.Check], float]:
    """Of the linear probe: checks, and its validation accuracy."""
    config, examples = begun.config, begun.parts.examples
    few, held_out = subsample(begun.train, MOST), subsample(begun.val, MOST)
    with clock("probe"):
        probed = init_model(begun.base, config, [few], begun.cache)
    seen, unseen = (
        select_levels(probe_features(begun.base, config, [part], begun.cache), config.head)[0][0]
        for part in (few, held_out)
    )
    parts = (begun.parts.rows(name) for name in ("train", "val"))
    rows = [part[evenly_spaced(len(part), MOST)] for part in parts]
    digests = examples.known_digests
    lots = [checks.random_labels(digests[mine], len(examples.class_names), config.train.seed) for mine in rows]
    found = [
        checks.depends_on_input(probed, few),
        checks.random_label_accuracy(seen, lots[0], unseen, lots[1]),
    ]
    kernel, bias = probed.get_layer("logits").get_weights()
    return found, ((unseen @ kernel + bias).argmax(axis=1) == held_out.labels).mean()


def _served(examples: Examples, row: int, config: Config) -> np.ndarray:
    """The pixels of an example as predict.py would see them."""
    try:
        return load(examples.images[row], config.data)[0]
    except BadImageError as error:
        raise DataError(f"{str(examples.ids[row])!r} was read, and cannot be any more: {error}") from error


def _seconds(open_config: Config, begun: Begun, clock: progress.Timer) -> dict[str, float]:
    """How long each phase and the whole run will take.

    Args:
        open_config: with its `auto`.
        begun: without.
        clock: with the seconds of decoding, and of fitting one probe on at most `MOST` images.
    """
    config, train = begun.config, begun.train
    per_image = forecast.seconds_per_image(begun.model(), train, config.train.batch_size)
    known = dataclasses.replace(open_config, backbone=config.backbone)
    seconds = forecast.forecast(known, begun.parts.counts, per_image)
    if open_config.backbone.name == "auto":
        seconds["other networks"] = sum(
            _of_candidate(known, other, train) for other in candidates(open_config.backbone)[1:]
        )
    if others := begun.parts.unlabelled:
        views = len(probe_views(train, config))
        seconds["images without labels"] = len(others) * views * per_image
    fit = clock.seconds.get("probe", 0.0) * max(1.0, min(len(train), MAX_CV_IMAGES) / MOST) ** 2
    seconds["fits of the probe"] = fit * count_probes(known)
    seconds["decoding"] = clock.seconds["decode"]
    numbers = {f"seconds of the {name}, about": value for name, value in seconds.items()}
    return {**numbers, FORECAST: sum(seconds.values())}


def _of_candidate(config: Config, other: Backbone, train: ArrayDataset) -> float:
    """Seconds of cross-validating a network that `backbone.name=auto` compares with the first."""
    config = unmirrored(without_auto(dataclasses.replace(config, backbone=other)))
    network = build_backbone(other, settled(config.data.image_size))
    passes = count_forward_passes(config, min(len(train), MAX_CV_IMAGES))
    return passes * forecast.seconds_per_image(network, train, config.train.batch_size)
