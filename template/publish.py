"""What a run reports: scores, calibration, errors, figures and the page that shows them."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from . import progress, runs
from .config import Config, Evaluate
from .data.array_file import Rows
from .data.audit.facts import Facts
from .data.dataset import evenly_spaced
from .data.examples import Examples
from .deploy.explain import figures, multilabel_figures
from .evaluate import document, failures, fonts, metrics, multilabel, plots, report
from .evaluate.calibration import calibrate, risk_coverage_table
from .evaluate.classification import confusion_counts
from .evaluate.diagnosis import diagnose, extrapolate
from .evaluate.intervals import wilson_interval
from .evaluate.predictions import Predictions
from .labels import texts, thresholds_of
from .suggest import refits
from .train.callbacks import DYNAMICS_IMAGES
from .train.checkpoint import TrainState
from .train.select import MONITORED

SHOWN = 12
"""Images in a gallery of the report."""


@dataclass(frozen=True)
class TrainedRun:
    """What is there when training is over.

    Args:
        config: of the run.
        examples: all that were used.
        pixels: theirs, in the same order.
        facts: about their files, read when the run began.
        model: whose predictions are reported: as it will be used, or without test images, as it was before
            the refit.
        state: of the training.
        learning_curve: from `train.baselines`, or None.
        train_accuracy: correct predictions, and how many were made, on training images; None where an image may have
            several labels.
        color_baseline: correct predictions from color histograms alone, on the test images, or else on validation;
            likewise.
        unlabelled: how many images without labels were learned from.
    """

    config: Config
    examples: Examples
    pixels: Rows
    facts: Facts
    model: keras.Model
    state: TrainState
    learning_curve: tuple[list[int], list[float]] | None
    train_accuracy: tuple[int, int] | None
    color_baseline: int | None
    unlabelled: int = 0


def publish(trained: TrainedRun, predictions: dict[str, Predictions], clock: progress.Timer, folder: Path) -> dict:
    """Score the predictions, and write predictions, metrics, calibration, plots and the report into a run's folder.

    Args:
        trained: all that made them.
        predictions: of `test` (perhaps of no images) and `val`, and of `probe` if there was one.
        clock: of the run.
        folder: of the run.

    Returns:
        The metrics, as in metrics.json.
    """
    multi = predictions["val"].multi
    with clock("report"):
        part = "test" if len(predictions["test"].ids) else "val"
        measured, rows = predictions[part], np.flatnonzero(trained.examples.parts == part)
        measured.save(folder / "predictions.npz")  # first: what follows reads the users' files again
        predictions["val"].save(folder / "predictions_val.npz")
        score = _score_multilabel if multi else _score
        result, galleries = score(trained, predictions, measured, rows, folder)
        drawn = {} if multi else _measured_figures(measured, result["calibration"])
        drawn |= _training_figures(trained.state, result["learning_curve"], predictions["val"], folder)
        for name, figure in drawn.items():
            plots.save(figure, folder / f"{name}.png")
    result |= {"memory_gb": runs.peak_memory_gb(), "seconds": {**clock.seconds, "total": clock.total()}}
    told = (multilabel if multi else report).build(
        result, measured, trained.state.history, description=_description(trained),
        charts=tuple(drawn), galleries=galleries, skipped=trained.examples.skipped,
        monitor=MONITORED[trained.config.train.monitor],
    )  # fmt: skip
    runs.write_text(folder / "report.md", document.markdown(told))
    environment = runs.read_json(folder / "run.json")
    environment |= {"settings": (folder / "config.toml").read_text(encoding="utf-8")}
    runs.write_text(folder / "report.html", document.html(told, drawn, environment))
    runs.write_json(folder / "metrics.json", result)  # last: a run that has it is finished, and is not resumed
    return result


def _score(
    trained: TrainedRun, predictions: dict[str, Predictions], measured: Predictions, rows: np.ndarray, folder: Path
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """What metrics.json says, but for time and memory, and the galleries of the report.

    Args:
        trained: as in `publish`.
        predictions: likewise.
        measured: that of them which is reported.
        rows: of the examples, in its order.
        folder: of the run.
    """
    scores: dict[str, Any] = {name: metrics.score(p) if len(p.ids) else None for name, p in predictions.items()}
    calibration = _calibrated(trained.config.evaluate, predictions["val"], measured, folder)
    accuracy = (scores["test"] or scores["val"])["accuracy"]
    result = scores | {"calibration": calibration} | _compared(trained, measured, accuracy, folder)
    result["slices"] = failures.slices(measured, _facts(trained, rows))
    return result, _galleries(trained, measured, rows, calibration["temperature"])


def _score_multilabel(
    trained: TrainedRun, predictions: dict[str, Predictions], measured: Predictions, rows: np.ndarray, folder: Path
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """`_score` where an image may have several labels: at the temperature and the thresholds of validation."""
    precision = trained.config.evaluate.target_precision or None
    calibration = multilabel.calibrate(predictions["val"], measured, precision)
    runs.write_json(folder / "calibration.json", calibration)
    levels = thresholds_of(calibration, measured.class_names)
    scaled = {name: each.scaled(calibration["temperature"]) for name, each in predictions.items()}
    scores = {name: multilabel.score(each, levels) if len(each.ids) else None for name, each in scaled.items()}
    result = scores | _found(folder) | {"calibration": calibration, "learning_curve": None}
    shown = measured.scaled(calibration["temperature"])
    places, labels = multilabel.most_confident_errors(shown, levels, SHOWN)
    gallery = multilabel_figures(trained.model, trained.pixels, rows[places], shown.take(places), labels)
    return result, {"Most confident errors": gallery}


def _calibrated(settings: Evaluate, val: Predictions, measured: Predictions, folder: Path) -> dict[str, Any]:
    """Calibrate on predictions of the network before the refit, which has not learned from these images."""
    found = calibrate(val, measured, accuracy=settings.target_accuracy, precision=settings.target_precision or None)
    kept = ("temperature", "reject", "levels", "thresholds")
    runs.write_json(folder / "calibration.json", {key: found[key] for key in kept if key in found})
    return found


def _galleries(
    trained: TrainedRun, measured: Predictions, rows: np.ndarray, temperature: float
) -> dict[str, list[dict[str, Any]]]:
    """Predictions to look at, by title, in the order of their calibrated confidence, which is what is shown."""
    scaled = measured.scaled(temperature)
    shown = {
        "Most confident errors": failures.most_confident_errors(scaled, SHOWN),
        "Least confident predictions": failures.least_confident(scaled, SHOWN),
    }
    return {title: figures(trained.model, trained.pixels, rows[i], scaled.take(i)) for title, i in shown.items()}


def _measured_figures(measured: Predictions, calibration: dict[str, Any]) -> dict[str, Figure]:
    """Figures of the scores, by name."""
    tables = {"uncalibrated": calibration["before"]["reliability"]}
    if calibration["temperature"] != 1:
        tables["temperature-scaled"] = calibration["after"]["reliability"]
    return {
        "confusion_matrix": plots.confusion_matrix(confusion_counts(measured), measured.class_names),
        "calibration": plots.calibration(tables),
        "risk_coverage": plots.risk_coverage(risk_coverage_table(measured), calibration["reject"]["target"]),
    }


def _compared(trained: TrainedRun, measured: Predictions, accuracy: dict[str, float], folder: Path) -> dict[str, Any]:
    """What the scores mean: choices, baselines, diagnosis, findings of the audit."""
    found = {
        name: runs.read_json(folder / f"{name}.json")
        for name in ("preflight", "cross_validation")
        if (folder / f"{name}.json").exists()
    }
    before = found.get("preflight", {"numbers": {}})["numbers"]
    learned, colors = trained.train_accuracy, trained.color_baseline
    if learned is None or colors is None:
        raise ValueError("Expected the baselines of a run with one label an image. Received: one without")
    staged = bool(trained.config.stages)
    crossed = {"cross_validation": found["cross_validation"]} if "cross_validation" in found else {}
    return (
        crossed
        | _found(folder)
        | {
            "color_baseline": wilson_interval(colors, len(measured.ids)),
            "preflight": {name: value for name, value in before.items() if "accuracy" in name},
            "diagnosis": dataclasses.asdict(diagnose(learned, accuracy, staged=staged)),
            "learning_curve": extrapolate(*trained.learning_curve) if trained.learning_curve else None,
        }
    )


def _found(folder: Path) -> dict[str, Any]:
    """What was chosen, and the findings of the audit."""
    choices = folder / "choices.json"
    noteworthy = [finding for finding in runs.read_json(folder / "audit.json") if finding["severity"] != "info"]
    return {"choices": runs.read_json(choices) if choices.exists() else {}, "audit": noteworthy}


def _training_figures(
    state: TrainState, curve: dict[str, Any] | None, val: Predictions, folder: Path
) -> dict[str, Figure]:
    """Figures of the training and of the learning curve, by name; and the dynamics of predictions, as JSON."""
    drawn = {}
    if state.history:
        drawn["learning_curves"] = plots.learning_curves(state.history)
        watched = val.take(evenly_spaced(len(val.ids), DYNAMICS_IMAGES))
        labels = texts(watched.labels, watched.class_names)
        shown = texts(watched.labels, fonts.drawable(watched.class_names))
        drawn["prediction_dynamics"] = plots.prediction_dynamics(np.array(state.prediction_dynamics), shown)
        rows = [[None if math.isnan(share) else share for share in row] for row in state.prediction_dynamics]
        table = {"ids": watched.ids.tolist(), "labels": labels, "probability_of_label": rows}
        runs.write_json(folder / "prediction_dynamics.json", table)
    if curve and curve["scale"]:
        drawn["learning_curve"] = plots.learning_curve(curve)
    return drawn


def _description(trained: TrainedRun) -> str:
    """One line on the data and the model."""
    config, examples = trained.config, trained.examples
    counts = {name: int((examples.parts == name).sum()) for name in ("train", "val")}
    weights = {"none": "from random weights", "imagenet": "from ImageNet weights"}
    learned = f"{counts['train']} images"
    refitted, later = refits(config, int((examples.parts != "").sum())), ""
    if refitted:
        together = counts["train"] + counts["val"]
        learned = f"{together} images (with those of validation, after the validation column below was measured)"
    if refitted and not (examples.parts == "test").any():
        later = " All that is shown here is of the network before the refit; model.keras has also learned from the "
        later += "validation images since, and no image is left to measure it."
    teachers = len(config.train.teachers) if config.stages else 0
    taught = f" Its stages were taught by {teachers} other run{'s' * (teachers > 1)}." if teachers else ""
    return (
        f"{config.backbone.name}, {weights.get(config.backbone.weights, 'from given weights')}, "
        f"{config.data.image_size} pixels, trained on {learned} of {len(examples.class_names)} classes"
        f"{f', and {trained.unlabelled} without labels' if trained.unlabelled else ''}.{taught}{later}"
    )


def _facts(trained: TrainedRun, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What images may have in common, by name, for `failures.slices`; a fact that all share is left out."""
    width, height = (np.maximum(size[rows], 1) for size in (trained.facts.width, trained.facts.height))
    brightness = [trained.pixels[rows[i : i + 64]].mean(axis=(1, 2, 3)) for i in range(0, len(rows), 64)]
    facts = {
        "pixels on the shorter side": np.minimum(width, height),
        "width / height": width / height,
        "mean brightness (0 to 255)": np.concatenate(brightness),
        "folder": failures.folders(trained.examples.ids[rows]),
    }
    return {name: values for name, values in facts.items() if len(np.unique(values)) > 1}
