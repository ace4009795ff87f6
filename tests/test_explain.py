"""The explanation lights up what the answer came from, for any backbone and head, by two ways that share nothing."""

import base64
import io

import cv2
import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from template.config import Backbone, Head
from template.deploy.explain import figures, grad_cam, occlusion
from template.evaluate.predictions import Predictions
from template.model.build import build

SIZE = 32


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise with a bright red or blue square somewhere: pixels, labels, and the square's (top, left)."""
    rng = np.random.default_rng(0)
    labels, corners = np.arange(96) % 2, rng.integers(0, SIZE - 8, (96, 2))
    pixels = rng.integers(90, 130, (96, SIZE, SIZE, 3)).astype(np.uint8)
    for image, label, (top, left) in zip(pixels, labels, corners, strict=True):
        image[top : top + 8, left : left + 8] = [(250, 20, 20), (20, 20, 250)][label]
    return pixels, labels, corners


@pytest.fixture(scope="module")
def trained(planted) -> keras.Model:
    """A little network that has learned to tell red from blue, with the names of ours."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 127.5, -1)(inputs)
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool_avg")(x)
    model = keras.Model(inputs, layers.Dense(2, name="logits")(x))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.optimizer.learning_rate = 0.01
    model.fit(planted[0].astype("float32"), planted[1], epochs=25, verbose=0)
    assert model.evaluate(planted[0].astype("float32"), planted[1], verbose=0)[1] > 0.95
    return model


def inside(maps: np.ndarray, corners: np.ndarray) -> float:
    """Share of images whose hottest place is on the square, one pixel of the map allowed for."""
    scale = SIZE / maps.shape[1]
    slack = max(4, scale)
    inside = []
    for heat, (top, left) in zip(maps, corners, strict=True):
        y, x = (np.array(np.unravel_index(heat.argmax(), heat.shape)) + 0.5) * scale
        inside.append(top - slack <= y <= top + 8 + slack and left - slack <= x <= left + 8 + slack)
    return float(np.mean(inside))


def test_grad_cam_lights_up_the_planted_object(planted, trained):
    pixels, labels, corners = planted
    maps = grad_cam(trained, pixels, labels)
    assert maps.shape == pixels.shape[:3] and maps.min() >= 0
    np.testing.assert_allclose(maps.max(axis=(1, 2)), 1, atol=1e-5)
    assert inside(maps, corners) > 0.9
    assert inside(maps, corners[::-1]) < 0.6, "or any place would do"


def test_occlusion_finds_the_same_without_looking_inside(planted, trained):
    pixels, labels, corners = planted
    maps = occlusion(trained, pixels, labels, patches=8)
    assert maps.shape == (96, 8, 8) and inside(maps, corners) > 0.9
    assert (maps.max(axis=(1, 2)) > 0).all()


HEADS = [Head(), Head(feature_levels=2, power_norm=True, pooling="both"), Head(hidden=4), Head(pooling="max")]


@pytest.mark.parametrize("head", HEADS, ids=["plain", "levels and both pools", "hidden layer", "maximum"])
def test_any_head_is_explained_also_where_all_is_frozen(head):
    model = build(Backbone(name="tiny", weights="none"), head, SIZE, [1, 1, 1])
    for layer in model.layers:
        layer.trainable = False
    pixels = np.random.default_rng(0).integers(0, 255, (4, SIZE, SIZE, 3)).astype(np.uint8)
    before = [weight.numpy().copy() for weight in model.weights]
    maps = grad_cam(model, pixels, np.array([0, 1, 2, 0]))
    assert maps.shape == (4, SIZE, SIZE) and np.isfinite(maps).all() and maps.max() <= 1 + 1e-6
    others = grad_cam(model, pixels, np.array([1, 2, 0, 1]))
    assert np.abs(maps - others).max() > 0.01, "another class has other reasons"
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_figures_are_small_images_of_the_right_rows(planted, trained):
    pixels, labels, _ = planted
    rows = np.array([40, 3, 17])
    logits = np.eye(2, dtype=np.float32)[1 - labels[rows]]
    given = Predictions(np.array(["a", "b", "c"]), labels[rows], logits, ("red", "blue"))
    shown = figures(trained, pixels, rows, given)
    assert [f["id"] for f in shown] == ["a", "b", "c"]
    assert [f["true"] for f in shown] == [("red", "blue")[labels[row]] for row in rows]
    assert all(f["predicted"] != f["true"] and f["confidence"] == pytest.approx(np.e / (1 + np.e)) for f in shown)
    for figure, row in zip(shown, rows, strict=True):
        kind, data = figure["image"].split(",")
        assert kind == "data:image/jpeg;base64"
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        expected = cv2.resize(pixels[row], image.shape[:2], interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - expected).mean() < 12
        assert figure["heat"].startswith(kind) and figure["heat"] != figure["image"]
    assert figures(trained, pixels, np.arange(0), given.take(np.arange(0))) == []
