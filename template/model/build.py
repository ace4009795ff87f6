"""A classifier is one flat keras.Model: pixels 0-255 -> preprocessing -> backbone -> pooling -> head -> logits."""

import math
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from scipy.special import logit

from .. import device
from ..config import Backbone, ConfigError, Head, settled
from .backbones import build_backbone
from .blocks import block_outputs, find_blocks
from .layers import DropBlock, DropConnect

GAINS = {"relu": 2.0, "leaky_relu": 1.92, "prelu": 1.88, "gelu": 2.16, "silu": 2.43, "maxout": 1.0}
"""Variance of initial weights, times the number of inputs, that keeps the variance of activations through a hidden
layer: the g with E[f(sqrt(g) z)^2] = 1 for a standard normal z (He et al. 2015, "Delving deep into rectifiers", for
ReLUs)."""


def build(backbone: Backbone, head: Head, image_size: int, class_frequencies: np.ndarray) -> keras.Model:
    """Build the classifier: `attach` of `build_backbone`."""
    return attach(build_backbone(backbone, image_size), backbone, head, class_frequencies)


def attach(
    base: keras.Model, backbone: Backbone, head: Head, class_frequencies: np.ndarray, *, multi: bool = False
) -> keras.Model:
    """Put a head on a backbone.

    Flat, so that the model can be split at any layer, and any layer frozen; without `training=`, which Keras 3.15 would
    not keep.

    Args:
        base: from `build_backbone`.
        backbone: the settings it was built with.
        head: feature levels, pooling, dropout and noise, hidden layer and its activation, regularisation.
        class_frequencies: share of each class in the training part, > 0. The output bias starts at their logarithms
            (or log-odds) and its kernel is small, so that the loss starts near the entropy of the classes and not far
            above it.
        multi: whether an image may have several labels: the shares are then of the images, below 1, and each logit is
            of a class alone.

    Returns:
        Model from float32 [n, size, size, 3], RGB 0-255, to float32 logits [n, classes].
    """
    penalty = {"kernel_regularizer": keras.regularizers.L1L2(head.l1, head.l2)} if head.l1 or head.l2 else {}
    penalty |= {"kernel_constraint": keras.constraints.MaxNorm(head.max_norm)} if head.max_norm else {}
    x = pool_features(base, backbone, head)
    x = layers.Dropout(head.dropout, name="head_dropout")(x)
    if head.gaussian_dropout:  # Keras asks for the rate of dropout with the same variance
        x = layers.GaussianDropout(head.gaussian_dropout**2 / (1 + head.gaussian_dropout**2), name="head_noise")(x)
    if head.hidden:
        x = _hidden(x, head, penalty)
        x = layers.Dropout(head.dropout, name="head_hidden_dropout")(x)
    shares = np.asarray(class_frequencies, np.float64)
    priors = logit(shares) if multi else np.log(shares / shares.sum())
    output = _dense(
        len(priors),
        head,
        dtype="float32",  # also under mixed precision: a float16 softmax underflows to exact zeros
        # Glorot's, at a small initial scale
        kernel_initializer=keras.initializers.VarianceScaling(0.03, "fan_avg", "uniform"),
        bias_initializer=keras.initializers.Constant(priors.tolist()),
        name="logits",
        **penalty,
    )
    output.supports_jit = device.uses_xla()  # and with it every network that ends with this layer
    return keras.Model(base.inputs[0], output(x), name=backbone.short_name)  # `input` is a list, and asks for lists


def pool_features(base: keras.Model, backbone: Backbone, head: Head) -> keras.KerasTensor:
    """Features of images, [n, features]: the outputs of the top `head.feature_levels` blocks, pooled, the topmost last.

    Low blocks respond to edges and colours, high ones to the objects of ImageNet. Where the images are far from
    ImageNet, a linear classifier of several levels needs no fine-tuning (Evci et al. 2022, "Head2Toe").
    """
    outputs = block_outputs(base, find_blocks(base, backbone))
    levels = settled(head.feature_levels)
    if levels > len(outputs):
        raise ConfigError(
            f"head.feature_levels: {backbone.name} has {len(outputs)} blocks. Received: "
            f"{levels}. Choose 1 to {len(outputs)}."
        )
    features = [_pool(level, head, depth) for depth, level in enumerate(reversed(outputs[-levels:]))]
    x = layers.Concatenate(name="pool_levels")(features[::-1]) if len(features) > 1 else features[0]
    return power_norm(x) if head.power_norm else x


def power_norm(x: keras.KerasTensor) -> keras.KerasTensor:
    """sign(x) * sqrt(|x|), smooth at zero: a few large features do not outweigh many small ones.

    Power normalisation (signed square root; Perronnin et al. 2010, "Improving the Fisher Kernel for Large-Scale Image
    Classification"). Works on arrays too.
    """
    return x * ops.rsqrt(ops.abs(x) + 0.01)


def _hidden(x: keras.KerasTensor, head: Head, penalty: dict) -> keras.KerasTensor:
    """The hidden layer and its activation, [n, head.hidden]."""

    def linear(name: str, activation: str | None = None) -> layers.Dense:
        initial = keras.initializers.VarianceScaling(GAINS[head.activation], "fan_in", "truncated_normal")
        return _dense(head.hidden, head, activation=activation, kernel_initializer=initial, name=name, **penalty)

    if head.activation == "maxout":  # Goodfellow et al. 2013, "Maxout networks"
        return layers.Maximum(name="head_hidden_max")([linear("head_hidden")(x), linear("head_hidden_2")(x)])
    if head.activation == "prelu":
        slope = keras.initializers.Constant(0.25)  # as He et al.; Keras would begin with a ReLU
        return layers.PReLU(slope, name="head_hidden_prelu")(linear("head_hidden")(x))
    return linear("head_hidden", head.activation)(x)


def _dense(units: int, head: Head, **how: Any) -> layers.Dense:
    return DropConnect(units, head.drop_connect, **how) if head.drop_connect else layers.Dense(units, **how)


def _pool(level: keras.KerasTensor, head: Head, depth: int) -> keras.KerasTensor:
    """Pool the output of the block this deep below the top."""
    suffix = f"_{depth}_below_top" if depth else ""
    if len(level.shape) == 3:
        return _pool_tokens(level, head, suffix)
    if head.drop_block:
        level = DropBlock(head.drop_block, name=f"pool_drop{suffix}")(level)
    mean = layers.GlobalAveragePooling2D(name=f"pool_avg{suffix}")
    peak = layers.GlobalMaxPooling2D(name=f"pool_max{suffix}")
    if head.pooling == "both":
        return layers.Concatenate(name=f"pool{suffix}")([mean(level), peak(level)])
    return (mean if head.pooling == "avg" else peak)(level)


def _pool_tokens(level: keras.KerasTensor, head: Head, suffix: str) -> keras.KerasTensor:
    """Pool the output [n, tokens, width] of a block of a transformer.

    In place of the mean over the image, its first token where there are others than those of the grid: the class token,
    which its own classifier looks at.
    """
    if head.drop_block:
        raise ConfigError("head.drop_block drops squares of feature maps; this network has tokens. Leave it out.")
    others = level.shape[1] - math.isqrt(level.shape[1]) ** 2
    first, grid = level, level
    if others:
        first = layers.Cropping1D((0, level.shape[1] - 1), name=f"pool_class_token{suffix}")(level)
        grid = layers.Cropping1D((others, 0), name=f"pool_grid{suffix}")(level) if head.pooling != "avg" else None
    mean = layers.GlobalAveragePooling1D(name=f"pool_avg{suffix}")
    peak = layers.GlobalMaxPooling1D(name=f"pool_max{suffix}")
    if head.pooling == "both":
        return layers.Concatenate(name=f"pool{suffix}")([mean(first), peak(grid)])
    return mean(first) if head.pooling == "avg" else peak(grid)
