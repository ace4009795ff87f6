"""The convex first stage: logistic regression on frozen features, which also initialises the head.

With 10 to 100 pictures a class it beats ten epochs of gradient descent on the head, in seconds; and fine-tuning that
starts from it does not tear pretrained features apart while a random head settles (Kumar et al. 2022, "Fine-tuning
can distort pretrained features and underperform out-of-distribution").

Its cross-validation is also the cheapest judge of everything that comes before the head: which blocks to pool, how
large the pictures, how they become square. No gradient is needed for that, and every training picture votes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
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
        cross_entropy: out-of-fold, in nats, of the probabilities averaged over the views.
        accuracy: out-of-fold, likewise.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    cross_entropy: float
    accuracy: float


def fit_probe(
    features: np.ndarray, labels: np.ndarray, classes: int, seed: int, widths: Sequence[int] | None = None
) -> Probe:
    """Fit a multinomial logistic regression, with its L2 penalty chosen by stratified cross-validation.

    Args:
        features: float32 [views, n, features], the first view being the pictures as they are. Folds are of pictures,
            so that no view of a held-out picture is trained on.
        labels: int64 [n]; every class occurs.
        classes: how many there are.
        seed: of the folds.
        widths: numbers of features that belong together, such as those of one block, with the sum of all. The penalty
            treats groups alike, whatever the units and width of each. By default there is one group.
    """
    widths = widths or [features.shape[-1]]
    mean = features[0].mean(axis=0)
    scale = _scale(features[0] - mean, widths)
    with threadpool_limits(1, "blas"):  # these matrices are small: threads that wait for each other cost 30 times
        # Centred features only change the free intercept, and the solver needs a fraction of the iterations.
        rotated, basis = _rotated((features - mean) / scale)
        strength, held_out = _strength(rotated, labels, classes, seed)
        # Each picture counts once, however many views of it there are.
        model = _regression(tolerance=1e-4).set_params(C=strength / len(features))
        model.fit(rotated.reshape(-1, rotated.shape[-1]), np.tile(labels, len(features)))
    kernel, bias = basis @ model.coef_.T, model.intercept_
    if classes == 2:  # one column of log-odds becomes two of logits
        kernel, bias = np.hstack([-kernel, kernel]) / 2, np.concatenate([-bias, bias]) / 2
    kernel = kernel / scale[:, None]
    bias = bias - mean @ kernel
    loss, hits = np.nan, np.nan
    if held_out is not None:
        loss, hits = log_loss(labels, held_out, labels=range(classes)), (held_out.argmax(axis=1) == labels).mean()
    return Probe(kernel.astype(np.float32), bias.astype(np.float32), strength, float(loss), float(hits))


def _strength(features: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> tuple[float, np.ndarray | None]:
    """Best inverse penalty and its out-of-fold probabilities [n, classes]; none where no class can be divided.

    Learned from the first view alone, which decides the same and takes a fraction of the time; judged on all.
    """
    folds = min(5, np.bincount(labels, minlength=classes).min())
    if folds < 2:  # a class of one picture cannot be held out
        return float(STRENGTHS[len(STRENGTHS) // 2]), None
    held_out = np.zeros((len(STRENGTHS), len(labels), classes))
    for inside, outside in StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels):
        model = _regression(tolerance=1e-3)
        for number, c in enumerate(STRENGTHS):  # each starts where the last one ended
            model.set_params(C=c).fit(features[0, inside], labels[inside])
            held_out[number, outside] = np.mean([_probabilities(model, view[outside]) for view in features], axis=0)
    best = int(np.argmin([log_loss(labels, p, labels=range(classes)) for p in held_out]))
    return float(STRENGTHS[best]), held_out[best]


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
