"""How deep to fine-tune: cross-validation of a few depths on cached activations.

With few images a validation part cannot tell what a stage is worth: parts of 40 hand signs saw a gain of three points
as -0.2 to 2.0 standard errors. Out of fold every training image counts. Each depth races against the probe, until it is
nine in ten how that ends (Maron and Moore 1993, "Hoeffding races"; Spiegelhalter et al. 1986, predictive probability).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from .. import config as configuration
from .. import disk, suggest
from ..config import Config, ConfigError, Data, Stage, settled
from ..data.batches import inference_batches
from ..data.dataset import ArrayDataset, subset
from ..evaluate.intervals import paired_z
from ..labels import count_classes
from ..model.backbones import count_blocks, resized
from ..model.blocks import find_blocks
from ..model.build import attach
from ..train.features import FeatureCache
from ..train.linear_probe import fit_probe, folds
from ..train.one_stage import CompiledStage, TrainContext, assign, compile_network, compile_stage, train_once
from ..train.select import per_image_losses
from ..train.self_training import self_train
from ..train.stages import feature_bytes
from .auto import MAX_CV_IMAGES, probe_features, select_levels, starts_from_probe

ENOUGH_IMAGES = 200
"""From so many training images on, unfreezing the top sixth pays more often than not (a probe of several levels, which
says that the images are far from ImageNet's, excepted): it is kept unless it is worse by `LEAD`. With fewer it does not
race: it led in none of 24 races that half of the blocks had not won."""

LEAD = 0.5
"""Standard errors by which a depth must lead the probe. More would leave much to luck, since the noise of training is
nearly as large as that of the images: with three seeds half of MobileNet's blocks leads by 4.6, 2.3 and 0.9 on hand
signs, where it gains five points. Where it costs one to three, it led by -0.7 at most in nine of ten races."""

SMALL = 160
"""Pixels a side at which half of the blocks races, for a third of the time. It leads the probe by 4.2 standard errors
there on hand signs and by 2.0 on clothing, where it gains seven points and two at full size; by -1.0 on ants and bees
and -1.5 on objects, where it loses. The top, which costs little, races at full size: at this one, where the probe is
worse than it need be, it looks better than it is (ants and bees: 2.8 in place of -0.6)."""

NINE_IN_TEN = 1.28
"""Standard deviations below which a normal draw is, nine times in ten."""

FOLDS = 3
"""As many trainings decide about a depth; more would cost more than the training that they decide about."""

Fold = tuple[np.ndarray, np.ndarray]
"""Rows to learn from, and rows to judge."""

Images = Callable[[Config], tuple[ArrayDataset, ArrayDataset]]
"""From a configuration to the training images at its size: as they are, and augmented."""

Unlabelled = Callable[[Data], ArrayDataset | None]
"""From settings to the images without labels, at their size, that the probe learns from too; if there are any."""


def with_stages(config: Config, images: int) -> Config:
    """The configuration with stages, if it names none: from the number of training images.

    Where cross-validation will choose (`choose_stages`), the shallowest that it may choose. A student is unfrozen as
    deep as its teachers: how deep pays is a matter of the images, and those have found it out. Its own cross-validation
    could not, for the teachers know the images outside a fold.

    Args:
        config: without `auto`.
        images: in the training part.

    Raises:
        ConfigError: if a folder of `train.teachers` does not hold a run.
    """
    if config.stages is not None:
        return config
    if cross_validates_depth(config, images):
        return dataclasses.replace(config, stages=depths(config, images)[:1])
    if config.train.teachers and starts_from_probe(config):
        return dataclasses.replace(config, stages=_as_deep_as_teachers(config, images))
    how = {"pretrained": config.backbone.weights != "none", "probed": starts_from_probe(config)}
    blocks, levels = count_blocks(config.backbone.name), settled(config.head.feature_levels)
    return dataclasses.replace(config, stages=suggest.stages(images, config.train, blocks, levels, **how))


def _as_deep_as_teachers(config: Config, images: int) -> tuple[Stage, ...]:
    """That of `suggest.depths` whose share of the blocks is nearest to the largest that a teacher unfroze, if any."""
    share, blocks = 0.0, count_blocks(config.backbone.name)
    for folder in config.train.teachers:
        try:
            found = configuration.load(Path(folder) / "config.toml")
        except ConfigError as error:
            raise ConfigError(f"train.teachers: {folder!r} does not hold a finished run: {error}") from error
        for stage in found.stages or ():
            part = stage.unfreeze / count_blocks(found.backbone.name) if isinstance(stage.unfreeze, int) else 1.0
            share = max(share, part)
    stages = suggest.depths(images, config.train, blocks)
    return (min(stages, key=lambda stage: abs(int(stage.unfreeze) / blocks - share)),) if share else ()


def depths(config: Config, images: int) -> tuple[Stage, ...]:
    """What races: of `suggest.depths` the top only if there are `ENOUGH_IMAGES`.

    Args:
        config: without `auto`.
        images: in the training part.
    """
    found = suggest.depths(images, config.train, count_blocks(config.backbone.name))
    return found if images >= ENOUGH_IMAGES else found[-1:]


def races_small(stage: Stage, config: Config) -> bool:
    """Whether one of `depths` races at `small_size`: whatever is deeper than the top."""
    return stage.unfreeze != suggest.depths(1, config.train, count_blocks(config.backbone.name))[0].unfreeze


def cross_validates_depth(config: Config, images: int) -> bool:
    """Whether cross-validation chooses the stages: where training begins with a probe on not too many images, and no
    teacher knows them all.
    """
    left_open = config.stages is None and not config.train.teachers
    return left_open and starts_from_probe(config) and images < MAX_CV_IMAGES


def choose_stages(
    model: keras.Model, base: keras.Model, config: Config, images: Images, context: TrainContext,
    unlabelled: Unlabelled = lambda _: None,
) -> tuple[Config, dict[str, dict[str, float]]]:  # fmt: skip
    """The configuration with stages, if it names none; says which, and which settings have no effect with them.

    Where training begins with a linear probe on fewer than `MAX_CV_IMAGES` images, they are what cross-validation
    prefers; else those of `with_stages`.

    Args:
        model: from `init_model`; its weights are the same afterwards.
        base: its backbone.
        config: without `auto`.
        images: of training, for a configuration.
        context: of the model, without stages.
        unlabelled: images without labels, for settings.

    Returns:
        The configuration, and the out-of-fold losses of what raced, {"blocks to unfreeze, at 288 pixels": {blocks:
        loss}}.

    Raises:
        DiskError: if there is no room for the activations.
    """
    compared: dict[str, dict[str, float]] = {}
    train = images(config)[0]
    if cross_validates_depth(config, len(train)):
        with context.cache.clock("depth"):
            stages, compared = choose_depth(model, base, config, images, context, unlabelled)
        config = dataclasses.replace(config, stages=stages)
    elif config.stages is None:
        taught = config.train.teachers and starts_from_probe(config)
        config = with_stages(config, len(train))
        listed = ", ".join(f"unfreeze {stage.unfreeze} for {stage.epochs} epochs" for stage in settled(config.stages))
        source = "as deep as those of the teachers" if taught else "from the number of images"
        print(f"stages {source}: {listed or 'none'}")
    for key, why in suggest.settings_without_effect(config, len(train)).items():
        print(f"{key} has no effect: {why}")
    return config, compared


def choose_depth(
    model: keras.Model, base: keras.Model, config: Config, images: Images, context: TrainContext,
    unlabelled: Unlabelled = lambda _: None,
) -> tuple[tuple[Stage, ...], dict[str, dict[str, float]]]:  # fmt: skip
    """The stage that cross-validation prefers to the linear probe, if any, out of `depths`: the deepest that pays.

    Arguments and errors are those of `choose_stages`.

    Returns:
        No stage or one, and by depth and size the out-of-fold losses of the probe and of all that raced and did not
        diverge (calibrated cross-entropy in nats, 1 - accuracy or 1 - macro F1, by `train.monitor`). Where a race ended
        before the last fold it is that of the probe and the difference on the images that were judged.
    """
    train = images(config)[0]
    divisions = folds(train.labels, model.output_shape[-1], config.train.seed, groups=train.groups, most_folds=FOLDS)
    if not divisions:
        print("blocks to unfreeze = 0: cross-validation is impossible, a class has one training image or group")
        return (), {}
    likely = len(train) >= ENOUGH_IMAGES and settled(config.head.feature_levels) == 1
    compared: dict[str, dict[str, float]] = {}
    chosen: tuple[Stage, ...] = ()
    print(f"how deep pays, by {config.train.monitor} of single views in {len(divisions)} folds:")
    for stage in reversed(depths(config, len(train))):
        small = races_small(stage, config)
        network, below, at = at_small_size(model, base, config) if small else (model, base, config)
        needed = -LEAD if likely and not small else LEAD
        context = dataclasses.replace(context, stages=(_in_folds(stage, divisions),))
        seen = images(at), unlabelled(at.data)
        z, losses = _against_probe(network, below, at, seen, context, divisions, needed)
        compared.setdefault(f"blocks to unfreeze, at {at.data.image_size} pixels", {}).update(losses)
        if z > needed:
            chosen = (stage,)
            if small and config.augment.flips:
                print(
                    "  If left and right differ in these images (text, signs, hands), train with "
                    "--augment.hflip=false: to learn mirror images too costs accuracy."
                )
            break
    print(f"blocks to unfreeze = {chosen[0].unfreeze if chosen else 0}")
    return chosen, compared


def small_size(config: Config) -> int:
    """Pixels a side at which half of the blocks races: `SMALL`, or those of the run if they are fewer."""
    size = settled(config.data.image_size)
    return size if config.backbone.name.startswith("hub:") else min(size, SMALL)


def at_small_size(model: keras.Model, base: keras.Model, config: Config) -> tuple[keras.Model, keras.Model, Config]:
    """Model, backbone and configuration for images of `small_size`; the same if they are not larger."""
    size = small_size(config)
    if settled(config.data.image_size) == size:
        return model, base, config
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=size))
    base = resized(base, config.backbone, size)
    return attach(base, config.backbone, config.head, np.ones(model.output_shape[-1])), base, config


def _in_folds(stage: Stage, divisions: Sequence[Fold]) -> Stage:
    """The stage with epochs for as many steps on the images of a fold as it has on all: by fewer it learns less."""
    inside, outside = divisions[0]
    return dataclasses.replace(stage, epochs=round(stage.epochs * (len(inside) + len(outside)) / len(inside)))


def _against_probe(
    model: keras.Model, base: keras.Model, config: Config,
    images: tuple[tuple[ArrayDataset, ArrayDataset], ArrayDataset | None],
    context: TrainContext, divisions: Sequence[Fold], needed: float,
) -> tuple[float, dict[str, float]]:  # fmt: skip
    """Race the one stage of a context against the linear probe; says how it went.

    Returns:
        By how many standard errors it leads, and the losses of both, by blocks to unfreeze.
    """
    ((train, augmented), unlabelled), (stage,) = images, context.stages
    initial = [variable.numpy() for variable in model.variables]
    # Keras numbers layers without a name of their own anew in every network.
    context = dataclasses.replace(context, blocks=find_blocks(model, config.backbone), pretrained=initial)
    disk.require_space({context.cache.folder: feature_bytes(model, augmented, train, context)})
    heads, probe = _probes(base, config, train, unlabelled, divisions, context.cache)
    lowest = float(per_image_losses(probe, train.labels, config.train.monitor).mean())
    size = config.data.image_size
    print(f"  at {size} pixels: linear probe {lowest:.3f}")
    compiled = compile_stage(model, stage, [augmented], train, context)
    gain, z = _race(compiled, heads, divisions, probe, needed)
    assign(model.variables, initial)
    verdict = "taken" if z > needed else "not taken"
    print(f"  unfreeze {stage.unfreeze} at {size} pixels: {lowest - gain:.3f}, {z:+.1f} standard errors: {verdict}")
    losses = {0: lowest, stage.unfreeze: lowest - gain}
    return z, {str(blocks): round(loss, 4) for blocks, loss in losses.items() if math.isfinite(loss)}


def _probes(
    base: keras.Model, config: Config, train: ArrayDataset, unlabelled: ArrayDataset | None, divisions: Sequence[Fold],
    cache: FeatureCache,
) -> tuple[list[list[np.ndarray]], np.ndarray]:  # fmt: skip
    """Kernel and bias of a linear probe for each fold, and their out-of-fold logits [n, classes]."""
    features, widths = select_levels(probe_features(base, config, [train], cache), config.head)
    others = None
    if unlabelled:
        others = select_levels(probe_features(base, config, [unlabelled], cache), config.head)[0]
    classes, heads = count_classes(train.labels), []
    logits = np.empty((len(train), classes), np.float32)
    for inside, outside in divisions:
        groups = None if train.groups is None else train.groups[inside]
        seen, labels = features[:, inside], train.labels[inside]
        probe = fit_probe(seen, labels, classes, config.train.seed, widths, 1, groups)
        if others is not None:
            probe = self_train(seen, labels, others, probe.strength, (), widths)
        heads.append([probe.kernel, probe.bias])
        logits[outside] = features[0, outside] @ probe.kernel + probe.bias
    return heads, logits


def _race(
    compiled: CompiledStage,
    heads: Sequence[Sequence[np.ndarray]],
    divisions: Sequence[Fold],
    probe: np.ndarray,
    needed: float,
) -> tuple[float, float]:
    """Train a stage fold by fold, as long as it may win.

    Args:
        compiled: on all training images, with them as they are for validation.
        heads: to start from, one a fold.
        divisions: folds.
        probe: its out-of-fold logits.
        needed: standard errors by which it must lead in the end. It ends earlier where the chance of that is above nine
            in ten or below one; but a lead that is needed is not believed after one fold: of 12 images, 2.6 became
            -0.2 on flowers.

    Returns:
        By how much and by how many standard errors it is better; both minus infinity if it diverged.
    """
    logits, judged, monitor = np.full_like(probe, np.nan), np.empty(0, np.int64), compiled.context.settings.monitor
    # Once, for it takes as long as a fold to trace it: all folds are of nearly one size.
    compile_network(compiled.network, compiled.stage, subset(compiled.train, divisions[0][0]), compiled.context)
    initial = [variable.numpy() for variable in compiled.network.optimizer.variables]
    for number, ((inside, outside), head) in enumerate(zip(divisions, heads, strict=True), start=1):
        assign(compiled.model.variables, compiled.context.pretrained)
        assign(compiled.network.optimizer.variables, initial)
        compiled.model.get_layer("logits").set_weights(head)
        train_once(dataclasses.replace(compiled, train=subset(compiled.train, inside)))
        logits[outside] = _predict(compiled, outside)
        judged = np.append(judged, outside)
        held_out = subset(compiled.held_out, judged)
        mine, others = (per_image_losses(each[judged], held_out.labels, monitor) for each in (logits, probe))
        z = paired_z(mine, others, groups=held_out.groups)
        # What the other folds will say is known from these, up to normal noise.
        more = len(divisions) / number
        expected, reach = z * math.sqrt(more), NINE_IN_TEN * math.sqrt(more - 1)
        won = expected - reach > needed and (number > 1 or needed < 0)
        if won or not expected + reach > needed:
            break
    return float((others - np.nan_to_num(mine, nan=np.inf)).mean()), z


def _predict(compiled: CompiledStage, rows: np.ndarray) -> np.ndarray:
    """Logits of validation images."""
    batches = inference_batches(subset(compiled.held_out, rows), compiled.context.settings.batch_size)
    return np.asarray(compiled.network.predict(batches, verbose=0), np.float32)[: len(rows)]
