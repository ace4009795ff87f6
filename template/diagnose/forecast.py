"""How long a run will take: the passes through its network, of which each takes as long as those so far."""

import re
import time
from collections.abc import Callable, Mapping

import keras
import numpy as np

from ..config import Config, Stage, settled
from ..data.dataset import ArrayDataset, subsample
from ..model.backbones import count_blocks
from ..model.inference import inference
from ..model_selection.auto import count_forward_passes, starts_from_probe, without_auto
from ..model_selection.depth import FOLDS, cross_validates_depth, depths, races_small, small_size, with_stages
from ..suggest import refits, uses_full_image, uses_hflip
from ..train.features import FeatureCache
from .baselines import FEW

BACKWARD = 2.0
"""Passes that as many gradients take: with respect to the activations, and to the weights."""

GIVEN_UP = 0.5
"""Of all folds of a race, how much is run: it may end after the first."""

TRACING = 5.0
"""Seconds until TensorFlow has a stage ready to train, on a CPU."""

TRACED = 2.0
"""Seconds of the first passes that are TensorFlow's, tracing the network."""

LIKELY = 0.5
"""How much of a stage is expected before a race has decided whether there is one."""

OTHERS = 12.0
"""Seconds of what is neither passes nor tracing: fits of the probe, bootstraps, the report."""


def forecast(config: Config, counts: Mapping[str, int], per_image: float) -> dict[str, float]:
    """Seconds of tracing the network and of passes through it, in each phase of a run in which no stage stops early
    and nothing is found from an earlier one.

    What a stage trains of the network is taken for as long as its share of the blocks; a pass through a teacher, which
    may be another network, for as long as one through this.

    Args:
        config: with its `auto`, which may turn out to be what takes longest; the backbone is named.
        counts: images of train, val and test, and of those without labels, if there are any.
        per_image: seconds of a pass of one through the network, of the size that takes longest.
    """
    train, val, test = (counts[name] for name in ("train", "val", "test"))
    known = without_auto(config)
    staged = with_stages(known, train)
    stages = settled(staged.stages)
    seconds = {"probe": per_image * count_forward_passes(config, train, counts.get("unlabelled", 0))}
    for stage in depths(known, train) if cross_validates_depth(config, train) else ():
        # At the size of the run it finds the views of the images as they are, and leaves the others.
        small, above = races_small(stage, known), _share(stage, known)
        smaller = (small_size(known) / settled(known.data.image_size)) ** 2 if small else 1.0
        views = 1 + (_views(stage) if small else 0)
        folds = GIVEN_UP * (stage.epochs * (1 + BACKWARD) * train * FOLDS + train)  # as many steps each as on all
        passes = smaller * ((1 - above) * views * train + above * folds)
        seconds["depth"] = seconds.get("depth", 0.0) + TRACING + per_image * passes
    again, likely = 0.0, LIKELY if "depth" in seconds else 1.0
    for number, stage in enumerate(stages, start=1):
        above = _share(stage, known)
        below, step = (1 - above + len(config.train.teachers)) * _views(stage), above * stage.epochs * (1 + BACKWARD)
        passes = (below + step) * train + above * stage.epochs * val
        seconds[f"stage {number}"] = likely * (TRACING + per_image * passes)
        again += likely * (TRACING + per_image * (below * val + step * (train + val)))
    if refits(config, train + val + test):
        seconds["refit"] = again
    shown = 1 + uses_full_image(staged) + bool(config.tta.center_zoom)
    shown *= 2 if uses_hflip(config) else 1
    # Validation images once, before the stages; and after them where nothing was frozen.
    times = 1 + any(stage.unfreeze == "all" for stage in stages)
    seconds["evaluation"] = per_image * (shown * (times * val + test) + min(train, FEW))
    return seconds


def seconds_left(
    config: Config, counts: Mapping[str, int], cache: FeatureCache, begun: bool = False
) -> Callable[[], float | None]:
    """What tells how many seconds a run takes once its images are decoded; None before it is known how long the passes
    of any take, while the network itself is to be chosen, and where it does not begin with a probe: then its stages are
    nearly all, and say it themselves.

    It is asked again and again, by the thread that shows it: what does not change is worked out here.

    Args:
        config: as in `forecast`.
        counts: likewise.
        cache: of the run, with its clock. What an earlier run has left there says how long it took, and is not done
            again.
        begun: nothing is left to choose in the configuration, and what is left of the run is asked for.
    """
    if config.backbone.name == "auto" or not starts_from_probe(config):
        return lambda: None
    tracing, once = (forecast(config, counts, per_image) for per_image in (0.0, 1.0))
    phases = once.keys() - ({"probe"} if begun else set())
    fixed = sum(tracing[phase] for phase in phases)
    passes = sum(once[phase] for phase in phases) - fixed
    before = _spared(cache)[1]

    def left() -> float | None:
        count, taken = cache.clock.counts.get("features", 0), cache.clock.seconds.get("features", 0.0)
        spared, took = _spared(cache)
        if not count and not took:
            return None
        per_image = (max(taken - TRACED, taken / 2) + took) / (count + spared)
        return OTHERS + fixed + max(0.0, passes * per_image - (took - before))

    return left


def _spared(cache: FeatureCache) -> tuple[int, float]:
    """Images whose features were found, and the seconds that they took an earlier run."""
    spared = list(cache.spared.values())  # at once, since another thread adds to them
    return sum(images for images, _ in spared), sum(seconds for _, seconds in spared)


def seconds_per_image(model: keras.Model, train: ArrayDataset, batch_size: int, batches: int = 3) -> float:
    """Seconds an image takes through the whole network: of a batch, the median, without the first, which is traced."""
    batch = subsample(train, batch_size)
    network, pixels = inference(model), batch.read(0, np.arange(len(batch)))
    times = []
    for _ in range(1 + batches):
        start = time.perf_counter()
        network(pixels).numpy()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) / len(pixels)


def _share(stage: Stage, config: Config) -> float:
    """Of the blocks of a backbone, those that a stage trains."""
    if stage.unfreeze == "all":
        return 1.0
    blocks = count_blocks(config.backbone.name)
    if isinstance(stage.unfreeze, int):
        return min(stage.unfreeze, blocks) / blocks
    lowest = int(re.sub(r"\D", "", stage.unfreeze))  # block4: that, and all above
    return min(max(1, blocks - lowest + 1), blocks) / blocks


def _views(stage: Stage) -> int:
    """Epochs of which the frozen part of the network sees the images."""
    return min(stage.cached_augmentations or stage.epochs, stage.epochs)
