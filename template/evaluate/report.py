"""What a person wants to know about a run, first things first, as a page and as Markdown."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from . import fonts, plots
from .calibration import lower_bound, risk_coverage
from .classification import confusion_counts
from .intervals import wilson_interval
from .predictions import Predictions

SHARES = {
    "accuracy": "accuracy",
    "top-{k} accuracy": "top_k",
    "balanced accuracy": "balanced_accuracy",
    "macro precision": "macro_precision",
    "macro F1": "macro_f1",
    "weighted F1": "weighted_f1",
}
OTHERS = {
    "Matthews correlation": "matthews_corrcoef",
    "Cohen's kappa": "cohen_kappa",
    "ROC AUC, each class against the rest": "roc_auc_ovr",
    "ROC AUC, pairs of classes": "roc_auc_ovo",
    "average precision": "average_precision",
    "cross-entropy": "cross_entropy",
    "Brier score": "brier",
    "calibration error": "ece",
    "calibration error, all classes": "classwise_ece",
}
ABSENT = {
    "probe": None, "choices": {}, "color_baseline": None, "preflight": {},
    "diagnosis": None, "learning_curve": None, "audit": [],
}  # fmt: skip


def html(
    metrics: dict[str, Any], predictions: Predictions, what: str, drawn: dict[str, Figure],
    skipped: Sequence[tuple[str, str]], galleries: dict[str, Sequence[dict[str, Any]]], made_from: dict[str, Any],
) -> str:  # fmt: skip
    """Write the report of a run as one page that needs nothing but itself: no network, no other file.

    Args:
        metrics: as in `markdown`; with `calibration` (from `calibrate`) and `slices`, perhaps with `color_baseline`,
            `preflight` (accuracies by name), `diagnosis`, `learning_curve` (from `extrapolate`) and `audit` (findings).
        predictions: predictions of the test images, or where there are none, of those of validation.
        what: one line on the data and the model.
        drawn: figures of the training: `learning_curves`, `prediction_dynamics`, `learning_curve`, if there are.
        skipped: (id, reason) of images that were left out.
        galleries: by title, answers to look at: `id`, `true`, `predicted`, `confidence`, and as addresses `image` and
            `heat`, which is where the answer comes from.
        made_from: versions, settings and digests.
    """
    environment = Environment(
        loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": lambda x: f"{x:.3f}", "tenth": lambda x: f"{x:.1f}"}
    calibration, k = metrics["calibration"], metrics["val"]["top_k"]["k"]
    curves = {"as they come": calibration["before"]["reliability"]}
    if calibration["temperature"] != 1:
        curves = {"before": curves.pop("as they come"), "after the temperature": calibration["after"]["reliability"]}
    sure = plots.calibration(curves), _risk_coverage(predictions, calibration["reject"]["wanted"])
    counts, measured = confusion_counts(predictions), metrics["test"] or metrics["val"]
    witnesses = metrics["val"]["groups"] or metrics["val"]["images"]
    return environment.get_template("report.html").render(
        metrics=ABSENT | metrics,
        measured=measured,
        part="test" if metrics["test"] else "validation",
        headline=f"{percent(measured['accuracy'])} accuracy",
        what=what,
        rows=[(title.format(k=k), key, "share") for title, key in SHARES.items()]
        + [(title, key, "number") for title, key in OTHERS.items()],
        class_names=predictions.class_names,
        counts=counts.tolist(),
        numbered=fonts.numbered(predictions.class_names) if len(counts) > 30 else {},
        confusion_svg=plots.svg(plots.confusion_matrix(counts, predictions.class_names)) if len(counts) > 30 else "",
        drawn={name: plots.svg(figure) for name, figure in drawn.items()},
        sure_svgs=[plots.svg(figure) for figure in sure],
        calibration=calibration,
        promised=float(lower_bound(witnesses, witnesses)),
        slices=metrics.get("slices", []),
        galleries=galleries,
        skipped=skipped,
        made_from=json.dumps(made_from, indent=1, ensure_ascii=False),
    )


def markdown(
    metrics: dict[str, Any], what: str, history: Sequence[dict[str, Any]], skipped: Sequence[tuple[str, str]]
) -> str:
    """Write the report of a run.

    Args:
        metrics: `{"test": ..., "val": ..., "seconds": ..., "choices": ...}`; test and val as `metrics.score` gives
            them, test or None; with `"probe"`, the validation scores of the logistic regression that training began
            with; `choices` is {setting: {option: cross-entropy}}; `monitored` is the column of the history by which
            the best epoch of a stage was chosen.
        what: one line on the data and the model.
        history: one row an epoch.
        skipped: (id, reason) of images that were left out.
    """
    test, val = metrics["test"], metrics["val"]
    measured = test or val
    lines = [f"# {percent(measured['accuracy'])} accuracy on {measured['images']} {'test' if test else 'validation'} "
             "images"]  # fmt: skip
    if test is None:
        lines += ["", "**There was no test part.** These images also chose the weights, so the number is flattering."]
    lines += [
        "",
        f"{what} Always guessing the commonest class would give {100 * measured['majority_baseline']:.1f} %. "
        f"Brackets are 95 % intervals: with other test images of the same kind the number would move about as much.",
        "",
        "| | test | validation (chose the weights) |",
        "|---|---|---|",
        *(_row(title.format(k=val["top_k"]["k"]), key, test, val) for title, key in {**SHARES, **OTHERS}.items()),
        "",
        "![confusion matrix](confusion_matrix.png)",
        "",
        "## Class by class",
        "",
        "| class | images | precision | recall | F1 |",
        "|---|---|---|---|---|",
    ]
    for name, row in measured["classes"].items():
        cells = [number(row[key]) for key in ("precision", "recall", "f1")]
        lines.append(f"| {_safe(name)} | {row['images']} | {' | '.join(cells)} |")
    lines += _holds_back(metrics) + ["", "## Training", ""]
    if metrics.get("choices"):
        lines += [
            "Settings left open, and the cross-entropy of each option in cross-validation on training images:",
            "",
        ]
        for setting, losses in metrics["choices"].items():
            lines.append(f"- `{setting}`: " + ", ".join(f"{option} {loss:.3f}" for option, loss in losses.items()))
        lines.append("")
    lines += ["![learning curves](learning_curves.png)", ""] if history else []
    column = metrics.get("monitored", "val_cross_entropy")
    lines += [f"| stage | epochs | cross-entropy at the best {column} | accuracy there |", "|---|---|---|---|"]
    if metrics.get("probe"):
        probe = metrics["probe"]
        lines.append(f"| 0: logistic regression on frozen features | | {probe['cross_entropy']['value']:.3f} | "
                     f"{probe['accuracy']['value']:.3f} |")  # fmt: skip
    for stage in sorted({row["stage"] for row in history}):
        rows = [row for row in history if row["stage"] == stage]
        best = _best(rows, column)
        lines.append(f"| {stage} | {len(rows)} | {best['val_cross_entropy']:.3f} | {best['val_accuracy']:.3f} |")
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in metrics["seconds"].items())
    lines += ["", f"Seconds: {seconds}."]
    if skipped:
        lines += ["", f"## {len(skipped)} images were left out", ""]
        lines += [f"- {_safe(repr(name))}: {_safe(reason)}" for name, reason in skipped[:50]]
        lines += [f"- and {len(skipped) - 50} more, in skipped.json"] if len(skipped) > 50 else []
    return "\n".join(lines) + "\n"


def _best(rows: Sequence[dict[str, Any]], column: str) -> dict[str, Any]:
    """The best epoch of a stage; by plain cross-entropy if an earlier version began it, which did not log all."""
    column = column if all(column in row for row in rows) else "val_cross_entropy"
    sign = 1 if column.endswith("entropy") else -1
    return min(rows, key=lambda row: (math.isnan(row[column]), sign * row[column]))


def _holds_back(metrics: dict[str, Any]) -> list[str]:
    """The diagnosis, what more images promise, and what is odd about those there are."""
    lines, found, curve = [], metrics.get("diagnosis"), metrics.get("learning_curve")
    if found:
        lines += ["", f"## It {found['verdict']}" if found["verdict"] != "neither" else "## What holds it back", ""]
        lines += [f"{found['because'][0].upper()}{found['because'][1:]}. To try:", ""]
        lines += [f"- {line}" for line in found["try_next"]]
    if curve and curve["scale"]:
        gain = f"Twice the images: about {100 * curve['twice']:+.1f} points of accuracy"
        how = "by the power law through the errors of a regression on 10 to 100 % of them"
        lines += ["", f"{gain}, {how}.", "", "![learning curve](learning_curve.png)"]
    if metrics.get("audit"):
        lines += ["", "## About the images", "", *(f"- {_safe(f['message'])}" for f in metrics["audit"])]
    return lines


def _risk_coverage(predictions: Predictions, wanted: float) -> Figure:
    """At a hundred places, which is as many as can be seen."""
    _, answered, accuracy = risk_coverage(predictions)
    places = np.unique(np.linspace(0, len(answered) - 1, 100).astype(int))
    given = (answered[places] * len(predictions.ids)).round().astype(int)
    right = (accuracy[places] * given).round().astype(int)
    shares = [wilson_interval(int(k), int(n)) for k, n in zip(right, given, strict=True)]
    value, low, high = (np.array([share[key] for share in shares]) for key in ("value", "low", "high"))
    return plots.risk_coverage(answered[places], value, low, high, wanted)


def percent(value: dict[str, float | None]) -> str:
    """`97.2 % [95.1, 98.4]`, or that it is undefined."""
    if value["value"] is None:
        return "undefined"
    return f"{100 * value['value']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def number(value: dict[str, float | None]) -> str:
    """`0.972 [0.951, 0.984]`, or that it is undefined."""
    if value["value"] is None:
        return "undefined"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _row(title: str, key: str, test: dict[str, Any] | None, val: dict[str, Any]) -> str:
    cell = percent if key in SHARES.values() else number
    return f"| {title} | {cell(test[key]) if test else 'none'} | {cell(val[key])} |"


def _safe(text: str) -> str:
    """A text that cannot leave its table cell or start markup: as code, where only a backtick has a meaning."""
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return "`" + printable.replace("|", "¦").replace("<", "‹").replace(">", "›").replace("`", "'") + "`"
