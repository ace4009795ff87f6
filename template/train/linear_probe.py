"""The convex first stage: logistic regression on frozen features, which also initialises the head.

With 10 to 100 images per class it beats ten epochs of gradient descent on the head, in seconds; and fine-tuning that
starts from it does not tear pretrained features apart while a random head settles (Kumar et al. 2022, "Fine-tuning
can distort pretrained features and underperform out-of-distribution").

Its cross-validation is also the cheapest judge of everything that comes before the head: which blocks to pool, how
large the images, how they become square. No gradient is needed for that, and every training image counts.
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from .. import device, progress
from ..data.stratify import multilabel_folds
from ..labels import is_multi, to_matrix
from .logistic import minimize, sigmoid, softmax

STRENGTHS = np.logspace(-4, 0.5, 10)
"""Inverse penalties C to choose from, for features centred and scaled to unit variance over all."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features.

    Args:
        kernel: float32 [features, classes].
        bias: float32 [classes].
        strength: the inverse penalty that cross-validation chose.
        losses: out-of-fold cross-entropy of each image, in nats, of the probabilities averaged over the views (of
            several labels an image, the mean over the classes); float64 [n], NaN if a class has a single image or group
            and none could be held out.
        accuracy: out-of-fold, likewise; of several labels an image, the share whose labels are all right.
        probabilities: out-of-fold, likewise, float64 [n, classes].
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    losses: np.ndarray
    accuracy: float
    probabilities: np.ndarray

    @property
    def cross_entropy(self) -> float:
        """Mean of the losses."""
        return float(self.losses.mean())


def fit_probe(
    features: np.ndarray, labels: np.ndarray, classes: int, seed: int, widths: Sequence[int] | None = None,
    most_repeats: int = 5, groups: np.ndarray | None = None,
) -> Probe:  # fmt: skip
    """Fit a logistic regression, multinomial or of each label against the rest, its L2 penalty by cross-validation.

    Args:
        features: float32 [views, n, features], the first view being the images as they are. Folds are of images,
            so that no view of a held-out image is trained on.
        labels: int64 [n]; or uint8 [n, classes], where an image may have several. Every class occurs.
        classes: how many there are.
        seed: of the folds.
        widths: numbers of features that belong together, such as those of one block, with the sum of all. The penalty
            treats groups alike, whatever the units and width of each. By default there is one group.
        most_repeats: how often few images may be divided into folds, for the strength; once is quick and less sure.
        groups: [n], what no two folds share (`split.clusters`): features that know the patient would be judged on
            images of patients whose label they have learned. By default each image is a group of its own.
    """
    mean, scale = scaling(features, widths)
    # Threads that wait for each other in small matrices cost 30 times: one a fold instead.
    with threadpool_limits(1, "blas"), progress.step("linear probe", unit="fits") as step:
        # Centred features only change the free intercept, and the solver needs a fraction of the steps.
        regression = Regression((features - mean) / scale, labels, classes)
        divisions = folds(labels, classes, seed, most_repeats, groups)
        strength, losses, accuracy, probabilities, start = _cross_validate(regression, divisions, step)
        point = regression.fit(np.arange(len(labels)), strength, start, tolerance=1e-6)
        kernel, bias = unscaled(regression.kernel(point), point[-1], mean, scale)
    return Probe(kernel, bias, strength, losses, accuracy, probabilities)


def scaling(features: np.ndarray, widths: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What to take off features and to divide them by, [features] each; the arguments are those of `fit_probe`."""
    mean = features[0].mean(axis=0)
    return mean, _scale(features[0] - mean, widths or [features.shape[-1]])


def unscaled(
    kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias for features as they are, float32, of those for what `scaling` makes of them."""
    kernel = kernel / scale[:, None]
    return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)


def folds(
    labels: np.ndarray,
    classes: int,
    seed: int,
    most_repeats: int = 1,
    groups: np.ndarray | None = None,
    most_folds: int = 5,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified divisions for cross-validation, none of which parts a group or takes all of a class.

    Few images are divided several times: how they fall into folds then matters as much as what is compared.

    Args:
        labels: int64 [n], or uint8 [n, classes].
        classes: how many there are.
        seed: another number, other folds.
        most_repeats: how often, at most, all are divided; once for 1,000 images and more.
        groups: [n], or None.
        most_folds: how many a repeat has, unless a class has fewer images or groups.

    Returns:
        (rows to learn from, rows to judge), 2 to `most_folds` a repeat, in which every image is judged once. None if a
        class has one image or group only, which cannot be held out and learned from.
    """
    repeats = min(most_repeats, math.ceil(1000 / len(labels)))
    held = np.arange(len(labels)) if groups is None else groups
    alone = len(np.unique(held)) == len(labels)
    has = to_matrix(labels, classes) > 0
    most = min(most_folds, *(len(np.unique(held[has[:, label]])) for label in range(classes)))
    if is_multi(labels):
        return _multilabel_folds(labels, most, seed, repeats, None if alone else held)
    if alone:
        divide = RepeatedStratifiedKFold(n_splits=most, n_repeats=repeats, random_state=seed) if most > 1 else None
        return list(divide.split(labels, labels)) if divide else []
    for number in range(most, 1, -1):
        divides = [StratifiedGroupKFold(number, shuffle=True, random_state=seed + r) for r in range(repeats)]
        divisions = [division for divide in divides for division in divide.split(labels, labels, held)]
        if all(len(np.unique(labels[inside])) == classes and len(outside) for inside, outside in divisions):
            return divisions
    return []


def _multilabel_folds(
    labels: np.ndarray, most: int, seed: int, repeats: int, groups: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    for number in range(most, 1, -1):
        numbers = range(seed, seed + repeats)
        divisions = [division for s in numbers for division in multilabel_folds(labels, number, s, groups)]
        if all(labels[inside].any(axis=0).all() and len(outside) for inside, outside in divisions):
            return divisions
    return []


class Regression:
    """Logistic regressions on some of the images, which share the dot products of all.

    Args:
        features: float32 [views, n, features]. Each image counts once, however many views of it there are.
        labels: int64 [n], or uint8 [n, classes].
        classes: how many there are.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
        self.views, self.n, width = features.shape
        self.rows, self.labels, self.classes = features.reshape(-1, width), labels, classes
        self.targets, self.link = to_matrix(labels, classes), sigmoid if is_multi(labels) else softmax
        self.products = self.rows @ self.rows.T if len(self.rows) < width else None

    def zeros(self, images: np.ndarray) -> np.ndarray:
        """Where to start from."""
        return np.zeros((self.views * len(images) + 1, self.classes), np.float32)

    def mean(self, points: Sequence[np.ndarray], learned: Sequence[np.ndarray]) -> np.ndarray:
        """Where to start from with all images: the mean of the points of fits that learned each of them."""
        total = self.zeros(np.arange(self.n))
        fits = np.zeros((len(total), 1), np.float32)
        for point, images in zip(points, learned, strict=True):
            where = np.append(self._rows_of(images), -1)
            total[where] += point
            fits[where] += 1
        return total / np.maximum(fits, 1)

    def fit(self, images: np.ndarray, strength: float, start: np.ndarray, tolerance: float) -> np.ndarray:
        """The point, as of `minimize`, that is best for these images."""
        # Two columns of logits that are each other's negative have half the norm of their difference, squared.
        penalty = float(self.views / strength * (2 if self.classes == 2 and self.link is softmax else 1))
        targets = np.tile(self.targets[images], (self.views, 1))
        return minimize(self._gram(images, images), targets, penalty, start, tolerance, self.link)

    def taught(self, targets: np.ndarray) -> "Regression":
        """The same images with other targets, float32 [n, classes], one-hot or soft."""
        other = copy.copy(self)
        other.targets = targets
        return other

    def predict(self, point: np.ndarray, learned: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Probabilities [images, classes], float64 and above zero: the mean over the views, after `fit` on others."""
        logits = self._gram(images, learned)(point[:-1]) + point[-1].astype(np.float64)
        mean = np.clip(self.link(logits), 1e-12, 1).reshape(self.views, len(images), -1).mean(axis=0)
        return mean if self.link is sigmoid else mean / mean.sum(axis=1, keepdims=True)

    def judge(self, probabilities: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss of each of some images, and whether it is predicted correctly; float64 and bool [images]."""
        has = self.targets[images] > 0
        if self.link is softmax:
            return -np.log(probabilities[has]), probabilities.argmax(axis=1) == self.labels[images]
        losses = -np.log(np.where(has, probabilities, np.clip(1 - probabilities, 1e-12, 1)))
        return losses.mean(axis=1), ((probabilities > 0.5) == has).all(axis=1)

    def kernel(self, point: np.ndarray) -> np.ndarray:
        """Of a point for all images, [features, classes]."""
        return self.rows.T @ point[:-1]

    def _gram(self, left: np.ndarray, right: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Multiplies by the dot products of all views of some images with those of others."""
        left, right = self._rows_of(left), self._rows_of(right)
        if self.products is not None:
            return functools.partial(np.matmul, self.products[np.ix_(left, right)])
        left, right = self.rows[left], self.rows[right].T
        return lambda coefficients: left @ (right @ coefficients)

    def _rows_of(self, images: np.ndarray) -> np.ndarray:
        return np.add.outer(np.arange(self.views) * self.n, images).ravel()


def _cross_validate(
    regression: Regression, divisions: Sequence[tuple[np.ndarray, np.ndarray]], step: progress.Step
) -> tuple[float, np.ndarray, float, np.ndarray, np.ndarray]:
    """What `choose_strength` returns, and a start for all."""
    everything = np.arange(regression.n)
    if not divisions:
        strength = float(STRENGTHS[len(STRENGTHS) // 2])
        return strength, *nothing_held_out(regression.n, regression.classes), regression.zeros(everything)
    # Each starts where it ended with the last strength, and never where another fold did: before all has converged,
    # that would know the labels of images held out here.
    points = [regression.zeros(inside) for inside, _ in divisions]

    def out_of_fold(fold: int, strength: float) -> np.ndarray:
        inside, outside = divisions[fold]
        points[fold] = regression.fit(inside, strength, points[fold], tolerance=3e-6)
        return regression.predict(points[fold], inside, outside)

    @functools.cache
    def judge(number: int) -> tuple[np.ndarray, float, np.ndarray]:
        strength = float(STRENGTHS[number])
        return hold_out(regression, functools.partial(out_of_fold, strength=strength), divisions, regression.n, step)

    best = _lowest(lambda number: judge(number)[0].mean(), len(STRENGTHS))
    return float(STRENGTHS[best]), *judge(best), regression.mean(points, [inside for inside, _ in divisions])


def hold_out(
    regression: Regression, out_of_fold: Callable[[int], np.ndarray],
    divisions: Sequence[tuple[np.ndarray, np.ndarray]], n: int, step: progress.Step,
) -> tuple[np.ndarray, float, np.ndarray]:  # fmt: skip
    """Out-of-fold losses [n], accuracy and probabilities [n, classes], as means over the repeats.

    Args:
        regression: that knows the labels.
        out_of_fold: number of a division -> probabilities of the images outside it.
        divisions: from `folds`.
        n: images that are divided, the first ones of the regression.
        step: which counts the fits.
    """
    sums, shares = np.zeros((2, n)), np.zeros((n, regression.classes))
    with ThreadPoolExecutor(min(4, device.cores())) as pool:
        results = pool.map(out_of_fold, range(len(divisions)))
        for (_, outside), p in zip(divisions, step.over(results), strict=True):
            sums[:, outside] += regression.judge(p, outside)
            shares[outside] += p
    times = sum(len(outside) for _, outside in divisions)
    losses, correct = sums * n / times
    return losses, float(correct.mean()), shares * n / times


def nothing_held_out(n: int, classes: int) -> tuple[np.ndarray, float, np.ndarray]:
    """What `hold_out` returns where nothing can be held out: NaN."""
    return np.full(n, np.nan), np.nan, np.full((n, classes), np.nan)


def _lowest(value: Callable[[int], float], count: int) -> int:
    """Where values that fall and then rise are lowest: from the middle on, downhill."""
    best = count // 2
    for way in (1, -1):
        while 0 <= best + way < count and value(best + way) < value(best):
            best += way
    return best


def _scale(centred: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """What to divide features [n, f] by for all groups to have the same variance, and all together that of f."""
    share = centred.shape[1] / len(widths)
    groups = np.split(centred, np.cumsum(widths)[:-1], axis=1)
    return np.concatenate(
        [np.full(w, np.sqrt(np.sum(g**2) / len(g) / share) or 1.0) for g, w in zip(groups, widths, strict=True)]
    )
