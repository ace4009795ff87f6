"""The form of a report: sections of text, charts and tables, rendered alike as a page and as Markdown."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from . import plots


@dataclass(frozen=True)
class Cell:
    """What stands in a cell of a table.

    Args:
        text: to show.
        interval: to show after it.
        value: to sort by; by default the text.
        bar: `value`, `low` and `high` in [0, 1], to draw where that is possible.
        code: whether the text is the user's (a class, a file), and may hold anything.
    """

    text: str
    interval: str = ""
    value: float | None = None
    bar: Mapping[str, float] | None = None
    code: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; `folded` tables open with a click, where that is possible."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report, in the order of its fields.

    Args:
        title: its heading.
        text: paragraphs.
        items: a list.
        charts: captions, by the name of a figure.
        matrix: counts [true, predicted] by class name, which a page shows in place of the charts.
        tables: after these.
        gallery: images, each with `id`, `true`, `predicted`, `confidence`, and as addresses `image` and `heat`.
    """

    title: str
    text: Sequence[str] = ()
    items: Sequence[str] = ()
    charts: Mapping[str, str] = field(default_factory=dict)
    matrix: Mapping[str, Sequence[int]] | None = None
    tables: Sequence[Table] = ()
    gallery: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Report:
    """A number, what it is of, what must be known about it at once, and all the rest in sections."""

    score: Cell
    title: str
    warning: str
    text: Sequence[str]
    sections: Sequence[Section]


def captioned(charts: Sequence[str], **captions: str) -> dict[str, str]:
    """Those of the figures that there are."""
    return {name: caption for name, caption in captions.items() if name in charts}


def titled(title: str, *cells: Cell) -> list[Cell]:
    """A row of a table, with its title."""
    return [Cell(title), *cells]


def cell(interval: Mapping[str, Any] | None, show: Callable, *, bar: bool = False) -> Cell:
    """A score with its interval; what is undefined is sorted as -1."""
    if interval is None or interval["value"] is None:
        return Cell("undefined", value=-1.0)
    text, between = show(interval)
    return Cell(text, between, interval["value"], interval if bar else None)


def share(value: float) -> Cell:
    """A share without an interval."""
    return Cell(f"{100 * value:.1f} %", value=value, bar={"value": value, "low": value, "high": value})


def count(value: int) -> Cell:
    """A whole number."""
    return Cell(str(value), value=value)


def user(text: str) -> Cell:
    """A text that may hold anything."""
    return Cell(text, code=True)


def html(report: Report, figures: Mapping[str, Figure], environment: Mapping[str, Any]) -> str:
    """One page that needs nothing but itself: no network, no other file.

    Args:
        report: to show.
        figures: of its charts, by name.
        environment: versions, settings and digests.
    """
    page = _templates(autoescape=True).get_template("report.html")
    shown = {name for section in report.sections if not section.matrix for name in section.charts}
    return page.render(
        report=report,
        svg={name: plots.svg(figures[name]) for name in shown},
        environment=json.dumps(environment, indent=1, ensure_ascii=False),
    )


def markdown(report: Report) -> str:
    """The same, with its charts in PNG files beside it that are named as they are."""
    templates = _templates(autoescape=False)
    templates.filters["code"] = code
    return re.sub(r"\n{3,}", "\n\n", templates.get_template("report.md").render(report=report)).strip() + "\n"


def _templates(*, autoescape: bool) -> Environment:
    return Environment(
        loader=PackageLoader(__package__, "."), autoescape=autoescape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def code(text: str) -> str:
    """A text that cannot leave its table cell or start markup: as code, where only a backtick has a meaning."""
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return "`" + printable.replace("|", "¦").replace("<", "‹").replace(">", "›").replace("`", "'") + "`"
