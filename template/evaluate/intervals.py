"""95 % intervals: Wilson for proportions, bootstrap of images or groups, influence functions for ranks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student

RESAMPLES = 1000
Z = norm.ppf(0.975)
"""Standard errors on either side of a normal 95 % interval."""
_AT_ONCE = 4_000_000
"""Numbers in an array of resampled weights."""

Interval = dict[str, Any]
"""`value`, `low` and `high`; all None where the score is undefined."""


def wilson_interval(successes: int, trials: int) -> dict[str, float]:
    """A proportion with its interval (Wilson 1927, "Probable inference, the law of succession...")."""
    return _wilson(successes / trials, trials)


def share_interval(
    successes: np.ndarray, *, groups: np.ndarray | None = None, among: np.ndarray | None = None
) -> dict[str, float]:
    """Share of successes with its Wilson interval, at the effective sample size.

    Images of one group are not independent: n is divided by the design effect, which is how much more the share varies
    from group to group than it would from image to image, and again for knowing that from a few groups only (Korn and
    Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts estimated from
    survey data"). Where all or none succeed, nothing shows how alike those of a group are: each counts as one image.

    Args:
        successes: bool [n].
        groups: as in `bootstrap_weights`.
        among: bool [n], images that count, at least one; all by default.
    """
    if among is not None:
        successes, groups = successes[among], None if groups is None else groups[among]
    if groups is None:
        return wilson_interval(int(np.sum(successes)), len(successes))
    n, value, members = len(successes), float(np.mean(successes)), np.unique(groups, return_inverse=True)[1]
    many = int(members.max()) + 1
    if value in {0.0, 1.0} or many == 1:
        return _wilson(value, many)
    spread = float(
        np.sum(np.bincount(members, successes - value) ** 2)
    )  # n * value * (1 - value) if images were independent
    few = student.ppf(0.975, n - 1) / student.ppf(0.975, many - 1)
    return _wilson(value, min(1.0, n * value * (1 - value) / max(spread, 1e-12)) * n * few**2)


def bootstrap_weights(n: int, groups: np.ndarray | None, seed: int) -> Iterator[np.ndarray]:
    """How often each image occurs in bootstrap samples, float64 [a few, n], RESAMPLES rows in all.

    Args:
        n: images.
        groups: [n] names of what belongs together (a patient, a camera): whole groups are drawn, since images of one
            group are not independent (cluster bootstrap). None: every image is drawn alone.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    members = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    many, rows = int(members.max()) + 1, max(1, _AT_ONCE // n)
    for start in range(0, RESAMPLES, rows):
        drawn = generator.integers(many, size=(min(rows, RESAMPLES - start), many))
        yield np.stack([np.bincount(row, minlength=many) for row in drawn]).astype(float)[:, members]


def percentile_bootstrap(value: float, resampled: np.ndarray) -> Interval:
    """Value and the middle 95 % of its bootstrap distribution (Efron and Tibshirani 1993, percentile interval)."""
    if np.isnan(value) or np.isnan(resampled).all():
        return undefined()
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def basic_bootstrap(value: float, resampled: np.ndarray) -> Interval:
    """The same for a score that is biased upwards and not below zero: the bias is removed (basic bootstrap interval).

    The interval is about the truth, so it may end below the value where that is mostly bias.
    """
    interval = percentile_bootstrap(value, resampled)
    low, high = (float(max(0.0, 2 * value - interval[end])) for end in ("high", "low"))
    return {"value": float(value), "low": low, "high": high}


def influence_interval(
    value: float, influence: np.ndarray, least: int, *, groups: np.ndarray | None = None
) -> Interval:
    """Interval in (0, 1) of a value that images move by influence / n each, symmetric in its log-odds.

    Args:
        value: in [0, 1].
        influence: [n], mean zero (Hampel 1974; for the area under a ROC curve that is DeLong et al. 1988).
        least: images in the smallest class it depends on: where nothing is out of order and the spread is zero, the
            interval ends where Wilson's would for so many successes of so many.
        groups: as in `bootstrap_weights`.
    """
    if np.isnan(value):
        return undefined()
    n, value = len(influence), float(np.clip(round(value, 12), 0, 1))  # sums of shares end a digit above 1
    summed = influence if groups is None else np.bincount(np.unique(groups, return_inverse=True)[1], influence)
    error = np.sqrt(np.sum(summed**2)) / n
    if value in {0.0, 1.0} or error == 0:
        edge = wilson_interval(least, least)["low"]
        return {"value": value, "low": min(value, edge), "high": max(value, 1 - edge)}
    reach = Z * error / (value * (1 - value))
    low, high = expit(logit(value) - reach), expit(logit(value) + reach)
    return {"value": value, "low": float(low), "high": float(high)}


def paired_z(losses: np.ndarray, rivals: np.ndarray, *, groups: np.ndarray | None = None) -> float:
    """Z statistic of the paired difference: by how many standard errors losses [n] are below a rival's, on average.

    Images of one group [n] are not independent: the standard error is that of sums over groups (cluster-robust).

    Infinite if all differ by the same, or if one of the two has a NaN, which loses. NaN if all are equal.
    """
    if np.isnan(losses).any() or np.isnan(rivals).any():
        return -np.inf if np.isnan(losses).any() else np.inf
    less = np.asarray(rivals) - losses
    with np.errstate(divide="ignore", invalid="ignore"):
        if groups is None:
            return float(less.mean() / (np.std(less) / np.sqrt(len(less))))
        summed = np.bincount(np.unique(groups, return_inverse=True)[1], less - less.mean())
        return float(less.mean() / (np.sqrt(np.sum(summed**2)) / len(less)))


def _wilson(value: float, trials: float) -> dict[str, float]:
    square = Z**2
    middle = (value * trials + square / 2) / (trials + square)
    reach = np.sqrt(square * (value * (1 - value) * trials + square / 4)) / (trials + square)
    low, high = min(value, max(0.0, middle - reach)), max(value, min(1.0, middle + reach))
    return {"value": float(value), "low": float(low), "high": float(high)}


def widened(interval: Interval, *others: Interval) -> Interval:
    """An interval, made to hold those of others: for where all images are alike, and resampling has no spread."""
    every = (interval, *others)
    return interval | {"low": min(each["low"] for each in every), "high": max(each["high"] for each in every)}


def undefined() -> Interval:
    """In place of a score that does not exist, such as the precision of a class that was never predicted."""
    return {"value": None, "low": None, "high": None}


def percent(interval: Interval) -> str:
    """`97.2 % [95.1, 98.4]`, or that it is undefined."""
    return " ".join(percent_parts(interval))


def number(interval: Interval) -> str:
    """`0.972 [0.951, 0.984]`, or that it is undefined."""
    return " ".join(number_parts(interval))


def percent_parts(interval: Interval) -> tuple[str, ...]:
    """`97.2 %` and `[95.1, 98.4]`, or `undefined` alone."""
    if interval["value"] is None:
        return ("undefined",)
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} %", f"[{low:.1f}, {high:.1f}]"


def number_parts(interval: Interval) -> tuple[str, ...]:
    """`0.972` and `[0.951, 0.984]`, or `undefined` alone."""
    if interval["value"] is None:
        return ("undefined",)
    return f"{interval['value']:.3f}", f"[{interval['low']:.3f}, {interval['high']:.3f}]"
