"""Scores of predicted classes, whatever their probabilities.

All are computed from three counts per class (tp, support, predicted), so that a thousand bootstrap samples of a
thousand classes take seconds; tests hold every value to scikit-learn's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from .intervals import wilson_interval
from .predictions import Predictions


def confusion_counts(predictions: Predictions) -> np.ndarray:
    """int64 [classes, classes]: images of a true class (row) that were predicted as a class (column)."""
    return confusion_matrix(predictions.labels, predictions.predicted, labels=range(len(predictions.class_names)))


def top_confusions(predictions: Predictions, *, most: int = 10) -> list[dict[str, Any]]:
    """The most frequent confusions: `true` and `predicted` class, `images`, and their `share` of the true class."""
    counts, names = confusion_counts(predictions), predictions.class_names
    sizes = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    first = np.argsort(-counts, axis=None, kind="stable")[:most]
    return [
        {
            "true": names[true],
            "predicted": names[predicted],
            "images": int(counts[true, predicted]),
            "share": wilson_interval(int(counts[true, predicted]), int(sizes[true])),
        }
        for true, predicted in zip(*np.unravel_index(first, counts.shape), strict=True)
        if counts[true, predicted]
    ]


def class_counts(
    labels: np.ndarray, predictions: np.ndarray, classes: int, *, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, support (images of the class) and predicted (images given the class) of each class.

    Args:
        labels: int64 [n], true classes.
        predictions: int64 [n], predicted classes.
        classes: how many there are.
        weights: how often each image counts, [samples, n]; once by default, and then no axis of samples.

    Returns:
        `tp`, `support`, `predicted`: float64 [..., classes] each.
    """
    correct = labels == predictions
    rows = [np.ones(len(labels))] if weights is None else weights
    counted = [
        [np.bincount(which, row[mask], minlength=classes) for row in rows]
        for which, mask in ((labels[correct], correct), (labels, slice(None)), (predictions, slice(None)))
    ]
    tp, support, predicted = (np.array(one if weights is not None else one[0]) for one in counted)
    return tp, support, predicted


def precision(tp: np.ndarray, _: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """TP / (TP + FP); NaN for a class that was never predicted."""
    return _divide(tp, predicted)


def recall(tp: np.ndarray, support: np.ndarray, _: np.ndarray) -> np.ndarray:
    """TP / (TP + FN); NaN for a class without images."""
    return _divide(tp, support)


def f1(tp: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN); NaN for a class that neither occurs nor is predicted."""
    return _divide(2 * tp, support + predicted)


def matthews_corrcoef(tp: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Correlation of label and prediction, -1 to 1 (Gorodkin 2004); NaN where one of them never varies."""
    n = support.sum(axis=-1)
    spread = (n**2 - (support**2).sum(axis=-1)) * (n**2 - (predicted**2).sum(axis=-1))
    return _divide(tp.sum(axis=-1) * n - (support * predicted).sum(axis=-1), np.sqrt(spread))


def cohen_kappa(tp: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Agreement beyond chance, 1 at best, 0 as by chance (Cohen 1960)."""
    n = support.sum(axis=-1)
    by_chance = (support * predicted).sum(axis=-1)
    return _divide(tp.sum(axis=-1) * n - by_chance, n**2 - by_chance)


def _mean(metric: Callable, *, weighted: bool = False) -> Callable:
    """Mean of a metric over the classes where it is defined (macro), or over images of their true class (weighted)."""

    def mean(tp: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        values = metric(tp, support, predicted)
        weights = np.where(np.isnan(values), 0, support if weighted else 1)
        return _divide((np.nan_to_num(values) * weights).sum(axis=-1), weights.sum(axis=-1))

    return mean


COUNT_METRICS: dict[str, Callable] = {
    "balanced_accuracy": _mean(recall),
    "macro_precision": _mean(precision),
    "macro_f1": _mean(f1),
    "weighted_precision": _mean(precision, weighted=True),
    "weighted_f1": _mean(f1, weighted=True),
    "matthews_corrcoef": matthews_corrcoef,
    "cohen_kappa": cohen_kappa,
}
"""Scores of (tp, support, predicted), [..., classes] each, to [...]. A mean leaves out classes without the score."""
CLASS_METRICS: dict[str, Callable] = {"precision": precision, "recall": recall, "f1": f1}
"""Scores of (tp, support, predicted), [..., classes] each, to [..., classes]."""


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the divisor is zero."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
