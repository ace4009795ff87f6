"""Learning rate range test: an increasing learning rate, to see from where on the loss falls and where it explodes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from scipy.ndimage import uniform_filter1d

from .. import progress
from ..data.batches import shuffled_batches, steps
from ..model.layers import renormalise
from ..train.one_stage import CompiledStage, mixing_of
from ..train.optimizers import apply_layer_decay, create_optimizer

WINDOW = 7
"""Steps over which losses are averaged before the minimum is taken: a single batch may be an easy one."""
EXPLODED = 4
"""The test ends where the averaged loss is so many times the lowest."""


def sweep(
    compiled: CompiledStage, *, low: float = 1e-6, high: float = 10.0, count: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Train a copy of what a stage trains, each step with a learning rate larger than the last by the same factor.

    Smith 2017, "Cyclical learning rates for training neural networks". Mixup and cutmix go on to the last step.

    Args:
        compiled: from `compile_stage`; neither its network nor the optimizer is changed.
        low: first learning rate, > 0.
        high: last learning rate, > low.
        count: steps, >= 2.

    Returns:
        Learning rates and the losses of the batches before those steps, float64 [n] each (means, if a step has several
        batches); n is less than `count` where the loss explodes before. The losses are finite.
    """
    network, settings, stage = compiled.network, compiled.context.settings, compiled.stage
    each = settings.gradient_accumulation_steps
    trial = _copy(network)
    factor = (high / low) ** (1 / (count - 1))
    rising = keras.optimizers.schedules.ExponentialDecay(low, each, factor, staircase=True)
    optimizer = create_optimizer(stage, rising, averaged=False, accumulate=each)
    if stage.layer_decay < 1:
        apply_layer_decay(optimizer, trial, stage.layer_decay, compiled.context.blocks)
    trial.compile(optimizer, network.loss, jit_compile=network.jit_compile)
    trial.optimizer.build(trial.trainable_variables)  # or the step is traced twice
    epochs = range(math.ceil(count * each / steps(compiled.train, compiled.batch_size)))
    mixing = mixing_of(settings, stage, 0, maps=compiled.takes_maps)
    mixing = dataclasses.replace(mixing, until=epochs.stop)
    order: dict[str, Any] = {"batch_size": compiled.batch_size, "seed": settings.seed, "sampling": settings.sampling}
    batches = shuffled_batches(compiled.train, network.output_shape[-1], epochs=epochs, mixing=mixing, **order)
    losses: list[float] = []
    found: list[float] = []
    for images, labels in progress.track(batches.take(count * each), "range test", count * each, "batches"):
        found.append(trial.train_on_batch(images, labels, return_dict=True)["loss"])
        if not math.isfinite(found[-1]):
            break
        if len(found) % each == 0:
            losses.append(float(np.mean(found[-each:])))
            if _exploded(losses):
                break
    return np.geomspace(low, high, count)[: len(losses)], np.array(losses)


def _copy(network: keras.Model) -> keras.Model:
    """A network with the same weights and penalties."""
    copy = keras.models.clone_model(network)
    for variable, original in zip(copy.variables, network.variables, strict=True):
        variable.assign(original)
        variable.regularizer = original.regularizer
    renormalise(copy)
    return copy


def best_rate(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """A tenth of the learning rate at which the loss is lowest: there it is about to rise.

    A head that begins as a fitted linear probe has its lowest loss at the start; then a tenth of where the loss
    explodes.

    Args:
        rates: float64 [n], rising.
        losses: float64 [n].

    Returns:
        Learning rate; None if the loss neither falls clearly below the first steps nor explodes.
    """
    if len(losses) <= WINDOW:
        return None
    smooth = uniform_filter1d(losses, WINDOW, mode="nearest")
    lowest, first = int(smooth.argmin()), losses[:WINDOW]
    if smooth[lowest] < first.mean() - 2 * first.std():
        return float(rates[lowest] / 10)
    return float(rates[-1] / 10) if _exploded(losses) else None


def _exploded(losses: Sequence[float] | np.ndarray) -> bool:
    """Whether the mean of the last WINDOW losses is EXPLODED times the lowest such mean."""
    means = np.convolve(losses, np.ones(WINDOW) / WINDOW, mode="valid") if len(losses) >= WINDOW else np.ones(1)
    return bool(means[-1] > EXPLODED * means.min())
