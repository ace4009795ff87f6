"""The convex first stage: the right penalty, no leak between views, and the head gives its probabilities."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from template.config import Backbone, Head
from template.data.pipeline import Source
from template.model.build import build
from template.train.features import activations, cut, inference
from template.train.probe import fit_probe, probe_head


def clouds(n: int, classes: int, signal: float, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = generator.normal(size=(classes, 20)) * signal
    return (centres[labels] + generator.normal(size=(n, 20)) + 5).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_it_is_the_regression_of_scikit_learn_in_the_units_of_the_features(classes):
    features, labels = clouds(120, classes, 0.7)
    probe = fit_probe(features[None], labels, classes, seed=0)
    scale = np.sqrt(np.mean((features - features.mean(axis=0)) ** 2))
    reference = LogisticRegression(C=probe.strength, tol=1e-6, max_iter=5000)
    reference.fit((features - features.mean(axis=0)) / scale, labels)
    expected = reference.predict_proba((features - features.mean(axis=0)) / scale)
    logits = features @ probe.kernel + probe.bias
    mine = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mine, expected, atol=0.02)


def test_noise_is_penalised_hard_and_signal_is_not():
    noise = fit_probe(clouds(60, 3, 0.0)[0][None], np.arange(60) % 3, 3, seed=0)
    signal = fit_probe(clouds(60, 3, 3.0)[0][None], np.arange(60) % 3, 3, seed=0)
    assert noise.strength < signal.strength
    assert noise.cross_entropy == pytest.approx(np.log(3), abs=0.02)  # as good as saying nothing
    assert signal.cross_entropy < 0.1


def test_the_cross_validated_accuracy_is_honest_about_noise_with_mirrored_views():
    """A view of a held-out picture in the training folds would make noise look learnable."""
    noise, labels = clouds(90, 3, 0.0)
    views = np.stack([noise, noise + 0.01])
    assert abs(fit_probe(views, labels, 3, seed=0).accuracy - 1 / 3) < 0.17  # 3 standard deviations of 90 guesses


def test_a_class_of_one_picture_can_still_be_fitted():
    features, labels = clouds(9, 2, 3.0)
    labels = np.array([0] * 8 + [1])
    probe = fit_probe(features[None], labels, 2, seed=0)
    assert np.isfinite(probe.kernel).all() and np.isnan(probe.accuracy)


def test_views_do_not_change_the_weight_of_a_picture():
    features, labels = clouds(120, 3, 0.7)
    once, twice = (fit_probe(np.stack([features] * views), labels, 3, seed=0) for views in (1, 2))
    np.testing.assert_allclose(once.kernel, twice.kernel, atol=0.01)


def test_the_head_of_the_model_gives_the_logits_of_the_probe():
    pixels = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3)).astype(np.uint8)
    source = Source(lambda _, rows: pixels[rows], np.arange(12) % 3)
    model = build(Backbone(name="tiny", weights="none"), Head(), 32, np.ones(3))
    probe = probe_head(model, source, flip=True, batch_size=5, seed=0)
    bottom, _ = cut(model, model.get_layer("logits").input)
    features = np.concatenate(list(activations(inference(bottom), source, 0, 5)))
    logits = model(pixels.astype("float32"), training=False)
    np.testing.assert_allclose(logits, features @ probe.kernel + probe.bias, atol=1e-4)
