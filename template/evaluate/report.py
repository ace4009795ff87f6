"""What a person wants to know about a run, first things first, as Markdown."""

import math
from collections.abc import Sequence
from typing import Any


def markdown(
    metrics: dict[str, Any], what: str, history: Sequence[dict[str, Any]], skipped: Sequence[tuple[str, str]]
) -> str:
    """Write the report of a run.

    Args:
        metrics: `{"test": ..., "val": ..., "seconds": ..., "choices": ...}`; test and val as `metrics.score` gives
            them, test or None; with `"probe"`, the validation scores of the logistic regression that training began
            with; `choices` is {setting: {option: cross-entropy}}.
        what: one line on the data and the model.
        history: one row an epoch.
        skipped: (id, reason) of pictures that were left out.
    """
    test, val = metrics["test"], metrics["val"]
    measured = test or val
    lines = [f"# {percent(measured['accuracy'])} accuracy on {measured['images']} {'test' if test else 'validation'} "
             "pictures"]  # fmt: skip
    if test is None:
        lines += ["", "**There was no test part.** These pictures also chose the weights, so the number is flattering."]
    lines += [
        "",
        f"{what} Always guessing the commonest class would give {100 * measured['majority']:.1f} %. "
        f"Brackets are 95 % intervals: with other test pictures of the same kind the number would move about as much.",
        "",
        "| | test | validation (chose the weights) |",
        "|---|---|---|",
        _row("accuracy", "accuracy", test, val),
        _row("macro F1", "macro_f1", test, val),
        _row(f"top-{val['top_k']['k']} accuracy", "top_k", test, val),
        _row("cross-entropy", "cross_entropy", test, val),
        "",
        "![confusion matrix](confusion_matrix.png)",
        "",
        "## Class by class",
        "",
        "| class | pictures | precision | recall | F1 |",
        "|---|---|---|---|---|",
    ]
    for name, row in measured["classes"].items():
        cells = ["undefined" if row[key] is None else f"{row[key]:.3f}" for key in ("precision", "recall", "f1")]
        lines.append(f"| {_safe(name)} | {row['images']:.0f} | {' | '.join(cells)} |")
    lines += ["", "## Training", ""]
    if metrics.get("choices"):
        lines += [
            "Settings left open, and the cross-entropy of each option in cross-validation on training pictures:",
            "",
        ]
        for setting, losses in metrics["choices"].items():
            lines.append(f"- `{setting}`: " + ", ".join(f"{option} {loss:.3f}" for option, loss in losses.items()))
        lines.append("")
    lines += ["![learning curves](learning_curves.png)", ""] if history else []
    lines += ["| stage | epochs | best validation cross-entropy | accuracy there |", "|---|---|---|---|"]
    if metrics.get("probe"):
        probe = metrics["probe"]
        lines.append(f"| 0: logistic regression on frozen features | | {probe['cross_entropy']['value']:.3f} | "
                     f"{probe['accuracy']['value']:.3f} |")  # fmt: skip
    for stage in sorted({row["stage"] for row in history}):
        rows = [row for row in history if row["stage"] == stage]
        best = min(rows, key=lambda row: (math.isnan(row["val_cross_entropy"]), row["val_cross_entropy"]))
        lines.append(f"| {stage} | {len(rows)} | {best['val_cross_entropy']:.3f} | {best['val_accuracy']:.3f} |")
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in metrics["seconds"].items())
    lines += ["", f"Seconds: {seconds}."]
    if skipped:
        lines += ["", f"## {len(skipped)} pictures were left out", ""]
        lines += [f"- {_safe(repr(name))}: {_safe(reason)}" for name, reason in skipped[:50]]
        lines += [f"- and {len(skipped) - 50} more, in skipped.json"] if len(skipped) > 50 else []
    return "\n".join(lines) + "\n"


def percent(value: dict[str, float]) -> str:
    """`97.2 % [95.1, 98.4]`."""
    return f"{100 * value['value']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _row(title: str, key: str, test: dict[str, Any] | None, val: dict[str, Any]) -> str:
    def cell(scores: dict[str, Any] | None) -> str:
        if scores is None:
            return "none"
        value = scores[key]
        plain = f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        return plain if key == "cross_entropy" else percent(value)

    return f"| {title} | {cell(test)} | {cell(val)} |"


def _safe(text: str) -> str:
    """A text that cannot leave its table cell or start markup: as code, where only a backtick has a meaning."""
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return "`" + printable.replace("|", "¦").replace("<", "‹").replace(">", "›").replace("`", "'") + "`"
