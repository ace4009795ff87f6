"""Where a classifier fails: which images, and what they have in common."""

from pathlib import PurePath
from typing import Any

import numpy as np

from .intervals import share_interval
from .predictions import Predictions


def most_confident_errors(predictions: Predictions, most: int) -> np.ndarray:
    """Rows of the errors of highest confidence, the most confident first; at most so many."""
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    return wrong[np.argsort(-predictions.probabilities[wrong].max(axis=1), kind="stable")][:most]


def least_confident(predictions: Predictions, most: int) -> np.ndarray:
    """Rows of the predictions of lowest confidence, the lowest first; at most so many, and none of a single class."""
    confidence = predictions.probabilities.max(axis=1)
    return np.argsort(confidence, kind="stable")[: most if len(predictions.class_names) > 1 else 0]


def slices(predictions: Predictions, facts: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Error rate of images that have something in common.

    Args:
        predictions: with labels.
        facts: by name, [n] of numbers, which are divided into thirds (terciles), or of words, of which the ten most
            frequent count.

    Returns:
        `fact`, `slice`, `images` and the `error` rate with its interval; and in `differs` whether the intervals of
        slice and rest are apart, which of twenty slices happens to one or so by chance.
    """
    wrong, table = predictions.predicted != predictions.labels, []
    for fact, values in facts.items():
        for name, mask in _parts(np.asarray(values)):
            if not 0 < mask.sum() < len(mask):
                continue
            inside, outside = (share_interval(wrong, groups=predictions.groups, among=m) for m in (mask, ~mask))
            apart = inside["low"] > outside["high"] or inside["high"] < outside["low"]
            table.append({"fact": fact, "slice": name, "images": int(mask.sum()), "error": inside, "differs": apart})
    return table


def folders(ids: np.ndarray) -> np.ndarray:
    """Folder of each image, as far as its id tells, without the last one, which mostly is the class."""
    return np.array([str(PurePath(str(name)).parent.parent) for name in ids])


def _parts(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Names and masks [n]: thirds of numbers, or the most frequent words."""
    if values.dtype.kind in "US":
        words, counts = np.unique(values, return_counts=True)
        return [(str(word), values == word) for word in words[np.argsort(-counts, kind="stable")][:10]]
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    return [
        (f"up to {low:.3g}", values <= low),
        (f"{low:.3g} to {high:.3g}", (values > low) & (values <= high)),
        (f"above {high:.3g}", values > high),
    ]
