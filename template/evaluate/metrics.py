"""Numbers with their intervals: Wilson for proportions, bootstrap over images for the rest (95 %)."""

from typing import Any

import numpy as np
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from .predictions import Predictions

RESAMPLES = 2000


def score(predictions: Predictions, seed: int = 0) -> dict[str, Any]:
    """All metrics of labelled predictions.

    Args:
        predictions: with a label for every picture.
        seed: of the bootstrap.

    Returns:
        JSON-ready: `images`, and for `accuracy`, `top_k` (with its `k`), `macro_f1` and `cross_entropy` (nats) a
        dictionary of `value`, `low` and `high`; `majority` is the accuracy of always saying the commonest class; and
        `classes`, a table of `precision`, `recall`, `f1` (null where undefined) and `images` by class name.

    Raises:
        ValueError: if there are no predictions or a label is unknown.
    """
    labels, n = predictions.labels, len(predictions.labels)
    if n == 0 or (labels < 0).any():
        raise ValueError(f"Expected at least one picture, all with labels. Received: {n}, {(labels < 0).sum()} without")
    counts = confusion_counts(predictions)
    k = max(1, min(5, len(predictions.class_names) - 1))
    best = np.argsort(-predictions.logits, axis=1, kind="stable")[:, :k]  # of equal ones the first, as in `predicted`
    in_top_k = int((best == labels[:, None]).sum())
    losses = -log_softmax(predictions.logits.astype(np.float64), axis=1)[np.arange(n), labels]
    generator = np.random.default_rng(seed)
    mean_losses = losses[generator.integers(n, size=(min(RESAMPLES, 2 * 10**7 // n), n))].mean(axis=1)
    correct = int(np.trace(counts))
    return {
        "images": n,
        "accuracy": proportion(correct, n),
        "top_k": {"k": k, **proportion(in_top_k, n)},
        "macro_f1": _with_interval(macro_f1(counts), _resampled_macro_f1(counts, generator)),
        "cross_entropy": _with_interval(losses.mean(), mean_losses),
        "majority": float(np.bincount(labels).max() / n),
        "classes": _per_class(predictions),
    }


def confusion_counts(predictions: Predictions) -> np.ndarray:
    """int64 [classes, classes]: pictures of a true class (row) taken for a class (column)."""
    return confusion_matrix(predictions.labels, predictions.predicted, labels=range(len(predictions.class_names)))


def proportion(successes: int, trials: int) -> dict[str, float]:
    """A proportion with its 95 % interval (Wilson 1927, "Probable inference, the law of succession...")."""
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return {"value": successes / trials, "low": float(interval.low), "high": float(interval.high)}


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN), in [0, 1].

    Args:
        counts: confusion matrices [..., true class, predicted class]. A class that occurs neither as truth nor as
            prediction has no F1 and is left out of the mean.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(axis=-1) + counts.sum(axis=-2)
    scores = np.divide(2 * hits, total, out=np.full(hits.shape, np.nan), where=total > 0)
    return np.nanmean(scores, axis=-1)


def _resampled_macro_f1(counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Macro F1 of bootstrap samples, [RESAMPLES].

    Drawing n images with replacement makes the confusion counts multinomial: the same bootstrap, without the images.
    """
    n, at_once = counts.sum(), max(1, 10**7 // counts.size)  # of a thousand classes, ten matrices fit into memory
    draws = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    samples = (generator.multinomial(n, counts.ravel() / n, size).reshape(-1, *counts.shape) for size in draws)
    return np.concatenate([macro_f1(sample) for sample in samples])


def _with_interval(value: float, resampled: np.ndarray) -> dict[str, float]:
    """Value and the middle 95 % of its bootstrap distribution (Efron and Tibshirani 1993, percentile interval)."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _per_class(predictions: Predictions) -> dict[str, dict[str, float | None]]:
    labels = list(range(len(predictions.class_names)))
    table = precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=labels, zero_division=np.nan
    )
    keys = ("precision", "recall", "f1", "images")
    return {
        name: {key: None if np.isnan(x) else float(x) for key, x in zip(keys, row, strict=True)}
        for name, row in zip(predictions.class_names, zip(*table, strict=True), strict=True)
    }
