"""Labels as arrays: one class an image, int64 [n], or any number of them, as 0 and 1 in uint8 [n, classes]."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SEPARATORS = ";|"
"""Between the labels of one image, in a cell of a table; the first is how they are written."""


def is_multi(labels: np.ndarray) -> bool:
    """Whether an image may have several labels, or none."""
    return labels.ndim == 2


def count_classes(labels: np.ndarray) -> int:
    """How many classes there are; every one occurs where each image has one."""
    return labels.shape[1] if is_multi(labels) else int(labels.max()) + 1


def images_per_class(labels: np.ndarray, classes: int) -> np.ndarray:
    """Images of each class, int64 [classes]."""
    return labels.sum(axis=0, dtype=np.int64) if is_multi(labels) else np.bincount(labels, minlength=classes)


def to_matrix(labels: np.ndarray, classes: int) -> np.ndarray:
    """One-hot or multi-hot, float32 [n, classes]."""
    hot = labels if is_multi(labels) else labels[:, None] == np.arange(classes)
    return hot.astype(np.float32)


def texts(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """The class of each image, or its classes with a separator between them; "" for none."""
    if not is_multi(labels):
        return [class_names[label] for label in labels]
    return [SEPARATORS[0].join(name for name, has in zip(class_names, row, strict=True) if has) for row in labels]


def thresholds_of(calibration: Mapping[str, Any], class_names: Sequence[str]) -> np.ndarray:
    """From which probability on an image has a label, by the calibration.json of a run; float64 [classes].

    Infinite for a label of which validation could not promise the precision that was asked for: it is never given.
    """
    found = calibration["thresholds"]
    return np.array([found[name]["threshold"] if name in found else np.inf for name in class_names])
