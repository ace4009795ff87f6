"""Images of finished numbers."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, NullLocator

from .. import runs
from . import fonts


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw counts [true, predicted], colored by the share of each true class."""
    n = len(class_names)
    side = float(np.clip(0.55 * n + 2.2, 4, 16))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if n <= 30:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count) if count else "·", ha="center", va="center", color=color)
    short = [_short(name, 20) for name in fonts.drawable(class_names)]
    written: dict[str, Any] = {"parse_math": False, "family": fonts.families(short)}  # a $ in a name starts no formula
    turned: dict[str, Any] = {
        "rotation": 45 if max(map(len, short)) > 3 else 0,
        "ha": "right",
        "rotation_mode": "anchor",
    }
    axes.set_xticks(range(n), short, **written, **turned)
    axes.set_yticks(range(n), short, **written)
    axes.set(xlabel="predicted", ylabel="true", title=f"{np.trace(counts)} of {counts.sum()} correct")
    if fonts.numbered(class_names):
        axes.set_xlabel(
            "predicted (#0 is the first class in classes.json: no installed font can write its name)", wrap=True
        )
    return figure


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def learning_curves(history: Sequence[dict[str, Any]]) -> Figure:
    """Draw training and validation cross-entropy and accuracy by epoch, with the stages as shaded bands."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("cross_entropy", "accuracy"), strict=True):
        axes.plot(epochs, [row[name] for row in history], "o-", markersize=3, label="training (augmented, dropout)")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], "o-", markersize=3, label="validation")
        for stage in {row["stage"] for row in history}:
            inside = [row["epoch"] for row in history if row["stage"] == stage]
            axes.axvspan(min(inside) - 0.5, max(inside) + 0.5, color="0.5", alpha=0.14 * (stage % 2 == 0), lw=0)
            level = 1.01 if stage % 2 else 1.06  # or the names of short stages would overlap
            axes.text(min(inside) - 0.5, level, f"stage {stage}", transform=axes.get_xaxis_transform(), fontsize=8)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name.replace("_", "-"))
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def validation_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], column: str) -> Figure:
    """Draw a validation score of several runs by epoch, with a dot where a stage begins.

    Args:
        histories: one row an epoch, by the name of a run.
        column: of the score, `val_cross_entropy` or `val_accuracy`.
    """
    shown = fonts.drawable(list(histories))
    figure = Figure(figsize=(4.6, 3.4 + 0.17 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, rows) in enumerate(zip(shown, histories.values(), strict=True)):
        begins = [place for place, row in enumerate(rows) if not place or row["stage"] != rows[place - 1]["stage"]]
        style: dict[str, Any] = {
            "linestyle": "-" if number < 10 else "--",
            "marker": "o",
            "markersize": 4,
            "markevery": begins,
        }
        axes.plot([row["epoch"] for row in rows], [row[column] for row in rows], label=label, **style)
    axes.set(xlabel="epoch", ylabel=f"validation {column.removeprefix('val_').replace('_', '-')}")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(alpha=0.3)
    _legend(figure, columns=1)
    for text in figure.legends[0].get_texts():
        text.set(parse_math=False, family=fonts.families(shown))
    return figure


def _legend(figure: Figure, columns: int = 0) -> None:
    """Below the axes, where it covers nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or len(labels), frameon=False, fontsize=8)


def calibration(curves: dict[str, Sequence[dict[str, Any]]]) -> Figure:
    """Draw accuracy by confidence, with intervals, of one or more `reliability` tables by name."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], ":", color="0.5", label="perfect calibration")
    for name, bins in curves.items():
        value, low, high = (np.array([b["accuracy"][key] for b in bins]) for key in ("value", "low", "high"))
        confidence, reach = [b["confidence"] for b in bins], np.maximum(0, [value - low, high - value])
        axes.errorbar(confidence, value, reach, fmt="o-", markersize=4, lw=1.2, elinewidth=0.8, capsize=2, label=name)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def risk_coverage(curve: Sequence[dict[str, Any]], target: float) -> Figure:
    """Draw the accuracy of the most confident predictions, with its interval, by coverage (`risk_coverage_table`)."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    coverage = [point["coverage"] for point in curve]
    value, low, high = ([point["accuracy"][key] for point in curve] for key in ("value", "low", "high"))
    axes.plot(coverage, value, lw=1.5, label="accuracy")
    axes.fill_between(coverage, low, high, alpha=0.15, lw=0, label="95 % interval")
    axes.axhline(target, ls=":", color="0.5", label=f"target: {target:g}")
    axes.set(xlabel="coverage, most confident first", ylabel="selective accuracy", xlim=(0, 1.02))
    axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def learning_curve(curve: dict[str, Any]) -> Figure:
    """Draw error rates by training images, and the power law through them, to twice the most (from `extrapolate`)."""
    sizes, scale, exponent = curve["sizes"], curve["scale"], curve["exponent"]
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(sizes, curve["errors"], "o", label="linear probe on validation")
    if scale:
        more = np.geomspace(min(sizes), 2 * max(sizes), 50)
        axes.plot(more, scale * more**-exponent, "--", label=f"{scale:.2g} / images^{exponent:.2f}")
    axes.set(xlabel="training images", ylabel="error rate", xscale="log")
    axes.set_xticks(sizes[::2], [f"{size:,}" for size in sizes[::2]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def prediction_dynamics(watched: np.ndarray, labels: Sequence[str]) -> Figure:
    """Draw the probability of the true class by epoch, [epochs, images], one image per row, the hardest on top.

    Labels must be `fonts.drawable`.
    """
    order = np.argsort(np.nanmean(watched, axis=0), kind="stable")
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    edges = np.arange(len(watched) + 1) + 0.5
    mesh = axes.pcolormesh(edges, np.arange(len(order) + 1), watched.T[order], cmap="RdYlBu", vmin=0, vmax=1)
    short = [_short(labels[row], 14) for row in order]
    axes.set_yticks(np.arange(len(order)) + 0.5, short, fontsize=5, parse_math=False, family=fonts.families(short))
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("epoch")
    figure.colorbar(mesh, label="probability of the true class")
    return figure


def learning_rates(rates: np.ndarray, losses: np.ndarray, suggested: float | None) -> Figure:
    """Draw the training loss of each batch by learning rate, and the learning rate that is suggested."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses, ".-", markersize=3, linewidth=0.8)
    if suggested is not None:
        axes.axvline(suggested, linestyle="--", color="0.4", label=f"suggested: {suggested:.1g}")
        _legend(figure)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss of a batch")
    axes.grid(alpha=0.3)
    return figure


def accuracy_over_time(
    names: Sequence[str], milliseconds: np.ndarray, accuracies: Sequence[dict[str, float]], front: Sequence[int]
) -> Figure:
    """Draw the cross-validated accuracy of each network, with its interval, over its time per image.

    Args:
        names: of the networks.
        milliseconds: of a forward pass of one image, [n].
        accuracies: `value`, `low` and `high` of each.
        front: those than which no other is both faster and better, which a line joins.
    """
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    value, low, high = (np.array([accuracy[key] for accuracy in accuracies]) for key in ("value", "low", "high"))
    axes.errorbar(milliseconds, value, yerr=[value - low, high - value], fmt="o", capsize=3, linewidth=0.8)
    if len(front) > 1:
        axes.plot(np.asarray(milliseconds)[front], value[front], "--", color="0.4", label="Pareto front")
        axes.legend()
    # Above and below in turn: neighbours do not cover each other.
    for place, row in enumerate(np.argsort(milliseconds)):
        offset = (6, 5 if place % 2 else -11)
        axes.annotate(names[row], (milliseconds[row], value[row]), offset, textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="milliseconds per image", ylabel="cross-validated accuracy of the linear probe")
    # Numbers between the powers of ten too, but only where they have room.
    axes.xaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
    axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.0, 0.5)))
    axes.margins(x=0.35)
    axes.grid(alpha=0.3)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with runs.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", bbox_inches="tight")  # else long labels are cut off


def svg(figure: Figure) -> str:
    """A figure as an SVG element for a page: no background, and what was black in the colour of the page's text."""
    out = io.StringIO()
    # Letters as outlines, so that a class name is drawn and never read as markup. No date: the same figure, same text.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "template"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return re.sub(r"#000000|\bblack\b", "currentColor", text[text.index("<svg") :])
