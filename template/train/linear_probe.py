"""The convex first stage: logistic regression on frozen features, which also initialises the head.

With 10 to 100 images per class it beats ten epochs of gradient descent on the head, in seconds; and fine-tuning that
starts from it does not tear pretrained features apart while a random head settles (Kumar et al. 2022, "Fine-tuning
can distort pretrained features and underperform out-of-distribution").

Its cross-validation is also the cheapest judge of everything that comes before the head: which blocks to pool, how
large the images, how they become square. No gradient is needed for that, and every training image votes.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedGroupKFold
from threadpoolctl import threadpool_limits

STRENGTHS = np.logspace(-4, 0.5, 10)
"""Inverse penalties C to choose from, for features centred and scaled to unit variance over all."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features.

    Args:
        kernel: float32 [features, classes].
        bias: float32 [classes].
        strength: the inverse penalty that cross-validation chose.
        losses: out-of-fold cross-entropy of each image, in nats, of the probabilities averaged over the views;
            float64 [n], NaN if a class has a single image or group and none could be held out.
        accuracy: out-of-fold, likewise.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    losses: np.ndarray
    accuracy: float

    @property
    def cross_entropy(self) -> float:
        """Mean of the losses."""
        return float(self.losses.mean())


def fit_probe(
    features: np.ndarray, labels: np.ndarray, classes: int, seed: int, widths: Sequence[int] | None = None,
    most_repeats: int = 5, groups: np.ndarray | None = None,
) -> Probe:  # fmt: skip
    """Fit a multinomial logistic regression, with its L2 penalty chosen by stratified cross-validation.

    Args:
        features: float32 [views, n, features], the first view being the images as they are. Folds are of images,
            so that no view of a held-out image is trained on.
        labels: int64 [n]; every class occurs.
        classes: how many there are.
        seed: of the folds.
        widths: numbers of features that belong together, such as those of one block, with the sum of all. The penalty
            treats groups alike, whatever the units and width of each. By default there is one group.
        most_repeats: how often few images may be divided into folds, for the strength; once is quick and less sure.
        groups: [n], what no two folds share (`split.clusters`): features that know the patient would be judged on
            images of patients whose label they have learned. By default each image is a group of its own.
    """
    widths = widths or [features.shape[-1]]
    mean = features[0].mean(axis=0)
    scale = _scale(features[0] - mean, widths)
    # These matrices are small: threads that wait for each other cost 30 times.
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        # Where float32 knows no step that lowers the loss any more, the solver calls that abnormal.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Centred features only change the free intercept, and the solver needs a fraction of the iterations.
        rotated, basis = _rotated((features - mean) / scale)
        divisions = folds(labels, classes, seed, most_repeats, groups)
        strength, losses, accuracy = _strength(rotated, labels, divisions)
        # Each image counts once, however many views of it there are.
        model = _regression(tolerance=1e-4).set_params(C=strength / len(features))
        model.fit(rotated.reshape(-1, rotated.shape[-1]), np.tile(labels, len(features)))
    kernel, bias = basis @ model.coef_.T, model.intercept_
    if classes == 2:  # one column of log-odds becomes two of logits
        kernel, bias = np.hstack([-kernel, kernel]) / 2, np.concatenate([-bias, bias]) / 2
    kernel = kernel / scale[:, None]
    bias = bias - mean @ kernel
    return Probe(kernel.astype(np.float32), bias.astype(np.float32), strength, losses, accuracy)


def folds(
    labels: np.ndarray, classes: int, seed: int, most_repeats: int = 1, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified divisions for cross-validation, none of which parts a group or takes all of a class.

    Few images are divided several times: how they fall into folds then matters as much as what is compared.

    Args:
        labels: int64 [n].
        classes: how many there are.
        seed: another number, other folds.
        most_repeats: how often, at most, all are divided; once for 1,000 images and more.
        groups: [n], or None.

    Returns:
        (rows to learn from, rows to judge), 2 to 5 a repeat, in which every image is judged once. None if a class has
        one image or group only, which cannot be held out and learned from.
    """
    repeats = min(most_repeats, math.ceil(1000 / len(labels)))
    alone = groups is None or len(np.unique(groups)) == len(labels)
    held = np.arange(len(labels)) if alone else groups
    most = min(5, *(len(np.unique(held[labels == label])) for label in range(classes)))
    if alone:
        divide = RepeatedStratifiedKFold(n_splits=most, n_repeats=repeats, random_state=seed) if most > 1 else None
        return list(divide.split(labels, labels)) if divide else []
    for number in range(most, 1, -1):
        divides = [StratifiedGroupKFold(number, shuffle=True, random_state=seed + r) for r in range(repeats)]
        divisions = [division for divide in divides for division in divide.split(labels, labels, groups)]
        if all(len(np.unique(labels[inside])) == classes and len(outside) for inside, outside in divisions):
            return divisions
    return []


def _strength(
    features: np.ndarray, labels: np.ndarray, divisions: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, np.ndarray, float]:
    """Best inverse penalty, its out-of-fold losses [n] and accuracy; NaN without divisions."""
    n, views = len(labels), len(features)
    if not divisions:
        return float(STRENGTHS[len(STRENGTHS) // 2]), np.full(n, np.nan), np.nan
    repeats = sum(len(outside) for _, outside in divisions) // n
    losses, hits = np.zeros((2, len(STRENGTHS), n))
    for inside, outside in divisions:
        model = _regression(tolerance=1e-3)
        inputs, targets = features[:, inside].reshape(-1, features.shape[-1]), np.tile(labels[inside], views)
        for number, c in enumerate(STRENGTHS):  # each starts where the last one ended
            model.set_params(C=c / views).fit(inputs, targets)
            said = np.mean([_probabilities(model, view[outside]) for view in features], axis=0)
            losses[number, outside] -= np.log(said[np.arange(len(outside)), labels[outside]]) / repeats
            hits[number, outside] += (said.argmax(axis=1) == labels[outside]) / repeats
    best = int(np.argmin(losses.mean(axis=1)))
    return float(STRENGTHS[best]), losses[best], float(hits[best].mean())


def _scale(centred: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """What to divide features [n, f] by for all groups to have the same variance, and all together that of f."""
    share = centred.shape[1] / len(widths)
    groups = np.split(centred, np.cumsum(widths)[:-1], axis=1)
    return np.concatenate(
        [np.full(w, np.sqrt(np.sum(g**2) / len(g) / share) or 1.0) for g, w in zip(groups, widths, strict=True)]
    )


def _rotated(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of features [views, n, f] in an orthonormal basis [f, rank] of the space that they span.

    With fewer rows than features that is exact, as L2 penalties and dot products do not see a rotation, and small.
    """
    views, n, width = features.shape
    if views * n >= width:
        return features, np.eye(width, dtype=features.dtype)
    basis = np.linalg.qr(features.reshape(views * n, width).T)[0]
    return features @ basis, basis


def _regression(tolerance: float) -> LogisticRegression:
    return LogisticRegression(max_iter=1000, tol=tolerance, warm_start=True)


def _probabilities(model: LogisticRegression, features: np.ndarray) -> np.ndarray:
    """float64 [n, classes] above zero, each row with sum 1 beyond the precision of float32 features."""
    return softmax(np.log(np.clip(model.predict_proba(features).astype(np.float64), 1e-12, 1)), axis=1)
