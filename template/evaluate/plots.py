"""Pictures of finished numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .. import runs


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draw counts [true, predicted], coloured by the share of each true class."""
    n = len(class_names)
    side = float(np.clip(0.55 * n + 2.2, 4, 16))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if n <= 30:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count) if count else "·", ha="center", va="center", color=colour)
    short = [name if len(name) <= 20 else name[:19] + "…" for name in class_names]
    turned = {"rotation": 45 if max(map(len, short)) > 3 else 0, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(n), short, parse_math=False, **turned)  # a $ in a name starts no formula
    axes.set_yticks(range(n), short, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true", title=f"{np.trace(counts)} of {counts.sum()} right")
    _save(figure, path)


def learning_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training and validation cross-entropy and accuracy by epoch, with the stages as shaded bands."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("cross_entropy", "accuracy"), strict=True):
        axes.plot(epochs, [row[name] for row in history], "o-", markersize=3, label="training (augmented, dropout)")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], "o-", markersize=3, label="validation")
        for stage in {row["stage"] for row in history}:
            inside = [row["epoch"] for row in history if row["stage"] == stage]
            axes.axvspan(min(inside) - 0.5, max(inside) + 0.5, color="0.5", alpha=0.06 + 0.1 * (stage % 2), lw=0)
            axes.text(min(inside) - 0.4, 1.01, f"stage {stage}", transform=axes.get_xaxis_transform(), fontsize=8)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name.replace("_", "-"))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with runs.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
