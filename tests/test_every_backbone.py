"""Every row of BACKBONES, as it is and through every stage of a run, in the slow lane.

python -m pytest -m slow
"""

import functools
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.utils import file_utils
from test_backbones import enliven, preprocessing

from template import recipe
from template.config import TTA, Augment, Backbone, Config, Data, Head, Stage, Train
from template.data.images.load import load_image
from template.deploy.predictor import load_run
from template.evaluate.predictions import Predictions
from template.model import efficientnet_lite
from template.model.backbones import BACKBONES, build_backbone, resized
from template.model.blocks import boundary, find_blocks, freeze
from template.model.build import attach
from template.model.layers import renormalise, strip_training_layers

STAGES = (
    Stage(unfreeze=0, epochs=1),
    Stage(unfreeze=2, epochs=2, cached_augmentations=1, refresh=1),
    Stage(unfreeze="all", epochs=1),
)
SMALLEST = {"inceptionv3": 75, "xception": 71}
APPS = keras.applications
KERAS = {name.lower(): getattr(APPS, name) for name in dir(APPS) if callable(getattr(APPS, name))}


def run(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(keras.Model(model.inputs[0], model.outputs[0])(pixels, training=False))


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """But for rounding; and there is something to differ in."""
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_fed_as_keras_does_frozen_divided_saved_and_loaded(name, tmp_path, monkeypatch):
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: "nowhere")
    keras.utils.set_random_seed(0)
    size, settings = SMALLEST.get(name, 64), Backbone(name=name)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    pixels[1] *= np.linspace(0, 1, size, dtype=np.float32)[:, None]
    with monkeypatch.context() as patched:  # Keras's builders make the network for ImageNet weights, without them
        patched.setattr(keras.Model, "load_weights", lambda *_, **__: None)
        patched.setattr(efficientnet_lite, "_load", lambda *_: None)
        base = build_backbone(settings, size)
        theirs = name in KERAS and KERAS[name](include_top=False, input_tensor=keras.Input((size, size, 3)))
    enliven(base, pixels)
    features = run(base, pixels)
    np.testing.assert_array_equal(run(resized(base, settings, size), pixels), features)
    assert resized(base, settings, size + 32).input_shape[1] == size + 32
    if theirs:
        theirs.set_weights(base.get_weights())
        renormalise(theirs)
        fed = run(preprocessing(name), pixels)
        expected = sys.modules[KERAS[name].__module__].preprocess_input(pixels.copy())
        np.testing.assert_allclose(fed, expected, rtol=1e-5, atol=1e-5)
        same(features, run(theirs, fed))  # as fed by us: in a random network, the last bit of a pixel can grow
    model = attach(base, settings, Head(), [1, 2, 3])
    are_blocks(model, settings, pixels)
    is_the_same_from_files(model, base, settings, pixels, tmp_path)


def are_blocks(model: keras.Model, settings: Backbone, pixels: np.ndarray) -> None:
    """Above a small stem all layers belong to blocks, which can be unfrozen and cut at."""
    blocks = find_blocks(model, settings)
    numbers, found = blocks.numbers, blocks.order
    order = [number for number in numbers.values() if number is not None]
    assert order == sorted(order) and list(numbers.values())[-len(order) :] == order
    assert found == list(range(found[0], found[0] + BACKBONES[settings.name].blocks))
    stem = sum(layer.count_params() for layer in model.layers if numbers[layer.name] is None)
    assert stem < 0.02 * model.count_params()
    counts = [freeze(model, blocks, unfreeze) for unfreeze in range(len(found) + 1)]
    assert counts == sorted(set(counts))
    cuts = [found[0], found[len(found) // 2], found[-1]]
    tensors = [boundary(model, blocks, f"block{number}") for number in cuts]
    for number, tensor in zip(cuts, tensors, strict=True):
        assert tensor is next(layer.input for layer in model.layers if numbers[layer.name] == number)
    parts = list(map(keras.Model, [model.inputs[0], *tensors], [*tensors, model.outputs[0]]))
    same(functools.reduce(lambda inputs, part: run(part, inputs), parts, pixels), run(model, pixels))
    weights = [id(weight) for part in parts for weight in part.weights]
    assert len(weights) == len(set(weights)) == len(model.weights), "no part has a weight of another"


def is_the_same_from_files(
    model: keras.Model, base: keras.Model, settings: Backbone, pixels: np.ndarray, folder: Path
) -> None:
    """A saved classifier, and a file of weights read into a network that is built anew, with blocks as before."""
    strip_training_layers(model).save(folder / "model.keras")
    same(run(keras.saving.load_model(folder / "model.keras", safe_mode=True), pixels), run(model, pixels))
    (folder / "model.keras").unlink()  # they are large
    base.save_weights(folder / "base.weights.h5")
    again = build_backbone(Backbone(name=settings.name, weights=str(folder / "base.weights.h5")), pixels.shape[1])
    (folder / "base.weights.h5").unlink()
    same(run(again, pixels), run(base, pixels))
    before, after = (find_blocks(network, settings).numbers for network in (base, again))
    assert list(before.values()) == list(after.values()), "whatever was built before"


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_trained_through_every_stage_it_says_the_same_after_reload(name, make_folder, tmp_path):
    size = SMALLEST.get(name, 64)
    config = Config(
        data=Data(path=str(make_folder(each=10, size=size)), image_size=size, cache=str(tmp_path / "cache")),
        augment=Augment(policy="light"),
        backbone=Backbone(name=name, weights="none"),
        head=Head(feature_levels=2, power_norm=True),
        train=Train(batch_size=8, refit_on_train_val="no"),
        stages=STAGES,
        tta=TTA(hflip=False),  # the model itself is asked afterwards
    )
    folder = tmp_path / "run"
    folder.mkdir()
    recipe.run(config, folder)
    _, class_names, model = load_run(folder)
    said = Predictions.load(folder / "predictions.npz")
    images = [load_image(tmp_path / "images" / file, size, "crop") for file in said.ids]
    logits = model.predict(np.stack(images).astype("float32"), verbose=0)
    assert class_names == said.class_names
    # The run saves the logarithm of probabilities: logits up to a constant an image.
    np.testing.assert_allclose(logits - logits.mean(axis=1, keepdims=True),
                               said.logits - said.logits.mean(axis=1, keepdims=True), atol=1e-5)  # fmt: skip
