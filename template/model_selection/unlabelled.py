"""Whether images without labels help, and which of them: what the images with labels say, out of fold."""

import dataclasses

import keras
import numpy as np

from ..config import Config
from ..data.load import Parts
from ..deploy.novelty import Novelty
from ..evaluate.intervals import paired_z
from ..train.features import FeatureCache
from ..train.linear_probe import Probe
from ..train.select import per_image_losses
from .auto import probe_features, select_levels
from .probes import fit_once, teach_once

STRANGE = "it is like nothing in training"

CLEARLY_WORSE = -1.0
"""Standard errors by which the probe with images without labels may trail the other out of fold, and still be taken: it
is better on new images more often than a few dozen losses can show (docs/labels.md)."""


def choose_unlabelled(
    base: keras.Model, config: Config, parts: Parts, cache: FeatureCache
) -> tuple[Parts, dict[str, dict[str, float]]]:
    """Choose the images without labels from which the head shall learn too; says how much they bring.

    Strangers are left out. The others are used unless the out-of-fold loss of the images with labels is clearly higher
    with them.

    Args:
        base: the backbone.
        config: without `auto`.
        parts: the images, perhaps with some without labels.
        cache: for features.

    Returns:
        The images, with those without labels that are used, or none; and the out-of-fold losses (calibrated
        cross-entropy in nats, 1 - accuracy or 1 - macro F1, by `train.monitor`),
        {"data.unlabelled": {"not used": loss, "used": loss}}.
    """
    if not parts.unlabelled:
        return parts, {}
    train, found = parts.plain("train", config.data), parts.unlabelled
    nothing = dataclasses.replace(parts, unlabelled=None)
    features, widths = select_levels(probe_features(base, config, [train], cache), config.head)
    others = select_levels(probe_features(base, config, [found.images(config.data)], cache), config.head)[0]
    strangers = strange(features[0], train.groups, others[0])
    found = found.without(dict.fromkeys(found.rows[strangers].tolist(), STRANGE))
    print(f"unlabelled: {strangers.sum()} of {len(strangers)} images are like nothing in training, and left out")
    if not len(found):
        return nothing, {}
    how, classes = (config.train.seed, widths, train.groups, cache), int(train.labels.max()) + 1
    alone = fit_once(features, train.labels, classes, *how)
    taught = teach_once(features, train.labels, others[:, ~strangers], *how)
    if np.isnan(taught.losses).any():
        print("unlabelled: not used, for cross-validation is impossible: a class has one training image or group")
        return nothing, {}
    losses = [monitored_losses(probe, train.labels, config.train.monitor) for probe in (taught, alone)]
    z = paired_z(*losses, groups=train.groups)
    used, with_them, without = z > CLEARLY_WORSE, *(round(float(each.mean()), 4) for each in losses)
    print(
        f"unlabelled: {len(found)} images {'' if used else 'not '}used; out-of-fold {config.train.monitor} loss "
        f"{with_them:.3f} with them, {without:.3f} without ({z:+.1f} standard errors)"
    )
    compared = {"data.unlabelled": {"not used": without, "used": with_them}}
    return dataclasses.replace(parts, unlabelled=found) if used else nothing, compared


def monitored_losses(probe: Probe, labels: np.ndarray, monitor: str) -> np.ndarray:
    """Out-of-fold loss of each image with a label (`per_image_losses`): float64 [n]."""
    return per_image_losses(np.log(probe.probabilities), labels, monitor)


def strange(features: np.ndarray, groups: np.ndarray | None, pool: np.ndarray) -> np.ndarray:
    """Which images are like nothing in training: bool [m] (`deploy.novelty`).

    Args:
        features: float32 [n, f] of training images.
        groups: int64 [n] of these, or None.
        pool: float32 [m, f] of others.
    """
    clusters = np.arange(len(features)) if groups is None else groups
    return Novelty.fit(features, clusters).score(pool) > 1
