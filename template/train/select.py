"""Model selection: scores of validation logits, and the choice among candidate weights. NumPy only.

Every validation number of a training comes from here: what is logged, what patience waits for, which epoch is the
best, and which weights are kept in the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_softmax

from ..evaluate.calibration import smoothed_losses, temperature
from ..evaluate.classification import f1
from ..evaluate.intervals import paired_z
from ..labels import is_multi

MONITORED = {"cross_entropy": "val_calibrated_cross_entropy", "accuracy": "val_accuracy", "macro_f1": "val_macro_f1"}
"""Column of the history that each value of `train.monitor` means."""


def per_image_losses(logits: np.ndarray, labels: np.ndarray, monitor: str) -> np.ndarray:
    """Loss of each validation image, by which weights are chosen; the mean is 1 - accuracy, 1 - macro F1, or the
    calibrated cross-entropy: smoothed, at the fitted temperature.

    Of a few dozen images the plain cross-entropy is mostly a matter of confidence, which grows with every epoch and
    which one number corrects (`temperature`); and that of a few, all of them right, would be 0 (smoothed).

    Args:
        logits: float [n, classes].
        labels: int64 [n], or uint8 [n, classes] where an image may have several; then `cross_entropy` is the mean over
            classes of the binary ones, and `accuracy` the share of images whose labels are all right.
        monitor: as in the settings. Macro F1 is no mean over images, so it is linearised: every image gets the mean
            plus its influence, whose sum is zero (the delta method).

    Returns:
        float64 [n]; all NaN if a logit is not finite.
    """
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits).all():
        return np.full(len(labels), np.nan)
    if monitor == "cross_entropy":
        return smoothed_losses(logits, labels, temperature=temperature(logits, labels, prior_std=np.inf))
    if is_multi(labels):
        return _multilabel_losses(logits > 0, labels > 0, monitor)
    predicted = logits.argmax(axis=1)
    if monitor == "accuracy":
        return (predicted != labels).astype(float)

    correct, n = predicted == labels, logits.shape[1]
    tp, support, times = (np.bincount(x, minlength=n) for x in (labels[correct], labels, predicted))
    score = f1(tp, support, times)
    defined = ~np.isnan(score)  # of a class that neither occurs nor is predicted there is none
    score, both = np.where(defined, score, 0.0), np.maximum(support + times, 1)
    influence = 2 * correct / both[labels] - score[labels] / both[labels] - score[predicted] / both[predicted]
    return 1 - (score.sum() + len(labels) * influence) / defined.sum()


def _multilabel_losses(predicted: np.ndarray, labels: np.ndarray, monitor: str) -> np.ndarray:
    """`per_image_losses` of yes or no for each class, bool [n, classes]: accuracy or macro F1."""
    if monitor == "accuracy":
        return (predicted != labels).any(axis=1).astype(float)
    both = np.maximum(predicted.sum(axis=0) + labels.sum(axis=0), 1)
    score = 2 * (predicted & labels).sum(axis=0) / both
    influence = (2 * (predicted & labels) - score * (predicted.astype(float) + labels)) / both
    return 1 - score.mean() - len(labels) * influence.mean(axis=1)


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of validation logits by column of the history: all NaN if a logit is not finite.

    Args:
        logits: float [n, classes].
        labels: int64 [n], or uint8 [n, classes].

    Returns:
        `val_accuracy` and `val_macro_f1` in [0, 1]; `val_cross_entropy`, of the logits as they are, and
        `val_calibrated_cross_entropy`, smoothed and at the temperature fitted to them, in nats.
    """
    logits = np.asarray(logits, np.float64)
    mean = {monitor: float(per_image_losses(logits, labels, monitor).mean()) for monitor in MONITORED}
    plain = float(_cross_entropies(logits, labels).mean()) if np.isfinite(logits).all() else np.nan
    return {
        "val_accuracy": 1 - mean["accuracy"],
        "val_cross_entropy": plain,
        "val_calibrated_cross_entropy": mean["cross_entropy"],
        "val_macro_f1": 1 - mean["macro_f1"],
    }


def probability_of_labels(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the label of each image; where it may have several, the mean over the classes of the right answer's: [n]."""
    logits = np.asarray(logits, np.float64)
    if is_multi(labels):
        return expit(np.where(labels, logits, -logits)).mean(axis=1)
    return np.exp(-_cross_entropies(logits, labels))


@dataclass(frozen=True)
class Candidate:
    """Weights that a stage may end with.

    Args:
        words: what they are, for the log.
        weights: arrays of the network.
        epochs: of the stage that lead to them.
        averaged: whether they are EMA weights, or between these and those before the stage.
        alpha: of `interpolate`, from the weights before the stage.
        errors: standard errors by which they must be better than those named before them.
    """

    words: str
    weights: Sequence[np.ndarray]
    epochs: int = 0
    averaged: bool = False
    alpha: float = 0.0
    errors: float = 0.0


def candidates(before: Sequence, average: Sequence, best: tuple[int, Sequence] | None, epochs: int) -> list[Candidate]:
    """What a stage may end with: its EMA weights; halfway to them, its best epoch, or the weights from before.

    Halfway and before, if better by one standard error: a few dozen images are too few to measure what a stage is
    worth, and halfway to weights that have moved far may be worse than both ends. The best single epoch, if better by
    three: of a dozen that are alike, the luckiest leads by nearly two.

    Args:
        before: weights at the beginning of the stage.
        average: EMA weights at its end.
        best: epochs of the stage until its best one, and the weights there; or None if none was better than before.
        epochs: of the stage.
    """
    halfway = interpolate(before, average, 0.5)
    found = [
        Candidate("the EMA weights", average, epochs, True, 1.0),
        Candidate("halfway to the EMA weights", halfway, epochs, True, 0.5, errors=1),
    ]
    if best:
        found.append(Candidate(f"the weights of its epoch {best[0]}", best[1], best[0], alpha=1.0, errors=3))
    return [*found, Candidate("the weights from before the stage", before, errors=1)]


def choose(losses: Sequence[np.ndarray], errors: Sequence[float], groups: np.ndarray | None = None) -> int:
    """Number of the candidate to keep: the first, unless another clearly beats it.

    Args:
        losses: `per_image_losses` of each, float64 [n].
        errors: standard errors by which each must lead the best of those before it; of the first, not looked at.
        groups: [n], as in `paired_z`: images of one patient are not independent.
    """
    winner = 0
    for challenger in range(1, len(losses)):
        if paired_z(losses[challenger], losses[winner], groups=groups) > errors[challenger]:
            winner = challenger
    return winner


def relative_gain(before: np.ndarray, after: np.ndarray) -> float:
    """Part of the mean loss that a stage took away, in [0, 1]; 0 if either is not a number or there was none."""
    old, new = before.mean(), after.mean()
    return max(0.0, float(1 - new / old)) if 0 < old < np.inf and new < np.inf else 0.0


def interpolate(before: Sequence[np.ndarray], after: Sequence[np.ndarray], alpha: float) -> list[np.ndarray]:
    """Weights on the line from before (alpha 0) to after (alpha 1), as in WiSE-FT (Wortsman et al. 2022)."""
    return [(1 - alpha) * a + alpha * b for a, b in zip(before, after, strict=True)]


def _cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if is_multi(labels):
        return (np.logaddexp(0, logits) - labels * logits).mean(axis=1)
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
