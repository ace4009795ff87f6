"""What a run has to say for itself: scores, decisions, failures, figures and the report."""

from pathlib import Path

import keras
import numpy as np

from . import runs
from .config import Config
from .data.examples import Examples
from .data.images import dimensions
from .data.rows import Rows
from .deploy.explain import figures
from .evaluate import failures, metrics, plots, report
from .evaluate.calibration import calibrate
from .evaluate.predictions import Predictions
from .suggest import refits

SHOWN = 12
"""Pictures in a gallery of the report."""


def publish(
    config: Config, said: dict[str, Predictions], history: list, *, examples: Examples, pixels: Rows,
    model: keras.Model, clock: runs.Clock, folder: Path,
) -> dict:  # fmt: skip
    """Score the predictions, and write predictions, metrics, calibration, plots and the report into a run's folder.

    Args:
        config: of the run.
        said: predictions of `test` (perhaps of no pictures) and `val`, and of `probe` if there was one.
        history: one row an epoch.
        examples: all that were used.
        pixels: theirs, in the same order.
        model: as it will be used.
        clock: of the run.
        folder: of the run.

    Returns:
        The metrics, as in metrics.json.
    """
    with clock("report"):
        scores = {name: metrics.score(p) if len(p.ids) else None for name, p in said.items()}
        best = said["test"] if scores["test"] else said["val"]
        best.save(folder / "predictions.npz")  # first: what follows reads the users' files again
        said["val"].save(folder / "predictions_val.npz")
        rows = np.flatnonzero(examples.parts == ("test" if scores["test"] else "val"))
        choices = runs.read_json(folder / "choices.json") if (folder / "choices.json").exists() else {}
        wanted = config.evaluate.wanted_accuracy, config.evaluate.wanted_precision or None
        # Of the network before the final fit, which has not learned from the pictures of validation.
        calibration = calibrate(said["val"], said["test"] if scores["test"] else None, *wanted)
        slices = failures.slices(best, _facts(examples.take(rows), pixels, rows))
        result = scores | {"choices": choices, "calibration": calibration, "slices": slices}
        sure = best.scaled(calibration["temperature"])
        galleries = {
            title: figures(model, pixels, rows[some], sure.take(some))
            for title, some in (
                ("Wrong and sure of it", failures.worst(best, SHOWN)),
                ("Least sure", failures.unsure(best, SHOWN)),
            )
        }
        decided = {key: calibration[key] for key in ("temperature", "reject", "thresholds")}
        runs.write_json(folder / "calibration.json", decided)
        confusions = plots.confusion_matrix(metrics.confusion_counts(best), best.class_names)
        plots.save(confusions, folder / "confusion_matrix.png")
        if history:
            plots.save(plots.learning_curves(history), folder / "learning_curves.png")
    result |= {"memory_gb": runs.peak_memory_gb(), "seconds": {**clock.seconds, "total": clock.total()}}
    what = _what(config, examples)
    runs.write_text(folder / "report.md", report.markdown(result, what, history, examples.skipped))
    made_from = runs.read_json(folder / "run.json") | {"settings": (folder / "config.toml").read_text(encoding="utf-8")}
    page = report.html(result, best, what, history, examples.skipped, galleries, made_from)
    runs.write_text(folder / "report.html", page)
    runs.write_json(folder / "metrics.json", result)  # last: a run that has it is finished, and is not resumed
    return result


def _what(config: Config, examples: Examples) -> str:
    """One line on the data and the model."""
    counts = {name: int((examples.parts == name).sum()) for name in ("train", "val")}
    weights = {"none": "from random weights", "imagenet": "from ImageNet weights"}
    learned = f"{counts['train']} pictures"
    if refits(config, int((examples.parts != "").sum())):
        together = counts["train"] + counts["val"]
        learned = f"{together} pictures (with those of validation, after the validation column below was measured)"
    return (
        f"{config.backbone.name}, {weights.get(config.backbone.weights, 'from given weights')}, "
        f"{config.data.image_size} pixels, trained on {learned} of {len(examples.class_names)} classes."
    )


def _facts(examples: Examples, pixels: Rows, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What pictures may have in common, by name, for `failures.slices`; a fact that all share is left out."""
    sizes = np.array([dimensions(image) for image in examples.images], float)
    brightness = [pixels[rows[i : i + 64]].mean(axis=(1, 2, 3)) for i in range(0, len(rows), 64)]
    facts = {
        "pixels on the shorter side": sizes.min(axis=1),
        "width / height": sizes[:, 0] / sizes[:, 1],
        "mean brightness (0 to 255)": np.concatenate(brightness),
        "folder": failures.folders(examples.ids),
    }
    return {name: values for name, values in facts.items() if len(np.unique(values)) > 1}
