"""Which pretrained network fits these images: the linear probe on each, cross-validated, and what each costs."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from .. import progress
from ..config import Backbone, Config, Data, settled
from ..data.dataset import ArrayDataset
from ..data.examples import DataError
from ..evaluate.intervals import paired_z, wilson_interval
from ..model.at_hand import candidates, label
from ..model.backbones import build_backbone
from ..model.inference import inference
from ..train.features import FeatureCache
from .auto import cross_validate, without_auto

TIMED_IMAGES = 32
"""Images in the batch that is timed."""


@dataclass(frozen=True)
class Candidate:
    """A network, how well a linear probe on its features does out of fold, and what it costs.

    Args:
        backbone: which.
        losses: out-of-fold cross-entropy of each image, nats, float64 [n].
        accuracy: out-of-fold, `value`, `low` and `high` of its 95 % interval.
        milliseconds: of a forward pass of one image in a batch, on this machine.
        megabytes: of the weights in float32.
    """

    backbone: Backbone
    losses: np.ndarray
    accuracy: dict[str, float]
    milliseconds: float
    megabytes: float

    @property
    def cross_entropy(self) -> float:
        """Mean of the losses, nats."""
        return float(self.losses.mean())

    @property
    def standard_error(self) -> float:
        """Of the cross-entropy, nats."""
        return float(self.losses.std(ddof=1) / np.sqrt(len(self.losses)))


def choose_backbone(
    config: Config, images: Callable[[Data], ArrayDataset], cache: FeatureCache
) -> tuple[Config, dict[str, dict[str, float]]]:
    """Replace `backbone.name = "auto"` by the network that is `best` of the candidates; says how all did.

    Args:
        config: with or without it.
        images: training images as they are, for settings of size and resizing.
        cache: for features.

    Returns:
        The configuration with a network, and the cross-entropies of all, {setting: {option: nats}}.
    """
    if config.backbone.name != "auto":
        return config, {}
    found, groups = evaluate_candidates(config, candidates(config.backbone), images, cache)
    chosen, losses = best(found, groups), {label(c.backbone): round(c.cross_entropy, 4) for c in found}
    listed = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    print(f"backbone.name = {chosen.backbone.name}: cross-validated cross-entropy {listed}")
    return dataclasses.replace(config, backbone=chosen.backbone), {"backbone.name": losses}


def evaluate_candidates(
    config: Config, backbones: Sequence[Backbone], images: Callable[[Data], ArrayDataset], cache: FeatureCache
) -> tuple[list[Candidate], np.ndarray | None]:
    """Cross-validate a linear probe on the features of each network, as the settings without `auto` show it the images.

    Features are cached: those of the network that is chosen are found again by the run, and a second look is free.

    Args:
        config: of the run.
        backbones: from `candidates`.
        images: training images as they are, for settings of size and resizing.
        cache: for features.

    Returns:
        A candidate for each; and the groups of the images whose losses they have, as in `paired_z`.

    Raises:
        WeightsError: if the weights of one are not to be had.
        DataError: if a class has a single image or group, so that cross-validation is impossible.
    """
    found, groups = [], None
    for backbone in progress.track(backbones, "comparing", len(backbones), "networks"):
        trial = without_auto(dataclasses.replace(config, backbone=backbone))
        dataset, base = images(trial.data), build_backbone(backbone, settled(trial.data.image_size))
        probe, groups = cross_validate(base, trial, dataset, cache)
        if math.isnan(probe.accuracy):
            raise DataError(
                "Networks cannot be compared: cross-validation is impossible, a class has one training image or "
                "group. Add images, or choose a network with backbone.name."
            )
        batch = dataset.read(0, np.arange(min(TIMED_IMAGES, len(dataset)))).astype(np.float32)
        accuracy = wilson_interval(round(probe.accuracy * len(probe.losses)), len(probe.losses))
        milliseconds = 1000 * _seconds(inference(keras.Model(base.inputs[0], base.outputs[0])), batch) / len(batch)
        found.append(Candidate(backbone, probe.losses, accuracy, milliseconds, 4 * base.count_params() / 2**20))
    return found, groups


def best(found: Sequence[Candidate], groups: np.ndarray | None = None) -> Candidate:
    """The fastest network that is not worse than the one of the lowest cross-entropy by more than a standard error.

    Args:
        found: from `evaluate_candidates`.
        groups: of their images.
    """
    lowest = min(found, key=lambda candidate: candidate.cross_entropy)
    close = [c for c in found if c is lowest or not paired_z(lowest.losses, c.losses, groups=groups) > 1]
    return min(close, key=lambda candidate: candidate.milliseconds)


def pareto_front(found: Sequence[Candidate]) -> list[Candidate]:
    """Those than which no other is both faster and of lower cross-entropy, the fastest first."""
    front: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: (c.milliseconds, c.cross_entropy)):
        if not front or candidate.cross_entropy < front[-1].cross_entropy:
            front.append(candidate)
    return front


def _seconds(network: Callable, batch: np.ndarray) -> float:
    """Of one pass: the fastest of three after one that traces it."""
    network(batch)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        network(batch).numpy()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
