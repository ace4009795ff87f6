"""What holds a classifier back, and what more images would bring."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import wilson_interval
from .predictions import Predictions

GOOD = 0.02
"""An error, or a gap between two, below this is not what to work on."""

LONGER = [
    "unfreeze more blocks, or for longer: stages.0.unfreeze, stages.0.epochs",
    "a higher learning rate, if the loss still falls in the last epochs",
]
LESS = ["less of what holds back: augment.policy=light, head.dropout=0, head.l2=0"]
HOLDING = [
    "more variation: augment.policy=heavy",
    "more of what holds back: head.dropout=0.5, head.l2=1e-3, stages.0.weight_decay=1e-2",
    "fewer unfrozen blocks: stages.0.unfreeze",
]
"""Advice that has an effect where gradient steps are taken."""


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, in one word and in a sentence, and what to try, the most promising first."""

    verdict: str
    because: str
    try_next: list[str]


def diagnose(trained: tuple[int, int], others: dict[str, float], *, staged: bool = True) -> Diagnosis:
    """The flow of the recipe of deep learning: is it bad on training images, or only on others?

    Args:
        trained: right answers and images among those that it learned from, as they are.
        others: share of right answers among those that it has not seen, with its interval.
        staged: whether gradient steps were taken, so that their settings had an effect.
    """
    learned = wilson_interval(*trained)
    error, gap = 1 - learned["value"], learned["value"] - others["value"]
    numbers = (
        f"{100 * learned['value']:.1f} % right on training images, {100 * others['value']:.1f} % "
        f"[{100 * others['low']:.1f}, {100 * others['high']:.1f}] on others"
    )
    if error > GOOD and error >= gap:
        return Diagnosis(
            "underfits",
            f"{numbers}: it does not know even what it was shown",
            [
                *(LONGER if staged else ["fine-tuning, which this run did without: stages.0.unfreeze=1"]),
                "a larger network, larger images: backbone.name, data.image_size",
                *LESS * staged,
                "labels that contradict each other: scripts/audit.py --labels",
            ],
        )
    if gap > GOOD and others["high"] < learned["low"]:
        return Diagnosis(
            "overfits",
            f"{numbers}: it has memorised what it has not understood",
            [
                "more images: see what the learning curve promises",
                *(HOLDING if staged else ["another network: backbone.name"]),
                "test images of another kind than the training ones: compare scripts/audit.py of both",
            ],
        )
    return Diagnosis(
        "neither",
        f"{numbers}: no gap that these images could show",
        ["look at the errors in report.html: is what is left a matter of labels, or of what can be seen at all?"],
    )


def extrapolate(sizes: Sequence[int], errors: Sequence[float]) -> dict[str, Any]:
    """What a learning curve promises.

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
    """How often runs that differ in their seed alone answer differently; the mean over all pairs, with its interval.

    What they disagree on is chance and falls with averaging or more images; an error that they share does not.

    Args:
        several: two or more, of the same images in the same order (`compare.align`).

    Returns:
        `differ`, shares of images with another answer; `both_wrong`, with the same wrong answer.
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
