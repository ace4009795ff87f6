"""What a run reports: scores, calibration, errors, figures and the page that shows them."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from . import runs
from .config import Config, Evaluate
from .data.array_file import ArrayFile
from .data.audit.facts import Facts
from .data.dataset import evenly_spaced
from .data.examples import Examples
from .deploy.explain import figures
from .evaluate import document, failures, fonts, metrics, plots, report
from .evaluate.calibration import calibrate, risk_coverage_table
from .evaluate.classification import confusion_counts
from .evaluate.diagnosis import diagnose, extrapolate
from .evaluate.intervals import wilson_interval
from .evaluate.predictions import Predictions
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
        train_accuracy: correct predictions, and how many were made, on training images.
        color_baseline: correct predictions from color histograms alone, on the test images, or else on validation.
    """

    config: Config
    examples: Examples
    pixels: ArrayFile
    facts: Facts
    model: keras.Model
    state: TrainState
    learning_curve: tuple[list[int], list[float]] | None
    train_accuracy: tuple[int, int]
    color_baseline: int


def publish(trained: TrainedRun, predictions: dict[str, Predictions], clock: runs.Timer, folder: Path) -> dict:
    """Score the predictions, and write predictions, metrics, calibration, plots and the report into a run's folder.

    Args:
        trained: all that made them.
        predictions: of `test` (perhaps of no images) and `val`, and of `probe` if there was one.
        clock: of the run.
        folder: of the run.

    Returns:
        The metrics, as in metrics.json.
    """
    with clock("report"):
        scores = {name: metrics.score(p) if len(p.ids) else None for name, p in predictions.items()}
        part = "test" if scores["test"] else "val"
        measured, rows = predictions[part], np.flatnonzero(trained.examples.parts == part)
        measured.save(folder / "predictions.npz")  # first: what follows reads the users' files again
        predictions["val"].save(folder / "predictions_val.npz")
        calibration = _calibrated(trained.config.evaluate, predictions["val"], measured, folder)
        result = scores | {"calibration": calibration} | _compared(trained, measured, scores[part]["accuracy"], folder)
        result["slices"] = failures.slices(measured, _facts(trained, rows))
        galleries = _galleries(trained, measured, rows, calibration["temperature"])
        drawn = _measured_figures(measured, calibration) | _training_figures(
            trained.state, result["learning_curve"], predictions["val"], folder
        )
        for name, figure in drawn.items():
            plots.save(figure, folder / f"{name}.png")
    result |= {"memory_gb": runs.peak_memory_gb(), "seconds": {**clock.seconds, "total": clock.total()}}
    told = report.build(
        result, measured, trained.state.history, description=_description(trained.config, trained.examples),
        charts=tuple(drawn), galleries=galleries, skipped=trained.examples.skipped,
        monitor=MONITORED[trained.config.train.monitor],
    )  # fmt: skip
    runs.write_text(folder / "report.md", document.markdown(told))
    environment = runs.read_json(folder / "run.json")
    environment |= {"settings": (folder / "config.toml").read_text(encoding="utf-8")}
    runs.write_text(folder / "report.html", document.html(told, drawn, environment))
    runs.write_json(folder / "metrics.json", result)  # last: a run that has it is finished, and is not resumed
    return result


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
        for name in ("choices", "audit", "preflight", "cross_validation")
        if (folder / f"{name}.json").exists()
    }
    before = found.get("preflight", {"numbers": {}})["numbers"]
    staged = bool(trained.config.stages)
    crossed = {"cross_validation": found["cross_validation"]} if "cross_validation" in found else {}
    return crossed | {
        "choices": found.get("choices", {}),
        "color_baseline": wilson_interval(trained.color_baseline, len(measured.ids)),
        "preflight": {name: value for name, value in before.items() if "accuracy" in name},
        "diagnosis": dataclasses.asdict(diagnose(trained.train_accuracy, accuracy, staged=staged)),
        "learning_curve": extrapolate(*trained.learning_curve) if trained.learning_curve else None,
        "audit": [finding for finding in found["audit"] if finding["severity"] != "info"],
    }


def _training_figures(
    state: TrainState, curve: dict[str, Any] | None, val: Predictions, folder: Path
) -> dict[str, Figure]:
    """Figures of the training and of the learning curve, by name; and the dynamics of predictions, as JSON."""
    drawn = {}
    if state.history:
        drawn["learning_curves"] = plots.learning_curves(state.history)
        watched = val.take(evenly_spaced(len(val.ids), DYNAMICS_IMAGES))
        labels = [watched.class_names[label] for label in watched.labels]
        shown = [fonts.drawable(watched.class_names)[label] for label in watched.labels]
        drawn["prediction_dynamics"] = plots.prediction_dynamics(np.array(state.prediction_dynamics), shown)
        rows = [[None if math.isnan(share) else share for share in row] for row in state.prediction_dynamics]
        table = {"ids": watched.ids.tolist(), "labels": labels, "probability_of_label": rows}
        runs.write_json(folder / "prediction_dynamics.json", table)
    if curve and curve["scale"]:
        drawn["learning_curve"] = plots.learning_curve(curve)
    return drawn


def _description(config: Config, examples: Examples) -> str:
    """One line on the data and the model."""
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
    return (
        f"{config.backbone.name}, {weights.get(config.backbone.weights, 'from given weights')}, "
        f"{config.data.image_size} pixels, trained on {learned} of {len(examples.class_names)} classes.{later}"
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
