"""The best of many is partly luck: what a selection by cross-validation is worth on images that had no say in it."""

from typing import Any

import numpy as np

from .intervals import bootstrap_weights, percentile_bootstrap


def corrected(
    losses: np.ndarray, reference: int, *, groups: np.ndarray | None = None, by: np.ndarray | None = None, seed: int = 0
) -> dict[str, Any]:
    """Repeat the selection on bootstrap samples of the images, and judge it by the images that a sample lacks.

    Tsamardinos et al. 2018, "Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation"
    (BBC-CV): a nested check of the selection without training anything again. About a third of the images judge each
    sample, so the intervals are rather too wide.

    Args:
        losses: out-of-fold, float64 [candidates, n].
        reference: row of the candidate that would be taken without a search.
        groups: [n], as in `bootstrap_weights`.
        by: losses that select, if others than those that judge: [candidates, n].
        seed: of the samples.

    Returns:
        `best`, the row that all images select. With `value`, `low` and `high`: `loss` of a candidate so selected, on
        images that did not select it, and `gain`, by how much it is below that of the reference there; `apparent_gain`,
        the same where all images select and judge. `optimism`: by how much the loss of the best is too low.
    """
    by = losses if by is None else by
    n, best = losses.shape[1], int(by.mean(axis=1).argmin())
    selected, gains, apparent = [], [], []
    for weights in bootstrap_weights(n, groups, seed):
        chosen, apart = (weights @ by.T).argmin(axis=1), weights == 0
        some = apart.any(axis=1)
        chosen, apart = chosen[some], apart[some]
        selected.append((apart * losses[chosen]).sum(axis=1) / apart.sum(axis=1))
        gains.append((apart * (losses[reference] - losses[chosen])).sum(axis=1) / apart.sum(axis=1))
        apparent.append(weights @ (losses[reference] - losses[best]) / weights.sum(axis=1))
    loss, gain = (percentile_bootstrap(np.mean(rows), rows) for rows in map(np.concatenate, (selected, gains)))
    difference = float((losses[reference] - losses[best]).mean())
    return {
        "best": best,
        "loss": loss,
        "gain": gain,
        "apparent_gain": percentile_bootstrap(difference, np.concatenate(apparent)),
        "optimism": difference - gain["value"],
    }
