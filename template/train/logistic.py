"""Logistic regression, multinomial or one-vs-rest, with an L2 penalty, for more features than rows.

Conjugate gradients, in the dual.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit

MAX_STEPS = 1000
"""At most. Usual are 10 to 60."""
MAX_TRIALS = 20
"""Lengths of a step that are tried at most. Usual is one."""


def minimize(
    gram: Callable[[np.ndarray], np.ndarray],
    targets: np.ndarray,
    penalty: float,
    start: np.ndarray,
    tolerance: float,
    link: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Minimum of  sum_i -log p_i + penalty / 2 * |W|^2,  of which the intercepts b are free.

    With softmax as the link, p_i = softmax(x_i W + b)[y_i]. With sigmoid, it is the product over classes of sigmoid(x_i
    W + b) where an image has that label, and of 1 - sigmoid(x_i W + b) where not: a regression for each class.

    Its W is a sum of rows, X^T A (representer theorem: Schölkopf et al. 2001, "A generalized representer theorem"). So
    A is sought, and all that is asked of the features are dot products of rows: with fewer rows than features one small
    matrix product a step, in place of two large ones. The steps are those of Polak-Ribière conjugate gradients on W and
    b (Nocedal & Wright 2006, "Numerical optimization", section 5.2), seen from A.

    Args:
        gram: from [n, classes] to X X^T times it.
        targets: float32 [n, classes], one-hot for softmax.
        penalty: above 0.
        start: float32 [n + 1, classes], A with b below it.
        tolerance: ends when a step lowers the sum by less than so many nats a row.
        link: `softmax` or `sigmoid`.

    Returns:
        A with b below it.
    """
    at, curved = start, _sigmoid_curvature if link is sigmoid else _softmax_curvature
    logits = gram(at[:-1]) + at[-1]
    probabilities, gradient = _gradient(at, link(logits), targets, penalty)
    direction, image, old, old_square = 0 * at, 0 * at, 0 * at, 1.0
    for _ in range(MAX_STEPS):
        # Images are what dot products in the space of W and b need: <u, v> = sum(u * image of v).
        lifted = np.concatenate([gram(gradient[:-1]), gradient[-1:]])
        square = _dot(gradient, lifted)
        momentum = max(0.0, (square - _dot(gradient, old)) / old_square)
        if momentum * _dot(gradient, image) >= square:  # it would go uphill
            momentum = 0.0
        direction, image = momentum * direction - gradient, momentum * image - lifted
        old, old_square, change = lifted, square, image[:-1] + direction[-1]
        slope = _dot(gradient, image)
        curvature = curved(probabilities, change) + penalty * _dot(direction[:-1], image[:-1])
        if slope >= 0 or curvature <= 0:  # there already, as far as float32 knows
            break
        step = -slope / curvature
        for _ in range(MAX_TRIALS):  # logits are linear in the step: to look again costs no product
            probabilities, gradient = _gradient(at + step * direction, link(logits + step * change), targets, penalty)
            ahead = _dot(gradient, image)
            if ahead <= -slope / 2:
                break
            step *= slope / (slope - ahead)  # beyond the valley; there the slope would be zero if it rose evenly
        at, logits = at + step * direction, logits + step * change
        if -slope * step / 2 <= tolerance * len(targets):
            break
    return at


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [n, classes] of exactly one class each."""
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities [n, classes] of each class alone."""
    return expit(logits)


def _gradient(
    at: np.ndarray, probabilities: np.ndarray, targets: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, classes] as they are, and the gradient as a point [n + 1, classes]."""
    residuals = probabilities - targets
    return probabilities, np.concatenate([residuals + penalty * at[:-1], residuals.sum(axis=0, keepdims=True)])


def _softmax_curvature(probabilities: np.ndarray, change: np.ndarray) -> float:
    """Second derivative of the sum of losses where logits [n, classes] change so: the variances of the changes."""
    expected = probabilities * change
    return _dot(expected, change) - float(np.sum(expected.sum(axis=1) ** 2))


def _sigmoid_curvature(probabilities: np.ndarray, change: np.ndarray) -> float:
    return _dot(probabilities * (1 - probabilities), change**2)


def _dot(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.vdot(one, other))
