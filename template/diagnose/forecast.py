"""How long a run will take: a few batches measured, times what it will do."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from ..config import Config, Stage
from ..data.dataset import ArrayDataset, subsample
from ..model.blocks import Blocks, boundary, freeze
from ..model_selection.auto import count_forward_passes
from ..model_selection.depth import FOLDS
from ..suggest import refits, uses_hflip
from ..train.features import inference, split_model
from ..train.one_stage import compile_for
from ..train.optimizers import create_optimizer, create_schedule
from .baselines import FEW

BATCHES = 3


@dataclass(frozen=True)
class StageTiming:
    """Seconds of a stage: `start` to trace; per image `below` the boundary, in `training` and in `validation`."""

    start: float
    below: float
    training: float
    validation: float


def seconds_per_image(model: keras.Model, train: ArrayDataset, batch_size: int) -> float:
    """Seconds an image takes through the whole network."""
    batch = subsample(train, batch_size)
    network, pixels = inference(model), batch.read(0, np.arange(len(batch)))
    return _seconds(lambda: network(pixels).numpy())[1] / len(pixels)


def measure_stage(
    model: keras.Model, blocks: Blocks, stage: Stage, train: ArrayDataset, batch_size: int
) -> StageTiming:
    """Seconds of a stage, measured on one batch; the model is changed."""
    batch = subsample(train, batch_size)
    inputs, below, network = batch.read(0, np.arange(len(batch))).astype(np.float32), 0.0, model
    freeze(model, blocks, stage.unfreeze)
    tensor = boundary(model, blocks, stage.unfreeze)
    start = 0.0
    if tensor is not None:
        bottom, network = split_model(model, tensor)
        run = inference(bottom)
        start, below = _seconds(lambda: run(inputs).numpy())
        inputs = run(inputs).numpy()
    compile_for(network, create_optimizer(stage, create_schedule(stage, 100)))
    wanted = np.eye(model.output_shape[-1])[batch.labels]
    first, step = _seconds(lambda: network.train_on_batch(inputs, wanted))
    second, test = _seconds(lambda: network.predict_on_batch(inputs))
    return StageTiming(start + first + second, below / len(batch), step / len(batch), test / len(batch))


def forecast(
    config: Config, counts: dict[str, int], per_image: float, stages: Sequence[tuple[Stage, StageTiming]],
    depths: Sequence[tuple[Stage, StageTiming]] = (),
) -> dict[str, float]:  # fmt: skip
    """Seconds of passes through the network in each phase of a run in which no stage stops early and nothing is found
    from an earlier one.

    Args:
        config: with its `auto`, which may turn out to be what takes longest.
        counts: images of train, val and test.
        per_image: from `seconds_per_image`.
        stages: each with its pace.
        depths: likewise, what is cross-validated (`depth.choose_depth`), in all folds, at the size at which it is; the
            first is a stage then.
    """
    train, val, test = (counts[name] for name in ("train", "val", "test"))
    shown = 1 + config.tta.full_image + bool(config.tta.center_zoom)
    shown *= 2 if uses_hflip(config) else 1
    seconds = {"probe": per_image * count_forward_passes(config, train)}
    for number, (stage, pace) in enumerate(depths):
        views = 1 + (min(stage.cached_augmentations or stage.epochs, stage.epochs) if number else 0)
        folds = stage.epochs * pace.training * train * (FOLDS - 1) + pace.validation * train
        seconds["depth"] = seconds.get("depth", 0.0) + pace.start + pace.below * views * train + folds
    again = 0.0
    for number, (stage, pace) in enumerate(stages, start=1):
        cached = min(stage.cached_augmentations or stage.epochs, stage.epochs)
        epoch = pace.training * train + pace.validation * val
        seconds[f"stage {number}"] = pace.start + pace.below * cached * train + stage.epochs * epoch
        again += pace.start + pace.below * cached * val + stage.epochs * pace.training * (train + val)
    if refits(config, train + val + test):
        seconds["refit"] = again
    # Validation images once, before the stages; and after them where nothing was frozen.
    times = 1 + any(not pace.below for _, pace in stages)
    seconds["evaluation"] = per_image * (shown * (times * val + test) + min(train, FEW))
    return seconds


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first call, in which TensorFlow traces and compiles, and the median of those after it."""
    times = []
    for _ in range(1 + BATCHES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times[0], float(np.median(times[1:]))
