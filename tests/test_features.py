"""Stored activations give what the pictures would have given."""

import dataclasses

import keras
import numpy as np
import pytest

from template.config import Backbone, Head, Stage
from template.data.pipeline import Source
from template.model.build import boundary, build, freeze
from template.train.features import activations, cached, cut, divide, inference
from template.train.stages import compile_for

BACKBONE = Backbone(name="tiny", weights="none")


@pytest.fixture(scope="module")
def model():
    return build(BACKBONE, Head(dropout=0), 32, np.ones(3))


@pytest.fixture(scope="module")
def source():
    """Six pictures that are brighter in every epoch."""
    pixels = np.random.default_rng(0).integers(0, 200, (6, 32, 32, 3)).astype(np.uint8)
    return Source(lambda epoch, rows: pixels[rows] + np.uint8(10 * epoch), np.arange(6) % 3)


@pytest.mark.parametrize("memory_bytes", [1e9, 0], ids=["memory", "disk"])
def test_each_epoch_reads_the_activations_of_its_view(model, source, tmp_path, memory_bytes):
    bottom, _ = cut(model, boundary(model, BACKBONE, 1))
    stored = cached(bottom, source, 2, batch_size=4, folder=tmp_path, memory_bytes=memory_bytes)
    rows = np.array([4, 1])
    for epoch, view in ((0, 0), (1, 1), (2, 0), (5, 1)):
        expected = bottom(source.read(view, rows).astype("float32"), training=False)
        np.testing.assert_allclose(stored.read(epoch, rows), expected, atol=2e-3)  # float16
    assert not np.allclose(stored.read(0, rows), stored.read(1, rows))
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_an_activation_too_large_for_float16_stays_finite(tmp_path):
    pixel = keras.Input((1,))
    large = keras.Model(pixel, keras.layers.Rescaling(1e6)(pixel))
    source = Source(lambda _, rows: np.ones((len(rows), 1), np.uint8), np.zeros(3, int))
    stored = cached(large, source, 1, batch_size=2, folder=tmp_path, memory_bytes=1e9)
    assert (stored.read(0, np.arange(3)) == 65504).all()


def test_activations_are_in_order_with_the_smaller_last_batch(model, source):
    bottom, _ = cut(model, boundary(model, BACKBONE, 0))
    batches = list(activations(inference(bottom), source, 0, 4))
    assert [len(batch) for batch in batches] == [4, 2]
    expected = bottom(source.read(0, np.arange(6)).astype("float32"), training=False)
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-5)


def test_a_step_on_the_tail_is_a_step_on_the_model(source, tmp_path):
    """Same loss, and afterwards the same weights, as training the whole model with the same layers frozen."""
    losses, weights = [], []
    for stored in (True, False):
        keras.utils.set_random_seed(0)
        model = build(BACKBONE, Head(dropout=0), 32, np.ones(3))
        freeze(model, BACKBONE, 1)
        network, inputs, _ = divide(
            model, boundary(model, BACKBONE, 1) if stored else None, source, None,
            views=1, batch_size=4, folder=tmp_path, limit_bytes=1e9,
        )  # fmt: skip
        compile_for(network, Stage(learning_rate=1e-3, warmup=0), 10, label_smoothing=0, averaged=False)
        batch = inputs.read(0, np.arange(6)).astype("float32")
        losses.append(float(network.train_on_batch(batch, np.eye(3)[source.labels])[0]))
        weights.append(model.get_weights())
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    # Only a sign may differ where a gradient is almost zero: Adam's first step is the sign of the gradient.
    same = [np.isclose(a, b, atol=1e-4).mean() for a, b in zip(*weights, strict=True)]
    assert min(same) > 0.95


def test_what_does_not_fit_is_trained_on_pictures_and_says_so(model, source, tmp_path, capsys):
    tensor = boundary(model, BACKBONE, 1)
    how = {"views": 4, "batch_size": 4, "folder": tmp_path}
    assert divide(model, tensor, source, None, **how, limit_bytes=100)[:2] == (model, source)
    assert "would take" in capsys.readouterr().out
    assert divide(model, None, source, None, **how, limit_bytes=1e9)[:2] == (model, source)
    assert "nothing is frozen" in capsys.readouterr().out
    network, inputs, val = divide(model, tensor, source, source, **how, limit_bytes=1e9)
    assert network is not model and inputs.read is not source.read
    assert dataclasses.is_dataclass(val) and len(val) == len(source)
