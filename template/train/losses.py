"""Training losses: cross-entropy or focal, smoothed labels, class weights, long tail, distillation."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ..config import Train
from ..data.sources.names import match_names

FOCUS = 2.0
"""Exponent of the focal loss: the best of 0.5 to 5 in Lin et al. 2017."""
OVERLAP = 0.99
"""Beta of the effective number: the hundredth image of a class still shows 37 % of what the first one did."""
TEMPERATURE = 3.0
"""At which a student learns. Half of MobileNet taught by EfficientNet-Lite0 on hand signs is right in 0.944, at a
temperature of 1 in 0.931, taught by labels in 0.915."""
FLOOR = 1e-12
"""Of soft labels whose logarithm is taken."""
Counts = Sequence[int] | np.ndarray
"""Of images, by class."""


def class_weights(counts: Counts, kind: str | Mapping[str, float], class_names: Sequence[str] = ()) -> np.ndarray:
    """Class weights in the training loss.

    Args:
        counts: training images of each class, >= 1.
        kind: `none`: 1. `balanced`: 1 / count, so that every class counts the same. `effective`: 1 / effective number,
            which is (1 - beta^count) / (1 - beta): images of a class resemble one another, and a thousand do not show
            ten times what a hundred do (Cui et al. 2019, "Class-balanced loss based on effective number of samples").
            Or what each of these classes counts beside the others, which count 1.
        class_names: in the order of the counts; only needed to find classes by name.

    Returns:
        float64 [classes]. Their mean over the training images is 1, so that the learning rate need not change.
    """
    n = np.asarray(counts, np.float64)
    if isinstance(kind, Mapping):
        named = {known: kind[name] for name, known in match_names(list(kind), class_names).items()}
        weights = np.array([named.get(name, 1.0) for name in class_names])
    else:
        worth = {"none": np.ones_like(n), "balanced": n, "effective": (1 - OVERLAP**n) / (1 - OVERLAP)}
        weights = 1 / worth[kind]
    return weights * n.sum() / (weights @ n)


def weight_table(class_names: Sequence[str], counts: Counts, kind: str | Mapping[str, float]) -> str:
    """One line per class: its training images and its weight."""
    rows = zip(class_names, counts, class_weights(counts, kind, class_names), strict=True)
    lines = [f"  {name}: {count} images x {weight:.3g}" for name, count, weight in rows]
    name = "by name" if isinstance(kind, Mapping) else kind
    return "\n".join([f"class weights ({name}, mean of 1; validation is not weighted):", *lines])


def training_loss(
    settings: Train, counts: Counts, class_names: Sequence[str] = (), *, multi: bool = False
) -> keras.losses.Loss:
    """Loss of logits and one-hot, multi-hot or mixed labels that the settings ask for.

    Args:
        settings: `loss`, `label_smoothing`, `class_weights`, `logit_adjustment`, `teachers`.
        counts: training images of each class, >= 1.
        class_names: in their order; only needed where `class_weights` names classes.
        multi: whether an image may have several labels; the loss is then the mean of the binary cross-entropies, and
            nothing is weighted.
    """
    if settings.teachers:
        return DistillationLoss(TEMPERATURE, multi)
    if multi:
        return keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=settings.label_smoothing)
    if settings.loss == "cross_entropy" and settings.class_weights == "none" and not settings.logit_adjustment:
        return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=settings.label_smoothing)
    return WeightedLoss(
        class_weights(counts, settings.class_weights, class_names),
        settings.logit_adjustment * np.log(np.asarray(counts) / np.sum(counts)),
        focus=FOCUS if settings.loss == "focal" else 0.0,
        label_smoothing=settings.label_smoothing,
    )


def training_metrics(*, multi: bool) -> list[keras.metrics.Metric]:
    """Accuracy and plain cross-entropy of logits in training; of several labels an image, over images and classes."""
    if multi:
        accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)  # of logits
        return [accuracy, keras.metrics.BinaryCrossentropy(name="cross_entropy", from_logits=True)]
    accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    return [accuracy, keras.metrics.CategoricalCrossentropy(name="cross_entropy", from_logits=True)]


@keras.saving.register_keras_serializable("template")
class WeightedLoss(keras.losses.Loss):
    """Mean over images of sum_k label_k * weight_k * ((1 - e) * l_k + e * mean_j l_j), with
    l_k = -(1 - p_k)^focus * log p_k and p = softmax(logits + shift).

    It holds the weights itself, so that no image needs to carry one; where labels are mixed, so are the weights.

    Keras's focal loss clips probabilities at 1e-7: an image that is wrong by a margin of 17 has no gradient any more,
    and those are the ones it is for. This one takes the logarithm of the softmax, and has one.

    Args:
        weights: of each class, > 0.
        shift: added to the logits in training alone: tau * log of the share of each class requires a larger margin of
            rare classes. Without it, at inference, all classes are equally likely beforehand (Menon et al. 2021,
            "Long-tail learning via logit adjustment").
        focus: 0, or the gamma of the focal loss, which down-weights easy images (Lin et al. 2017, "Focal loss for dense
            object detection").
        label_smoothing: e, in [0, 1). The loss then has its minimum at finite logits (Szegedy et al. 2016).
    """

    def __init__(
        self,
        weights: Sequence[float] | np.ndarray,
        shift: Sequence[float] | np.ndarray,
        focus: float = 0.0,
        label_smoothing: float = 0.0,
        name: str = "weighted_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.weights, self.shift = np.asarray(weights, np.float32), np.asarray(shift, np.float32)
        self.focus, self.label_smoothing = focus, label_smoothing

    def call(self, y_true: keras.KerasTensor, y_pred: keras.KerasTensor) -> keras.KerasTensor:
        """Labels and logits [n, classes] to losses [n]."""
        log_p = ops.log_softmax(y_pred + self.shift)
        losses = -log_p  # [n, classes]: if the label were this class
        if self.focus:
            losses *= (1 - ops.exp(log_p)) ** self.focus
        if self.label_smoothing:
            uniform = ops.mean(losses, axis=-1, keepdims=True)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * uniform
        return ops.sum(y_true * self.weights * losses, axis=-1)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        own = {"weights": self.weights.tolist(), "shift": self.shift.tolist(), "focus": self.focus}
        return {**super().get_config(), **own, "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("template")
class DistillationLoss(keras.losses.Loss):
    """Mean over images of T^2 * KL(softmax(log(soft labels) / T) || softmax(logits / T)).

    It is 0 where the probabilities are the soft labels. At a higher temperature the small ones among these count more:
    what a teacher takes an image for beside what it is (Hinton et al. 2015, "Distilling the knowledge in a neural
    network"). T^2 keeps the gradient as large as it is at 1.

    Args:
        temperature: T, > 0.
        multi: whether an image may have several labels. Then each class is a choice of two, and their mean is taken.
    """

    def __init__(self, temperature: float, multi: bool = False, name: str = "distillation_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.temperature, self.multi = temperature, multi

    def call(self, y_true: keras.KerasTensor, y_pred: keras.KerasTensor) -> keras.KerasTensor:
        """Soft labels and logits [n, classes] to losses [n]."""
        wanted = ops.log(ops.maximum(y_true, FLOOR))
        if self.multi:
            wanted -= ops.log(ops.maximum(1 - y_true, FLOOR))
            wanted, logits = (ops.stack([x, ops.zeros_like(x)], axis=-1) for x in (wanted, y_pred))
        else:
            logits = y_pred
        wanted, log_p = (ops.log_softmax(x / self.temperature) for x in (wanted, logits))
        losses = ops.sum(ops.exp(wanted) * (wanted - log_p), axis=-1)
        return self.temperature**2 * (ops.mean(losses, axis=-1) if self.multi else losses)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {**super().get_config(), "temperature": self.temperature, "multi": self.multi}
