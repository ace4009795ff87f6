"""Is one run better than another, or only luckier? Paired tests: both must have predicted the same images."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from . import metrics
from .intervals import bootstrap_weights, percentile_bootstrap
from .predictions import Predictions

NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "matthews_corrcoef", "cross_entropy", "brier", "ece")
"""Scores that are compared; of the last three, less is better."""


def align(several: Sequence[Predictions]) -> list[Predictions]:
    """The same images in the order of the first.

    Raises:
        ValueError: if they are not of the same images with the same labels and classes, saying what differs.
    """
    first, result = several[0], []
    for number, other in enumerate(several, start=1):
        if other.class_names != first.class_names:
            raise ValueError(
                f"Expected the classes {first.class_names}. Received in number {number}: {other.class_names}"
            )
        rows = {name: row for row, name in enumerate(other.ids)}
        if rows.keys() != set(first.ids):
            absent, extra = set(first.ids) - rows.keys(), rows.keys() - set(first.ids)
            raise ValueError(
                f"Expected predictions of the same images. Number {number} lacks {len(absent)} of {len(first.ids)}"
                f"{f', such as {str(min(absent))!r}' if absent else ''}, and has {len(extra)} others. "
                "Evaluate both on one folder: python scripts/evaluate.py --run RUN --path FOLDER"
            )
        result.append(other.take([rows[name] for name in first.ids]))
        others = int((result[-1].labels != first.labels).sum())
        if others:
            raise ValueError(f"{others} images have another label in number {number}.")
    return share_groups(result)


def share_groups(several: Sequence[Predictions]) -> list[Predictions]:
    """Predictions of the same images in the same order, all with the groups of the first that has any.

    A run without groups does not make the images of one patient independent; and with other groups, or other names of
    them, the bootstrap samples would differ between the runs.
    """
    groups = next((p.groups for p in several if p.groups is not None), None)
    return [dataclasses.replace(p, groups=groups) for p in several]


def compare(first: Predictions, second: Predictions, *, seed: int = 0) -> dict[str, Any]:
    """Second against first, on the same images in the same order.

    Returns:
        `mcnemar`: images that `only_first` and `only_second` predicted correctly, and `p`, the p-value of the exact
        two-sided test (McNemar 1947), or where one of the two has groups, of `permutation_p`. Of each score in NAMES
        `first`, `second`, and their `difference` (second - first) with its interval, of both on the same bootstrap
        samples.
    """
    first, second = share_groups([first, second])
    scores = [metrics.score(predictions, seed=seed) for predictions in (first, second)]
    # Of one seed: the same samples.
    sampled = [metrics.bootstrap_scores(predictions, seed=seed) for predictions in (first, second)]
    result: dict[str, Any] = {"mcnemar": mcnemar(first, second, seed=seed)}
    for name in NAMES:
        values = [score[name]["value"] for score in scores]
        difference = percentile_bootstrap(
            np.nan if None in values else values[1] - values[0], sampled[1][name] - sampled[0][name]
        )
        result[name] = {"first": values[0], "second": values[1], "difference": difference}
    return result


def mcnemar(first: Predictions, second: Predictions, *, seed: int = 0) -> dict[str, Any]:
    """`mcnemar` of `compare`, of the same images in the same order with the same groups."""
    a, b = (p.predicted == p.labels for p in (first, second))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    if first.groups is not None:
        p = permutation_p(np.bincount(np.unique(first.groups, return_inverse=True)[1], b.astype(float) - a), seed=seed)
    else:
        p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": float(p)}


def compare_accuracy(first: Predictions, second: Predictions, *, seed: int = 0) -> dict[str, Any]:
    """Of `compare` the accuracy alone, which takes a hundredth of the time: `mcnemar`, and the `difference`."""
    first, second = share_groups([first, second])
    gains = (second.predicted == second.labels).astype(float) - (first.predicted == first.labels)
    weights = bootstrap_weights(len(gains), first.groups, seed)
    sampled = np.concatenate([some @ gains / some.sum(axis=1) for some in weights])
    difference = percentile_bootstrap(float(gains.mean()), sampled)
    return {"mcnemar": mcnemar(first, second, seed=seed), "difference": difference}


def permutation_p(gains: np.ndarray, *, seed: int, draws: int = 9999) -> float:
    """Two-sided p-value of the sum, if the sign of each group's gain were chance (paired permutation test).

    Args:
        gains: [groups], correct predictions of the second minus those of the first.
        seed: of the draws.
        draws: with none as large, it is 1 / (draws + 1) (Phipson and Smyth 2010).
    """
    gains = gains[gains != 0]
    signs = np.random.default_rng(seed).choice([-1, 1], (draws, len(gains)))
    return float((1 + (np.abs(signs @ gains) >= abs(gains.sum())).sum()) / (draws + 1))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for multiple comparisons (Holm 1979), in the order given."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate([(len(p) - i) * p[row] for i, row in enumerate(order)])
    result = np.empty(len(p))
    result[order] = np.minimum(stepped, 1)
    return result.tolist()
