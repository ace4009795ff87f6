"""Batch-norm statistics for weights that no epoch has trained with: an EMA, or an interpolation towards it."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

BATCHES = 16
"""Training batches that statistics are estimated from: 512 images of 32 a batch, for each channel a map of each."""


def trainable_norms(network: keras.Model) -> list[layers.BatchNormalization]:
    """Layers whose statistics move in training; those of a pretrained network are frozen."""
    return [x for x in network.layers if isinstance(x, layers.BatchNormalization) and x.trainable]


def update_bn(network: keras.Model, batches: tf.data.Dataset) -> None:
    """Set the statistics of all trainable batch-norm layers to those of the activations under the present weights.

    The moving statistics of training are those of other weights, and lag behind: with them, averaged weights are worse
    than any they are the average of (Izmailov et al. 2018, "Averaging weights leads to wider optima", section 3.2).
    Every batch is normalised by its own statistics, as in training; nothing is dropped, and no random generator moves.

    Args:
        network: changed in place; left as it is if no such layer trains.
        batches: of inputs (and labels, which are not looked at), of training, in a mixed order.
    """
    norms = trainable_norms(network)
    if not norms:
        return
    moments = _moments(network, tuple(layer.name for layer in norms))
    count, sums = 0, [np.zeros(())] * 2 * len(norms)
    for inputs, *_ in batches.take(BATCHES):
        found = [np.asarray(array, np.float64) for array in moments(tf.cast(inputs, tf.float32))]
        sums = [total + len(inputs) * array for total, array in zip(sums, found, strict=True)]
        count += len(inputs)
    for layer, mean, square in zip(norms, sums[::2], sums[1::2], strict=True):
        layer.moving_mean.assign(mean / count)
        layer.moving_variance.assign(np.maximum(square / count - (mean / count) ** 2, 0))


@functools.lru_cache(maxsize=1)  # of every stage there are several candidates, and tracing takes a while
def _moments(network: keras.Model, norms: tuple[str, ...]) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """From inputs to the mean, and the mean square, of what enters each of these layers, float32 [channels] each."""
    found = {}

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        if layer.name not in norms:
            return layer(*args, **kwargs)
        inputs = ops.cast(args[0], "float32")
        mean, variance = ops.moments(inputs, axes=list(range(len(inputs.shape) - 1)))
        found[layer.name] = [mean, variance + mean**2]
        normal = ops.batch_normalization(
            inputs, mean, variance, axis=-1, offset=layer.beta, scale=layer.gamma, epsilon=layer.epsilon
        )
        return ops.cast(normal, layer.compute_dtype)

    graph = keras.Model(network.inputs[0], network.outputs[0])  # Keras would compile a copy too
    same = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
    looking = keras.Model(same.inputs[0], sum((found[name] for name in norms), []))
    return tf.function(lambda inputs: looking(inputs, training=False), reduce_retracing=True)
