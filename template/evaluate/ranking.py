"""How well probabilities rank images, whatever the threshold: areas under ROC curves, average precision."""

from typing import Any

import numpy as np
from scipy.special import logsumexp

from .intervals import influence_interval
from .predictions import Predictions


def ranking_scores(predictions: Predictions) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Areas under ROC curves and average precision, one-vs-rest and one-vs-one.

    Returns:
        `roc_auc_ovr` and `average_precision` (each class against all others; mean over classes) and `roc_auc_ovo` (mean
        over pairs of classes, insensitive to their sizes; Hand and Till 2001); and the first two of each class.
    """
    n, labels, groups = len(predictions.labels), predictions.labels, predictions.groups
    sizes = np.bincount(labels, minlength=len(predictions.class_names))
    independent = sizes if groups is None else [len(np.unique(groups[labels == label])) for label in range(len(sizes))]
    present, names = int((sizes > 0).sum()), ("roc_auc_ovr", "roc_auc_ovo", "average_precision")
    by_class, total, values = [], np.zeros((3, n)), []
    parts = np.array_split(predictions.logits, 1 + predictions.logits.size // 10**7)
    normalizer = np.concatenate([logsumexp(part.astype(np.float64), axis=1) for part in parts])
    for label, size in enumerate(sizes):
        if not 0 < size < n:
            value, influence = np.full(3, np.nan), np.zeros((3, n))
        else:
            scores = predictions.logits[:, label] - normalizer  # logarithm of the probability
            scores = scores.astype(np.float32)  # what differs by rounding alone is equal
            value, influence = _ranks(scores, labels, label, sizes, present)
            total += influence
            values.append(value)
        least = max(1, int(min(size, n - size, independent[label])))
        row = dict(zip(names, _intervals(value, influence, least, groups), strict=True))
        by_class.append({name: row[name] for name in ("roc_auc_ovr", "average_precision")})
    means = np.mean(values, axis=0) if values else np.full(3, np.nan)
    total /= max(1, len(values))
    least = int(min(number for number in independent if number))
    return dict(zip(names, _intervals(means, total, least, groups), strict=True)), by_class


def multilabel_ranking_scores(predictions: Predictions) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`roc_auc` and `average_precision` of each label against the images without it: their means, and those of each.

    Labels that all images or none have, have none, and are left out of the means.

    Args:
        predictions: of images that may have several labels.
    """
    n, groups, names = len(predictions.labels), predictions.groups, ("roc_auc", "average_precision")
    by_class, found, fewest = [], [], n
    for scores, positive in zip(predictions.logits.T, predictions.labels.T.astype(np.int64), strict=True):
        sizes = np.bincount(positive, minlength=2)
        values, influence, least = np.full(2, np.nan), np.zeros((2, n)), 1
        if sizes.all():
            both, moved = _ranks(scores, positive, 1, sizes, 2)
            values, influence, least = both[[0, 2]], moved[[0, 2]], int(sizes.min())
            found.append((values, influence))
            fewest = min(fewest, least)
        by_class.append(dict(zip(names, _intervals(values, influence, least, groups), strict=True)))
    values = np.mean([each for each, _ in found], axis=0) if found else np.full(2, np.nan)
    influence = np.mean([each for _, each in found], axis=0) if found else np.zeros((2, n))
    return dict(zip(names, _intervals(values, influence, fewest, groups), strict=True)), by_class


def _intervals(values: np.ndarray, influences: np.ndarray, least: int, groups: np.ndarray | None) -> list[dict]:
    pairs = zip(values, influences, strict=True)
    return [influence_interval(value, influence, least, groups=groups) for value, influence in pairs]


def _ranks(
    scores: np.ndarray, labels: np.ndarray, label: int, sizes: np.ndarray, present: int
) -> tuple[np.ndarray, np.ndarray]:
    """Area against the rest, mean area against each other class, average precision of one class; influences [3, n]."""
    n, size, positive = len(labels), sizes[label], labels == label
    order = np.argsort(scores)  # equal ones in any order: their level is the same
    ordered = scores[order]
    level = np.empty(n, np.int64)  # equal scores have one level, counted from the lowest
    level[order] = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
    ours = np.bincount(level, positive / size)

    def area(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """With weights [n] of the others, sum 1: chance to be above one of them, ties half; and the chance of each."""
        others = np.bincount(level, weights)
        above = (np.cumsum(others) - others / 2)[level]
        below = (1 - np.cumsum(ours) + ours / 2)[level]
        return float((above * positive).sum() / size), np.where(positive, above, below)

    rest = np.where(positive, 0, 1 / (n - size))
    against_rest, chance = area(rest)
    influence = [n * np.where(positive, 1 / size, rest) * (chance - against_rest)]

    balanced = np.where(positive, 0, 1 / np.maximum(sizes, 1)[labels] / (present - 1))
    against_each, chance = area(balanced)
    mean_of_class = np.bincount(labels, chance, minlength=len(sizes)) / np.maximum(sizes, 1)
    influence.append(n * np.where(positive, 1 / size, balanced) * (chance - mean_of_class[labels]))

    at_least = np.cumsum(np.bincount(level)[::-1])[::-1] / n
    precision = np.cumsum(ours[::-1])[::-1] * size / n / at_least
    average_precision = float((ours * precision).sum())
    up_to, weighted_up_to = np.cumsum(ours / at_least), np.cumsum(ours / at_least * precision)
    own = n / size * (precision[level] - average_precision) + up_to[level]
    influence.append(np.where(positive, own, 0) - weighted_up_to[level])
    return np.array([against_rest, against_each, average_precision]), np.stack(influence)
