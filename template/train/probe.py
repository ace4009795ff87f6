"""The convex first stage: logistic regression on frozen features, which also initialises the head.

With 10 to 100 pictures a class it beats ten epochs of gradient descent on the head, in seconds; and fine-tuning that
starts from it does not tear pretrained features apart while a random head settles (Kumar et al. 2022, "Fine-tuning
can distort pretrained features and underperform out-of-distribution").
"""

from dataclasses import dataclass

import keras
import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from ..data.pipeline import Source, mirrored
from .features import activations, cut, inference

STRENGTHS = np.logspace(-4, 0.5, 10)
"""Inverse penalties C to choose from, for features centred and scaled to unit variance over all."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features.

    Args:
        kernel: float32 [features, classes].
        bias: float32 [classes].
        strength: the inverse penalty that cross-validation chose.
        cross_entropy: out-of-fold, in nats.
        accuracy: out-of-fold.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    cross_entropy: float
    accuracy: float


def fit_probe(features: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> Probe:
    """Fit a multinomial logistic regression, with its L2 penalty chosen by stratified cross-validation.

    Args:
        features: float32 [views, n, features], the first view being the pictures as they are. Folds are of pictures,
            so that no view of a held-out picture is trained on.
        labels: int64 [n]; every class occurs.
        classes: how many there are.
        seed: of the folds.
    """
    views, n, _ = features.shape
    # Centred features only change the free intercept, and the solver needs a fraction of the iterations.
    mean = features[0].mean(axis=0)
    scale = float(np.sqrt(np.mean((features[0] - mean) ** 2))) or 1.0
    features = (features - mean) / scale
    folds = min(5, np.bincount(labels, minlength=classes).min())
    best, losses, hits = len(STRENGTHS) // 2, [np.nan] * len(STRENGTHS), [np.nan] * len(STRENGTHS)
    if folds >= 2:  # a class of one picture cannot be held out
        held_out = np.zeros((len(STRENGTHS), n, classes))
        for inside, outside in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features[0], labels):
            model = _regression(tolerance=1e-3)
            for number, c in enumerate(STRENGTHS):  # each starts where the last one ended
                model.set_params(C=c).fit(features[0, inside], labels[inside])
                held_out[number, outside] = _probabilities(model, features[0, outside])
        losses = [log_loss(labels, p, labels=range(classes)) for p in held_out]
        hits = [(p.argmax(axis=1) == labels).mean() for p in held_out]
        best = int(np.argmin(losses))
    strength = float(STRENGTHS[best])
    # Each picture counts once, however many views of it there are.
    model = _regression(tolerance=1e-4).set_params(C=strength / views)
    model.fit(features.reshape(views * n, -1), np.tile(labels, views))
    kernel, bias = model.coef_.T, model.intercept_
    if classes == 2:  # one column of log-odds becomes two of logits
        kernel, bias = np.hstack([-kernel, kernel]) / 2, np.concatenate([-bias, bias]) / 2
    kernel = kernel / scale
    bias = bias - mean @ kernel
    return Probe(kernel.astype(np.float32), bias.astype(np.float32), strength, losses[best], hits[best])


def probe_head(model: keras.Model, source: Source, flip: bool, batch_size: int, seed: int) -> Probe:
    """Fit a probe on what enters the model's output layer, and put it there.

    Args:
        model: from `build`, without a hidden layer.
        source: training pictures as they are.
        flip: fit it on the mirrored pictures too.
        batch_size: of the passes through the network.
        seed: of the cross-validation.
    """
    head = model.get_layer("logits")
    network = inference(cut(model, head.input)[0])
    views = [source, mirrored(source)] if flip else [source]
    features = np.stack([np.concatenate(list(activations(network, view, 0, batch_size))) for view in views])
    probe = fit_probe(features, source.labels, head.units, seed)
    head.set_weights([probe.kernel, probe.bias])
    return probe


def _regression(tolerance: float) -> LogisticRegression:
    return LogisticRegression(max_iter=1000, tol=tolerance, warm_start=True)


def _probabilities(model: LogisticRegression, features: np.ndarray) -> np.ndarray:
    """float64 [n, classes] above zero, each row with sum 1 beyond the precision of float32 features."""
    return softmax(np.log(np.clip(model.predict_proba(features).astype(np.float64), 1e-12, 1)), axis=1)
