"""How deep to fine-tune: cross-validation of a few depths on cached activations.

With few images a validation part cannot tell what a stage is worth: parts of 40 hand signs saw a gain of three points
as -0.2 to 2.0 standard errors. Out of fold every training image counts. Each depth races against the best so far: what
leads by little after the first fold is given up (Maron and Moore 1993, "Hoeffding races").
"""

import dataclasses
import math
from collections.abc import Sequence

import keras
import numpy as np

from .. import disk, suggest
from ..config import Config, Stage
from ..data.batches import inference_batches
from ..data.dataset import ArrayDataset, subset
from ..evaluate.intervals import paired_z
from ..model.backbones import count_blocks
from ..train.features import FeatureCache
from ..train.linear_probe import fit_probe, folds
from ..train.one_stage import CompiledStage, TrainContext, assign, compile_network, compile_stage, train_once
from ..train.select import per_image_losses
from ..train.stages import feature_bytes
from .auto import MAX_CV_IMAGES, probe_features, select_levels, starts_from_probe

ENOUGH_IMAGES = 200
"""From so many training images on, unfreezing the top sixth pays more often than not (a probe of several levels, which
says that the images are far from ImageNet's, excepted): it is kept unless it is worse by a standard error."""

FIRST, DEEPER = 1.0, 2.0
"""Standard errors by which a depth must lead what is best before it: the first where images are fewer, and deeper
ones, which gain more where they gain (hand signs: 3.7) and lose more where they lose."""

FOLDS = 3
"""As many trainings decide about a depth; more would cost more than the training that they decide about."""

Fold = tuple[np.ndarray, np.ndarray]
"""Rows to learn from, and rows to judge."""


def with_stages(config: Config, images: int) -> Config:
    """The configuration with stages, if it names none: from the number of training images.

    Where cross-validation will choose (`choose_stages`), the first that it tries.

    Args:
        config: without `auto`.
        images: in the training part.
    """
    if config.stages is not None:
        return config
    if cross_validates_depth(config, images):
        return dataclasses.replace(config, stages=depths(config, images)[:1])
    how = {"pretrained": config.backbone.weights != "none", "probed": starts_from_probe(config)}
    blocks, levels = count_blocks(config.backbone.name), config.head.feature_levels
    return dataclasses.replace(config, stages=suggest.stages(images, _step(config), blocks, levels, **how))


def depths(config: Config, images: int) -> tuple[Stage, ...]:
    """What races: `suggest.depths` of a configuration without `auto`."""
    return suggest.depths(images, _step(config), count_blocks(config.backbone.name))


def _step(config: Config) -> int:
    """Images a step."""
    return config.train.batch_size * config.train.gradient_accumulation_steps


def cross_validates_depth(config: Config, images: int) -> bool:
    """Whether cross-validation chooses the stages: where training begins with a probe on not too many images."""
    return config.stages is None and starts_from_probe(config) and images < MAX_CV_IMAGES


def choose_stages(
    model: keras.Model, base: keras.Model, config: Config, train: ArrayDataset, augmented: ArrayDataset,
    context: TrainContext,
) -> tuple[Config, dict[str, dict[str, float]]]:  # fmt: skip
    """The configuration with stages, if it names none; says which, and which settings have no effect with them.

    Where training begins with a linear probe on fewer than `MAX_CV_IMAGES` images, they are what cross-validation
    prefers; else what `suggest.stages` says.

    Args:
        model: from `init_model`; its weights are the same afterwards.
        base: its backbone.
        config: without `auto`.
        train: training images as they are.
        augmented: the same, augmented.
        context: of the model, without stages.

    Returns:
        The configuration, and the out-of-fold losses of all depths, {"blocks to unfreeze": {blocks: loss}}.

    Raises:
        DiskError: if there is no room for the activations.
    """
    compared = {}
    if cross_validates_depth(config, len(train)):
        with context.cache.clock("depth"):
            stages, losses = choose_depth(model, base, config, train, augmented, context)
        config, compared = dataclasses.replace(config, stages=stages), {"blocks to unfreeze": losses} if losses else {}
    elif config.stages is None:
        config = with_stages(config, len(train))
        listed = ", ".join(f"unfreeze {stage.unfreeze} for {stage.epochs} epochs" for stage in config.stages)
        print(f"stages from the number of images: {listed or 'none'}")
    for key, why in suggest.settings_without_effect(config, len(train)).items():
        print(f"{key} has no effect: {why}")
    return config, compared


def choose_depth(
    model: keras.Model, base: keras.Model, config: Config, train: ArrayDataset, augmented: ArrayDataset,
    context: TrainContext,
) -> tuple[tuple[Stage, ...], dict[str, float]]:  # fmt: skip
    """The stage that cross-validation prefers to the linear probe, if any, out of `depths`.

    The first two are tried in any case, deeper than what did not pay is not. Arguments as those of `choose_stages`.

    Returns:
        No stage or one, and the out-of-fold loss of each depth that was tried and did not diverge (calibrated
        cross-entropy in nats, 1 - accuracy or 1 - macro F1, by `train.monitor`). Of what was given up it is that of the
        best so far and the difference on the images that were judged, so that all can be compared.
    """
    divisions = folds(train.labels, model.output_shape[-1], config.train.seed, groups=train.groups, most_folds=FOLDS)
    if not divisions:
        print("blocks to unfreeze = 0: cross-validation is impossible, a class has one training image or group")
        return (), {}
    stages = depths(config, len(train))
    needed_bytes = feature_bytes(model, augmented, train, dataclasses.replace(context, stages=stages))
    disk.require_space({context.cache.folder: needed_bytes})
    heads, best = _probes(base, config, train, divisions, context.cache)
    lowest = float(per_image_losses(best, train.labels, config.train.monitor).mean())
    chosen, losses = (), {"0": round(lowest, 4)}
    print(f"how deep pays, by {config.train.monitor} of single views in {len(divisions)} folds: probe {lowest:.3f}")
    needed = -FIRST if len(train) >= ENOUGH_IMAGES and config.head.feature_levels == 1 else FIRST
    for number, stage in enumerate(stages):
        compiled = compile_stage(model, stage, [augmented], train, context)
        logits, gain, z = _race(compiled, heads, divisions, best, needed)
        if math.isfinite(gain):
            losses[str(stage.unfreeze)] = round(lowest - gain, 4)
        print(f"  {lowest - gain:.3f}, {z:+.1f} standard errors: {'taken' if z > needed else 'not taken'}")
        if z > needed:
            chosen = (stage,)
            best, lowest = (best, lowest) if np.isnan(logits).any() else (logits, lowest - gain)
        elif number:
            break  # the top alone says little about what is below; half of the network does
        needed = DEEPER
    assign(model.variables, context.pretrained)
    print(f"blocks to unfreeze = {chosen[0].unfreeze if chosen else 0}")
    return chosen, losses


def _probes(
    base: keras.Model, config: Config, train: ArrayDataset, divisions: Sequence[Fold], cache: FeatureCache
) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Kernel and bias of a linear probe for each fold, and their out-of-fold logits [n, classes]."""
    features, widths = select_levels(probe_features(base, config, [train], cache), config.head)
    classes, heads = int(train.labels.max()) + 1, []
    logits = np.empty((len(train), classes), np.float32)
    for inside, outside in divisions:
        groups = None if train.groups is None else train.groups[inside]
        probe = fit_probe(features[:, inside], train.labels[inside], classes, config.train.seed, widths, 1, groups)
        heads.append([probe.kernel, probe.bias])
        logits[outside] = features[0, outside] @ probe.kernel + probe.bias
    return heads, logits


def _race(
    compiled: CompiledStage,
    heads: Sequence[Sequence[np.ndarray]],
    divisions: Sequence[Fold],
    best: np.ndarray,
    needed: float,
) -> tuple[np.ndarray, float, float]:
    """Train a stage fold by fold, as long as it may win.

    Args:
        compiled: on all training images, with them as they are for validation.
        heads: to start from, one a fold.
        divisions: folds.
        best: out-of-fold logits of what is best so far.
        needed: standard errors by which it must lead in the end; after each fold, a quarter of it.

    Returns:
        Its out-of-fold logits, NaN where it was given up; by how much and by how many standard errors they are better,
        both minus infinity if it diverged.
    """
    logits, judged, monitor = np.full_like(best, np.nan), np.empty(0, np.int64), compiled.context.settings.monitor
    # Once, for it takes as long as a fold to trace it: all folds are of nearly one size.
    compile_network(compiled.network, compiled.stage, subset(compiled.train, divisions[0][0]), compiled.context)
    initial = [variable.numpy() for variable in compiled.network.optimizer.variables]
    for (inside, outside), head in zip(divisions, heads, strict=True):
        assign(compiled.model.variables, compiled.context.pretrained)
        assign(compiled.network.optimizer.variables, initial)
        compiled.model.get_layer("logits").set_weights(head)
        train_once(dataclasses.replace(compiled, train=subset(compiled.train, inside)))
        logits[outside] = _predict(compiled, outside)
        judged = np.append(judged, outside)
        held_out = subset(compiled.val, judged)
        mine, others = (per_image_losses(each[judged], held_out.labels, monitor) for each in (logits, best))
        z = paired_z(mine, others, groups=held_out.groups)
        if not z > needed / 4:
            break
    return logits, float((others - np.nan_to_num(mine, nan=np.inf)).mean()), z


def _predict(compiled: CompiledStage, rows: np.ndarray) -> np.ndarray:
    """Logits of validation images."""
    batches = inference_batches(subset(compiled.val, rows), compiled.context.settings.batch_size)
    return np.asarray(compiled.network.predict(batches, verbose=0), np.float32)[: len(rows)]
