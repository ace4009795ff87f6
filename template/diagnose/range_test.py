"""Learning-rate range test: longer and longer steps, to see from where on the loss falls and where it explodes."""

import dataclasses
import math
from collections.abc import Sequence

import keras
import numpy as np
from scipy.ndimage import uniform_filter1d

from ..config import Stage, Train
from ..data.batches import shuffled_batches, steps
from ..data.dataset import ArrayDataset
from ..model.blocks import Blocks
from ..model.layers import renormalise
from ..train.optimizers import apply_layer_decay, optimizer
from ..train.stages import mixing_of

WINDOW = 7
"""Steps over which losses are averaged before the lowest is looked for: a single batch may be an easy one."""
EXPLODED = 4
"""The test ends where the averaged loss is so many times the lowest."""


def sweep(
    network: keras.Model,
    inputs: ArrayDataset,
    stage: Stage,
    settings: Train,
    blocks: Blocks,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    count: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """Train a copy of a network, each step longer than the last by the same factor.

    Smith 2017, "Cyclical learning rates for training neural networks".

    Args:
        network: compiled for the stage, from `stages.compile_stage`; neither it nor its optimizer is changed.
        inputs: of the network, with labels.
        stage: optimizer, weight decay, clipping, layer-wise factor.
        settings: batch size, batches a step, mixup and cutmix (to the last step), seed.
        blocks: of the whole model.
        low: first step size, > 0.
        high: last step size, > low.
        count: steps, >= 2.

    Returns:
        Step sizes and the losses of the batches before those steps, float64 [n] each (means, if a step has several
        batches); n is less than `count` where the loss explodes before. The losses are finite.
    """
    each = settings.gradient_accumulation_steps
    trial = keras.models.clone_model(network)
    for copy, variable in zip(trial.variables, network.variables, strict=True):
        copy.assign(variable)
        copy.regularizer = variable.regularizer
    renormalise(trial)
    factor = (high / low) ** (1 / (count - 1))
    rising = keras.optimizers.schedules.ExponentialDecay(low, each, factor, staircase=True)
    made = optimizer(stage, rising, averaged=False, accumulate=each)
    if stage.layer_decay < 1:
        apply_layer_decay(made, trial, stage.layer_decay, blocks)
    trial.compile(made, network.loss, jit_compile=network.jit_compile)
    epochs = range(math.ceil(count * each / steps(inputs, settings.batch_size)))
    mixing = mixing_of(settings, stage, 0, maps=len(network.input_shape) == 4)
    mixing = dataclasses.replace(mixing, until=epochs.stop)
    order = {"batch_size": settings.batch_size, "seed": settings.seed, "sampling": settings.sampling}
    batches = shuffled_batches(inputs, network.output_shape[-1], epochs=epochs, mixing=mixing, **order)
    losses: list[float] = []
    found: list[float] = []
    for images, labels in batches.take(count * each):
        found.append(trial.train_on_batch(images, labels, return_dict=True)["loss"])
        if not math.isfinite(found[-1]):
            break
        if len(found) % each == 0:
            losses.append(float(np.mean(found[-each:])))
            if _exploded(losses):
                break
    return np.geomspace(low, high, count)[: len(losses)], np.array(losses)


def best_rate(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """A tenth of the step size at which the loss is lowest: there it is about to rise.

    A head that begins as a fitted regression is at its lowest from the start; then a tenth of where the loss explodes.

    Args:
        rates: float64 [n], rising.
        losses: float64 [n].

    Returns:
        Step size; None if the loss neither falls clearly below the first steps nor explodes.
    """
    if len(losses) <= WINDOW:
        return None
    smooth = uniform_filter1d(losses, WINDOW, mode="nearest")
    lowest, first = int(smooth.argmin()), losses[:WINDOW]
    if smooth[lowest] < first.mean() - 2 * first.std():
        return float(rates[lowest] / 10)
    return float(rates[-1] / 10) if _exploded(losses) else None


def _exploded(losses: Sequence[float]) -> bool:
    """Whether the mean of the last WINDOW losses is EXPLODED times the lowest such mean."""
    means = np.convolve(losses, np.ones(WINDOW) / WINDOW, mode="valid") if len(losses) >= WINDOW else np.ones(1)
    return bool(means[-1] > EXPLODED * means.min())
