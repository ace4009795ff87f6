"""What is dropped in training is what the settings say, the mean stays, at inference and in files nothing is left."""

import dataclasses
import functools
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy.ndimage import binary_opening

from template import runs
from template.config import RESIDUAL, Backbone, Config, Data, Head, to_toml
from template.deploy.predictor import load_run, save_model
from template.model.backbones import BACKBONES, build_backbone
from template.model.blocks import boundary, find_blocks, freeze
from template.model.build import build
from template.model.layers import (
    DropBlock,
    DropConnect,
    StochasticDepth,
    renormalise,
    strip_training_layers,
    with_stochastic_depth,
)
from template.train.callbacks import DropBlockSchedule
from template.train.features import split_model

TINY, SIZE = Backbone(name="tiny", weights="none"), 32
DEEP = Backbone(name="tiny", weights="none", stochastic_depth=0.5)
ALL = Head(drop_block=0.4, drop_connect=0.4, feature_levels=2, hidden=6, l2=0.01, max_norm=3.0)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (8, SIZE, SIZE, 3)).astype(np.float32)


def run(model: keras.Model, inputs: np.ndarray, training: bool = False) -> np.ndarray:
    return np.asarray(model(inputs, training=training))


@pytest.mark.parametrize(("size", "side"), [(1, 1), (3, 1), (4, 2), (7, 3), (9, 4), (14, 7), (20, 7)])
def test_blocks_are_squares_of_7_or_half_the_map_in_each_channel_anew_and_the_mean_stays(size, side):
    drop, maps = DropBlock(0.2), np.random.default_rng(0).uniform(1, 2, (6, size, size, 200)).astype(np.float32)
    after = run(drop, maps, training=True)
    holes = after == 0
    assert holes.mean() == pytest.approx(0.2, abs=0.04)
    kept = 1 - holes.mean(axis=(1, 2, 3), keepdims=True)  # of each image: count_ones / count
    np.testing.assert_allclose(after, np.where(holes, 0, maps / kept), rtol=1e-5)
    assert run(drop, np.ones_like(maps), training=True).mean(axis=(1, 2, 3)) == pytest.approx(1, abs=1e-5)

    planes = holes.transpose(0, 3, 1, 2).reshape(-1, size, size)
    holed = [plane for plane in planes if plane.any()]
    assert 0 < len(holed) < len(planes) and len({plane.tobytes() for plane in planes}) > 1
    square, larger = np.ones((side, side)), np.ones((side + 1, side + 1))
    assert all((binary_opening(plane, square) == plane).all() for plane in holed), "all is covered by whole blocks"
    assert not all((binary_opening(plane, larger) == plane).all() for plane in holed), "and not by larger ones"


def test_the_rate_of_dropped_blocks_rises_over_a_stage_and_is_nothing_at_inference():
    head = Head(drop_block=0.2, feature_levels=2, dropout=0.0)
    model, maps = build(TINY, head, SIZE, [1, 1]), np.ones((8, 8, 8, 96), np.float32)
    ramp = DropBlockSchedule(start=5, epochs=4)
    ramp.set_model(model)
    parts = []
    for epoch in (8, 5, 6, 7, 8):  # a function of the epoch, not of what was before
        ramp.on_epoch_begin(epoch)
        for name in ("pool_drop", "pool_drop_1_below_top"):
            parts.append((run(model.get_layer(name), maps, training=True) == 0).mean())
    np.testing.assert_allclose(parts, np.repeat([0.2, 0.05, 0.1, 0.15, 0.2], 2), rtol=0.2)
    np.testing.assert_array_equal(run(model.get_layer("pool_drop"), maps), maps)


def test_where_the_head_alone_trains_blocks_are_below_the_boundary_and_else_above():
    model = build(TINY, ALL, SIZE, [1, 1])
    for unfreeze, droppers in ((0, 0), (1, 2)):
        _, tail = split_model(model, boundary(model, find_blocks(model, TINY), unfreeze))
        assert sum(isinstance(layer, DropBlock) for layer in tail.layers) == droppers


def test_weights_of_a_kernel_are_dropped_by_the_batch_scaled_up_and_all_there_at_inference():
    layer, x = DropConnect(50, 0.3, activation="relu"), np.random.default_rng(0).normal(size=(9, 40)).astype("float32")
    run(layer, x)
    layer.bias.assign(np.linspace(-1, 1, 50))
    kernel, bias = np.asarray(layer.kernel), np.asarray(layer.bias)
    np.testing.assert_allclose(run(layer, x), np.maximum(x @ kernel + bias, 0), rtol=1e-4, atol=1e-5)
    layer.activation = keras.activations.linear
    masks = []
    for _ in range(200):
        seen = run(layer, np.eye(40, dtype=np.float32), training=True) - bias  # rows of the kernel that was used
        assert np.all(np.isclose(seen, 0, atol=1e-6) | np.isclose(seen, kernel / 0.7, rtol=1e-3, atol=1e-5))
        masks.append(~np.isclose(seen, 0, atol=1e-6))
    assert np.mean(masks) == pytest.approx(0.7, abs=0.01) and not np.array_equal(*masks[:2])
    assert np.mean(masks, axis=0).std() < 0.05, "each weight as often as the others: so its mean is itself"
    assert (run(layer, x, True) != run(layer, x, True)).any()


def test_a_head_that_drops_weights_has_those_of_dense_with_penalty_constraint_and_gradient(pixels):
    one, other = build(TINY, ALL, SIZE, [1, 2]), build(TINY, Head(feature_levels=2, hidden=6, l2=0.01), SIZE, [1, 2])
    names = {layer.name for layer in one.layers if isinstance(layer, DropConnect)}
    assert names == {"logits", "head_hidden"} and not any(isinstance(layer, DropConnect) for layer in other.layers)
    logits = one.get_layer("logits")
    logits.set_weights([np.full((6, 2), 2.0), np.zeros(2)])  # as the probe does
    penalty = sum(0.01 * (np.asarray(one.get_layer(name).kernel) ** 2).sum() for name in names)
    assert sum(map(float, one.losses)) == pytest.approx(penalty, rel=1e-5)
    assert np.linalg.norm(logits.kernel.constraint(logits.kernel), axis=0) == pytest.approx(3, rel=1e-4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(logits(np.ones((4, 6), np.float32), training=True))
    found = np.asarray(tape.gradient(loss, logits.kernel.value))
    assert set(found.round(3).ravel()) == {0, np.float32(round(4 / 0.6, 3))}, "what is dropped does not learn"


# Stochastic depth


def producer(tensor: keras.KerasTensor) -> layers.Layer:
    return tensor._keras_history.operation


def convolutions(tensor: keras.KerasTensor, start: keras.KerasTensor) -> int:
    """Convolutions on the longest way from one tensor to another; at least -1000 if there is none."""
    if tensor is start:
        return 0
    operation = producer(tensor)
    if isinstance(operation, (layers.InputLayer, layers.Add)):
        return -1000
    here = isinstance(operation, (layers.Conv2D, layers.DepthwiseConv2D))
    return here + max(convolutions(x, start) for x in _inputs(operation))


def _inputs(operation: layers.Layer) -> list[keras.KerasTensor]:
    return operation.input if isinstance(operation.input, list) else [operation.input]


QUICK = ("tiny", "vgg16", "mobilenet")


@functools.cache
def plain_backbone(name: str) -> keras.Model:
    """From scratch, without stochastic depth."""
    keras.utils.set_random_seed(0)
    size = 75 if name in {"inceptionv3", "xception"} else SIZE  # which take none smaller
    return build_backbone(Backbone(name=name, weights="none"), size)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in RESIDUAL]
)
def pair(request) -> tuple[str, keras.Model, keras.Model]:
    """A network, and the same with stochastic depth."""
    plain = plain_backbone(request.param)
    rng = np.random.default_rng(0)
    for weight in plain.weights:  # those of a layer that took another's would show
        weight.assign(np.asarray(weight) + rng.uniform(0, 0.1, weight.shape))
    renormalise(plain)
    return request.param, plain, with_stochastic_depth(plain, 0.9)


def test_the_branch_is_dropped_and_never_the_shortcut_the_deepest_most(pair):
    _, plain, deep = pair
    adds = [layer for layer in deep.layers if isinstance(layer, layers.Add)]
    assert len(adds) == sum(isinstance(layer, layers.Add) for layer in plain.layers) > 2
    for number, add in enumerate(adds, start=1):
        shortcut, branch = add.input
        drop = producer(branch)
        assert isinstance(drop, StochasticDepth) and drop.noise_shape == (None, 1, 1, 1)
        assert drop.rate == pytest.approx(0.9 * number / len(adds))
        # Where they part: the shortcut has at most the one convolution that changes the shape, the branch has more.
        parted, passed = shortcut, [shortcut]
        while convolutions(drop.input, parted) < 0:
            operation = producer(parted)
            assert not isinstance(operation, StochasticDepth)
            parted = _inputs(operation)[0]
            passed.append(parted)
        assert convolutions(shortcut, parted) <= 1 < convolutions(drop.input, parted)
    assert sum(isinstance(layer, StochasticDepth) for layer in deep.layers) == len(adds)


def test_weights_blocks_and_answers_are_those_of_the_network_without(pair):
    name, plain, deep = pair
    images = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(deep, [images]), run(plain, [images]))
    numbers = find_blocks(deep, Backbone(name=name)).numbers
    for layer in plain.layers:
        assert find_blocks(plain, Backbone(name=name)).numbers[layer.name] == numbers[layer.name]
        for one, two in zip(layer.get_weights(), deep.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
    for layer in deep.layers:
        if isinstance(layer, StochasticDepth):
            assert numbers[layer.name] == numbers[layer.name.removesuffix("_drop")]
    again = strip_training_layers(deep)
    assert [layer.name for layer in again.layers] == [layer.name for layer in plain.layers], "as files are ordered"
    assert all(np.array_equal(a, b) for a, b in zip(again.get_weights(), plain.get_weights(), strict=True))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in BACKBONES])
def test_the_networks_that_can_are_those_with_branches_that_drop_nothing_yet(name):
    found = plain_backbone(name).layers
    branches = any(isinstance(layer, layers.Add) for layer in found)
    branches = branches and name != "xception"  # its layers add the shortcut to the branch, and not the other way
    assert (name in RESIDUAL) == (branches and not any(isinstance(layer, layers.Dropout) for layer in found))


def last_block(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Of tiny: what is below its deepest block; and from there to the block's shortcut, its branch and their sum."""
    start, add, drop = (model.get_layer(f"block3_{name}") for name in ("bn1", "add", "add_drop"))
    return keras.Model(model.inputs[0], start.input), keras.Model(start.input, [add.input[0], drop.input, add.output])


@pytest.mark.slow
def test_images_drop_a_branch_whole_and_on_average_nothing_changes(pixels):
    below, model = last_block(build(DEEP, Head(), SIZE, [1, 1]))
    for layer in model.layers:
        if isinstance(layer, (layers.BatchNormalization, StochasticDepth)):
            layer.trainable = layer.name == "block3_add_drop"  # all else as at inference
    maps = below(pixels, training=False)
    shortcut, branch, plain = map(np.asarray, model(maps, training=False))
    np.testing.assert_allclose(plain, shortcut + branch, rtol=1e-5, atol=1e-5)
    sums, dropped = [], []
    for _ in range(100):
        total = np.asarray(model(maps, training=True)[2])
        without, double = (np.isclose(total, shortcut + k * branch, atol=1e-4).all(axis=(1, 2, 3)) for k in (0, 2))
        assert (without ^ double).all(), "an image has none of its branch, or all of it scaled up"
        sums.append(total)
        dropped.append(without)
    assert np.mean(dropped) == pytest.approx(0.5, abs=0.07)
    assert any(0 < row.sum() < 8 for row in dropped), "for each image anew"
    np.testing.assert_allclose(np.mean(sums, axis=0), plain, atol=0.5 * np.abs(branch).max())


@pytest.mark.parametrize("rate", [0.0, 0.999999])
def test_no_gradient_reaches_a_branch_that_was_dropped(pixels, rate):
    model = build(Backbone(name="tiny", weights="none", stochastic_depth=0.5), Head(dropout=0.0), SIZE, [1, 1])
    model.get_layer("block3_add_drop").rate = rate
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(pixels, training=True)))
    kernels = [model.get_layer(name).kernel.value for name in ("block3_conv2", "block3_conv1", "block3_shortcut")]
    on_branch, also, beside = (np.abs(g).max() for g in map(np.asarray, tape.gradient(loss, kernels)))
    assert (on_branch > 0) == (also > 0) == (rate == 0)
    assert beside > 0, "the shortcut learns whatever is dropped"


def test_frozen_blocks_drop_nothing_though_training_passes_through_them(pixels):
    model = build(Backbone(name="tiny", weights="none", stochastic_depth=0.9), Head(dropout=0.0), SIZE, [1, 1])
    freeze(model, find_blocks(model, Backbone(name="tiny", weights="a file")), "block3")
    below = keras.Model(model.inputs[0], [model.get_layer(f"block{n}_add").output for n in (1, 2, 3)])
    calm, stirred = (list(map(np.asarray, below(pixels, training=t))) for t in (False, True))
    same = [np.array_equal(a, b) for a, b in zip(calm, stirred, strict=True)]
    assert same[:2] == [True, True] and not same[2]


# In files


def test_off_there_is_no_layer_of_ours_and_nothing_to_take_off():
    model = build(TINY, Head(), SIZE, [1, 1])
    assert all(one is other for one, other in zip(strip_training_layers(model).layers, model.layers, strict=True))
    assert not any(type(layer).__module__.startswith("template") for layer in model.layers)
    others = [layer.name for layer in build(DEEP, ALL, SIZE, [1, 1]).layers]
    assert sum(name.startswith("pool_drop") or name.endswith("add_drop") for name in others) == 2 + 3


def test_a_saved_run_needs_no_code_of_ours_and_is_loaded_resaved_and_built_upon(tmp_path, pixels):
    model = build(DEEP, ALL, SIZE, [1, 2])
    for weight in model.trainable_weights:
        weight.assign(np.asarray(weight) + np.random.default_rng(0).uniform(0, 0.1, weight.shape))
    expected = run(model, pixels)
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))  # as after a stage of everything
    save_model(model, tmp_path)
    runs.write_text(tmp_path / "config.toml", to_toml(Config(data=Data(image_size=SIZE), backbone=DEEP, head=ALL)))
    runs.write_json(tmp_path / "classes.json", ["a", "b"])
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert b"template" not in archive.read("config.json")
    _, _, loaded = load_run(tmp_path)
    for again in (loaded, keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)):
        np.testing.assert_allclose(run(again, pixels), expected, atol=1e-5, rtol=0)
    assert isinstance(model.get_layer("logits"), DropConnect), "the model itself goes on as it was"
    np.testing.assert_array_equal(run(model, pixels), expected)

    for settings in (DEEP, TINY):  # the weights of the run, given to another one
        base = build_backbone(dataclasses.replace(settings, weights=str(tmp_path / "model.keras")), SIZE)
        for layer in base.layers:
            for one, two in zip(layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_array_equal(one, two)


def test_weights_made_without_are_read_into_a_network_with(tmp_path):
    """By name: Keras reads them by their order, which a layer on the branch changes."""
    plain = build_backbone(TINY, SIZE)
    plain.save_weights(tmp_path / "mine.weights.h5")
    deep = build_backbone(Backbone(name="tiny", weights=str(tmp_path / "mine.weights.h5"), stochastic_depth=0.5), SIZE)
    paths = [[weight.path for weight in network.weights] for network in (plain, deep)]
    assert paths[0] != paths[1] and sorted(paths[0]) == sorted(paths[1])
    for weight in plain.weights:
        other = next(w for w in deep.weights if w.path == weight.path)
        np.testing.assert_array_equal(weight, other)


def test_a_copy_by_keras_drops_too(pixels):
    """As the learning-rate range test makes one."""
    model = build(DEEP, ALL, SIZE, [1, 1])
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    renormalise(copy)
    np.testing.assert_allclose(run(copy, pixels), run(model, pixels), atol=1e-6)
    kinds = (DropBlock, DropConnect, StochasticDepth)
    for one, two in zip(model.layers, copy.layers, strict=True):
        assert not isinstance(one, kinds) or (type(one) is type(two) and one.rate == two.rate)
