"""One page of several runs: how good each is, whether they differ by more than luck, their curves and settings."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from .. import runs
from ..evaluate import document, plots
from ..evaluate.compare import align, compare_accuracy, holm
from ..evaluate.document import Cell, Report, Section, Table, cell, count, user
from ..evaluate.intervals import percent_parts
from . import table
from .read import Run

SIGNIFICANT = 0.05
CURVES = 12
"""Runs whose curves are laid over each other; more are a tangle."""
NONE = Cell("–", value=-1.0)
SCORES = ("val_cross_entropy", "val_accuracy")
LUCK = (
    "The best test accuracy of several runs is the best partly by luck: expect less of it on new images. Choose by "
    "validation, and read the test accuracy of the one that you chose."
)


def html(found: Sequence[Run], places: str) -> str:
    """The page, which needs nothing but itself.

    Args:
        found: runs, in the order in which they are shown and numbered.
        places: where they were found.
    """
    names = {run: f"#{number} {runs.legible(run.folder.name)}" for number, run in enumerate(found, start=1)}
    finished = [run for run in found if run.status == "finished"]
    figures, curves = _curves(names)
    sections = [_scores(finished, names), _comparisons(finished, names), *curves, _differing(names), _others(names)]
    report = Report(
        score=Cell(f"{len(found)} run{'s' * (len(found) != 1)}"),
        title="Runs side by side",
        warning=LUCK if sum(run.columns()["part"] == "test" for run in finished) > 1 else "",
        text=[f"Found in {places}."],
        sections=[section for section in sections if section],
    )
    return document.html(report, figures, {name: _details(run) for run, name in names.items()})


def _details(run: Run) -> dict[str, Any]:
    file = run.folder / "run.json"
    return {"settings": table.settings(run), "made on": runs.read_json(file) if run.split else {}}


def _scores(finished: Sequence[Run], names: Mapping[Run, str]) -> Section | None:
    if not finished:
        return None
    columns = ["run", "accuracy", "of images", "validation", "seconds", "model", "data", "began"]
    rows = []
    for run in finished:
        row = run.columns()
        of = Cell(f"{row['images']} {row['part']}", value=row["images"])
        seconds = Cell(f"{row['seconds']:,.0f}", value=row["seconds"])
        size = Cell(f"{row['size'] / 1e6:.1f} MB", value=row["size"]) if row["size"] else NONE
        rows.append(
            [_user(names[run]), _share(row["accuracy"], bar=True), of, _share(row["validation"]), seconds, size]
        )
        rows[-1] += [_user(row["data"]), _date(run)]
    text = [
        "Accuracy with its 95 % interval. Whether two runs differ is not seen from whether their intervals overlap, "
        "but from the images on which they disagree: below, for runs that were measured on the same ones."
    ]
    return Section("How good they are", text, tables=[Table(columns, rows)])


def _comparisons(finished: Sequence[Run], names: Mapping[Run, str]) -> Section | None:
    """A table for each set of images that several runs were measured on, against the earliest of these runs."""
    alike: dict[tuple, list[Run]] = {}
    for run in sorted(finished, key=lambda run: (run.date(), run.folder.name)):
        saved = run.predictions
        if saved and not saved.multi:  # of several labels an image there is no one that is right
            alike.setdefault((saved.class_names, frozenset(zip(saved.ids, saved.labels, strict=True))), []).append(run)
    tables = [_compared(group, names) for group in alike.values() if len(group) > 1]
    text = [
        "Each against the earliest run that was measured on the same images: paired, on those where only one of the "
        "two is right (exact test of McNemar; with groups, a permutation test), p corrected by Holm over the rows of a "
        "table. All scores: scripts/compare.py."
    ]
    return Section("What separates them", text, tables=tables) if tables else None


def _compared(group: Sequence[Run], names: Mapping[Run, str]) -> Table:
    first, *others = align([run.predictions for run in group if run.predictions])
    results = [compare_accuracy(first, other) for other in others]
    corrected = holm([result["mcnemar"]["p"] for result in results])
    rows = []
    for run, result, p in zip(group[1:], results, corrected, strict=True):
        test, difference = result["mcnemar"], result["difference"]
        value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
        verdict = "no significant difference"
        if p < SIGNIFICANT:
            verdict = "more accurate" if test["only_second"] > test["only_first"] else "less accurate"
        rows.append(
            [_user(names[run]), Cell(f"{value:+.1f}", f"[{low:+.1f}, {high:+.1f}]", value), Cell(verdict)]
            + [count(test["only_first"]), count(test["only_second"]), Cell(f"{p:.2g}", value=p)]
        )
    columns = ["run", "points of accuracy", "that is", "only the earliest right", "only this right", "p"]
    return Table(columns, rows, f"On the same {len(first.ids)} images, against {names[group[0]]}")


def _curves(names: Mapping[Run, str]) -> tuple[dict[str, Figure], list[Section]]:
    """Figures by name, and a section for each division of images that runs were validated on."""
    alike: dict[str, list[Run]] = {}
    for run in names:
        if run.history:
            alike.setdefault(run.split, []).append(run)
    figures: dict[str, Figure] = {}
    sections = []
    for number, group in enumerate(alike.values()):
        histories = {runs.short(names[run], 60): run.history for run in group[:CURVES]}
        own = {f"{score}_{number}": plots.validation_curves(histories, score) for score in SCORES}
        more = f" Drawn are the first {CURVES} of {len(group)} runs." if len(group) > CURVES else ""
        text = f"By epoch, with a dot where a stage begins. A linear probe alone has no epochs.{more}"
        title = f"Validation on {group[0].columns()['data']}"
        sections.append(Section(title, [text], charts=dict.fromkeys(own, "")))
        figures |= own
    return figures, sections


def _differing(names: Mapping[Run, str]) -> Section | None:
    found = list(names)
    unlike = table.differing(found)
    if not unlike:
        return None
    rows = [
        [
            Cell(names[run].partition(" ")[0]),
            *(_user(_setting(run, key, values[place])) for key, values in unlike.items()),
        ]
        for place, run in enumerate(found)
    ]
    text = ["Of stages: what is unfrozen, epochs, learning rate, and what is not as it is by default."]
    return Section("Settings that differ", text, tables=[Table(["run", *unlike], rows)])


def _setting(run: Run, key: str, value: Any) -> str:
    return "" if value is None else table.words(run, {key: value}).removeprefix(f"{key}=")


def _others(names: Mapping[Run, str]) -> Section | None:
    others = [run for run in names if run.status != "finished"]
    rows = [[_user(names[run]), Cell(run.status), _user(run.why), _date(run)] for run in others]
    text = ["Interrupted ones go on with --resume of the script that began them."]
    columns = ["run", "status", "how far, or why", "began"]
    return Section("Not finished", text, tables=[Table(columns, rows)]) if rows else None


def _share(interval: Mapping[str, float] | None, *, bar: bool = False) -> Cell:
    return cell(interval, percent_parts, bar=bar) if interval else NONE


def _date(run: Run) -> Cell:
    return Cell(run.date(), value=float(re.sub(r"\D", "", run.date())))


def _user(text: str) -> Cell:
    return user(runs.legible(text))
