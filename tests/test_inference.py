"""What is asked at inference is the network itself, only faster: batch normalisation is part of the convolutions."""

import random

import keras
import numpy as np
import pytest
from keras import layers

from template.config import Backbone, Head
from template.model.backbones import build_backbone
from template.model.blocks import boundary, find_blocks
from template.model.build import build
from template.model.inference import fold_batch_norm, inference
from template.train.features import split_model

SIZE = 64


def unsettle(network: keras.Model) -> keras.Model:
    """A network whose batch normalisations do something, as after training."""
    generator = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in layer.get_weights()])
    return network


def pixels(images: int = 3, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (images, size, size, 3)).astype(np.float32)


def norms(network: keras.Model) -> int:
    return sum(isinstance(layer, layers.BatchNormalization) for layer in network.layers)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        pytest.param("mobilenet", 0, id="depthwise"),
        pytest.param("resnet50", 0, id="with bias"),
        pytest.param("densenet121", 62, id="some before the convolution"),
    ],
)
def test_a_folded_network_says_what_the_network_says_with_fewer_layers(name, left):
    network = unsettle(build_backbone(Backbone(name=name, weights="none"), SIZE))
    before, drawn = [weight.copy() for weight in network.get_weights()], random.getstate()

    folded = fold_batch_norm(network)

    assert random.getstate() == drawn, "or a run that finds its features would drop other units"

    assert norms(folded) == left < norms(network)
    expected = network([pixels()], training=False).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(folded(pixels(), training=False), expected, atol=1e-4 * np.abs(expected).max())
    assert all(np.array_equal(one, other) for one, other in zip(before, network.get_weights(), strict=True))


def test_a_convolution_that_something_else_sees_too_is_still_there_for_it():
    inputs = keras.Input((8, 8, 3))
    convolved = layers.Conv2D(4, 3, name="seen_twice")(inputs)
    relu = layers.Conv2D(4, 3, activation="relu", name="not_linear")(inputs)
    normed = [layers.BatchNormalization()(convolved), layers.BatchNormalization()(relu)]
    network = unsettle(keras.Model(inputs, layers.Add()([convolved, *normed])))

    folded = fold_batch_norm(network)

    images = pixels(size=8)
    np.testing.assert_allclose(folded(images), network(images, training=False), rtol=1e-4, atol=1e-2)
    assert norms(folded) == 1, "that after relu is no part of its convolution"
    assert "seen_twice" in [layer.name for layer in folded.layers]


def test_a_norm_without_scale_or_shift_is_folded_too():
    inputs = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=True, bias_initializer="ones")(inputs)
    network = unsettle(keras.Model(inputs, layers.BatchNormalization(scale=False, center=False)(x)))

    folded = fold_batch_norm(network)

    assert not norms(folded)
    np.testing.assert_allclose(folded(pixels(size=8)), network(pixels(size=8), training=False), rtol=1e-4, atol=1e-3)


def test_outputs_of_several_layers_keep_their_order():
    network = unsettle(build_backbone(Backbone(name="mobilenet", weights="none", alpha=0.25), SIZE))
    several = keras.Model(network.inputs[0], [network.outputs[0], network.get_layer("conv1_bn").output])

    folded = fold_batch_norm(several)(pixels(), training=False)

    for one, other in zip(folded, several(pixels(), training=False), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_the_part_above_a_boundary_is_folded_as_well():
    settings = Backbone(name="mobilenet", weights="none", alpha=0.25)
    model = unsettle(build(settings, Head(), SIZE, np.ones(3)))
    bottom, tail = split_model(model, boundary(model, find_blocks(model, settings), 2))

    folded = fold_batch_norm(tail)

    assert norms(tail) and not norms(folded)
    maps = bottom(pixels(), training=False)
    np.testing.assert_allclose(folded(maps), tail(maps, training=False), rtol=1e-4, atol=1e-4)


def test_a_compiled_function_has_the_weights_of_now():
    network = unsettle(build_backbone(Backbone(name="mobilenet", weights="none", alpha=0.25), SIZE))
    first = inference(network)(pixels()).numpy()
    network.get_layer("conv_pw_13_bn").moving_mean.assign_add(np.ones(256))

    second = inference(network)(pixels()).numpy()

    assert np.abs(second - first).max() > 0.1
    np.testing.assert_allclose(second, network([pixels()], training=False), rtol=1e-4, atol=1e-4)


def test_half_precision_and_networks_without_batch_norm_are_left_as_they_are():
    plain = build_backbone(Backbone(name="vgg16", weights="none"), SIZE)
    assert fold_batch_norm(plain) is plain

    inputs = keras.Input((8, 8, 3))
    convolved = layers.Conv2D(4, 3, dtype="mixed_bfloat16")(inputs)
    half = keras.Model(inputs, layers.BatchNormalization(dtype="mixed_bfloat16")(convolved))
    assert fold_batch_norm(half) is half
