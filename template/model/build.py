"""A classifier is one flat keras.Model: pixels 0-255 -> preprocessing -> backbone -> pooling -> head -> logits."""

import re
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from ..config import Backbone, ConfigError, Head
from .backbones import block_numbers, build_backbone


def build(backbone: Backbone, head: Head, image_size: int, class_frequencies: Sequence[float]) -> keras.Model:
    """Build the classifier.

    Flat, so that any layer can be cut, frozen or looked into; without `training=`, which Keras 3.15 would not keep.

    Args:
        backbone: which network and weights.
        head: pooling, dropout, hidden layer, penalties.
        image_size: side of the square pictures.
        class_frequencies: share of each class in the training part, > 0. The output bias starts at their logarithms,
            so that the loss starts at the entropy of the classes and not above it.

    Returns:
        Model from float32 [n, size, size, 3], RGB 0-255, to float32 logits [n, classes].
    """
    base = build_backbone(backbone, image_size)
    penalty = {"kernel_regularizer": keras.regularizers.L1L2(head.l1, head.l2)} if head.l1 or head.l2 else {}
    x = _pool(base.output, head.pooling)
    x = layers.Dropout(head.dropout, name="head_dropout")(x)
    if head.hidden:
        x = layers.Dense(head.hidden, "relu", kernel_initializer="he_normal", name="head_hidden", **penalty)(x)
        x = layers.Dropout(head.dropout, name="head_hidden_dropout")(x)
    priors = np.asarray(class_frequencies, np.float64) / np.sum(class_frequencies)
    logits = layers.Dense(
        len(priors),
        dtype="float32",  # also under mixed precision: a float16 softmax underflows to exact zeros
        bias_initializer=keras.initializers.Constant(np.log(priors).tolist()),
        name="logits",
        **penalty,
    )(x)
    return keras.Model(base.inputs[0], logits, name=backbone.name)  # `input` is a list of one, and asks for lists


def freeze(model: keras.Model, backbone: Backbone, unfreeze: int | str) -> int:
    """Make the head and the chosen top of the backbone trainable, and nothing else.

    Pretrained batch normalisation never trains: it keeps using the statistics of ImageNet, which do not move (in
    Keras a layer with trainable=False runs in inference mode). Trained from scratch (weights "none") it does.

    Args:
        model: from `build`.
        backbone: the settings it was built with.
        unfreeze: 0 for the head alone, k for the top k blocks, "block4" or "conv4" for that block and all above,
            "all" for everything.

    Returns:
        Number of weights that will be trained.

    Raises:
        ConfigError: if there is no such block, naming those there are.
    """
    lowest, head = lowest_block(model, backbone, unfreeze), _head_names(model)
    for name, block in block_numbers(model, backbone.name).items():
        layer = model.get_layer(name)
        is_frozen_norm = backbone.weights != "none" and isinstance(layer, layers.BatchNormalization)
        above = name in head or unfreeze == "all" or (block is not None and block >= lowest)
        layer.trainable = above and not is_frozen_norm
    return int(sum(np.prod(weight.shape) for weight in model.trainable_weights))


def lowest_block(model: keras.Model, backbone: Backbone, unfreeze: int | str) -> float:
    """Number of the lowest block that `unfreeze` thaws; infinite for none.

    Raises:
        ConfigError: if there is no such block, naming those there are.
    """
    blocks = sorted({b for b in block_numbers(model, backbone.name).values() if b is not None})
    if unfreeze == "all":
        return blocks[0]
    if isinstance(unfreeze, str):
        match = re.fullmatch(r"[A-Za-z_]+([0-9]+)", unfreeze)  # "2" may mean block 2 or two blocks: it must be said
        if not match or int(match[1]) not in blocks:
            raise ConfigError(
                f"unfreeze: {backbone.name} has the blocks {[f'block{b}' for b in blocks]}, a number of top blocks "
                f"from 0 to {len(blocks)}, or 'all'. Received: {unfreeze!r}"
            )
        return int(match[1])
    return blocks[-min(unfreeze, len(blocks))] if unfreeze else float("inf")


def boundary(model: keras.Model, backbone: Backbone, unfreeze: int | str) -> keras.KerasTensor | None:
    """Tensor below which everything is frozen: input of the lowest thawed block, or of the head; None for "all"."""
    if unfreeze == "all":
        return None
    lowest = lowest_block(model, backbone, unfreeze)
    for name, block in block_numbers(model, backbone.name).items():
        if name == "head_dropout" or block == lowest:
            return model.get_layer(name).input
    raise ValueError(f"{model.name} was not made by build(): it has no layer head_dropout")


def _pool(features: keras.KerasTensor, pooling: str) -> keras.KerasTensor:
    mean = layers.GlobalAveragePooling2D(name="pool_avg")
    peak = layers.GlobalMaxPooling2D(name="pool_max")
    if pooling == "both":
        return layers.Concatenate(name="pool")([mean(features), peak(features)])
    return (mean if pooling == "avg" else peak)(features)


def _head_names(model: keras.Model) -> set[str]:
    return {layer.name for layer in model.layers if layer.name.startswith(("pool", "head_", "logits"))}
