"""Images that may have several labels: scores, thresholds and the report. Each label is a question of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import report
from .calibration import clear_temperature, threshold
from .classification import f1
from .document import Cell, Report, Section, Table, cell, count, share, titled, user
from .intervals import (
    Interval,
    bootstrap_weights,
    number_parts,
    percent_parts,
    percentile_bootstrap,
    share_interval,
    widened,
)
from .predictions import Predictions
from .ranking import multilabel_ranking_scores

REJECT = ("target", "confidence", "coverage", "accuracy")
"""What `calibration.calibrate` says of answers that are withheld; here each label has a threshold of its own."""
LEVEL = 0.5
"""The threshold of a label that no validation image has, where no precision is asked for."""
TITLES = {
    "mean average precision (mAP)": ("mean_average_precision", number_parts),
    "ROC AUC, mean over labels": ("roc_auc", number_parts),
    "micro F1": ("micro_f1", percent_parts),
    "macro F1": ("macro_f1", percent_parts),
    "all labels right (subset accuracy)": ("accuracy", percent_parts),
    "Hamming loss": ("hamming_loss", percent_parts),
    "cross-entropy, mean over labels": ("cross_entropy", number_parts),
}
"""Scores by what a report calls them: the key in metrics.json, and how to write value and interval."""


def choose_thresholds(val: Predictions, precision: float | None = None) -> np.ndarray:
    """From which probability on an image is said to have a label, float64 [classes]; from validation alone.

    Args:
        val: calibrated.
        precision: target of each; by default the best F1, as in `calibration.threshold`. A label of which it cannot be
            promised is never given: its threshold is infinite.
    """
    found = [
        threshold(scores, positive, precision=precision, groups=val.groups)
        for scores, positive in zip(val.probabilities.T, val.labels.T > 0, strict=True)
    ]
    return np.array([(np.inf if precision else LEVEL) if at is None else at for at in found])


def score(predictions: Predictions, thresholds: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """All metrics of several labels an image, each with `value`, `low` and `high` (95 %; null where undefined).

    Args:
        predictions: calibrated, at least one, with labels.
        thresholds: float [classes], from `choose_thresholds`.
        seed: of the bootstrap.

    Returns:
        JSON-ready. `images`, `groups` (or null), `majority_baseline` (the share of the most frequent set of labels);
        `accuracy` (the share of images whose labels are all right: subset accuracy), `hamming_loss` (the share of wrong
        answers over images and labels), `micro_f1`, `macro_f1`, `mean_average_precision` and `roc_auc` (means over
        labels), `cross_entropy` (nats, mean over labels); `classes`: `images`, `threshold`, `precision`, `recall`,
        `f1`, `average_precision` and `roc_auc` of each label.
    """
    has, says = predictions.labels > 0, predictions.probabilities >= thresholds
    right, groups, n = (says == has).all(axis=1), predictions.groups, len(has)
    logits = predictions.logits.astype(np.float64)
    means = {"hamming_loss": (says != has).mean(axis=1)}
    means["cross_entropy"] = (np.logaddexp(0, logits) - has * logits).mean(axis=1)
    sampled: dict[str, list[np.ndarray]] = {}
    for weights in bootstrap_weights(n, groups, seed):
        rows = _f1_scores(has, says, weights)
        rows |= {name: weights @ values / weights.sum(axis=1) for name, values in means.items()}
        for name, values in rows.items():
            sampled.setdefault(name, []).append(values)
    draws = {name: np.concatenate(values) for name, values in sampled.items()}
    found = {name: value[0] for name, value in _f1_scores(has, says, np.ones((1, n))).items()}
    found |= {name: each.mean() for name, each in means.items()}
    names = ("micro_f1", "macro_f1", *means)
    ranks, by_label = multilabel_ranking_scores(predictions)
    return {
        "images": n,
        "groups": None if groups is None else len(np.unique(groups)),
        "majority_baseline": float(np.unique(has, axis=0, return_counts=True)[1].max() / n),
        "accuracy": share_interval(right, groups=groups),
        **{name: percentile_bootstrap(float(found[name]), draws[name]) for name in names},
        "mean_average_precision": ranks["average_precision"],
        "roc_auc": ranks["roc_auc"],
        "classes": {
            name: {
                "images": int(has[:, label].sum()),
                "threshold": float(thresholds[label]) if np.isfinite(thresholds[label]) else None,
                **_with_f1(
                    _answers(has[:, label], says[:, label], groups),
                    percentile_bootstrap(float(found["f1"][label]), draws["f1"][:, label]),
                ),
                **by_label[label],
            }
            for label, name in enumerate(predictions.class_names)
        },
    }


def calibrate(val: Predictions, measured: Predictions, precision: float | None = None) -> dict[str, Any]:
    """Temperature and thresholds, both from validation.

    Args:
        val: with labels; decides everything.
        measured: with labels; whose precision and recall are said.
        precision: as in `choose_thresholds`.

    Returns:
        `labels`: "multi"; `temperature`; `reject` (nulls: each label has a threshold of its own); and `thresholds`: by
        class, if it has one, the decision threshold, and `precision` and `recall` of the measured images there.
    """
    found = clear_temperature(val)
    levels, probabilities = choose_thresholds(val.scaled(found), precision), measured.scaled(found).probabilities
    table = {}
    for label in np.flatnonzero(np.isfinite(levels)):
        name = val.class_names[label]
        has, says = measured.labels[:, label] > 0, probabilities[:, label] >= levels[label]
        table[name] = {"threshold": float(levels[label]), **_answers(has, says, measured.groups)}
    return {"labels": "multi", "temperature": found, "reject": dict.fromkeys(REJECT), "thresholds": table}


def most_confident_errors(predictions: Predictions, thresholds: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels of the answers that are wrong and furthest from their threshold, in log-odds, the worst first."""
    wrong = ((predictions.probabilities >= thresholds) != (predictions.labels > 0)) & np.isfinite(thresholds)
    away = np.abs(predictions.logits - np.log(thresholds / np.maximum(1 - thresholds, 1e-12)))
    order = np.argsort(np.where(wrong, -away, np.inf), axis=None, kind="stable")[: min(most, int(wrong.sum()))]
    rows, labels = np.unravel_index(order, wrong.shape)
    return rows, labels


def build(
    metrics: Mapping[str, Any], _: Predictions, history: Sequence[Mapping[str, Any]], *, description: str,
    charts: Sequence[str], galleries: Mapping[str, Sequence], skipped: Sequence[tuple[str, str]], monitor: str,
) -> Report:  # fmt: skip
    """Put together the report of a run; arguments are those of `report.build`."""
    part, measured = ("test", metrics["test"]) if metrics["test"] else ("validation", metrics["val"])
    parts = {"test": metrics["test"], "validation (made the choices)": metrics["val"]}
    parts = {title: scores for title, scores in parts.items() if scores}
    rows = [titled(title, *(cell(one[key], show) for one in parts.values())) for title, (key, show) in TITLES.items()]
    sections = [
        Section("Metrics", tables=[Table(["metric", *parts], rows)]),
        _baselines(metrics, measured, part),
        _per_label(measured),
        *report.galleries_of(galleries),
        report.audit(metrics.get("audit")),
        report.training(metrics, history, monitor, charts),
        report.left_out(skipped),
    ]
    text = "An image may have several labels. It is said to have one from the threshold of that label on, which was "
    text += (
        "chosen on validation. Brackets are 95 % confidence intervals: how far a score would move with other images."
    )
    warning = "" if metrics["test"] else "There was no test part. These images also made the choices."
    title = f"mean average precision on {measured['images']:,} {part} images"
    return Report(cell(measured["mean_average_precision"], number_parts), title, warning, [description, text],
                  [section for section in sections if section])  # fmt: skip


def _baselines(metrics: Mapping[str, Any], measured: Mapping[str, Any], part: str) -> Section:
    rows = [titled(f"this classifier, {part}", cell(measured["accuracy"], percent_parts, bar=True))]
    if metrics.get("probe"):
        title = "linear probe on frozen features, validation"
        rows.append(titled(title, cell(metrics["probe"]["accuracy"], percent_parts, bar=True)))
    rows.append(titled(f"most frequent set of labels, {part}", share(measured["majority_baseline"])))
    return Section("Baselines", tables=[Table(["classifier", "all labels right"], rows)])


def _per_label(measured: Mapping[str, Any]) -> Section:
    keys = ("precision", "recall", "f1", "roc_auc", "average_precision")
    rows = [
        [user(name), count(scores["images"]), _level(scores["threshold"])]
        + [cell(scores[key], number_parts) for key in keys]
        for name, scores in measured["classes"].items()
    ]
    columns = ["label", "images", "threshold", "precision", "recall", "F1", "ROC AUC", "average precision"]
    return Section("Per-label metrics", tables=[Table(columns, rows)])


def _level(threshold: float | None) -> Cell:
    return Cell("never given", value=2.0) if threshold is None else Cell(f"{threshold:.3f}", value=threshold)


def _answers(has: np.ndarray, says: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """`precision` and `recall` of one label, or null where nothing was said or is there."""
    among = {"precision": says, "recall": has}
    hits = has & says
    return {
        name: share_interval(hits, groups=groups, among=which) if which.any() else None for name, which in among.items()
    }


def _with_f1(answers: dict[str, Any], found: Interval) -> dict[str, Any]:
    """Precision and recall of one label, and their F1, whose resampling has no spread where all images are alike."""
    alike = [each for each in answers.values() if each and each["value"] == found["value"]]
    return answers | {"f1": widened(found, *alike) if found["value"] in {0.0, 1.0} else found}


def _f1_scores(has: np.ndarray, says: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`micro_f1` and `macro_f1` [samples], and `f1` [samples, classes]; a label that is nowhere has 0."""
    tp, support, times = (weights @ which.astype(float) for which in (has & says, has, says))
    each = np.nan_to_num(f1(tp, support, times))
    micro = f1(tp.sum(axis=1), support.sum(axis=1), times.sum(axis=1))
    return {"f1": each, "macro_f1": each.mean(axis=1), "micro_f1": np.nan_to_num(micro)}
