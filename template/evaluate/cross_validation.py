"""The report of a cross-validation: one set of scores, of the predictions of all folds together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import progress, runs
from . import document, failures, metrics, plots
from .calibration import reliability, risk_coverage_table
from .classification import confusion_counts
from .document import Cell, Report, Section, Table, captioned, cell, count, titled, user
from .intervals import number, percent_parts
from .predictions import Predictions
from .report import audit, confusions, left_out, per_class, scores_of

LISTED = 24
"""Most confident errors that are named."""


def publish(
    predictions: Predictions, raw: Predictions, folds: Sequence[Mapping[str, Any]], repeats: int,
    skipped: Sequence[tuple[str, str]], clock: progress.Timer, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Score predictions that are all out of fold, and write predictions, scores, plots and the report.

    Args:
        predictions: of all folds, each calibrated by its own validation.
        raw: the same, not calibrated.
        folds: by fold `images`, `accuracy`, `temperature`, `seconds`, and what it has `chosen`, by setting.
        repeats: how often all images were divided.
        skipped: (id, reason) of images that were left out.
        clock: of the cross-validation.
        folder: with config.toml and audit.json.

    Returns:
        What is in cross_validation.json: the scores (`metrics.score`), `folds` in a repeat, `repeats`, `uncalibrated`
        (`metrics.probability_scores`), and `each` of the folds.
    """
    with clock("report"):
        predictions.save(folder / "predictions.npz")
        scores = metrics.score(predictions) | {"folds": len(folds) // repeats, "repeats": repeats}
        scores |= {"uncalibrated": metrics.probability_scores(raw), "each": list(folds)}
        drawn = {
            "confusion_matrix": plots.confusion_matrix(confusion_counts(predictions), predictions.class_names),
            "calibration": plots.calibration(
                {"uncalibrated": reliability(raw), "calibrated": reliability(predictions)}
            ),
            "risk_coverage": plots.risk_coverage(risk_coverage_table(predictions), 0.95),
        }
        for name, figure in drawn.items():
            plots.save(figure, folder / f"{name}.png")
    scores["seconds"] = clock.total()
    found = [finding for finding in runs.read_json(folder / "audit.json") if finding["severity"] != "info"]
    told = build(scores, predictions, found, skipped, tuple(drawn))
    environment: dict[str, Any] = {"environment": runs.environment()}
    runs.write_json(folder / "run.json", environment)
    environment["settings"] = (folder / "config.toml").read_text(encoding="utf-8")
    runs.write_text(folder / "report.md", document.markdown(told))
    runs.write_text(folder / "report.html", document.html(told, drawn, environment))
    runs.write_json(folder / "cross_validation.json", scores)  # last: with it, it is finished
    return scores


def build(
    scores: Mapping[str, Any], predictions: Predictions, found: Sequence[Mapping[str, Any]],
    skipped: Sequence[tuple[str, str]], charts: Sequence[str],
) -> Report:  # fmt: skip
    """Put together the report; arguments are those of `publish`, and what the audit found."""
    folds, repeats = scores["folds"], scores["repeats"]
    text = f"Each of {folds} folds was predicted by a network that has chosen, learned and calibrated without it."
    if repeats > 1:
        text += f" That {repeats} times: the predictions of one image count as one witness."
    sections = [
        scores_of({"out of fold": scores}),
        confusions(scores, predictions, charts),
        per_class(scores),
        _calibration(scores, charts),
        _folds(scores["each"]),
        _errors(predictions),
        audit(found),
        left_out(skipped),
    ]
    return Report(
        cell(scores["accuracy"], percent_parts),
        f"cross-validated accuracy, {scores['images']:,} predictions of {scores['groups'] or scores['images']:,} "
        f"{'groups' if scores['groups'] else 'images'}",
        "",
        [
            text,
            "Brackets are 95 % confidence intervals: how far a score would move with other images of the same kind.",
        ],
        [section for section in sections if section],
    )


def _calibration(scores: Mapping[str, Any], charts: Sequence[str]) -> Section:
    before, after = number(scores["uncalibrated"]["ece"]), number(scores["ece"])
    text = f"Expected calibration error (ECE): {before}, and {after} with the temperature that each fold found on its "
    text += "own validation images. All scores here are with it."
    return Section("Calibration", [text], charts=captioned(charts, calibration="", risk_coverage=""))


def _folds(each: Sequence[Mapping[str, Any]]) -> Section:
    """What each fold was, and what it has chosen."""
    settings = list(dict.fromkeys(key for fold in each for key in fold["chosen"]))
    rows = [
        titled(
            f"{place}",
            count(fold["images"]),
            Cell(f"{100 * fold['accuracy']:.1f} %", value=fold["accuracy"]),
            Cell(f"{fold['temperature']:.2f}", value=fold["temperature"]),
            *(Cell(str(fold["chosen"].get(key, ""))) for key in settings),
        )
        for place, fold in enumerate(each, start=1)
    ]
    caption = "What was chosen: where folds differ, these images do not say which is better"
    return Section("Folds", tables=[Table(["fold", "images", "accuracy", "temperature", *settings], rows, caption)])


def _errors(predictions: Predictions) -> Section | None:
    rows = failures.most_confident_errors(predictions, LISTED)
    confidence, names = predictions.probabilities.max(axis=1), predictions.class_names
    cells = [
        [user(str(predictions.ids[row])), user(names[predictions.labels[row]]), user(names[predictions.predicted[row]])]
        + [Cell(f"{100 * confidence[row]:.1f} %", value=float(confidence[row]))]
        for row in rows
    ]
    table = Table(["image", "label", "predicted", "confidence"], cells)
    return Section("Most confident errors", ["Is the label right?"], tables=[table]) if cells else None
