"""Scores at the levels of a tree of classes."""

import dataclasses
from typing import Any

import numpy as np

from .intervals import share_interval
from .predictions import Predictions
from .tree import Level, coarser_levels


def at_level(predictions: Predictions, level: Level) -> Predictions:
    """The predictions with the nodes of a level as their classes; the probability of a node is the sum of its classes.

    The most probable node may be another than that of the most probable class.
    """
    logits = np.log(np.clip(level.probabilities(predictions.probabilities), 1e-30, None)).astype(np.float32)
    labels = np.where(predictions.labels < 0, -1, level.nodes[predictions.labels])
    return dataclasses.replace(predictions, labels=labels, logits=logits, class_names=level.names)


def level_scores(predictions: Predictions) -> list[dict[str, Any]]:
    """Accuracy at each level above the classes, the coarsest first: how often the most probable node is the true one.

    Returns:
        JSON-ready: `names` of the nodes, `accuracy` with its interval, and `majority_baseline`. Empty without a tree.
    """
    result = []
    for level in coarser_levels(predictions.class_names):
        coarse = at_level(predictions, level)
        result.append({
            "names": list(level.names),
            "accuracy": share_interval(coarse.predicted == coarse.labels, groups=coarse.groups),
            "majority_baseline": float(np.bincount(coarse.labels).max() / len(coarse.labels)),
        })  # fmt: skip
    return result
