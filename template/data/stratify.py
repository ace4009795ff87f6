"""Iterative stratification: parts that have their share of every label, where an image may have several."""

from collections.abc import Sequence

import numpy as np


def iterative_stratification(counts: np.ndarray, shares: Sequence[float] | np.ndarray, order: np.ndarray) -> np.ndarray:
    """The part of each cluster of images, so that every part gets its share of each label, the rarest label first.

    Sechidis et al. 2011, "On the stratification of multi-label data". A cluster goes where the label at hand is wanted
    most; of equal parts, where images are wanted most; of equal ones again, to the first.

    Args:
        counts: int64 [clusters, labels + 1]: images of each label; in the last column, all images.
        shares: of the parts, above 0, with the sum of 1.
        order: the clusters, in the order in which they are placed where nothing else decides.

    Returns:
        int64 [clusters], the number of a part.
    """
    wanted = np.outer(shares, counts.sum(axis=0)).astype(np.float64)
    part, free = np.full(len(counts), -1), np.ones(len(counts), bool)
    while free.any():
        left = counts[free, :-1].sum(axis=0)
        label = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin()) if left.any() else -1
        for cluster in order[free[order] & (counts[order, label] > 0)]:
            part[cluster] = np.lexsort((-wanted[:, -1], -wanted[:, label]))[0]
            wanted[part[cluster]] -= counts[cluster]
            free[cluster] = False
    return part


def multilabel_folds(
    labels: np.ndarray, number: int, seed: int, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divisions for cross-validation with their share of every label in each; no group is parted.

    Args:
        labels: uint8 [n, classes].
        number: of folds.
        seed: another number, other folds.
        groups: [n], or None.

    Returns:
        (rows to learn from, rows to judge), `number` of them.
    """
    clusters = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    counts = np.zeros((clusters.max() + 1, labels.shape[1] + 1), np.int64)
    np.add.at(counts, clusters, np.column_stack([labels, np.ones(len(labels), np.int64)]))
    order = np.random.default_rng(seed).permutation(len(counts))
    fold = iterative_stratification(counts, np.full(number, 1 / number), order)[clusters]
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(number)]
