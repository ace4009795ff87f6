"""The content of a report: what a person wants to know about a run, first things first."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import fonts, report_levels
from .calibration import lower_bound
from .classification import confusion_counts
from .document import Cell, Report, Section, Table, captioned, cell, count, share, titled, user
from .intervals import number, number_parts, percent, percent_parts
from .metrics import TITLES
from .predictions import Predictions

MATRIX_CLASSES = 30
"""Classes up to which a confusion matrix is a table; beyond, it is a chart."""
LISTED = 50
"""Images left out that are listed by name."""


def build(
    metrics: Mapping[str, Any], predictions: Predictions, history: Sequence[Mapping[str, Any]], *, description: str,
    charts: Sequence[str] = (), galleries: Mapping[str, Sequence] | None = None,
    skipped: Sequence[tuple[str, str]] = (), monitor: str = "val_cross_entropy",
) -> Report:  # fmt: skip
    """Put together the report of a run.

    Args:
        metrics: scores of `test` (or None) and `val`, `calibration` (from `calibrate`), `seconds` by name; and where
            there are any `probe` (scores), `color_baseline`, `preflight` (accuracies by name), `choices` (losses of
            options by setting), `diagnosis`, `learning_curve` (from `extrapolate`), `slices`, `audit` (findings),
            `memory_gb`, and `cross_validation` (scores of the whole recipe).
        predictions: of the test images, or where there are none, of those of validation.
        history: one row per epoch.
        description: one line on the data and the model.
        charts: names of the figures that there are.
        galleries: by title, predictions to look at (see `Section`).
        skipped: (id, reason) of images that were left out.
        monitor: column of the history by which the epoch of a stage was chosen.
    """
    part, measured = ("test", metrics["test"]) if metrics["test"] else ("validation", metrics["val"])
    groups = f", drawn as whole groups, of which there are {measured['groups']}" if measured["groups"] else ""
    sections = [
        _baselines(metrics, measured, part),
        scores_of(_measured(metrics)),
        report_levels.section(_measured(metrics)),
        confusions(measured, predictions, charts),
        per_class(measured),
        _calibration(metrics, part, charts),
        *galleries_of(galleries or {}),
        _slices(metrics.get("slices")),
        _diagnosis(metrics.get("diagnosis"), metrics.get("learning_curve"), charts),
        audit(metrics.get("audit")),
        training(metrics, history, monitor, charts),
        left_out(skipped),
    ]
    accuracy, title, warning = _headline(metrics, measured, part)
    return Report(
        cell(accuracy, percent_parts),
        title,
        warning,
        [
            description,
            "Brackets are 95 % confidence intervals: how far a score would move with other images of the same "
            f"kind{groups}.",
        ],
        [section for section in sections if section],
    )  # fmt: skip


def _headline(
    metrics: Mapping[str, Any], measured: Mapping[str, Any], part: str
) -> tuple[Mapping[str, float], str, str]:
    """The accuracy that stands on top, what it is of, and what must be known about it."""
    if metrics["test"]:
        return measured["accuracy"], f"accuracy on {measured['images']:,} test images", ""
    if crossed := metrics.get("cross_validation"):
        note = "It is of networks of this recipe that had not seen the images they were asked about, and learned from "
        note += f"{1 - 1 / crossed['folds']:.0%} of them; this network has learned from all, and can be a little better"
        return crossed["accuracy"], f"cross-validated accuracy on {crossed['images']:,} images", note + "."
    title = f"accuracy on {measured['images']:,} {part} images"
    return (
        measured["accuracy"],
        title,
        "There was no test part. These images also made the choices: the accuracy is optimistic.",
    )


def _measured(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Scores by what they are of."""
    columns = {"test": metrics["test"], "cross-validated": metrics.get("cross_validation")}
    columns["validation (made the choices)"] = metrics["val"]
    return {title: scores for title, scores in columns.items() if scores}


def _baselines(metrics: Mapping[str, Any], measured: Mapping[str, Any], part: str) -> Section:
    rows = {f"this classifier, {part}": measured["accuracy"]}
    if metrics["test"]:
        rows["this classifier, validation"] = metrics["val"]["accuracy"]
    if metrics.get("probe"):
        rows["linear probe on frozen features, validation"] = metrics["probe"]["accuracy"]
    if metrics.get("color_baseline"):
        rows[f"logistic regression on color histograms, {part}"] = metrics["color_baseline"]
    found = [titled(name, cell(accuracy, percent_parts, bar=True)) for name, accuracy in rows.items()]
    scratch = [value for name, value in metrics.get("preflight", {}).items() if "scratch" in name]
    found += [titled("small network trained from scratch, validation", share(value)) for value in scratch]
    found.append(titled(f"most frequent class, {part}", share(measured["majority_baseline"])))
    return Section("Baselines", tables=[Table(["classifier", "accuracy"], found)])


def scores_of(parts: Mapping[str, Mapping[str, Any]]) -> Section:
    """A table of all scores, with a column for each of these parts."""
    k = next(iter(parts.values()))["top_k"]["k"]
    rows = [
        titled(title.format(k=k), *(cell(scores[key], show) for scores in parts.values()))
        for title, (key, show) in TITLES.items()
        if (key, k) != ("top_k", 1)  # of two classes, that is the accuracy
    ]
    errors = [scores[name] for scores in parts.values() for name in ("ece", "classwise_ece")]
    above = any(error["value"] is not None and error["value"] > error["high"] for error in errors)
    note = (
        "Of few images a calibration error comes out too high. Its interval is corrected for that, and ends below it."
    )
    return Section("Metrics", [note] if above else (), tables=[Table(["metric", *parts], rows)])


def confusions(measured: Mapping[str, Any], predictions: Predictions, charts: Sequence[str]) -> Section:
    """What is taken for what."""
    names, tables, matrix = predictions.class_names, [], None
    if len(names) <= MATRIX_CLASSES:
        matrix = dict(zip(names, confusion_counts(predictions).tolist(), strict=True))
    elif unwritten := fonts.numbered(names):
        rows = [titled(shown, user(name)) for shown, name in unwritten.items()]
        tables.append(Table(["in the chart", "class"], rows, "No installed font can write these names."))
    if measured["top_confusions"]:
        rows = [
            [user(c["true"]), user(c["predicted"]), count(c["images"]), cell(c["share"], percent_parts)]
            for c in measured["top_confusions"]
        ]
        columns = ["true", "predicted", "images", "share of the true class"]
        tables.append(Table(columns, rows, "Most frequent confusions", folded=True))
    return Section("Confusion matrix", charts=captioned(charts, confusion_matrix=""), matrix=matrix, tables=tables)


def per_class(measured: Mapping[str, Any]) -> Section:
    """A table of the scores of each class."""
    keys = ("precision", "recall", "f1", "roc_auc_ovr", "average_precision")
    rows = [
        [user(name), count(scores["images"]), *(cell(scores[key], number_parts) for key in keys)]
        for name, scores in measured["classes"].items()
    ]
    columns = ["class", "images", "precision", "recall", "F1", "ROC AUC", "average precision"]
    return Section("Per-class metrics", tables=[Table(columns, rows)])


def _calibration(metrics: Mapping[str, Any], part: str, charts: Sequence[str]) -> Section:
    found = metrics["calibration"]
    rows = [
        [user(name), Cell(f"{t['threshold']:.3f}", value=t["threshold"])]
        + [cell(t[key], percent_parts) for key in ("precision", "recall")]
        for name, t in found["thresholds"].items()
    ]
    caption = (
        "One-vs-rest decision thresholds: of the best F1 on validation (or of the target precision, where there are "
        f"images enough to ensure it), with precision and recall on {part} images"
    )
    tables = [Table(["class", "threshold", "precision", "recall"], rows, caption, folded=True)] if rows else []
    text = [_temperature(found), _reject(found["reject"], metrics["val"], part)]
    text += report_levels.coarser_answers(found, part)
    return Section("Calibration", text, charts=captioned(charts, calibration="", risk_coverage=""), tables=tables)


def _temperature(calibration: Mapping[str, Any]) -> str:
    before, after = (f"{number(calibration[key]['ece'])}" for key in ("before", "after"))
    if calibration["temperature"] == 1:
        return f"Expected calibration error (ECE): {before}. No temperature clearly lowers the loss on validation."
    return (
        f"Expected calibration error (ECE): {before}, and {after} after temperature scaling. The temperature, fitted "
        f"on validation, is {calibration['temperature']:.3f}."
    )


def _reject(reject: Mapping[str, Any], val: Mapping[str, Any], part: str) -> str:
    target = f"{100 * reject['target']:.1f} % accuracy"
    if not reject["confidence"]:
        n, groups = val["groups"] or val["images"], f" of {val['groups']} groups" if val["groups"] else ""
        most = f"{100 * lower_bound(n, n):.1f} %"
        return (
            f"Selective prediction: no confidence threshold reaches {target} with 90 % confidence on validation. If "
            f"all of its {val['images']} images{groups} were predicted correctly, {most} could be ensured, and no more."
        )
    accuracy = f", with an accuracy of {percent(reject['accuracy'])}" if reject["accuracy"] else ""
    return (
        f"Selective prediction: a confidence of at least {100 * reject['confidence']:.1f} %, chosen on validation for "
        f"at least {target}, covers {percent(reject['coverage'])} of the {part} images{accuracy}."
    )


def galleries_of(galleries: Mapping[str, Sequence]) -> list[Section]:
    """Images to look at, by title."""
    text = ["Is the label right?"]
    return [Section(title, text, gallery=images) for title, images in galleries.items() if images]


def _slices(slices: Sequence[Mapping[str, Any]] | None) -> Section | None:
    if not slices:
        return None
    rows = [
        [Cell(s["fact"]), user(s["slice"]), count(s["images"]), cell(s["error"], percent_parts)]
        + [Cell("yes" if s["differs"] else "")]
        for s in slices
    ]
    columns = ["property", "slice", "images", "error rate", "differs from the rest"]
    return Section("Error rate by slice", tables=[Table(columns, rows)])


def _diagnosis(
    found: Mapping[str, Any] | None, curve: Mapping[str, Any] | None, charts: Sequence[str]
) -> Section | None:
    if not found:
        return None
    gain = 100 * curve["twice"] if curve else 0.0
    captions = {
        "learning_curve": f"Twice the training images: about {gain:+.1f} points of accuracy, by the power law through "
        "the errors of linear probes on 10 to 100 % of them.",
        "prediction_dynamics": "A few validation images, one per row, the hardest on top: learned early, late or "
        "never, or forgotten again?",
    }
    because = f"{found['because'][0].upper()}{found['because'][1:]}. To try:"
    title = f"Diagnosis: {found['verdict']}"
    return Section(title, [because], found["try_next"], captioned(charts, **captions))


def audit(findings: Sequence[Mapping[str, Any]] | None) -> Section | None:
    """What the audit has found."""
    if not findings:
        return None
    rows = [[Cell(f["severity"]), user(f["message"]), user(f["advice"])] for f in findings]
    table = Table(["severity", "finding", "what to do"], rows)
    return Section("Data audit", ["To see the images: scripts/audit.py."], tables=[table])


def training(
    metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]], monitor: str, charts: Sequence[str]
) -> Section:
    """How long it took, what was chosen, and the best epoch of each stage."""
    memory = f"Peak memory {metrics['memory_gb']:.1f} GiB. " if metrics.get("memory_gb") else ""
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in metrics["seconds"].items())
    tables = []
    if metrics.get("choices"):
        rows = [
            titled(setting, Cell(", ".join(f"{option} {loss:.3f}" for option, loss in losses.items())))
            for setting, losses in metrics["choices"].items()
        ]
        tables.append(Table(["setting", "cross-validated loss"], rows, "Settings left open"))
    rows = _stages(metrics.get("probe"), history, monitor)
    columns = ["stage", "epochs", "validation cross-entropy", "validation accuracy"]
    tables += [Table(columns, rows, f"Best epoch of each stage, by {monitor}")] if rows else []
    return Section("Training", [f"{memory}Seconds: {seconds}."], charts=captioned(charts, learning_curves=""),
                   tables=tables)  # fmt: skip


def _stages(probe: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]], monitor: str) -> list[list[Cell]]:
    rows = []
    if probe:
        scores = [Cell(f"{probe[key]['value']:.3f}") for key in ("cross_entropy", "accuracy")]
        rows.append(titled("linear probe", Cell(""), *scores))
    for stage in sorted({row["stage"] for row in history}):
        epochs = [row for row in history if row["stage"] == stage]
        best = _best(epochs, monitor)
        scores = [Cell(f"{best[key]:.3f}") for key in ("val_cross_entropy", "val_accuracy")]
        rows.append(titled(str(stage), count(len(epochs)), *scores))
    return rows


def _best(rows: Sequence[Mapping[str, Any]], monitor: str) -> Mapping[str, Any]:
    """The best epoch of a stage; by plain cross-entropy if an earlier version began it, which did not log all."""
    monitor = monitor if all(monitor in row for row in rows) else "val_cross_entropy"
    sign = 1 if monitor.endswith("entropy") else -1
    return min(rows, key=lambda row: (math.isnan(row[monitor]), sign * row[monitor]))


def left_out(skipped: Sequence[tuple[str, str]]) -> Section | None:
    """Images that were not used, and why."""
    if not skipped:
        return None
    rows = [[user(name), user(reason)] for name, reason in skipped[:LISTED]]
    more = len(skipped) - len(rows)
    text = [f"The first {LISTED}; {more} more are in skipped.json."] if more else []
    return Section(f"{len(skipped)} images were left out", text, tables=[Table(["image", "reason"], rows)])
