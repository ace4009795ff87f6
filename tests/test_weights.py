"""Pretrained weights: read as they were written, refused if they are another's, and an instruction if missing."""

import os
import re
import socket
import urllib.error
from http.client import IncompleteRead
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.utils import file_utils

from template.config import Backbone, Head
from template.model.backbones import BACKBONES, build_backbone, standardise
from template.model.build import build
from template.model.weights import WeightsError

SIZE = 64
# Keras says so before it raises the error that these tests are about, or of a size that it has no weights for.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning"),
    pytest.mark.filterwarnings("ignore:`input_shape` is undefined:UserWarning"),
]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *(("tiny", what) for what in ("weights.h5", "keras", "run")),
        pytest.param("mobilenet", "keras", marks=pytest.mark.slow),
        pytest.param("efficientnetb0", "weights.h5", marks=pytest.mark.slow),
    ],
)
def test_weights_are_read_as_written(name, what, tmp_path):
    classifier = build(Backbone(name=name, weights="none"), Head(), SIZE, [1, 1])
    before = keras.Model(classifier.input, classifier.get_layer("pool_avg").input)
    rng = np.random.default_rng(0)
    for weight in before.weights:  # zeros and ones would be equal in any copy
        value = np.asarray(weight)
        weight.assign(value + rng.uniform(0, 0.1, value.shape).astype(value.dtype))
    path = tmp_path / ("model.keras" if what == "run" else f"backbone.{what}")
    {"weights.h5": before.save_weights, "keras": before.save, "run": classifier.save}[what](path)
    after = build_backbone(Backbone(name=name, weights=str(path)), SIZE)
    for one, other in zip(before.weights, after.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    path.unlink()


@pytest.mark.parametrize(
    ("of", "given_to"),
    [
        ({"name": "tiny"}, {"name": "mobilenet"}),
        ({"name": "vgg16"}, {"name": "vgg19"}),
        pytest.param({"name": "vgg19"}, {"name": "vgg16"}, marks=pytest.mark.slow),
        pytest.param({"name": "mobilenet", "alpha": 0.5}, {"name": "mobilenet", "alpha": 0.25}, marks=pytest.mark.slow),
    ],
    ids=lambda row: "-".join(map(str, row.values())),
)
def test_weights_of_another_network_are_refused(tmp_path, of, given_to):
    path = tmp_path / "other.weights.h5"
    build_backbone(Backbone(**of, weights="none"), SIZE).save_weights(path)
    with pytest.raises(WeightsError, match=rf"other.weights.h5.* does not hold weights of {given_to['name']}"):
        build_backbone(Backbone(**given_to, weights=str(path)), SIZE)
    path.unlink()


def test_a_run_with_another_head_gives_its_backbone(tmp_path):
    classifier = build(Backbone(name="tiny", weights="none"), Head(hidden=4, activation="prelu"), SIZE, [1, 1])
    classifier.save(tmp_path / "model.keras")
    after = build_backbone(Backbone(name="tiny", weights=str(tmp_path / "model.keras")), SIZE)
    for weight, other in zip(classifier.weights[: len(after.weights)], after.weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def test_a_network_that_drops_branches_sees_its_images_as_one_that_does_not(tmp_path):
    before = build_backbone(Backbone(name="tiny", weights="none"), SIZE)
    standardise(before, np.array([10.0, 90, 200]), np.array([4.0, 900, 25]))
    before.save_weights(tmp_path / "tiny.weights.h5")
    after = build_backbone(Backbone(name="tiny", weights=str(tmp_path / "tiny.weights.h5"), stochastic_depth=0.5), SIZE)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype("float32")
    np.testing.assert_allclose(after(pixels, training=False), before(pixels, training=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", ["weights.h5", "keras"])
def test_a_file_of_a_larger_network_is_refused(tmp_path, ending):
    """Keras takes the layers that it needs, and says nothing of the others."""
    base = build_backbone(Backbone(name="tiny", weights="none"), SIZE)
    larger = keras.Model(base.input, keras.layers.Conv2D(8, 1)(base.output))
    path = tmp_path / f"larger.{ending}"
    (larger.save if ending == "keras" else larger.save_weights)(path)
    with pytest.raises(WeightsError, match=rf"expected {len(base.weights)} arrays, received {len(base.weights) + 2}"):
        build_backbone(Backbone(name="tiny", weights=str(path)), SIZE)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    base = build_backbone(Backbone(name="tiny", weights="none"), SIZE)
    base.get_layer("block2_conv1").kernel.assign(base.get_layer("block2_conv1").kernel * np.nan)
    base.save_weights(tmp_path / "nan.weights.h5")
    with pytest.raises(WeightsError, match="not finite: block2_conv1/kernel"):
        build_backbone(Backbone(name="tiny", weights=str(tmp_path / "nan.weights.h5")), SIZE)


@pytest.mark.parametrize("ending", [".weights.h5", ".h5", ".keras", ".txt"])
@pytest.mark.parametrize("contents", [b"", b"not weights"], ids=["empty", "text"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, ending, contents):
    path = tmp_path / f"file{ending}"
    path.write_bytes(contents)
    with pytest.raises(WeightsError, match=f"file{ending}.* does not hold weights of tiny"):
        build_backbone(Backbone(name="tiny", weights=str(path)), SIZE)


@pytest.mark.parametrize("weights", ["imagnet", "/no/such/file.weights.h5", ".", ""])
def test_weights_that_are_no_file_are_refused(weights):
    with pytest.raises(WeightsError, match=re.escape(f"expected imagenet, none or a file. Received: {weights!r}")):
        build_backbone(Backbone(name="tiny", weights=weights), SIZE)


def test_a_size_that_a_network_cannot_take_is_an_error_naming_both():
    with pytest.raises(ValueError, match="vgg16 cannot be built for 16 x 16 pixels: .*at least 32"):
        build_backbone(Backbone(name="vgg16", weights="none"), 16)


def test_a_width_without_imagenet_weights_is_no_failed_download():
    with pytest.raises(ValueError, match=r"mobilenet cannot be built .*alpha"):
        build_backbone(Backbone(name="mobilenet", alpha=0.35), SIZE)


@pytest.fixture
def download(monkeypatch, tmp_path):
    """Makes the download of ImageNet weights into an empty folder end in an error; returns what was asked for."""
    asked = []

    def fails_with(error: Exception) -> list[tuple[str, Path]]:
        def urlretrieve(url: str, path: str, _):
            asked.append((url, Path(path)))
            assert 0 < socket.getdefaulttimeout() <= 60, "a server that does not answer would be waited for for ever"
            raise error

        monkeypatch.setattr(file_utils, "urlretrieve", urlretrieve)
        return asked

    # Keras has read the variable when it was imported, as the message will read it now.
    assert Path(file_utils.config.keras_home()) == Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    return fails_with


QUICK = ("vgg16", "mobilenet")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in BACKBONES
        if name != "tiny" and "lite" not in name
    ],
)
def test_missing_imagenet_weights_are_an_instruction(download, name):
    asked = download(urllib.error.URLError("no network"))
    with pytest.raises(WeightsError) as caught:
        build_backbone(Backbone(name=name), 75)
    ((url, path),) = asked
    message = str(caught.value)
    assert f"Download {url}\n" in message
    assert f"put it at {path}\n" in message, "the very file that Keras looks for"
    assert "no network" in message
    assert "whose weights pip has installed (backbone.name=efficientnet_lite0)" in message, "a way out"
    assert socket.getdefaulttimeout() is None, "other connections are as patient as before"


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.HTTPError("http://x", 503, "busy", None, None),
        TimeoutError("timed out"),
        ConnectionResetError("reset by peer"),
        IncompleteRead(b"", 5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_download_that_breaks_off_is_not_blamed_on_the_network_or_the_size(download, error, tmp_path):
    download(error)
    with pytest.raises(WeightsError, match="ImageNet weights of mobilenet") as caught:
        build_backbone(Backbone(name="mobilenet"), SIZE)
    assert str(tmp_path / "models") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [("mobilenet", "mobilenet_1_0_224_tf_no_top.h5"), ("vgg16", "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")],
    ids=["without a checksum", "with a checksum"],
)
def test_a_damaged_file_of_imagenet_weights_is_named_as_such(download, monkeypatch, tmp_path, name, file):
    download(None)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / file).write_bytes(b"half")
    monkeypatch.setattr(file_utils, "urlretrieve", lambda *_: None)  # Keras tries again where it knows the checksum
    with pytest.raises(WeightsError, match=f"ImageNet weights of {name}") as caught:
        build_backbone(Backbone(name=name), SIZE)
    assert str(tmp_path / "models") in str(caught.value)
