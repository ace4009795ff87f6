"""Optimizers, learning rate schedules and layer-wise learning rate decay."""

import functools
from typing import Any

import keras
from keras import ops
from keras.optimizers import schedules

from ..config import Stage
from ..data.batches import replicas
from ..model.blocks import Blocks
from .keras_private import (
    average_after_steps,
    clip_after_sum,
    has_weight_decay,
    schedule_of,
    set_weight_decay_filter,
    variable_index,
)

EMA_MOMENTUM = 0.97
"""Per step: an average over about the last thirty, of the hundred or two that a stage on small data has."""

OPTIMIZERS = {
    "adamw": keras.optimizers.AdamW,
    "adam": keras.optimizers.Adam,
    "sgd": functools.partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
    "rmsprop": keras.optimizers.RMSprop,
    "adagrad": keras.optimizers.Adagrad,
    "lion": keras.optimizers.Lion,
}


CLIPS = {"global_norm": "global_clipnorm", "norm": "clipnorm", "value": "clipvalue"}
"""Names in Keras of the ways to clip. It clips gradients after the loss scale of float16 has been taken out."""


def create_schedule(stage: Stage, total_steps: int) -> schedules.LearningRateSchedule:
    """Learning rate by step: a linear warm-up over `stage.warmup` of the steps, then a decay.

    `cosine`: to zero (Loshchilov and Hutter 2017, "SGDR"). `constant`: no decay. `step`: to a tenth after each third of
    what is left. `exponential`: to a hundredth at the end, by the same factor each step. `one_cycle` has its own
    warm-up, from a 25th over 30 % of the steps, and then a cosine to almost zero (Smith and Topin 2018,
    "Super-convergence"). `plateau`: by what `callbacks.ReduceLROnPlateau` says (He et al. 2016, "Deep residual
    learning").

    Args:
        stage: schedule, learning rate and warm-up.
        total_steps: of the whole stage.
    """
    peak, warmup = stage.learning_rate, round(total_steps * stage.warmup)
    rest = max(1, total_steps - warmup)
    if stage.schedule == "step":
        return WarmupExponentialDecay(warmup, peak, rest / 3, 0.1, staircase=True)
    if stage.schedule == "exponential":
        return WarmupExponentialDecay(warmup, peak, rest, 0.01)
    if stage.schedule == "plateau":
        return PlateauSchedule(warmup, peak)
    if stage.schedule == "one_cycle":
        rise = max(1, round(0.3 * total_steps))
        return schedules.CosineDecay(peak / 25, max(1, total_steps - rise), 4e-6, warmup_target=peak, warmup_steps=rise)
    return schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else peak,
        decay_steps=rest,
        alpha=1.0 if stage.schedule == "constant" else 0.0,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
    )


@keras.saving.register_keras_serializable("template")
class WarmupExponentialDecay(schedules.ExponentialDecay):
    """Keras's exponential decay (or staircase) after a warm-up, which Keras gives to the cosine alone."""

    def __init__(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.warmup_steps = warmup_steps

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        """Learning rate at a step, counted from 0."""
        step = ops.cast(step, "float32")
        rise = ops.minimum(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return rise * super().__call__(ops.maximum(0.0, step - self.warmup_steps))

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {"warmup_steps": self.warmup_steps, **super().get_config()}


@keras.saving.register_keras_serializable("template")
class PlateauSchedule(schedules.LearningRateSchedule):
    """Constant after a warm-up, times a `factor` that can be set while training runs.

    Args:
        warmup_steps: of the rise from zero.
        peak: learning rate after it.
        factor: to begin with.
    """

    def __init__(self, warmup_steps: int, peak: float, factor: float = 1.0) -> None:
        self.warmup_steps, self.peak = warmup_steps, peak
        self.factor = keras.Variable(factor, trainable=False, dtype="float32", name="factor")

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        """Learning rate at a step, counted from 0."""
        rise = ops.minimum(1.0, ops.cast(step, "float32") / self.warmup_steps) if self.warmup_steps else 1.0
        return self.peak * rise * self.factor

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {"warmup_steps": self.warmup_steps, "peak": self.peak, "factor": float(self.factor)}


def plateau_schedule(optimizer: keras.optimizers.Optimizer) -> PlateauSchedule | None:
    """The schedule of an optimizer, if it is one whose factor can be set."""
    rate = schedule_of(optimizer)
    return rate if isinstance(rate, PlateauSchedule) else None


def create_optimizer(
    stage: Stage, rate: schedules.LearningRateSchedule, averaged: bool = True, accumulate: int = 1
) -> keras.optimizers.Optimizer:
    """Optimizer of a stage; no weight decay on biases, normalisation, scales and slopes, and none with `adam`.

    Args:
        stage: optimizer, weight decay and clipping.
        rate: from `create_schedule`.
        averaged: whether to keep an exponential moving average (EMA) of the weights, which `fit` leaves in the model.
        accumulate: batches whose gradients make one step. The schedule is called with the number of the batch.
    """
    optimizer = OPTIMIZERS[stage.optimizer](
        rate,
        weight_decay=None if stage.optimizer == "adam" else stage.weight_decay,
        use_ema=averaged,
        ema_momentum=EMA_MOMENTUM,
        gradient_accumulation_steps=accumulate if accumulate > 1 else None,
        **({CLIPS[stage.clip_by]: stage.clipnorm} if stage.clipnorm else {}),
    )
    set_weight_decay_filter(optimizer, lambda variable: len(variable.shape) > 1)  # kernels
    if averaged and accumulate > 1:
        average_after_steps(optimizer, accumulate)
    if stage.clipnorm and replicas() > 1:
        clip_after_sum(optimizer)
    return optimizer


def apply_layer_decay(optimizer: keras.optimizers.Optimizer, model: keras.Model, decay: float, blocks: Blocks) -> None:
    """Layer-wise learning rate decay: times `decay` to the power of the depth of a layer, weight decay included.

    Low blocks respond to edges, which every image has, and need to change least (Howard and Ruder 2018, "ULMFiT").
    Keras's MultiOptimizer, with an optimizer for each block, would clip each block's gradient for itself.

    Args:
        optimizer: from `create_optimizer`, not built yet; changed in place.
        model: that it will train.
        decay: > 0, at most 1.
        blocks: of the whole model.
    """
    depths = blocks.depths
    shares = {id(v): decay ** depths[layer.name] for layer in model.layers for v in layer.trainable_variables}
    factors = [shares[id(v)] for v in model.trainable_variables]
    step, shrink = optimizer.update_step, optimizer.weight_decay
    optimizer.weight_decay = None  # Keras would apply it with the common learning rate

    def slower(gradient: keras.KerasTensor, variable: keras.Variable, rate: keras.KerasTensor) -> None:
        rate = rate * factors[variable_index(optimizer, variable)]
        if shrink and has_weight_decay(optimizer, variable):
            variable.assign_sub(variable * ops.cast(shrink * rate, variable.dtype))
        step(gradient, variable, rate)

    optimizer.update_step = slower
