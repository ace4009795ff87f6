"""A network as it is fastest at inference: one compiled function, batch normalisation folded into convolutions."""

import functools
import hashlib
import random
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, layers

from .layers import renormalise


def inference(network: keras.Model, digest: str = "") -> Callable[[tf.Tensor], tf.Tensor]:
    """A network, with the weights that it has now, as a compiled function from images of any number type to float32.

    Args:
        network: a Keras model.
        digest: its `fingerprint`, where that is known already.
    """
    return _compiled(network, digest or fingerprint(network))


@functools.lru_cache(maxsize=4)  # tracing takes as long as the passes of a hundred images
def _compiled(network: keras.Model, _: str) -> Callable[[tf.Tensor], tf.Tensor]:
    folded = fold_batch_norm(network)
    return tf.function(
        lambda inputs: tf.cast(folded(tf.cast(inputs, tf.float32), training=False), tf.float32), reduce_retracing=True
    )


def fingerprint(network: keras.Model) -> str:
    """Digest of what a network computes: its graph and settings, whatever its layers are called, and its weights."""
    text, numbers = network.to_json(), dict[str, int]()

    def number(match: re.Match) -> str:
        return f"{match[1]}#{numbers.setdefault(match[2], len(numbers))}"

    text = re.sub(r'("name": |\[)"([^"]+)"(?=, \d+, \d+\]|[,}])', number, text)
    text = re.sub(r'"(trainable|shared_object_id)": \w+', "", text)
    policies = [layer.dtype_policy.name for layer in network.layers]  # these names mean something
    digest = hashlib.sha256(f"{keras.__version__} {text} {policies}".encode())
    for weight in network.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    return digest.hexdigest()


def fold_batch_norm(network: keras.Model) -> keras.Model:
    """A copy for inference, with batch normalisation folded into the convolution before it: the same up to rounding.

    At inference it is a scale and a shift of each channel, which become part of kernel and bias (Jacob et al. 2018,
    "Quantization and training of neural networks for efficient integer-arithmetic-only inference", section 3.2). On a
    CPU a pass takes two thirds of the time; neither Keras nor TensorFlow does it by itself.

    Args:
        network: flat. It is returned as it is if it has no batch normalisation, or does not compute in float32: in half
            precision folded kernels are rounded otherwise.
    """
    norms = any(isinstance(layer, layers.BatchNormalization) for layer in network.layers)
    if not norms or any(layer.compute_dtype != "float32" for layer in network.layers[1:]):
        return network
    drawn = random.getstate()  # what is dropped later must not hang on whether features were computed here, or found
    convolved: dict[int, tuple[KerasTensor, layers.Layer, KerasTensor]] = {}  # by id of the first: it is kept alive
    folded: list[layers.Layer] = []

    def clone(layer: layers.Layer, **changes: Any) -> layers.Layer:  # zeros are drawn in half the time
        config = layer.get_config() | changes
        return type(layer).from_config(config | {key: "zeros" for key in config if key.endswith("_initializer")})

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> KerasTensor:
        if isinstance(layer, layers.BatchNormalization) and id(args[0]) in convolved:
            _, convolution, inputs = convolved[id(args[0])]
            both = clone(convolution, name=layer.name, use_bias=True)
            outputs = both(inputs)  # the convolution alone is not part of the copy any more, unless something else is
            both.set_weights(_folded(network.get_layer(convolution.name), network.get_layer(layer.name)))
            folded.append(both)
            return outputs
        outputs = layer(*args, **kwargs)
        if type(layer) in (layers.Conv2D, layers.DepthwiseConv2D) and layer.activation is keras.activations.linear:
            convolved[id(outputs)] = outputs, layer, args[0]
        return outputs

    # Of the network itself Keras would compile a copy too.
    graph = keras.Model(network.inputs[0], network.outputs if len(network.outputs) > 1 else network.outputs[0])
    copy = keras.models.clone_model(graph, clone_function=clone, call_function=call)
    for layer in copy.layers:
        if layer.weights and layer not in folded:
            layer.set_weights(network.get_layer(layer.name).get_weights())
    renormalise(copy)
    random.setstate(drawn)
    return copy


def _folded(convolution: layers.Layer, norm: layers.BatchNormalization) -> list[np.ndarray]:
    """Kernel and bias of both."""
    kernel, *bias = convolution.get_weights()
    gamma, beta = (1.0 if norm.gamma is None else norm.gamma.numpy()), (0.0 if norm.beta is None else norm.beta.numpy())
    scale = gamma / np.sqrt(norm.moving_variance.numpy().astype(np.float64) + norm.epsilon)
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)  # the last two axes of its kernel are the outputs
    kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
    return [kernel.astype(np.float32), (beta + (sum(bias) - norm.moving_mean.numpy()) * scale).astype(np.float32)]
