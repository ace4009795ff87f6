"""Numbers, each with its interval.

What counts right and wrong is computed from three counts a class (hits, true, said), so that a thousand bootstrap
samples of a thousand classes take seconds; tests hold every value to scikit-learn's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.metrics import confusion_matrix

from .intervals import (
    basic_bootstrap,
    bootstrap_weights,
    influence_interval,
    percentile_bootstrap,
    share_interval,
    undefined,
    wilson_interval,
)
from .predictions import Predictions

BINS = 15
"""Of equal width, for the calibration error, as in Guo et al. 2017."""
CLASSWISE = 200_000
"""Images times classes up to which the classwise calibration error is shown: beyond, its interval takes minutes."""


def score(predictions: Predictions, k: int | None = None, seed: int = 0) -> dict[str, Any]:
    """All metrics of labelled predictions.

    Args:
        predictions: with a label for every image.
        k: of top-k; by default 5, or one less than there are classes.
        seed: of the bootstrap.

    Returns:
        JSON-ready. `images`, `groups` (or null), `majority_baseline` (accuracy of always saying the commonest class).
        With `value`, `low` and `high` (95 %; null where undefined): `accuracy`, `top_k` (with `k`, and in `tied` the
        images where only the order of classes decided), `balanced_accuracy`, `macro_precision`, `macro_f1`,
        `weighted_precision`, `weighted_f1`, `matthews_corrcoef`, `cohen_kappa`, `cross_entropy` (nats), `brier`
        (0 to 2), `ece`, `classwise_ece` (null for many images of many classes), `roc_auc_ovr` (each
        class against the rest, mean), `roc_auc_ovo` (each pair of classes, mean), `average_precision` (mean over
        classes). `classes`: the same of each class taken as positive
        (`precision`, `recall`, `f1`, `roc_auc_ovr`, `average_precision`, `images`). `top_confusions`: the commonest.
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
    right, images = predictions.predicted == labels, _by_image(predictions, k)
    counts, sampled = (
        class_counts(labels, predictions.predicted, classes),
        bootstrap_scores(predictions, seed, images),
    )

    result = {
        "images": n,
        "groups": None if predictions.groups is None else len(np.unique(predictions.groups)),
        "majority_baseline": float(np.bincount(labels).max() / n),
        "accuracy": share_interval(right, predictions.groups),
        "top_k": {"k": k, "tied": int(images["tied"].sum()), **share_interval(images["top_k"], predictions.groups)},
    }
    for name, metric in COUNT_METRICS.items():
        result[name] = percentile_bootstrap(metric(*counts), sampled[name])
        if right.all() == right.any() and result[name]["value"] is not None:  # resampling all alike shows no spread
            result[name]["low"] = min(result["accuracy"]["low"], result[name]["low"])
            result[name]["high"] = max(result["accuracy"]["high"], result[name]["high"])
    ranks, by_class = ranking_scores(predictions)
    result |= _of_probabilities(predictions, images, sampled) | ranks
    return result | {
        "classes": _per_class(predictions, counts, sampled, by_class),
        "top_confusions": top_confusions(predictions),
    }


def probability_scores(predictions: Predictions, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Of `score` what a temperature changes: cross-entropy, Brier and the calibration errors."""
    images = _by_image(predictions, k=1)
    return _of_probabilities(predictions, images, bootstrap_scores(predictions, seed, images))


def confusion_counts(predictions: Predictions) -> np.ndarray:
    """int64 [classes, classes]: images of a true class (row) taken for a class (column)."""
    return confusion_matrix(predictions.labels, predictions.predicted, labels=range(len(predictions.class_names)))


def top_confusions(predictions: Predictions, most: int = 10) -> list[dict[str, Any]]:
    """The commonest confusions, `{"true", "said", "images", "share"}`, the share being that of the true class."""
    wrong = predictions.predicted != predictions.labels
    pairs, images = np.unique(
        np.stack([predictions.labels[wrong], predictions.predicted[wrong]]), axis=1, return_counts=True
    )
    sizes, names, first = np.bincount(predictions.labels), predictions.class_names, np.argsort(-images, kind="stable")
    return [
        {
            "true": names[true],
            "said": names[said],
            "images": int(count),
            "share": wilson_interval(int(count), sizes[true]),
        }
        for (true, said), count in zip(pairs.T[first[:most]], images[first[:most]], strict=True)
    ]


def class_counts(
    labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of each class that are `hits`, that are `true` and that were `said`, float64 [..., classes].

    Args:
        labels: int64 [n].
        predicted: int64 [n].
        classes: how many there are.
        weights: how often each image counts, [samples, n]; once by default, and then no axis of samples.
    """
    right = labels == predicted
    rows = [np.ones(len(labels))] if weights is None else weights
    counted = [
        [np.bincount(which, row[mask], minlength=classes) for row in rows]
        for which, mask in ((labels[right], right), (labels, slice(None)), (predicted, slice(None)))
    ]
    hits, true, said = (np.array(one if weights is not None else one[0]) for one in counted)
    return hits, true, said


def precision(hits: np.ndarray, _: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Share of right answers among those that said the class; NaN for a class that was never said."""
    return _divide(hits, said)


def recall(hits: np.ndarray, true: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Share of the class that was recognised; NaN for a class without images."""
    return _divide(hits, true)


def f1(hits: np.ndarray, true: np.ndarray, said: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN); NaN for a class that neither occurs nor is said."""
    return _divide(2 * hits, true + said)


def matthews_corrcoef(hits: np.ndarray, true: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Correlation of truth and prediction, -1 to 1 (Gorodkin 2004); NaN where one of them never varies."""
    n = true.sum(axis=-1)
    spread = (n**2 - (true**2).sum(axis=-1)) * (n**2 - (said**2).sum(axis=-1))
    return _divide(hits.sum(axis=-1) * n - (true * said).sum(axis=-1), np.sqrt(spread))


def cohen_kappa(hits: np.ndarray, true: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Agreement beyond chance, 1 at best, 0 as by chance (Cohen 1960)."""
    n = true.sum(axis=-1)
    by_chance = (true * said).sum(axis=-1)
    return _divide(hits.sum(axis=-1) * n - by_chance, n**2 - by_chance)


def _mean(metric: Callable, weighted: bool = False) -> Callable:
    """Mean of a metric over the classes where it is defined, or over images (of their true class)."""

    def mean(hits: np.ndarray, true: np.ndarray, said: np.ndarray) -> np.ndarray:
        values = metric(hits, true, said)
        weights = np.where(np.isnan(values), 0, true if weighted else 1)
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
"""Scores of (hits, true, said), each [..., classes], to [...]. A class without the score is left out of the mean."""
CLASS_METRICS: dict[str, Callable] = {"precision": precision, "recall": recall, "f1": f1}
"""Scores of (hits, true, said), each [..., classes], to [..., classes]."""


def ece(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error: mean distance of confidence and accuracy over bins of confidence, in [0, 1].

    Naeini et al. 2015, as in Guo et al. 2017. Biased upwards: with 100 images a perfect classifier shows 0.05.

    Args:
        confidence: [n], probability of what was said.
        right: bool [n].
        weights: [samples, n] as in `class_counts`; without, a single number.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = np.ones((1, len(bins))) if weights is None else weights
    gaps = np.array([np.bincount(bins, row * (confidence - right), minlength=BINS) for row in rows])
    errors = np.abs(gaps).sum(axis=1) / rows.sum(axis=1)
    return errors[0] if weights is None else errors


def classwise_ece(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """The same of the probability of every class and not only of the answer, mean over classes (Nixon et al. 2019).

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


def ranking_scores(predictions: Predictions) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Areas under ROC curves and average precision: how well probabilities sort images, whatever the threshold.

    Returns:
        `roc_auc_ovr` and `average_precision` (each class against all others; mean over classes) and `roc_auc_ovo` (mean
        over pairs of classes, which no class dominates; Hand and Till 2001); and the first two of each class.
    """
    n, labels, groups = len(predictions.labels), predictions.labels, predictions.groups
    sizes = np.bincount(labels, minlength=len(predictions.class_names))
    worth = sizes if groups is None else [len(np.unique(groups[labels == label])) for label in range(len(sizes))]
    present, names = int((sizes > 0).sum()), ("roc_auc_ovr", "roc_auc_ovo", "average_precision")
    by_class, total, values = [], np.zeros((3, n)), []
    parts = np.array_split(predictions.logits, 1 + predictions.logits.size // 10**7)
    total_evidence = np.concatenate([logsumexp(part.astype(np.float64), axis=1) for part in parts])
    for label, size in enumerate(sizes):
        if not 0 < size < n:
            value, influence = np.full(3, np.nan), np.zeros((3, n))
        else:
            evidence = predictions.logits[:, label] - total_evidence  # logarithm of the probability
            evidence = evidence.astype(np.float32)  # what differs by rounding alone is equal
            value, influence = _ranks(evidence, labels, label, sizes, present)
            total += influence
            values.append(value)
        least = max(1, int(min(size, n - size, worth[label])))
        by_class.append(
            {name: influence_interval(value[i], influence[i], groups, least) for i, name in enumerate(names) if i != 1}
        )
    means = np.mean(values, axis=0) if values else np.full(3, np.nan)
    total /= max(1, len(values))
    least = int(min(number for number in worth if number))
    return {name: influence_interval(means[i], total[i], groups, least) for i, name in enumerate(names)}, by_class


def _ranks(
    evidence: np.ndarray, labels: np.ndarray, label: int, sizes: np.ndarray, present: int
) -> tuple[np.ndarray, np.ndarray]:
    """Area against the rest, mean area against each other class, average precision of one class; influences [3, n]."""
    n, size, positive = len(labels), sizes[label], labels == label
    order = np.argsort(evidence)  # equal ones in any order: their level is the same
    sorted_evidence = evidence[order]
    level = np.empty(n, np.int64)  # equal evidence has one level, counted from the lowest
    level[order] = np.concatenate([[0], np.cumsum(sorted_evidence[1:] != sorted_evidence[:-1])])
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

    alike = np.where(positive, 0, 1 / np.maximum(sizes, 1)[labels] / (present - 1))
    against_each, chance = area(alike)
    mean_of_class = np.bincount(labels, chance, minlength=len(sizes)) / np.maximum(sizes, 1)
    influence.append(n * np.where(positive, 1 / size, alike) * (chance - mean_of_class[labels]))

    at_least = np.cumsum(np.bincount(level)[::-1])[::-1] / n
    precise = np.cumsum(ours[::-1])[::-1] * size / n / at_least
    mean_precision = float((ours * precise).sum())
    up_to, weighted_up_to = np.cumsum(ours / at_least), np.cumsum(ours / at_least * precise)
    own = n / size * (precise[level] - mean_precision) + up_to[level]
    influence.append(np.where(positive, own, 0) - weighted_up_to[level])
    return np.array([against_rest, against_each, mean_precision]), np.stack(influence)


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
    predictions: Predictions, seed: int = 0, images: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Scores of bootstrap samples, [samples] each, those of a class [samples, classes].

    For as many images the same seed draws the same samples, so that scores of two runs can be subtracted.

    Args:
        predictions: with a label for every image.
        seed: of the draws.
        images: from `_by_image`, if it is there already.
    """
    images = images or _by_image(predictions, k=1)
    n, classes = predictions.logits.shape
    right = predictions.predicted == predictions.labels
    means = {"accuracy": right, **{name: images[name] for name in ("top_k", "cross_entropy", "brier")}}
    collected: dict[str, list] = {}
    for weights in bootstrap_weights(n, predictions.groups, seed):
        counts = class_counts(predictions.labels, predictions.predicted, classes, weights)
        some = {name: metric(*counts) for name, metric in {**COUNT_METRICS, **CLASS_METRICS}.items()}
        some |= {name: weights @ values / weights.sum(axis=1) for name, values in means.items()}
        some["ece"] = ece(images["confidence"], right, weights)
        if predictions.logits.size <= CLASSWISE:
            some["classwise_ece"] = classwise_ece(predictions, weights)
        for name, values in some.items():
            collected.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in collected.items()}


def _of_probabilities(
    predictions: Predictions, images: dict[str, np.ndarray], sampled: dict[str, np.ndarray]
) -> dict[str, dict[str, float | None]]:
    result = {name: percentile_bootstrap(images[name].mean(), sampled[name]) for name in ("cross_entropy", "brier")}
    right, name = predictions.predicted == predictions.labels, "classwise_ece"
    value = ece(images["confidence"], right)
    result["ece"] = basic_bootstrap(value, sampled["ece"])
    result[name] = basic_bootstrap(classwise_ece(predictions), sampled[name]) if name in sampled else undefined()
    return result


def _per_class(
    predictions: Predictions, counts: tuple[np.ndarray, ...], sampled: dict[str, np.ndarray], ranks: list[dict]
) -> dict[str, dict[str, Any]]:
    """Each class taken as positive."""
    table = {}
    for i, name in enumerate(predictions.class_names):
        row = {
            key: percentile_bootstrap(metric(*counts)[i], sampled[key][:, i]) for key, metric in CLASS_METRICS.items()
        }
        true, said = predictions.labels == i, predictions.predicted == i
        for key, of in (("precision", said), ("recall", true)):
            if of.any():  # a proportion, for which there is something better
                row[key] = share_interval(true & said, predictions.groups, of)
        row["f1"] = _as_wide(row["f1"], row["precision"], row["recall"])
        table[name] = {"images": int(true.sum()), **row, **ranks[i]}
    return table


def _as_wide(f1: dict[str, float | None], *of: dict[str, float | None]) -> dict[str, float | None]:
    """The interval of an F1 of 0 or 1, which resampling shows no spread of, as wide as of what it is the mean of."""
    if f1["value"] not in {0.0, 1.0}:
        return f1
    known = [f1, *(each for each in of if each["value"] == f1["value"])]
    return f1 | {"low": min(each["low"] for each in known), "high": max(each["high"] for each in known)}


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the divisor is zero."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
