"""Probabilities that mean what they say, and decisions made with them. Everything is fitted on validation only."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import beta
from sklearn.metrics import precision_recall_curve

from . import metrics
from .intervals import paired_z, share_interval
from .metrics import BINS
from .predictions import Predictions

PRIOR_STD = 0.5
"""Standard deviation of the logarithm of the temperature before any image was seen: two of three in 0.6 to 1.6."""


def temperature(logits: np.ndarray, labels: np.ndarray, doubt: float = PRIOR_STD) -> float:
    """What to divide logits by for the least mean cross-entropy (Guo et al. 2017, "On calibration of modern neural
    networks"): above 1 where a network is too sure of itself.

    Few images, all right, would have it at zero and every probability at one. So it is the most probable value (MAP)
    after two things known beforehand: it is not far from 1 (a normal prior on its logarithm, of deviation `doubt`), and
    the next answer may be wrong (`smoothed_losses`). By 2,000 images both are forgotten.

    Args:
        logits: finite float [n, classes].
        labels: int64 [n].
        doubt: infinite where it must not matter how sure the network is of itself, as between networks.
    """

    def loss(log_temperature: float) -> float:
        prior = (log_temperature / doubt) ** 2 / 2
        return smoothed_losses(logits, labels, np.exp(log_temperature)).sum() + prior

    return float(np.exp(minimize_scalar(loss, bounds=(-6, 6), method="bounded").x))


def smoothed_losses(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Cross-entropy of each image, as if one answer in all had gone to its likeliest other class: float64 [n].

    Targets are (n + 1) / (n + 2) and not 1 (Platt 1999, "Probabilistic outputs for support vector machines").
    """
    logits, rows, doubt = np.asarray(logits, np.float64), np.arange(len(labels)), 1 / (len(labels) + 2)
    others = logits.copy()
    others[rows, labels] = -np.inf
    said = log_softmax(logits / temperature, axis=1)
    return -(1 - doubt) * said[rows, labels] - doubt * said[rows, others.argmax(axis=1)]


def lower_bound(hits: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Share of hits, in [0, 1], that the truth is above with 90 % confidence (Jeffreys interval, one-sided; Brown, Cai
    and DasGupta 2001, "Interval estimation for a binomial proportion"); 27 of 27 promise 95 %.

    The best of many thresholds is partly luck: the share that it had on few images is not the one that it will have.
    """
    return beta.ppf(0.1, hits + 0.5, trials - hits + 0.5)


def reliability(predictions: Predictions) -> list[dict[str, Any]]:
    """Accuracy by confidence, in the bins of the calibration error that have images.

    Returns:
        `images`, mean `confidence`, and `accuracy` with its interval, of each bin from low to high.
    """
    confidence, right = predictions.probabilities.max(axis=1), predictions.predicted == predictions.labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "images": int((bins == b).sum()),
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": share_interval(right, predictions.groups, bins == b),
        }
        for b in np.unique(bins)
    ]


def witnesses(evidence: np.ndarray, at: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """How many images have at least this much evidence, or, since those of a group are one witness, of how many groups.

    Args:
        evidence: float [n].
        at: float [m].
        groups: [n] names, or None.

    Returns:
        int64 [m].
    """
    if groups is not None:
        members = np.unique(groups, return_inverse=True)[1]
        images, evidence = evidence, np.full(members.max() + 1, -np.inf)
        np.maximum.at(evidence, members, images)
    return len(evidence) - np.searchsorted(np.sort(evidence), at)


def threshold(
    evidence: np.ndarray, positive: np.ndarray, precision: float | None = None, groups: np.ndarray | None = None
) -> float | None:
    """Probability from which to say yes.

    Args:
        evidence: probabilities of one class, [n], of validation images.
        positive: bool [n], whether they are of that class.
        precision: share of right answers wanted among the yeses, in (0, 1): the threshold with the most yeses of
            which `lower_bound` so many are right. By default the threshold with the best F1.
        groups: [n] names of what was drawn together, or None; only so many `witnesses` can promise a precision.

    Returns:
        Half way to the next lower probability, so as not to fit the last digit; None if no threshold keeps the
        precision, or if nothing is positive.
    """
    if not positive.any():
        return None
    precisions, recalls, at = precision_recall_curve(positive, evidence)
    precisions, recalls = precisions[:-1], recalls[:-1]  # the last point has no threshold
    if precision is None:
        best = int(np.argmax(2 * precisions * recalls / np.maximum(precisions + recalls, 1e-12)))
    else:
        said = witnesses(evidence, at, groups)
        kept = np.flatnonzero(lower_bound(precisions * said, said) >= precision)
        if not len(kept):
            return None
        best = int(kept[0])
    below = evidence[evidence < at[best]].max(initial=0.0)
    return float((at[best] + below) / 2)


def risk_coverage(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is left if the least sure answers are withheld (El-Yaniv and Wiener 2010, risk-coverage curve).

    Returns:
        Confidences to withhold answers below, falling; share of images answered; accuracy among them. Images of
        equal confidence are answered together.
    """
    confidence, right = predictions.probabilities.max(axis=1), predictions.predicted == predictions.labels
    order = np.argsort(-confidence, kind="stable")
    last = np.append(np.diff(confidence[order]) != 0, True)  # of those that are equally sure
    answered = np.arange(1, len(order) + 1)[last]
    return confidence[order][last], answered / len(order), np.cumsum(right[order])[last] / answered


def confidence_for(predictions: Predictions, accuracy: float) -> float | None:
    """Least confidence from which answers have this accuracy, in (0, 1); None if `lower_bound` never reaches it."""
    confidences, _, accuracies = risk_coverage(predictions)
    given = witnesses(predictions.probabilities.max(axis=1), confidences, predictions.groups)
    enough = np.flatnonzero(lower_bound(accuracies * given, given) >= accuracy)
    return float(confidences[enough[-1]]) if len(enough) else None


def selective_accuracy(predictions: Predictions, confidence: float) -> dict[str, Any]:
    """`risk_coverage` (share of images answered with at least this confidence) and `accuracy` among them, or null."""
    sure = predictions.probabilities.max(axis=1) >= confidence
    right, groups = predictions.predicted == predictions.labels, predictions.groups
    return {
        "confidence": confidence,
        "coverage": share_interval(sure, groups),
        "accuracy": share_interval(right, groups, sure) if sure.any() else None,
    }


def calibrate(
    val: Predictions, test: Predictions | None, accuracy: float = 0.95, precision: float | None = None
) -> dict[str, Any]:
    """Fit temperature, thresholds and reject option on validation, and see what they do on test images.

    Args:
        val: with labels; decides everything.
        test: with labels, or None.
        accuracy: wanted of the answers that are given.
        precision: wanted of the yeses of each class; by default the best F1 is.

    Returns:
        `temperature` (1 unless another lowers the `smoothed_losses` by more than a standard error); of the test
        images (or those of validation) the `reliability` tables and scores `before` and `after` it; `reject`: the
        accuracy `wanted` and what `selective_accuracy` says of it, null where no confidence suffices; `thresholds`: by
        class the probability from which to say yes, and `precision` and `recall` there.
    """
    measured, found = val if test is None else test, temperature(val.logits, val.labels)
    losses = [smoothed_losses(val.logits, val.labels, t) for t in (found, 1.0)]
    found = found if paired_z(*losses, val.groups) > 1 else 1.0
    sure, scaled = val.scaled(found), measured.scaled(found)
    result: dict[str, Any] = {"temperature": found}
    for name, predictions in (("before", measured), ("after", scaled)):
        result[name] = {**metrics.probability_scores(predictions), "reliability": reliability(predictions)}
    confidence = confidence_for(sure, accuracy)
    nobody = {"confidence": None, "coverage": None, "accuracy": None}
    result["reject"] = {
        "wanted": accuracy,
        **(nobody if confidence is None else selective_accuracy(scaled, confidence)),
    }
    result["thresholds"] = {}
    on_val, on_measured = sure.probabilities, scaled.probabilities
    for label, name in enumerate(val.class_names):
        at = threshold(on_val[:, label], val.labels == label, precision, val.groups)
        if at is not None:
            said, positive = on_measured[:, label] >= at, measured.labels == label
            hits, groups = said & positive, measured.groups
            result["thresholds"][name] = {
                "threshold": at,
                "precision": share_interval(hits, groups, said) if said.any() else None,
                "recall": share_interval(hits, groups, positive) if positive.any() else None,
            }
    return result
