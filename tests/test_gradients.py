"""The gradient monitor writes the norms that a pencil finds, speaks up when it should, and changes nothing."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from scipy.special import softmax

from template.config import Backbone, Head
from template.data.dataset import ArrayDataset
from template.model.blocks import boundary, find_blocks
from template.model.build import build
from template.train.features import split_model
from template.train.gradients import HEADER, Gradients, dead_relus, gradients, warnings

RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(16, 6)).astype(np.float32), np.arange(16) % 3
SOURCE = ArrayDataset(lambda epoch, rows: INPUTS[rows], LABELS)
TARGETS = np.eye(3, dtype=np.float32)[LABELS]


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def stack(*between: layers.Layer) -> keras.Model:
    inputs = x = keras.Input((6,))
    for layer in between:
        x = layer(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)  # to trace it takes longer than a step
    return model


def deep(activation: str, size: float) -> keras.Model:
    """Twelve layers of 16 whose weights have this many times the standard deviation that keeps the variance."""
    initial = keras.initializers.VarianceScaling(size**2)
    return stack(*(layers.Dense(16, activation, kernel_initializer=initial, name=f"block{i}") for i in range(12)))


def names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]


def watched(model: keras.Model, folder: Path, epochs: int = 2) -> list[list[str]]:
    blocks = {name: "head" if name in {"head_hidden", "logits"} else name for name in names(model)}
    look = Gradients(SOURCE, blocks, 1, folder)
    model.fit(INPUTS, TARGETS, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=[look])
    lines = (folder / "gradients.csv").read_text().splitlines()
    assert lines[0] == HEADER
    return [line.split(",") for line in lines[1:]]


def test_gradient_and_update_are_those_worked_out_by_hand(tmp_path):
    model = stack()
    first, second = watched(model, tmp_path)
    kernel, bias = model.get_weights()  # after both epochs, of one step each
    error = (softmax(INPUTS @ kernel + bias, axis=1) - TARGETS) / 16
    by_hand = np.sqrt(np.sum((INPUTS.T @ error) ** 2) + np.sum(error.sum(axis=0) ** 2))
    assert float(second[3]) == pytest.approx(by_hand, rel=1e-4)
    # Plain SGD moved by the learning rate times the gradient that the first look saw.
    keras.utils.set_random_seed(0)
    again = stack()
    again.fit(INPUTS, TARGETS, batch_size=16, shuffle=False, verbose=0)
    size = np.sqrt(sum(np.sum(w**2) for w in again.get_weights()))
    assert float(second[4]) == pytest.approx(0.1 * float(first[3]) / size, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "size", "said"),
    [("sigmoid", 1.0, "vanish: hardly any reaches block0"), ("relu", 2**0.5, ""), ("relu", 10.0, "explode")],
    ids=["small", "sound", "large"],
)
def test_it_says_once_if_gradients_vanish_or_explode_and_else_nothing(tmp_path, capsys, activation, size, said):
    model = deep(activation, size)
    model.optimizer.learning_rate = 0.0
    rows = watched(model, tmp_path)
    assert [row[2] for row in rows[:13]] == [f"block{i}" for i in range(12)] + ["head"]
    out = capsys.readouterr().out
    assert out.count("gradients") == (1 if said else 0) and said in out


def test_in_float16_the_norms_are_those_of_the_unscaled_loss():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = stack()
        assert float(model.optimizer.scale_loss(1.0)) > 1, "or there would be nothing to test"
        kernel, bias = model.get_weights()
        error = (softmax(INPUTS @ kernel + bias, axis=1) - TARGETS) / 16
        found = gradients(model, INPUTS, TARGETS)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(found[0], INPUTS.T @ error, atol=5e-3)
    np.testing.assert_allclose(found[1], error.sum(axis=0), atol=5e-3)


def test_a_look_moves_neither_weights_nor_statistics_nor_random_numbers(tmp_path):
    ended = []
    for looks in (False, True):
        keras.utils.set_random_seed(0)
        model = stack(layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5))
        callbacks = [Gradients(SOURCE, dict.fromkeys(names(model), "head"), 1, tmp_path)] if looks else []
        model.fit(INPUTS, TARGETS, epochs=3, verbose=0, callbacks=callbacks)
        ended.append([variable.numpy() for variable in model.variables])
    for plain, looked in zip(*ended, strict=True):
        np.testing.assert_array_equal(plain, looked)


def test_an_epoch_that_is_done_again_has_one_row(tmp_path):
    watched(stack(), tmp_path, epochs=3)
    assert [row[1] for row in watched(stack(), tmp_path, epochs=1)] == ["1"]


def test_dead_units_are_those_that_no_image_wakes(tmp_path):
    model = stack(layers.Dense(4, "relu", name="head_hidden"))
    model.get_layer("head_hidden").bias.assign([-1000.0, -1000.0, -1000.0, 1000.0])
    assert watched(model, tmp_path)[0][5] == "0.75"
    assert "head.activation=leaky_relu" in warnings({"head": 1.0}, {"head": 0.75})[0]
    assert warnings({"block1": 1.0, "head": 1.0}, {"block1": 0.5, "head": 0.25}) == []
    assert "ReLUs of block1, block2 are dead. Try a lower" in warnings({"head": 1.0}, {"block1": 0.6, "block2": 1.0})[0]


@pytest.mark.parametrize(
    "relu",
    [
        [layers.Conv2D(4, 1, activation="relu", name="conv")],
        [layers.Conv2D(4, 1, name="conv"), layers.Activation("relu")],
        [layers.Conv2D(4, 1, name="conv"), layers.ReLU()],
        [layers.Conv2D(4, 1, name="conv"), layers.ReLU(6.0)],
        [layers.Conv2D(4, 1, activation="relu6", name="conv")],
    ],
    ids=["in the layer", "activation", "layer", "ReLU6", "relu6"],
)
def test_a_channel_is_dead_if_it_is_zero_everywhere_in_every_image(relu):
    inputs = x = keras.Input((3, 3, 2))
    for layer in relu:
        x = layer(x)
    model = keras.Model(inputs, layers.Flatten()(x))
    model.get_layer("conv").kernel.assign(np.array([[[[1, 0, 0, -1], [0, 1, -1, 0]]]]))
    images = np.zeros((2, 3, 3, 2), np.float32)
    look = dead_relus(model, dict.fromkeys(names(model), "block1"))
    assert look(images) == {"block1": 1.0}
    images[1, 2, 0, 0] = 0.1  # one place of one image wakes the first channel
    assert look(images) == {"block1": 0.75}


@pytest.mark.parametrize(
    "layer", [layers.Dense(4, "gelu"), layers.Dense(4, "leaky_relu"), layers.ReLU(negative_slope=0.1), layers.PReLU()]
)
def test_what_has_a_slope_below_zero_does_not_die(layer, tmp_path):
    model = stack(layers.Dense(4, name="block1"), layer)
    assert dead_relus(model, dict.fromkeys(names(model), "block1"))(INPUTS) == {}
    assert watched(model, tmp_path)[0][5] == ""


def test_of_a_network_cut_in_two_the_upper_part_is_looked_at():
    tiny, head = Backbone(name="tiny", weights="none"), Head(hidden=8)
    model = build(tiny, head, 32, [1, 1])
    model.get_layer("head_hidden").bias.assign([-1e4] * 6 + [1e4] * 2)
    model.get_layer("block3_bn1").beta.assign([-1e4] * 32 + [1.0] * 32)
    relus = [model.get_layer(name).output for name in ("block3_relu1", "block3_relu2", "top_relu")]
    maps = keras.Model(model.inputs[0], relus)
    bottom, tail = split_model(model, boundary(model, find_blocks(model, tiny), 1))
    pixels = RNG.uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    blocks = find_blocks(model, tiny).titles
    whole, above = dead_relus(model, blocks)(pixels), dead_relus(tail, blocks)(bottom(pixels, training=False))
    assert above == {block: whole[block] for block in ("block3", "head")}
    by_hand = np.concatenate([np.max(m, axis=(0, 1, 2)) == 0 for m in maps(pixels, training=False)])
    assert by_hand.shape == (64 + 96 + 96,) and by_hand[:32].all() and not by_hand.all()
    assert whole["head"] == 0.75 and whole["block3"] == pytest.approx(by_hand.mean())
    assert set(whole) == {"block1", "block2", "block3", "head"}


def test_a_gradient_that_is_no_number_explodes():
    assert "explode" in warnings({"block1": float("nan"), "head": 1.0}, {})[0]


def test_blocks_have_the_names_by_which_they_are_unfrozen():
    tiny = Backbone(name="tiny", weights="none")
    found = find_blocks(build(tiny, Head(hidden=4), 32, [1, 1]), tiny).titles
    expected = {"stem": "stem", "block1_conv1": "block1", "top_bn": "block3", "pool_avg": "head", "logits": "head"}
    assert {name: found[name] for name in expected} == expected
