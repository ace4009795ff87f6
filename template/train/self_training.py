"""Self-training on stored features: what images without labels tell a linear probe about those with labels.

The labels of a few images are spread to all, along a graph of nearest neighbours (Zhou et al. 2004, "Learning with
local and global consistency"). What the probe and the graph agree on is the class of an image, so that errors of the
one seldom pass the other, and a new probe learns from all images, those without labels by these soft classes.
Pseudo-labels of the probe alone teach it what it says already; those above a threshold, what is easy already.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.special import log_softmax
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from .. import progress
from ..evaluate.calibration import temperature
from .linear_probe import Probe, Regression, hold_out, nothing_held_out, scaling, unscaled

NEIGHBOURS, REACH = 10, 0.8
"""Of each image in the graph; and how much of an image's class comes from its neighbours in each step of spreading.
Five or twenty neighbours, and 0.5 or 0.95, do nearly as well on flowers, hand signs and clothing."""
STEPS = 40
"""Of spreading: what would come after is less than a thousandth."""
DOUBT = 0.01
"""Of what the graph says: so much is shared by all classes, for it to have no veto."""
STRENGTH = 15.0
"""Inverse penalty, as in `linear_probe`, times images. A tenth of that is worse on hand signs, ten times is worse on
flowers. To choose among the three out of fold was no better: a few dozen losses are noise."""


def self_train(
    features: np.ndarray, labels: np.ndarray, pool: np.ndarray, teacher: float,
    divisions: Sequence[tuple[np.ndarray, np.ndarray]], widths: Sequence[int] | None = None,
) -> Probe:  # fmt: skip
    """Fit a probe on images with labels and without.

    Its out-of-fold losses are those of the images with labels: in each fold teacher, graph and probe know neither the
    images outside nor their labels. They also give its logits their temperature.

    Args:
        features: float32 [views, n, features] of images with labels, as in `fit_probe`.
        labels: int64 [n]; every class occurs.
        pool: float32 [views, m, features] of images without.
        teacher: inverse penalty of the probe that labels the others; that of `fit_probe`.
        divisions: from `folds`, the same as those of the teacher where the losses are to be compared.
        widths: numbers of features that belong together, as in `fit_probe`.
    """
    n, classes = len(labels), int(labels.max()) + 1
    mean, scale = scaling(features, widths)
    both = np.concatenate([features, pool], axis=1)
    graph, strength = neighbour_graph(both[0]), STRENGTH / both.shape[1]
    with threadpool_limits(1, "blas"), progress.step("self-training", unit="fits") as step:
        unknown = np.zeros(both.shape[1] - n, labels.dtype)
        regression = Regression((both - mean) / scale, np.concatenate([labels, unknown]), classes)

        def fit(known: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
            """The point that is best for these and the images without labels, and all of their rows."""
            rows = np.concatenate([known, np.arange(n, both.shape[1])])
            point = regression.fit(known, teacher, regression.zeros(known), tolerance)
            agreed = regression.predict(point, known, rows[len(known) :])
            agreed *= spread(graph[rows][:, rows], labels[known])[len(known) :]
            soft = (agreed / agreed.sum(axis=1, keepdims=True)).astype(np.float32)
            pupil = regression.taught(np.concatenate([regression.targets[:n], soft]))
            return pupil.fit(rows, strength, pupil.zeros(rows), tolerance), rows

        def out_of_fold(fold: int) -> np.ndarray:
            inside, outside = divisions[fold]
            return regression.predict(*fit(inside, 3e-6), outside)

        found = hold_out(regression, out_of_fold, divisions, n, step) if divisions else nothing_held_out(n, classes)
        point, _ = fit(np.arange(n), 1e-6)
        kernel, bias = unscaled(regression.kernel(point), point[-1], mean, scale)
    return _calibrated(Probe(kernel, bias, strength, *found), labels)


def neighbour_graph(features: np.ndarray) -> csr_matrix:
    """Which images are near each other, by the angle between their features: [n, n] of 0 and 1, symmetric.

    Args:
        features: float [n, f].
    """
    near = kneighbors_graph(normalize(features), min(NEIGHBOURS, len(features) - 1))
    return near.maximum(near.T).tocsr()


def spread(graph: csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Shares of the classes in all images, from the labels of the first.

    Every class begins with the same, however many images it has: how frequent classes are, the probe knows.

    Args:
        graph: from `neighbour_graph`, [n + m, n + m].
        labels: int64 [n]; every class occurs.

    Returns:
        float64 [n + m, classes]; rows sum to 1, and are the same for all classes where no label reaches.
    """
    root = diags(1 / np.sqrt(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1)))
    links, counts = root @ graph @ root, np.bincount(labels)
    known = np.zeros((graph.shape[0], len(counts)))
    known[np.arange(len(labels)), labels] = 1 / counts[labels]
    found = known
    for _ in range(STEPS):
        found = REACH * (links @ found) + known
    total = found.sum(axis=1, keepdims=True)
    shares = np.divide(found, total, out=np.full_like(found, 1 / len(counts)), where=total > 0)
    return (1 - DOUBT) * shares + DOUBT / len(counts)


def _calibrated(probe: Probe, labels: np.ndarray) -> Probe:
    """The probe as sure of itself as it is right out of fold: what it was taught says little of that."""
    if np.isnan(probe.losses).any():
        return probe
    logits = np.log(probe.probabilities)
    sharpness = np.float32(1 / temperature(logits, labels))
    logs = log_softmax(logits * sharpness, axis=1)
    return dataclasses.replace(
        probe,
        kernel=probe.kernel * sharpness,
        bias=probe.bias * sharpness,
        losses=-logs[np.arange(len(labels)), labels],
        probabilities=np.exp(logs),
    )
