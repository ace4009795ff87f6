"""All metrics of a classifier, each with its 95 % interval."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import softmax

from .classification import CLASS_METRICS, COUNT_METRICS, class_counts, top_confusions
from .intervals import (
    Interval,
    basic_bootstrap,
    bootstrap_weights,
    number_parts,
    percent_parts,
    percentile_bootstrap,
    share_interval,
    undefined,
    widened,
)
from .levels import level_scores
from .predictions import Predictions
from .ranking import ranking_scores

BINS = 15
"""Of equal width, for the calibration error, as in Guo et al. 2017."""
CLASSWISE = 200_000
"""Images times classes up to which the classwise calibration error is shown: beyond, its interval takes minutes."""

TITLES: dict[str, tuple[str, Callable]] = {
    "accuracy": ("accuracy", percent_parts),
    "top-{k} accuracy": ("top_k", percent_parts),
    "balanced accuracy": ("balanced_accuracy", percent_parts),
    "macro precision": ("macro_precision", percent_parts),
    "macro F1": ("macro_f1", percent_parts),
    "weighted F1": ("weighted_f1", percent_parts),
    "Matthews correlation coefficient": ("matthews_corrcoef", number_parts),
    "Cohen's kappa": ("cohen_kappa", number_parts),
    "ROC AUC, one-vs-rest": ("roc_auc_ovr", number_parts),
    "ROC AUC, one-vs-one": ("roc_auc_ovo", number_parts),
    "average precision": ("average_precision", number_parts),
    "cross-entropy": ("cross_entropy", number_parts),
    "Brier score": ("brier", number_parts),
    "expected calibration error (ECE)": ("ece", number_parts),
    "classwise ECE": ("classwise_ece", number_parts),
}
"""Scores by what a report calls them: the key in metrics.json, and how to write value and interval."""


def score(predictions: Predictions, *, k: int | None = None, seed: int = 0) -> dict[str, Any]:
    """All metrics of labelled predictions.

    Args:
        predictions: with a label for every image.
        k: of top-k; by default 5, or one less than there are classes.
        seed: of the bootstrap.

    Returns:
        JSON-ready. `images`, `groups` (or null), `majority_baseline` (accuracy of always predicting the most frequent
        class). With `value`, `low` and `high` (95 %; null where undefined): `accuracy`, `top_k` (with `k`, and in
        `tied` the images where only the order of classes decided), `balanced_accuracy`, `macro_precision`, `macro_f1`,
        `weighted_precision`, `weighted_f1`, `matthews_corrcoef`, `cohen_kappa`, `cross_entropy` (nats), `brier`
        (0 to 2), `ece`, `classwise_ece` (null for many images of many classes), `roc_auc_ovr` (each class against the
        rest, mean), `roc_auc_ovo` (each pair of classes, mean), `average_precision` (mean over classes). `classes`:
        one-vs-rest scores of each class (`precision`, `recall`, `f1`, `roc_auc_ovr`, `average_precision`, `images`).
        `top_confusions`: the most frequent confusions. `levels`, where class names are a tree: `levels.level_scores`.
        Micro-averaged precision, recall and F1, and weighted recall, are the accuracy.

    Raises:
        ValueError: if there are no predictions, a label is unknown, or k is not below the number of classes.
    """
    labels, n, classes = predictions.labels, len(predictions.labels), len(predictions.class_names)
    if n == 0 or (labels < 0).any():
        raise ValueError(f"Expected at least one image, all with labels. Received: {n}, {(labels < 0).sum()} without")
    k = max(1, min(5, classes - 1)) if k is None else k
    if not 1 <= k <= max(1, classes - 1):
        raise ValueError(f"Expected k from 1 to {max(1, classes - 1)}, one less than there are classes. Received: {k}")
    correct, images = predictions.predicted == labels, _by_image(predictions, k)
    counts, groups = class_counts(labels, predictions.predicted, classes), predictions.groups
    sampled = bootstrap_scores(predictions, seed=seed, images=images)

    result: dict[str, Any] = {
        "images": n,
        "groups": None if groups is None else len(np.unique(groups)),
        "majority_baseline": float(np.bincount(labels).max() / n),
        "accuracy": share_interval(correct, groups=groups),
        "top_k": {"k": k, "tied": int(images["tied"].sum()), **share_interval(images["top_k"], groups=groups)},
    }
    for name, metric in COUNT_METRICS.items():
        result[name] = percentile_bootstrap(metric(*counts), sampled[name])
        if correct.all() == correct.any() and result[name]["value"] is not None:  # all alike: resampling has no spread
            result[name] = widened(result[name], result["accuracy"])
    ranks, by_class = ranking_scores(predictions)
    result |= _probability_scores(predictions, images, sampled) | ranks
    return result | {
        "classes": _per_class(predictions, counts, sampled, by_class),
        "top_confusions": top_confusions(predictions),
        **({"levels": levels} if (levels := level_scores(predictions)) else {}),
    }


def probability_scores(predictions: Predictions, *, seed: int = 0) -> dict[str, Interval]:
    """The scores that a temperature changes: cross-entropy, Brier score and calibration errors."""
    images = _by_image(predictions, k=1)
    return _probability_scores(predictions, images, bootstrap_scores(predictions, seed=seed, images=images))


def ece(confidence: np.ndarray, correct: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error: mean distance of confidence and accuracy over bins of confidence, in [0, 1].

    Naeini et al. 2015, as in Guo et al. 2017. Biased upwards: with 100 images a perfect classifier shows 0.05.

    Args:
        confidence: [n], probability of the predicted class.
        correct: bool [n].
        weights: [samples, n] as in `class_counts`; without, a single number.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = np.ones((1, len(bins))) if weights is None else weights
    gaps = np.array([np.bincount(bins, row * (confidence - correct), minlength=BINS) for row in rows])
    errors = np.abs(gaps).sum(axis=1) / rows.sum(axis=1)
    return errors[0] if weights is None else errors


def classwise_ece(predictions: Predictions, *, weights: np.ndarray | None = None) -> np.ndarray:
    """The same for the probability of every class, not only the predicted one; mean over classes (Nixon et al. 2019).

    Args:
        predictions: with labels.
        weights: [samples, n] as in `class_counts`; without, a single number.
    """
    probabilities, classes = predictions.probabilities, len(predictions.class_names)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1) + BINS * np.arange(classes)
    gaps = probabilities - (predictions.labels[:, None] == np.arange(classes))
    rows = np.ones((1, len(gaps))) if weights is None else weights
    sums = np.array([np.bincount(bins.ravel(), (row[:, None] * gaps).ravel(), BINS * classes) for row in rows])
    errors = np.abs(sums).sum(axis=1) / rows.sum(axis=1) / classes
    return errors[0] if weights is None else errors


def _by_image(predictions: Predictions, k: int) -> dict[str, np.ndarray]:
    """What each image adds to a mean, [n] each: `top_k`, `tied`, `cross_entropy`, `brier`; and its `confidence`."""
    n, classes = predictions.logits.shape
    result = {name: np.zeros(n) for name in ("top_k", "tied", "cross_entropy", "brier", "confidence")}
    for start in range(0, n, max(1, 10**7 // classes)):
        rows = slice(start, start + max(1, 10**7 // classes))
        logits, labels = predictions.logits[rows].astype(np.float64), predictions.labels[rows]
        probabilities, own = softmax(logits, axis=1), logits[np.arange(len(labels)), labels]
        above, equal = logits > own[:, None], logits == own[:, None]
        earlier = (equal & (np.arange(classes) < labels[:, None])).sum(axis=1)  # of equals the first, as `predicted`
        before = above.sum(axis=1)
        result["top_k"][rows] = before + earlier < k
        result["tied"][rows] = (before < k) & (before + equal.sum(axis=1) > k)
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
        result["cross_entropy"][rows] = losses
        result["brier"][rows] = (probabilities**2).sum(axis=1) - 2 * probabilities[np.arange(len(labels)), labels] + 1
        result["confidence"][rows] = probabilities.max(axis=1)
    return result


def bootstrap_scores(
    predictions: Predictions, *, seed: int = 0, images: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Scores of bootstrap samples, [samples] each, per-class ones [samples, classes].

    With the same number of images, the same seed draws the same samples: scores of two runs can be subtracted.

    Args:
        predictions: with a label for every image.
        seed: of the draws.
        images: from `_by_image`, if it is there already.
    """
    images = images or _by_image(predictions, k=1)
    n, classes = predictions.logits.shape
    correct = predictions.predicted == predictions.labels
    means = {"accuracy": correct, **{name: images[name] for name in ("top_k", "cross_entropy", "brier")}}
    collected: dict[str, list] = {}
    for weights in bootstrap_weights(n, predictions.groups, seed):
        counts = class_counts(predictions.labels, predictions.predicted, classes, weights=weights)
        some = {name: metric(*counts) for name, metric in {**COUNT_METRICS, **CLASS_METRICS}.items()}
        some |= {name: weights @ values / weights.sum(axis=1) for name, values in means.items()}
        some["ece"] = ece(images["confidence"], correct, weights=weights)
        if predictions.logits.size <= CLASSWISE:
            some["classwise_ece"] = classwise_ece(predictions, weights=weights)
        for name, values in some.items():
            collected.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in collected.items()}


def _probability_scores(
    predictions: Predictions, images: dict[str, np.ndarray], sampled: dict[str, np.ndarray]
) -> dict[str, Interval]:
    result = {name: percentile_bootstrap(images[name].mean(), sampled[name]) for name in ("cross_entropy", "brier")}
    correct, name = predictions.predicted == predictions.labels, "classwise_ece"
    value = ece(images["confidence"], correct)
    result["ece"] = basic_bootstrap(float(value), sampled["ece"])
    result[name] = undefined()
    if name in sampled:
        result[name] = basic_bootstrap(float(classwise_ece(predictions)), sampled[name])
    return result


def _per_class(
    predictions: Predictions, counts: tuple[np.ndarray, ...], sampled: dict[str, np.ndarray], ranks: list[dict]
) -> dict[str, dict[str, Any]]:
    """One-vs-rest scores of each class."""
    table = {}
    for i, name in enumerate(predictions.class_names):
        row = {
            key: percentile_bootstrap(metric(*counts)[i], sampled[key][:, i]) for key, metric in CLASS_METRICS.items()
        }
        true, predicted = predictions.labels == i, predictions.predicted == i
        for key, among in (("precision", predicted), ("recall", true)):
            if among.any():  # a proportion has a better interval than the bootstrap's
                row[key] = share_interval(true & predicted, groups=predictions.groups, among=among)
        if row["f1"]["value"] in {0.0, 1.0}:  # resampling shows no spread
            alike = [row[key] for key in ("precision", "recall") if row[key]["value"] == row["f1"]["value"]]
            row["f1"] = widened(row["f1"], *alike)
        table[name] = {"images": int(true.sum()), **row, **ranks[i]}
    return table
