"""Images without labels teach a probe what it does not know, and no held-out label is among what they teach."""

import numpy as np
import pytest
from sklearn.datasets import make_moons
from sklearn.kernel_approximation import RBFSampler

from template.train import self_training as module
from template.train.linear_probe import fit_probe, folds
from template.train.self_training import neighbour_graph, self_train, spread


def moons(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features in which two half moons can be told apart by a line, if one knows where; float32 [n, 200]."""
    points, labels = make_moons(n, noise=0.1, random_state=seed)
    return RBFSampler(gamma=1.0, n_components=200, random_state=0).fit_transform(points).astype(np.float32), labels


def accuracy(probe, features: np.ndarray, labels: np.ndarray) -> float:
    return float(((features @ probe.kernel + probe.bias).argmax(axis=1) == labels).mean())


def test_the_shape_of_what_has_no_labels_shows_where_the_classes_are():
    found = []
    for seed in range(4):
        pool, (test, truth), (features, labels) = moons(200, seed)[0], moons(300, seed + 100), moons(6, seed + 200)
        alone = fit_probe(features[None], labels, 2, seed=0)
        both = self_train(features[None], labels, pool[None], alone.strength, folds(labels, 2, 0))
        found.append([accuracy(probe, test, truth) for probe in (alone, both)])
    alone, both = np.mean(found, axis=0)
    assert alone < 0.85 and both > 0.93, found


def test_labels_spread_along_neighbours_and_a_class_with_more_of_them_has_no_more_say():
    line = np.linspace(0, np.pi / 2, 60)
    points = np.stack([np.cos(line), np.sin(line)], axis=1)
    order = np.r_[np.arange(5), 59, np.arange(5, 59)]  # five of the one end have a label, and one of the other
    shares = spread(neighbour_graph(points[order]), np.array([0, 0, 0, 0, 0, 1]))
    shares = shares[np.argsort(order)]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares[:26].argmax(axis=1) == 0).all() and (shares[36:].argmax(axis=1) == 1).all()


def test_where_no_label_reaches_all_classes_are_alike():
    island = np.concatenate([np.eye(2)[np.arange(30) % 2 * 0], np.eye(2)[np.ones(30, int)]])
    island += np.random.default_rng(0).normal(0, 0.01, island.shape)
    shares = spread(neighbour_graph(island), np.array([0, 1, 1]))  # the labels are on the first three: one side
    np.testing.assert_allclose(shares[30:], 0.5)


@pytest.mark.parametrize("width", [6, 200], ids=["rows", "dots"])
def test_labels_of_a_held_out_fold_do_not_leak_through_the_images_without(monkeypatch, width):
    """With the other of two labels on all that is held out, its probabilities are the same."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = (rng.normal(size=(40, width)) + 0.5 * labels[:, None]).astype(np.float32)
    pool = (rng.normal(size=(30, width)) + 0.5 * (np.arange(30) % 2)[:, None]).astype(np.float32)
    # Copies of the held-out images among those without labels: the shortest way for a label to come back.
    halves, pool = (np.arange(20), np.arange(20, 40)), np.concatenate([pool, features[20:]])

    monkeypatch.setattr(module, "_calibrated", lambda probe, _: probe)  # its one number knows all labels

    def held_out() -> np.ndarray:
        return self_train(features[None], labels, pool[None], 0.1, [halves, halves[::-1]]).probabilities[halves[1]]

    before = held_out()
    labels[halves[1]] = 1 - labels[halves[1]]
    after = held_out()
    assert np.abs(before - 0.5).mean() > 0.02, "guesses would not know of labels anyway"
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_what_is_outside_a_fold_is_no_bridge_either(monkeypatch):
    """Images that no fold has inside, whatever they look like, change nothing about the probe of a fold."""
    features, labels = moons(40, 0)
    inside, outside = np.arange(20), np.arange(20, 40)

    monkeypatch.setattr(module, "_calibrated", lambda probe, _: probe)

    def held_out(others: np.ndarray) -> np.ndarray:
        given, twice = np.concatenate([features, others]), np.concatenate([labels, labels])
        return self_train(given[None], twice, moons(60, 1)[0][None], 0.1, [(inside, outside)]).probabilities[outside]

    np.testing.assert_allclose(held_out(features), held_out(features[::-1]), rtol=1e-5)  # of one mean and scale


def test_without_folds_there_is_a_probe_and_no_loss():
    features, labels = moons(8, 0)
    probe = self_train(features[None], labels, moons(50, 1)[0][None], 0.1, [])
    assert np.isnan(probe.losses).all() and np.isfinite(probe.kernel).all()


def test_its_surety_is_what_held_out_images_bear_out():
    """However sure the images without labels make it, and however few there are."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    features = (rng.normal(size=(80, 4)) + labels[:, None]).astype(np.float32)
    pool = (rng.normal(size=(40, 4)) + (np.arange(40) % 2)[:, None]).astype(np.float32)
    probe = self_train(features[None], labels, pool[None], 0.1, folds(labels, 2, 0, 3))
    sure, right = probe.probabilities.max(axis=1).mean(), (probe.probabilities.argmax(axis=1) == labels).mean()
    assert abs(sure - right) < 0.05
    logits = features @ probe.kernel + probe.bias
    fitted = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert abs((fitted / fitted.sum(axis=1, keepdims=True)).max(axis=1).mean() - sure) < 0.1
