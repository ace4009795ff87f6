"""Whether images are still like those that a run was measured with: its confidence, and how new they are to it.

Two things are compared that every run has. The confidence on its validation images (predictions_val.npz), by the
population stability index. And the novelty: how far an image is from its nearest neighbour among the training images,
in units of the distance that 5 % of images like those of training exceed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from ... import runs
from ...data.sources.names import DataError
from ...evaluate.intervals import Z, bootstrap_weights, number, percent, percentile_bootstrap, wilson_interval
from ...evaluate.predictions import Predictions
from ..novelty import FALSE_ALARMS
from .tally import Tally

BINS = 10
"""Of the confidence, at most; each has ten validation images at least."""
SMALL, LARGE = 0.1, 0.25
"""Bounds of the population stability index by common use: below, nothing to mind; above, another population."""
NEW = 2 * FALSE_ALARMS
"""Share of images beyond the novelty threshold that is more than a fine-tuned network's own optimism."""


@dataclass(frozen=True)
class Reference:
    """What a run said of its validation images, before any refit.

    Args:
        confidence: calibrated, float64 [m], at least one.
        groups: [m] names of what belongs together, or None.
    """

    confidence: np.ndarray
    groups: np.ndarray | None

    @classmethod
    def of_run(cls, run: Path) -> "Reference":
        """Of a finished run.

        Raises:
            DataError: if it has no predictions of validation.
        """
        files = run / "predictions_val.npz", run / "calibration.json"
        if missing := [file.name for file in files if not file.is_file()]:
            raise DataError(
                f"{str(run)!r} is no reference, it lacks {', '.join(missing)}. Choose another (--reference)."
            )
        predictions = Predictions.load(files[0]).scaled(runs.read_json(files[1])["temperature"])
        if not len(predictions.ids):
            raise DataError(f"{str(run)!r} is no reference: it has no validation images. Choose one (--reference).")
        return cls(predictions.probabilities.max(axis=1), predictions.groups)

    @property
    def edges(self) -> np.ndarray:
        """Between bins of the confidence that have as many validation images each; ascending."""
        many = int(np.clip(len(self.confidence) // 10, 2, BINS))
        return np.unique(np.quantile(self.confidence, np.arange(1, many) / many))


def psi(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Population stability index of counts [..., bins]: 0 for equal shares (symmetric Kullback-Leibler divergence).

    Half an image is added to each bin, since an empty one would make it infinite.
    """
    p, q = (counts + 0.5 for counts in (expected, found))
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    return ((q - p) * np.log(q / p)).sum(axis=-1)


def compare(reference: Reference, counted: Tally) -> dict[str, Any]:
    """Confidence and novelty against the reference, with 95 % intervals, ready for JSON.

    Without any drift the index of two samples is not zero, but as chi-squared times 1/n + 1/m (Yurdakul and Naranjo
    2020, "Statistical properties of the population stability index"): its mean is taken off. What is left exceeds
    `chance` in one of twenty cases, which is more than the usual bounds where there are few validation images.
    """
    m, n = len(reference.confidence), counted.classified
    if not n:
        raise DataError("No image was classified: nothing can be compared.")
    bins = np.searchsorted(reference.edges, reference.confidence, "right")
    table = np.eye(len(counted.counts))[bins]
    witnesses = m if reference.groups is None else len(np.unique(reference.groups))
    free, unit = len(counted.counts) - 1, 1 / n + 1 / witnesses
    index = float(psi(table.sum(axis=0), counted.counts)) - free * unit
    weights = np.concatenate(list(bootstrap_weights(m, reference.groups, seed=0)))
    found = np.random.default_rng(0).multinomial(n, counted.counts / n, size=len(weights))
    resampled = psi(weights @ table, found) - 2 * free * unit  # once for the samples, once for drawing from them
    chance = float(chi2.ppf(0.95, free) - free) * unit if free else 0.0
    return {
        "images": counted.images,
        "unreadable": counted.unreadable,
        "not_sure": counted.unsure,
        "reference_images": m,
        "confidence": {
            "psi": percentile_bootstrap(max(0.0, index), np.maximum(resampled, 0.0)),
            "chance": chance,
            "bins": counted.counts.astype(int).tolist(),
            "reference_bins": table.sum(axis=0).astype(int).tolist(),
            "edges": reference.edges.tolist(),
            "mean": counted.confidence[0] / n,
            "reference_mean": float(reference.confidence.mean()),
            "difference": _difference(reference, counted, weights),
            "drift": _degree(index, chance),
        },
        "novelty": _novelty(counted),
    }


def _difference(reference: Reference, counted: Tally, weights: np.ndarray) -> dict[str, float]:
    """Of the mean confidence, here minus there; the bootstrap of the reference knows of its groups."""
    n, (total, squares) = counted.classified, counted.confidence
    means = weights @ reference.confidence / weights.sum(axis=1)
    error = np.sqrt(max(squares / n - (total / n) ** 2, 0.0) / n + means.var())
    value = total / n - float(reference.confidence.mean())
    return {"value": value, "low": float(value - Z * error), "high": float(value + Z * error)}


def _degree(index: float, chance: float) -> str:
    if index <= chance:
        return "none seen"
    return "slight" if index < SMALL else "moderate" if index < LARGE else "large"


def _novelty(counted: Tally) -> dict[str, Any] | None:
    new, known = counted.novel
    if not known:
        return None
    share = wilson_interval(new, known)
    return {"beyond": share, "expected": FALSE_ALARMS, "drift": "seen" if share["low"] > NEW else "none seen"}


def describe(compared: dict[str, Any]) -> list[str]:
    """`compare` in words."""
    confidence, novelty, m = compared["confidence"], compared["novelty"], compared["reference_images"]
    verdict = {
        "none seen": "no drift seen",
        "slight": "a slight drift, below what one minds",
        "moderate": "MODERATE DRIFT",
        "large": "LARGE DRIFT",
    }[confidence["drift"]]
    lines = [
        f"confidence: {verdict}: stability index {number(confidence['psi'])} against {m} validation images; up to "
        f"{confidence['chance']:.3f} is chance with so many. Mean {confidence['mean']:.3f}, there "
        f"{confidence['reference_mean']:.3f}: difference {number(confidence['difference'])}"
    ]
    if novelty is None:
        return [*lines, "novelty: not known (the run has no novelty.npz, or its export no features)"]
    verdict = "no drift seen" if novelty["drift"] == "none seen" else "DRIFT"
    expected = f"about {100 * novelty['expected']:.0f} % without drift"
    return [*lines, f"novelty: {verdict}: {percent(novelty['beyond'])} are like nothing in training, {expected}"]
