"""How training begins: settings that the probe chooses, and a model whose head is the probe."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from ..config import Backbone, Config, Data, Head, Train, settled
from ..data.dataset import ArrayDataset, center_zoom, channel_statistics, concatenate, hflip, subsample, subset
from ..evaluate.intervals import paired_z
from ..labels import count_classes, images_per_class, is_multi
from ..model.at_hand import candidates
from ..model.backbones import build_backbone, count_blocks, standardise
from ..model.blocks import block_outputs, find_blocks, lowest_boundary
from ..model.build import attach, pool_features, power_norm
from ..model.layers import strip_training_layers
from ..train.features import FeatureCache, from_boundary
from ..train.linear_probe import Probe
from .probes import fit_once, teach_once

MAX_CV_IMAGES = 1000
"""Training images that decide about `auto` settings; more would take longer and say the same."""

MAX_STATISTICS_IMAGES = 1000
"""Training images whose mean and variance stand for those of all: millions of pixels in each channel."""


def set_seed_and_precision(settings: Train) -> None:
    """Seed Python, NumPy and TensorFlow, and set the arithmetic."""
    keras.utils.set_random_seed(settings.seed)
    keras.config.set_dtype_policy(settings.precision)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()


def starts_from_probe(config: Config) -> bool:
    """Whether training begins with logistic regression: on pretrained features, and no hidden layer above them."""
    return config.train.probe and config.backbone.weights != "none" and not config.head.hidden


def without_auto(config: Config) -> Config:
    """The configuration with the first option wherever it says `auto`."""
    if config.backbone.name == "auto":
        config = dataclasses.replace(config, backbone=candidates(config.backbone)[0])
    for section, name, options in _auto_settings(config):
        config = _replace(config, section, name, options[0])
    return config


def resolve_auto(
    config: Config, images: Callable[[Data], ArrayDataset], cache: FeatureCache
) -> tuple[Config, keras.Model, dict]:
    """Replace every `auto` by the option that cross-validation of the linear probe prefers.

    One setting after another, each with the best of those before it; no gradient is needed, and every training image
    counts. An option replaces those before it in the list only if its losses are lower by more than one standard error.

    Args:
        config: with or without `auto`.
        images: training images as they are, for settings of size and resizing.
        cache: for features.

    Returns:
        The configuration without `auto`, the backbone for its image size, and the cross-entropies of all options,
        {setting: {option: nats}}.
    """
    chosen, compared = without_auto(config), {}

    @functools.cache
    def backbone(size: int) -> keras.Model:
        # Its dropouts draw their seeds as it is built: the same whatever was built before, for a resumed run, which
        # has nothing to choose, builds it alone.
        keras.utils.set_random_seed(config.train.seed)
        return build_backbone(config.backbone, size)

    measured = None  # of `chosen`, which is the first option of the next setting too
    for section, name, options in _auto_settings(config) if starts_from_probe(config) else ():
        results, best = {}, options[0]
        for option in options:
            trial = _replace(chosen, section, name, option)
            if trial != chosen or measured is None:
                measured = cross_validate(backbone(trial.data.image_size), trial, images(trial.data), cache)
            results[option] = measured
            probe, groups = measured
            best = option if paired_z(probe.losses, results[best][0].losses, groups=groups) > 1 else best
        chosen, measured = _replace(chosen, section, name, best), results[best]
        if np.isnan(measured[0].losses).any():
            print(f"{section}.{name} = {best}: cross-validation is impossible, a class has one training image or group")
            continue
        losses = {str(option): round(probe.cross_entropy, 4) for option, (probe, _) in results.items()}
        compared[f"{section}.{name}"] = losses
        listed = ", ".join(f"{option} {loss:.3f}" for option, loss in losses.items())
        print(f"{section}.{name} = {best}: cross-validated cross-entropy {listed}")
    return chosen, backbone(chosen.data.image_size), compared


def init_model(
    base: keras.Model, config: Config, train: Sequence[ArrayDataset], cache: FeatureCache,
    unlabelled: ArrayDataset | None = None,
) -> keras.Model:  # fmt: skip
    """A model to start training from; where the recipe begins with a probe, that is its head.

    Args:
        base: from `build_backbone`; from scratch, its input becomes standardised.
        config: without `auto`.
        train: training images as they are, in one part or several.
        cache: for features.
        unlabelled: images that the probe learns from too.
    """
    labels = np.concatenate([part.labels for part in train])
    standardise_input(base, config, concatenate(train))
    counts, multi = images_per_class(labels, count_classes(labels)), is_multi(labels)
    shares = (counts + 0.5) / (len(labels) + 1) if multi else counts  # of a label that every image has, not quite 1
    model = attach(base, config.backbone, config.head, shares, multi=multi)
    if starts_from_probe(config):
        init_head_from_probe(model, base, config, train, cache, unlabelled=unlabelled)
    return model


def standardise_input(base: keras.Model, config: Config, train: ArrayDataset) -> None:
    """Let a network from scratch see its images with the mean and deviation of those of training; no other."""
    if config.backbone.weights == "none":
        standardise(base, *channel_statistics(subsample(train, MAX_STATISTICS_IMAGES)))


def init_head_from_probe(
    model: keras.Model, base: keras.Model, config: Config, train: Sequence[ArrayDataset], cache: FeatureCache,
    val: ArrayDataset | None = None, unlabelled: ArrayDataset | None = None,
) -> Probe:  # fmt: skip
    """Fit a probe on training images, and make it the output layer of a model.

    Args:
        model: from `init_model`.
        base: its backbone.
        config: without `auto`.
        train: training images as they are, in one part or several.
        cache: for features.
        val: images to learn from too, which the model has predicted and will predict: see `head_inputs`.
        unlabelled: images without labels to learn from too (`self_train`).
    """
    head = model.get_layer("logits")
    features, widths = select_levels(probe_features(base, config, train, cache), config.head)
    if val:
        more = head_inputs(model, config, probe_views(val, config), cache)
        train, features = [*train, val], np.concatenate([features, more], axis=1)
    labels = np.concatenate([part.labels for part in train])
    groups = None if any(part.groups is None for part in train) else np.concatenate([part.groups for part in train])
    if unlabelled:
        others = select_levels(probe_features(base, config, [unlabelled], cache), config.head)[0]
        probe = teach_once(features, labels, others, config.train.seed, widths, groups, cache)
    else:
        probe = fit_once(features, labels, head.units, config.train.seed, widths, groups, cache)
    head.set_weights([probe.kernel, probe.bias])
    found = f"accuracy {probe.accuracy:.3f}, cross-entropy {probe.cross_entropy:.3f} (cross-validated; "
    if math.isnan(probe.accuracy):
        found = "(not cross-validated: a class has a single image or group, which cannot be held out; "
    beside = f" and {len(unlabelled)} without labels" if unlabelled else ""
    print(f"linear probe on {len(labels)} images{beside}: {found}strength {probe.strength:.2g})")
    return probe


def probe_features(
    base: keras.Model, config: Config, datasets: Sequence[ArrayDataset], cache: FeatureCache
) -> tuple[np.ndarray, list[int]]:
    """What a probe of any number of levels could learn from: float16 [views, n, features], and features a level.

    Always of the top half of the blocks, so that they are computed once, whatever is chosen of them. Of the images as
    they are, and as evaluation or augmentation would show them.
    """
    most = max(config.head.feature_levels, *_level_options(config))
    # At inference nothing is dropped.
    head = dataclasses.replace(config.head, feature_levels=most, power_norm=False, drop_block=0.0)
    network, widths = _probe_network(base, config.backbone, head)
    outputs = [[_all(cache, network, view) for view in probe_views(dataset, config)] for dataset in datasets]
    return np.concatenate(outputs, axis=1), widths


def probe_views(dataset: ArrayDataset, config: Config) -> list[ArrayDataset]:
    """The views of images that a probe learns from; the first is the plain one."""
    plain = [dataset, center_zoom(dataset)] if config.tta.center_zoom else [dataset]
    return plain + [hflip(view) for view in plain] if config.augment.flips else plain


def head_inputs(model: keras.Model, config: Config, views: Sequence[ArrayDataset], cache: FeatureCache) -> np.ndarray:
    """What `select_levels` selects, from where the model is frozen throughout: float32 [views, n, features].

    The passes through the part below are those that evaluation needs as well, of the same views.
    """
    model = strip_training_layers(model)
    network = keras.Model(model.inputs[0], model.get_layer("head_dropout").output)  # at inference, that is its input
    network, views = from_boundary(network, never_trained(model, config), views, cache)
    return np.stack([_all(cache, network, view) for view in views]).astype(np.float32)


def never_trained(model: keras.Model, config: Config) -> keras.KerasTensor | None:
    """The boundary below which no stage of a run trains anything; None if one trains everything."""
    return lowest_boundary(
        model, find_blocks(model, config.backbone), [stage.unfreeze for stage in settled(config.stages)]
    )


def _all(cache: FeatureCache, network: keras.Model, dataset: ArrayDataset) -> np.ndarray:
    return cache.outputs(network, dataset, range(1))[np.arange(len(dataset))]


@functools.lru_cache(maxsize=2)
def _probe_network(base: keras.Model, backbone: Backbone, head: Head) -> tuple[keras.Model, list[int]]:
    """From images to pooled features, and features a level. Kept, for TensorFlow to trace it once."""
    outputs = block_outputs(base, find_blocks(base, backbone))[-settled(head.feature_levels) :]
    widths = [level.shape[-1] * (2 if head.pooling == "both" else 1) for level in outputs]
    return keras.Model(base.inputs[0], pool_features(base, backbone, head)), widths


def select_levels(features: tuple[np.ndarray, list[int]], head: Head) -> tuple[np.ndarray, list[int]]:
    """Those of `probe_features` that this head sees, float32, and features a level."""
    values, widths = features
    widths = widths[-settled(head.feature_levels) :]
    values = values[..., -sum(widths) :].astype(np.float32)
    return np.asarray(power_norm(values)) if head.power_norm else values, widths


def cross_validate(
    base: keras.Model, config: Config, dataset: ArrayDataset, cache: FeatureCache
) -> tuple[Probe, np.ndarray | None]:
    """A linear probe on at most `MAX_CV_IMAGES` training images, with its out-of-fold losses; and their groups.

    On images that are not mirrored, whatever training sees: `unmirrored`.
    """
    sample = _subsample_classes(dataset, config.train.seed)
    features, widths = select_levels(probe_features(base, unmirrored(config), [sample], cache), config.head)
    classes = count_classes(sample.labels)
    return fit_once(features, sample.labels, classes, config.train.seed, widths, sample.groups, cache), sample.groups


def unmirrored(config: Config) -> Config:
    """The configuration to compare options with: mirror images would take twice the passes, and chose something else in
    one of 14 cases (docs/craft.md).
    """
    return _replace(config, "augment", "hflip", False)


def count_forward_passes(config: Config, images: int, unlabelled: int = 0) -> int:
    """How many images `resolve_auto` and `init_model` send through the backbone at most, for so many training images.

    Args:
        config: with its `auto`.
        images: in the training part.
        unlabelled: that the probe may learn from too.
    """
    if not starts_from_probe(config):
        return 0
    close = 2 if config.tta.center_zoom else 1  # which `auto` may turn out to be
    others = sum(len(options) - 1 for section, _, options in _auto_settings(config) if section == "data")
    # Where there are many, cross-validated is a sample of those that train.
    apart = close if images > MAX_CV_IMAGES and _auto_settings(config) else 0
    views = close * (2 if config.augment.flips else 1)
    return (images + unlabelled) * views + min(images, MAX_CV_IMAGES) * (others + apart)


def count_probes(config: Config) -> int:
    """How many linear probes `resolve_auto` and a refit fit at most; the arguments are those of the run."""
    if not starts_from_probe(config):
        return 0
    settings = _auto_settings(config)
    mirrored = 1 if settings and config.augment.flips else 0  # those that compare are not
    return 2 + mirrored + sum(len(options) - 1 for _, _, options in settings)


def _auto_settings(config: Config) -> list[tuple[str, str, tuple]]:
    """Section, name and options of each setting that is `auto`, in the order in which they are chosen."""
    options = [  # what is seen, before what of it: a lower level may be a substitute for the right size, and no more
        ("data", "image_size", (288, 224)),
        ("data", "resize", ("crop", "pad", "stretch")),
        ("head", "feature_levels", _level_options(config)),
        ("head", "power_norm", (True, False)),
        ("tta", "center_zoom", (False, True)),
    ]
    return [choice for choice in options if getattr(getattr(config, choice[0]), choice[1]) == "auto"]


def _level_options(config: Config) -> tuple[int, ...]:
    blocks = count_blocks(config.backbone.name)
    return tuple(sorted({1, min(2, blocks), math.ceil(blocks / 2)}))


def _replace(config: Config, section: str, name: str, value: object) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})


def _subsample_classes(dataset: ArrayDataset, seed: int) -> ArrayDataset:
    """Images of a dataset that decide, as many of each class where there are too many."""
    generator = np.random.default_rng(seed)
    if is_multi(dataset.labels):
        return subset(dataset, np.sort(generator.permutation(len(dataset))[:MAX_CV_IMAGES]))
    classes = count_classes(dataset.labels)
    most = max(5, MAX_CV_IMAGES // classes)
    chosen = [generator.permutation(np.flatnonzero(dataset.labels == label))[:most] for label in range(classes)]
    return subset(dataset, np.sort(np.concatenate(chosen)))
