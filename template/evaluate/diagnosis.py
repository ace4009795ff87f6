"""Under- or overfitting, the learning curve, and how much of the error is chance."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import percent, wilson_interval
from .predictions import Predictions

GOOD = 0.02
"""An error, or a gap between two, below this is not what to work on."""

MORE_TRAINING = [
    "unfreeze more blocks, or for longer: stages.0.unfreeze, stages.0.epochs",
    "a higher learning rate, if the loss still falls in the last epochs",
]
LESS_REGULARIZATION = ["less regularization: augment.policy=light, head.dropout=0, head.l2=0"]
MORE_REGULARIZATION = [
    "stronger data augmentation: augment.policy=heavy",
    "more regularization: head.dropout=0.5, head.l2=1e-3, stages.0.weight_decay=1e-2",
    "fewer unfrozen blocks: stages.0.unfreeze",
]
"""Advice for runs with fine-tuning; without, these settings have no effect."""


@dataclass(frozen=True)
class Diagnosis:
    """A verdict, the numbers behind it, and what to try, the most promising first."""

    verdict: str
    because: str
    try_next: list[str]


def diagnose(train: tuple[int, int], held_out: dict[str, float], *, staged: bool = True) -> Diagnosis:
    """Is the error high on training images (bias), or only on held-out ones (variance)?

    Args:
        train: correct predictions, and how many were made, on training images without augmentation.
        held_out: accuracy on images that it has not learned from, with its interval.
        staged: whether there was fine-tuning, so that its settings had an effect.
    """
    learned = wilson_interval(*train)
    error, gap = 1 - learned["value"], learned["value"] - held_out["value"]
    numbers = f"accuracy {100 * learned['value']:.1f} % on training images, {percent(held_out)} on held-out images"
    if error > GOOD and error >= gap:
        return Diagnosis(
            "underfitting",
            f"{numbers}: the model does not fit even its training images",
            [
                *(MORE_TRAINING if staged else ["fine-tuning, which this run did not do: stages.0.unfreeze=1"]),
                "a larger network, larger images: backbone.name, data.image_size",
                *LESS_REGULARIZATION * staged,
                "labels that contradict each other: scripts/audit.py --labels",
            ],
        )
    if gap > GOOD and held_out["high"] < learned["low"]:
        return Diagnosis(
            "overfitting",
            f"{numbers}: the model has memorised what does not generalise",
            [
                "more images: see the learning curve",
                *(MORE_REGULARIZATION if staged else ["another network: backbone.name"]),
                "a distribution shift between training and test images: compare scripts/audit.py of both",
            ],
        )
    return Diagnosis(
        "neither underfitting nor overfitting",
        f"{numbers}: no significant gap",
        ["look at the most confident errors in report.html: are labels wrong, or images ambiguous?"],
    )


def extrapolate(sizes: Sequence[int], errors: Sequence[float]) -> dict[str, Any]:
    """Power law of a learning curve, and what twice the images would bring.

    Args:
        sizes: numbers of training images, rising.
        errors: error rates.

    Returns:
        `sizes` and `errors` as given; `scale` and `exponent` of the power law through them; `twice`, by how much
        accuracy rises with twice the most images, if the law holds.
    """
    scale, exponent = power_law(np.array(sizes), np.array(errors))
    twice = scale * sizes[-1] ** -exponent - scale * (2 * sizes[-1]) ** -exponent
    return {"sizes": list(sizes), "errors": list(errors), "scale": scale, "exponent": exponent, "twice": twice}


def disagreement(several: Sequence[Predictions]) -> dict[str, dict[str, float]]:
    """How often runs that differ in their seed alone predict differently; the mean over all pairs, with its interval.

    Disagreement is variance, which averaging or more images reduce; a shared error is bias, which they do not.

    Args:
        several: two or more, of the same images in the same order (`compare.align`).

    Returns:
        `differ`, share of images with different predictions; `both_wrong`, with the same wrong one.
    """
    differ, both = [], []
    for a, b in itertools.combinations(several, 2):
        differ.append(a.predicted != b.predicted)
        both.append((a.predicted == b.predicted) & (a.predicted != a.labels))
    n = len(several[0].ids)
    return {
        "differ": wilson_interval(round(float(np.mean(differ)) * n), n),
        "both_wrong": wilson_interval(round(float(np.mean(both)) * n), n),
    }


def power_law(sizes: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Scale a and exponent b of error = a * size^-b, by least squares of the logarithms (Hestness et al. 2017, "Deep
    learning scaling is predictable, empirically").

    Args:
        sizes: numbers of training images, at least two different ones.
        errors: error rates in (0, 1]; those of zero are left out.
    """
    seen = np.asarray(errors) > 0
    if len(np.unique(np.asarray(sizes)[seen])) < 2:
        return 0.0, 0.0
    slope, offset = np.polyfit(np.log(np.asarray(sizes)[seen]), np.log(np.asarray(errors)[seen]), 1)
    return float(np.exp(offset)), float(max(0.0, -slope))
