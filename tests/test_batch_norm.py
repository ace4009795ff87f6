"""Statistics of batch normalisation belong to the weights that the network has, and not to those it had."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from template.config import Backbone, Head
from template.model.blocks import find_blocks, freeze
from template.model.build import build
from template.train.batch_norm import BATCHES, update_bn
from template.train.features import split_model

TINY, SIZE, CLASSES = Backbone(name="tiny", weights="none"), 32, 3
HEAD = Head(dropout=0.5, drop_block=0.3, gaussian_dropout=1.0)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, SIZE, SIZE, 3)).astype(np.uint8)


def moved(backbone: Backbone = TINY) -> keras.Model:
    """A network whose weights are others than those its statistics are of."""
    keras.utils.set_random_seed(0)
    model = build(backbone, HEAD, SIZE, np.ones(CLASSES))
    generator = np.random.default_rng(1)
    for layer in model.layers:
        for weight in layer.trainable_weights:
            weight.assign(weight + generator.normal(0, 0.1, weight.shape))
    return model


def batches(images: np.ndarray, size: int) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((images, np.zeros(len(images)))).batch(size)


def statistics(network: keras.Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    norms = [layer for layer in network.layers if isinstance(layer, layers.BatchNormalization)]
    return {layer.name: (layer.moving_mean.numpy(), layer.moving_variance.numpy()) for layer in norms}


def entering(network: keras.Model, images: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance, over images and places, of what enters each batch normalisation at inference."""
    norms = [layer for layer in network.layers if isinstance(layer, layers.BatchNormalization)]
    said = keras.Model(network.inputs[0], [layer.input for layer in norms]).predict(images.astype("float32"), verbose=0)
    axes = (0, 1, 2)
    return {layer.name: (x.mean(axis=axes), x.var(axis=axes)) for layer, x in zip(norms, said, strict=True)}


def test_they_become_those_of_the_activations_under_the_present_weights():
    model = moved()
    stale = statistics(model)
    update_bn(model, batches(IMAGES, 64))
    found, expected = statistics(model), entering(model, IMAGES)
    assert len(found) > 5
    for name, (mean, variance) in found.items():
        np.testing.assert_allclose(mean, expected[name][0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(variance, expected[name][1], rtol=1e-2, atol=1e-4)
        assert not np.allclose(variance, stale[name][1], rtol=0.1), "they were others"


@pytest.mark.slow
def test_of_several_batches_of_unlike_size_they_are_those_of_all_images():
    """To the digit in the lowest layer; further up each batch was normalised by itself, as in training."""
    model = moved()
    images = IMAGES // np.linspace(1, 4, 64).astype(np.uint8)[:, None, None, None]
    update_bn(model, batches(images[np.random.default_rng(0).permutation(64)], 24))
    found, expected = statistics(model), entering(model, images)
    first = next(iter(found))
    np.testing.assert_allclose(found[first][0], expected[first][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[first][1], expected[first][1], rtol=1e-4)


@pytest.mark.slow
def test_nothing_else_moves_and_it_is_the_same_every_time():
    """Dropout is off: its random generators would go on from another place."""
    model, ended = moved(), []
    norms = {id(v) for layer in model.layers if isinstance(layer, layers.BatchNormalization) for v in layer.variables}
    others = [variable for variable in model.variables if id(variable) not in norms]
    before = [variable.numpy() for variable in others]
    for _ in range(2):
        update_bn(model, batches(IMAGES, 16))
        ended.append([array.tobytes() for pair in statistics(model).values() for array in pair])
    assert ended[0] == ended[1]
    for variable, old in zip(others, before, strict=True):
        assert variable.numpy().tobytes() == old.tobytes(), variable.path


def test_frozen_statistics_stay_and_nothing_is_computed(tmp_path):
    file = str(tmp_path / "backbone.weights.h5")
    model = moved()
    model.save_weights(file)
    pretrained = Backbone(name="tiny", weights=file)
    freeze(model, find_blocks(model, pretrained), "all")
    before = model.get_weights()
    update_bn(model, None)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_only_so_many_batches_are_looked_at_and_of_a_tail_only_its_own_layers():
    model, read = moved(), []
    boundary = next(x for x in model.layers if x.name.startswith("block2")).input
    _, tail = split_model(model, boundary)
    inputs = np.random.default_rng(0).normal(size=(BATCHES + 5, 4, *tail.input_shape[1:])).astype(np.float32)
    endless = tf.data.Dataset.from_generator(
        lambda: ((read.append(1) or x, x) for x in inputs), output_types=(tf.float32, tf.float32)
    )
    below = set(statistics(model)) - set(statistics(tail))
    before = statistics(model)
    update_bn(tail, endless)
    assert BATCHES <= len(read) <= BATCHES + 2 and below
    for name, (mean, _) in statistics(model).items():
        assert np.array_equal(mean, before[name][0]) == (name in below)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16"])
def test_in_mixed_precision_they_are_worked_out_in_float32(precision):
    keras.config.set_dtype_policy(precision)
    try:
        model = moved()
        update_bn(model, batches(IMAGES, 32))
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(np.isfinite(array).all() and array.std() > 0 for pair in statistics(model).values() for array in pair)
