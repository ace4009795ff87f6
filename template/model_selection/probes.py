"""Linear probes of a run, each fitted once: with labels alone, and with images without labels beside them."""

import hashlib

import numpy as np

from ..train.features import FeatureCache
from ..train.linear_probe import Probe, fit_probe, folds
from ..train.self_training import self_train


def fit_once(
    features: np.ndarray, labels: np.ndarray, classes: int, seed: int, widths: list[int], groups: np.ndarray | None,
    cache: FeatureCache,
) -> Probe:  # fmt: skip
    """`fit_probe`; in a run, what was fitted on these features before, which are of the same images."""
    key = _key(features, labels, np.array(seed))
    if key not in cache.probes:
        cache.probes[key] = fit_probe(features, labels, classes, seed, widths, groups=groups)
    return cache.probes[key]


def teach_once(
    features: np.ndarray, labels: np.ndarray, pool: np.ndarray, seed: int, widths: list[int],
    groups: np.ndarray | None, cache: FeatureCache,
) -> Probe:  # fmt: skip
    """`self_train` by `fit_once`, in its folds; in a run, what was fitted on these features before.

    Args:
        features: float32 [views, n, features] of images with labels.
        labels: int64 [n]; every class occurs.
        pool: float32 [views, m, features] of images without.
        seed: of the folds.
        widths: features a level.
        groups: [n], or None.
        cache: of the run.
    """
    classes, key = int(labels.max()) + 1, _key(features, labels, pool, np.array(seed))
    if key not in cache.probes:
        teacher = fit_once(features, labels, classes, seed, widths, groups, cache)
        divisions = folds(labels, classes, seed, 5, groups)
        cache.probes[key] = self_train(features, labels, pool, teacher.strength, divisions, widths)
    return cache.probes[key]


def _key(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
