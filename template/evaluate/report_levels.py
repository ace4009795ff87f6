"""What a report says of a tree of classes."""

from collections.abc import Mapping
from typing import Any

from .document import Cell, Section, Table, cell, count, user
from .intervals import percent, percent_parts

SHOWN_NODES = 8
"""Names of a level that are listed."""


def section(parts: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """Accuracy at each level of a tree of classes, with a column for each of these parts."""
    if not all("levels" in scores for scores in parts.values()):
        return None
    first = next(iter(parts.values()))
    rows = [
        [count(depth), user(", ".join(level["names"][:SHOWN_NODES]) + ", ..." * (len(level["names"]) > SHOWN_NODES))]
        + [cell(scores["levels"][depth - 1]["accuracy"], percent_parts, bar=True) for scores in parts.values()]
        for depth, level in enumerate(first["levels"], 1)
    ]
    classes = [count(len(rows) + 1), Cell(f"the {len(first['classes'])} classes")]
    rows.append([*classes, *(cell(scores["accuracy"], percent_parts, bar=True) for scores in parts.values())])
    text = ["The probability of a level's name is the sum of those of the classes below it."]
    return Section("Levels of the tree of classes", text, tables=[Table(["level", "names", *parts], rows)])


def coarser_answers(calibration: Mapping[str, Any], part: str) -> list[str]:
    """What is answered above the classes, from the finest level on."""
    target = f"{100 * calibration['reject']['target']:.1f} %"
    lines = []
    for depth, level in reversed([*enumerate(calibration.get("levels", ()), 1)]):
        sure = f"Not sure of the class, but of level {depth} of its tree"
        if level["confidence"] is None:
            lines.append(f"{sure}: no threshold keeps all answers at {target} accuracy.")
            continue
        right = f", {percent(level['accuracy'])} right" if level["accuracy"] else ""
        least = f"(at least {100 * level['confidence']:.1f} %, so that {target} of all answers are right on validation)"
        lines.append(f"{sure} {least}: {percent(level['coverage'])} of the {part} images{right}.")
    return lines
