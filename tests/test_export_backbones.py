"""Every network, and every head, says the same from an ONNX and from a LiteRT file, in the slow lane.

python -m pytest -m slow tests/test_export_backbones.py
"""

import functools
import gc
from pathlib import Path

import keras
import numpy as np
import pytest
import test_hub
from scipy.special import softmax

from template.config import Backbone, Head
from template.model.backbones import BACKBONES, build_backbone
from template.model.build import attach
from template.model.layers import strip_training_layers

pytest.importorskip("tf2onnx", reason='needs the extra onnx: pip install -e ".[onnx]"')
pytest.importorskip("ai_edge_litert", reason='needs the extra litert: pip install -e ".[litert]"')

SMALLEST = {"inceptionv3": 75, "xception": 71}
HEADS = {
    "prelu, levels": Head(hidden=8, activation="prelu", feature_levels=2, pooling="both"),
    "maxout, power norm": Head(hidden=8, activation="maxout", power_norm=True, feature_levels=3, pooling="max"),
    "gelu, noise": Head(hidden=8, activation="gelu", drop_connect=0.1, gaussian_dropout=0.2, drop_block=0.1),
    "silu": Head(hidden=8, activation="silu"),
    "leaky relu": Head(hidden=8, activation="leaky_relu"),
}


@pytest.fixture(autouse=True)
def one_at_a_time():
    """The graphs of thirty networks would not fit into memory together."""
    yield
    keras.backend.clear_session()
    gc.collect()


def network(backbone: Backbone, head: Head, size: int, pixels: np.ndarray) -> keras.Model:
    """A random network whose answers depend on the image, as it would be in a run's file."""
    keras.utils.set_random_seed(0)
    base = build_backbone(backbone, size)
    norms = [layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    keras.Model(base.inputs[0], base.outputs[0])(pixels, training=True)  # statistics of these images
    model = attach(base, backbone, head, [1, 2, 3])
    last = model.get_layer("logits")
    kernel, bias = last.get_weights()
    logits = model.predict(pixels, verbose=0) - bias
    stretch = 2 / logits.std(axis=0).mean()
    last.set_weights([stretch * kernel, -stretch * logits.mean(axis=0)])
    return strip_training_layers(model)


def answers(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """Mean over mirror images, at the temperature 1.3."""
    views = [softmax(model.predict(view, verbose=0).astype(float), axis=1) for view in (pixels, pixels[:, :, ::-1])]
    return softmax(np.log(np.mean(views, axis=0)) / 1.3, axis=1)


def says_the_same(model: keras.Model, pixels: np.ndarray, folder: Path, precisions: tuple[str, ...]) -> None:
    from template.deploy.export.graph import Served, freeze
    from template.deploy.export.litert import load_litert, write_litert
    from template.deploy.export.onnx import converted, write_onnx
    from template.deploy.runtime import Classifier

    inputs = {"image_size": pixels.shape[1], "resize": "crop", "bits": "auto", "max_megapixels": 1.0,
              "full_image": False, "center_zoom": False}  # fmt: skip
    about = {"class_names": ["a", "b", "c"], "inputs": inputs, "temperature": 1.3}
    frozen = freeze(Served(model, 1.3, hflip=True))
    proto = converted(frozen, about)
    expected = answers(model, pixels)
    moved = np.abs(answers(model, pixels + np.float32(1e-4)) - expected).max(axis=1)
    steady = moved < 1e-3  # some random networks say something else if a pixel changes by a millionth of its range
    assert steady.sum() >= 3
    assert np.ptp(expected, axis=0).max() > 0.05, "there is something to differ in"
    for precision in precisions:
        for write, load, ending in (
            (functools.partial(write_onnx, proto), lambda file: Classifier.of_file(file).infer, "onnx"),
            (functools.partial(write_litert, frozen, about=about), load_litert, "tflite"),
        ):
            file = folder / f"model.{ending}"
            write(file, precision, pixels)
            (found,) = load(file)(pixels)
            difference = np.abs(found - expected)[steady].max()
            print(f"{model.name} {ending} {precision}: {difference:.1e}, {file.stat().st_size / 1e6:.1f} MB")
            # What rounding of weights does to random networks, whose answers are stretched, says nothing.
            atol = 5e-3 if precision == "float32" else 1.0
            np.testing.assert_allclose(
                found[steady], expected[steady], rtol=0, atol=atol, err_msg=f"{ending} {precision}"
            )
            np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
            file.unlink()  # they are large


def noise(size: int) -> np.ndarray:
    pixels = np.random.default_rng(0).uniform(0, 255, (6, size, size, 3)).astype(np.float32)
    return pixels * np.linspace(0.2, 1, 6, dtype=np.float32)[:, None, None, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_network(name, tmp_path):
    pixels = noise(SMALLEST.get(name, 64))
    model = network(Backbone(name=name, weights="none"), Head(), pixels.shape[1], pixels)
    says_the_same(model, pixels, tmp_path, ("float32", "float16", "int8"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", test_hub.PRESETS)
def test_every_family_of_keras_hub(kind, tmp_path):
    pixels = noise(test_hub.SIZE)
    model = network(Backbone(name=f"hub:{test_hub.save_preset(kind, tmp_path)}"), Head(), test_hub.SIZE, pixels)
    int8 = () if kind == "DINOV3" else ("int8",)  # which LiteRT's converter refuses
    says_the_same(model, pixels, tmp_path, ("float32", "float16", *int8))


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_every_head(head, tmp_path):
    pixels = noise(48)
    model = network(Backbone(name="efficientnet_lite0", weights="none"), head, 48, pixels)
    says_the_same(model, pixels, tmp_path, ("float32", "float16", "int8"))
