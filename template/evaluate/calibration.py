"""Temperature scaling, decision thresholds and selective prediction. Everything is fitted on validation only."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import beta
from sklearn.metrics import precision_recall_curve

from ..labels import is_multi
from . import metrics
from .intervals import paired_z, share_interval, wilson_interval
from .levels import at_level
from .metrics import BINS
from .predictions import Predictions
from .tree import coarser_levels

PRIOR_STD = 0.5
"""Standard deviation of the prior on the logarithm of the temperature: two of three in 0.6 to 1.6."""
_ANSWERED = 2.0
"""In place of the confidence of an image that has its answer: above all that have none."""


def temperature(logits: np.ndarray, labels: np.ndarray, *, prior_std: float = PRIOR_STD) -> float:
    """What to divide logits by for the least mean cross-entropy (Guo et al. 2017, "On calibration of modern neural
    networks"): above 1 where a network is overconfident.

    A few images, all predicted correctly, would have it at zero and every probability at one. So it is the most
    probable value (MAP) under a normal prior on its logarithm, of standard deviation `prior_std`, and with smoothed
    targets (`smoothed_losses`). By 2,000 images both hardly matter.

    Args:
        logits: finite float [n, classes].
        labels: int64 [n], or uint8 [n, classes] where an image may have several.
        prior_std: infinite for no prior, as where networks are compared and their own confidence must not matter.
    """

    def loss(log_temperature: float) -> float:
        prior = (log_temperature / prior_std) ** 2 / 2
        return smoothed_losses(logits, labels, temperature=np.exp(log_temperature)).sum() + prior

    return float(np.exp(minimize_scalar(loss, bounds=(-6, 6), method="bounded").x))


def smoothed_losses(logits: np.ndarray, labels: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Cross-entropy of each image, as if one label in all were that of the most probable other class: float64 [n].

    Targets are (n + 1) / (n + 2) and not 1 (Platt 1999, "Probabilistic outputs for support vector machines"). Where an
    image may have several labels, each class has such targets, and the loss is the mean over the classes.
    """
    if is_multi(labels):
        return _binary_losses(np.asarray(logits, np.float64) / temperature, labels)
    logits, rows, smoothing = np.asarray(logits, np.float64), np.arange(len(labels)), 1 / (len(labels) + 2)
    others = logits.copy()
    others[rows, labels] = -np.inf
    logs = log_softmax(logits / temperature, axis=1)
    return -(1 - smoothing) * logs[rows, labels] - smoothing * logs[rows, others.argmax(axis=1)]


def _binary_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`smoothed_losses` of several labels an image: Platt's targets by class, (n+ + 1) / (n+ + 2) and 1 / (n- + 2)."""
    positives, n = labels.sum(axis=0, dtype=np.int64), len(labels)
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (n - positives + 2))
    return (np.logaddexp(0, logits) - targets * logits).mean(axis=1)


def lower_bound(successes: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Lower end of the one-sided 90 % Jeffreys interval of a proportion, in [0, 1] (Brown, Cai and DasGupta 2001,
    "Interval estimation for a binomial proportion"): 0.95 for 27 of 27.

    The best of many thresholds is partly luck: the share that it had on few images is not the one that it will have.
    """
    return beta.ppf(0.1, successes + 0.5, trials - successes + 0.5)


def reliability(predictions: Predictions) -> list[dict[str, Any]]:
    """The data of a reliability diagram: accuracy by confidence, in the bins of `metrics.ece` that have images.

    Returns:
        `images`, mean `confidence`, and `accuracy` with its interval, of each bin from low to high.
    """
    confidence, correct = predictions.probabilities.max(axis=1), predictions.predicted == predictions.labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "images": int((bins == b).sum()),
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": share_interval(correct, groups=predictions.groups, among=bins == b),
        }
        for b in np.unique(bins)
    ]


def independent_counts(scores: np.ndarray, thresholds: np.ndarray, *, groups: np.ndarray | None = None) -> np.ndarray:
    """How many images have at least this score; or, since those of a group are not independent, of how many groups.

    Args:
        scores: float [n].
        thresholds: float [m].
        groups: [n] names, or None.

    Returns:
        int64 [m].
    """
    if groups is not None:
        members = np.unique(groups, return_inverse=True)[1]
        images, scores = scores, np.full(members.max() + 1, -np.inf)
        np.maximum.at(scores, members, images)
    return len(scores) - np.searchsorted(np.sort(scores), thresholds)


def threshold(
    scores: np.ndarray, positive: np.ndarray, *, precision: float | None = None, groups: np.ndarray | None = None
) -> float | None:
    """Decision threshold of one class against the rest.

    Args:
        scores: probabilities of the class, [n], of validation images.
        positive: bool [n], whether they are of that class.
        precision: target, in (0, 1): the threshold with the best recall of those whose precision has a `lower_bound`
            so high. By default the threshold with the best F1.
        groups: [n] names of what belongs together, or None; the bound then counts groups (`independent_counts`).

    Returns:
        Half way to the next lower probability, so as not to fit the last digit; None if no threshold keeps the
        precision, or if nothing is positive.
    """
    if not positive.any():
        return None
    precisions, recalls, thresholds = precision_recall_curve(positive, scores)
    precisions, recalls = precisions[:-1], recalls[:-1]  # the last point has no threshold
    if precision is None:
        best = int(np.argmax(2 * precisions * recalls / np.maximum(precisions + recalls, 1e-12)))
    else:
        n = independent_counts(scores, thresholds, groups=groups)
        kept = np.flatnonzero(lower_bound(precisions * n, n) >= precision)
        if not len(kept):
            return None
        best = int(kept[0])
    below = scores[scores < thresholds[best]].max(initial=0.0)
    return float((thresholds[best] + below) / 2)


def risk_coverage(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risk-coverage curve of selective prediction (El-Yaniv and Wiener 2010).

    Returns:
        Confidence thresholds, falling; coverage, which is the share of images with at least that confidence; and the
        accuracy among them (1 - risk). Images of equal confidence are one point.
    """
    return _risk_coverage(predictions.probabilities.max(axis=1), predictions.predicted == predictions.labels)


def _risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(-confidence, kind="stable")
    last = np.append(np.diff(confidence[order]) != 0, True)  # of those of equal confidence
    covered = np.arange(1, len(order) + 1)[last]
    return confidence[order][last], covered / len(order), np.cumsum(correct[order])[last] / covered


def risk_coverage_table(predictions: Predictions, *, points: int = 100) -> list[dict[str, Any]]:
    """`coverage`, and `accuracy` with its interval, at so many points of `risk_coverage`: as many as a chart shows."""
    _, coverages, accuracies = risk_coverage(predictions)
    shown = np.unique(np.linspace(0, len(coverages) - 1, points).astype(int))
    covered = (coverages[shown] * len(predictions.ids)).round().astype(int)
    correct = (accuracies[shown] * covered).round().astype(int)
    return [
        {"coverage": float(coverages[i]), "accuracy": wilson_interval(int(k), int(n))}
        for i, k, n in zip(shown, correct, covered, strict=True)
    ]


def confidence_for(predictions: Predictions, accuracy: float) -> float | None:
    """Lowest confidence threshold with this accuracy, in (0, 1), above it; None if `lower_bound` never reaches it."""
    confidence, correct = predictions.probabilities.max(axis=1), predictions.predicted == predictions.labels
    return _lowest(confidence, correct, accuracy, predictions.groups)


def _lowest(confidence: np.ndarray, correct: np.ndarray, accuracy: float, groups: np.ndarray | None) -> float | None:
    confidences, _, accuracies = _risk_coverage(confidence, correct)
    n = independent_counts(confidence, confidences, groups=groups)
    enough = np.flatnonzero(lower_bound(accuracies * n, n) >= accuracy)
    return float(confidences[enough[-1]]) if len(enough) else None


def selective_accuracy(predictions: Predictions, confidence: float) -> dict[str, Any]:
    """`coverage` (share of images with at least this confidence) and `accuracy` among them, null if there are none."""
    covered = predictions.probabilities.max(axis=1) >= confidence
    correct, groups = predictions.predicted == predictions.labels, predictions.groups
    return {
        "confidence": confidence,
        "coverage": share_interval(covered, groups=groups),
        "accuracy": share_interval(correct, groups=groups, among=covered) if covered.any() else None,
    }


def coarser_answers(
    val: Predictions, measured: Predictions, *, accuracy: float, confidence: float | None
) -> list[dict[str, Any]]:
    """The reject option above the classes: of what an image is, where the network is not sure of its class.

    From the level below the classes upwards, an image that has no answer yet gets the most probable node, if its
    probability reaches a threshold: the lowest at which all answers so far, each at its own level, have the accuracy.

    Args:
        val: calibrated, with labels; decides.
        measured: calibrated, with labels; is measured.
        accuracy: as in `confidence_for`, whose rule it is.
        confidence: threshold of the classes, from there, or None.

    Returns:
        By level as in `tree.coarser_levels`: `confidence`, or None where no threshold gives anybody an answer;
        `coverage` (share of all images that are answered here) and `accuracy` among them, or None.
    """
    least, rows = confidence, []
    sure, sure_val = (p.probabilities.max(axis=1) >= _threshold(least) for p in (measured, val))
    correct = val.predicted == val.labels
    for level in reversed(coarser_levels(val.class_names)):
        on_val, own = at_level(val, level), at_level(measured, level)
        scores = np.where(sure_val, _ANSWERED, on_val.probabilities.max(axis=1))
        correct = np.where(sure_val, correct, on_val.predicted == on_val.labels)
        least = _lowest(scores, correct, accuracy, val.groups)
        least = None if least == _ANSWERED else least
        here = ~sure & (own.probabilities.max(axis=1) >= _threshold(least))
        right, groups = own.predicted == own.labels, own.groups
        rows.append({
            "confidence": least,
            "coverage": share_interval(here, groups=groups),
            "accuracy": share_interval(right, groups=groups, among=here) if here.any() else None,
        })  # fmt: skip
        sure, sure_val = sure | here, scores >= _threshold(least)
    return rows[::-1]


def _threshold(confidence: float | None) -> float:
    """What a probability must reach; without a threshold none does."""
    return _ANSWERED if confidence is None else confidence


def clear_temperature(val: Predictions) -> float:
    """The `temperature` of validation, or 1 unless it lowers the `smoothed_losses` by more than a standard error."""
    found = temperature(val.logits, val.labels)
    losses = [smoothed_losses(val.logits, val.labels, temperature=t) for t in (found, 1.0)]
    return found if paired_z(*losses, groups=val.groups) > 1 else 1.0


def calibrate(
    val: Predictions, test: Predictions | None, *, accuracy: float = 0.95, precision: float | None = None
) -> dict[str, Any]:
    """Fit temperature, thresholds and reject option on validation, and measure them on test images.

    Args:
        val: with labels; decides everything.
        test: with labels, or None.
        accuracy: target of selective prediction (the reject option).
        precision: target of each class's threshold; by default its best F1.

    Returns:
        `temperature` (`clear_temperature` of validation); of the test
        images (or those of validation) the `reliability` tables and scores `before` and `after` it; `reject`: the
        `target` accuracy and the `selective_accuracy` for it, null where no confidence suffices; `thresholds`: by
        class the decision threshold, and `precision` and `recall` there; where class names are a tree, `levels`: the
        `coarser_answers`.
    """
    measured, found = val if test is None else test, clear_temperature(val)
    scaled_val, scaled = val.scaled(found), measured.scaled(found)
    result: dict[str, Any] = {"temperature": found}
    for name, predictions in (("before", measured), ("after", scaled)):
        result[name] = {**metrics.probability_scores(predictions), "reliability": reliability(predictions)}
    confidence = confidence_for(scaled_val, accuracy)
    impossible = {"confidence": None, "coverage": None, "accuracy": None}
    result["reject"] = {
        "target": accuracy,
        **(impossible if confidence is None else selective_accuracy(scaled, confidence)),
    }
    if levels := coarser_answers(scaled_val, scaled, accuracy=accuracy, confidence=confidence):
        result["levels"] = levels
    result["thresholds"] = {}
    on_val, on_measured = scaled_val.probabilities, scaled.probabilities
    for label, name in enumerate(val.class_names):
        at = threshold(on_val[:, label], val.labels == label, precision=precision, groups=val.groups)
        if at is not None:
            predicted, positive = on_measured[:, label] >= at, measured.labels == label
            tp, groups = predicted & positive, measured.groups
            result["thresholds"][name] = {
                "threshold": at,
                "precision": share_interval(tp, groups=groups, among=predicted) if predicted.any() else None,
                "recall": share_interval(tp, groups=groups, among=positive) if positive.any() else None,
            }
    return result
