"""Probabilities that mean what they say, and decisions made with them. Everything is fitted on validation only."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import precision_recall_curve

from . import metrics
from .intervals import lead, proportion
from .metrics import BINS
from .predictions import Predictions


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What to divide logits by for the least mean cross-entropy (Guo et al. 2017, "On calibration of modern neural
    networks"): above 1 where a network is too sure of itself.

    Args:
        logits: finite float [n, classes].
        labels: int64 [n].
    """
    logits, rows = np.asarray(logits, np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-6, 6), method="bounded").x))


def reliability(predictions: Predictions) -> list[dict[str, Any]]:
    """Accuracy by confidence, in the bins of the calibration error that have pictures.

    Returns:
        `images`, mean `confidence`, and `accuracy` with its interval, of each bin from low to high.
    """
    confidence, right = predictions.probabilities.max(axis=1), predictions.predicted == predictions.labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "images": int((bins == b).sum()),
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": proportion(int(right[bins == b].sum()), int((bins == b).sum())),
        }
        for b in np.unique(bins)
    ]


def threshold(evidence: np.ndarray, positive: np.ndarray, precision: float | None = None) -> float | None:
    """Probability from which to say yes.

    Args:
        evidence: probabilities of one class, [n], of validation pictures.
        positive: bool [n], whether they are of that class.
        precision: share of right answers wanted among the yeses, in (0, 1]: the threshold with the most yeses that
            keeps it. By default the threshold with the best F1.

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
        kept = np.flatnonzero(precisions >= precision)
        if not len(kept):
            return None
        best = int(kept[0])
    below = evidence[evidence < at[best]].max(initial=0.0)
    return float((at[best] + below) / 2)


def coverage(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is left if the least sure answers are withheld (El-Yaniv and Wiener 2010, risk-coverage curve).

    Returns:
        Confidences to withhold answers below, falling; share of pictures answered; accuracy among them. Pictures of
        equal confidence are answered together.
    """
    confidence, right = predictions.probabilities.max(axis=1), predictions.predicted == predictions.labels
    order = np.argsort(-confidence, kind="stable")
    last = np.append(np.diff(confidence[order]) != 0, True)  # of those that are equally sure
    answered = np.arange(1, len(order) + 1)[last]
    return confidence[order][last], answered / len(order), np.cumsum(right[order])[last] / answered


def confidence_for(predictions: Predictions, accuracy: float) -> float | None:
    """Least confidence above which answers have this accuracy, in (0, 1]; None if no confidence gives it."""
    confidences, _, accuracies = coverage(predictions)
    enough = np.flatnonzero(accuracies >= accuracy)
    return float(confidences[enough[-1]]) if len(enough) else None


def answered(predictions: Predictions, confidence: float) -> dict[str, Any]:
    """`coverage` (share of pictures answered with at least this confidence) and `accuracy` among them, or null."""
    sure = predictions.probabilities.max(axis=1) >= confidence
    right = int((predictions.predicted == predictions.labels)[sure].sum())
    return {
        "confidence": confidence,
        "coverage": proportion(int(sure.sum()), len(sure)),
        "accuracy": proportion(right, int(sure.sum())) if sure.any() else None,
    }


def calibrate(
    val: Predictions, test: Predictions | None, accuracy: float = 0.95, precision: float | None = None
) -> dict[str, Any]:
    """Fit temperature, thresholds and reject option on validation, and see what they do on test pictures.

    Args:
        val: with labels; decides everything.
        test: with labels, or None.
        accuracy: wanted of the answers that are given.
        precision: wanted of the yeses of each class; by default the best F1 is.

    Returns:
        `temperature` (1 unless another lowers the validation loss by more than a standard error); of the test
        pictures (or those of validation) the `reliability` tables and scores `before` and `after` it; `reject`: the
        accuracy `wanted` and what `answered` says of it, null where no confidence suffices; `thresholds`: by class the
        probability from which to say yes, and `precision` and `recall` there.
    """
    rows, measured = np.arange(len(val.labels)), val if test is None else test
    found = temperature(val.logits, val.labels)
    losses = [-np.log(np.clip(p.probabilities[rows, val.labels], 1e-30, 1)) for p in (val.scaled(found), val)]
    found = found if lead(*losses) > 1 else 1.0
    sure, scaled = val.scaled(found), measured.scaled(found)
    result: dict[str, Any] = {"temperature": found}
    for name, predictions in (("before", measured), ("after", scaled)):
        result[name] = {**metrics.probability_scores(predictions), "reliability": reliability(predictions)}
    confidence = confidence_for(sure, accuracy)
    nobody = {"confidence": None, "coverage": None, "accuracy": None}
    result["reject"] = {"wanted": accuracy, **(nobody if confidence is None else answered(scaled, confidence))}
    result["thresholds"] = {}
    on_val, on_measured = sure.probabilities, scaled.probabilities
    for label, name in enumerate(val.class_names):
        at = threshold(on_val[:, label], val.labels == label, precision)
        if at is not None:
            said, positive = on_measured[:, label] >= at, measured.labels == label
            hits = int((said & positive).sum())
            result["thresholds"][name] = {
                "threshold": at,
                "precision": proportion(hits, int(said.sum())) if said.any() else None,
                "recall": proportion(hits, int(positive.sum())) if positive.any() else None,
            }
    return result
