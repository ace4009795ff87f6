"""What the audit found: as JSON, as an HTML page, and which images are left without it."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..examples import Examples
from ..images.load import data_url
from .facts import Facts

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        check: what was looked for.
        severity: `error` (a score measured on these images would be wrong), `warning` (it may be), `info` (a fact).
        message: what was found, with the number and what was expected.
        advice: what to do about it.
        images: groups of rows of the examples that it is about; duplicates are in one group.
    """

    check: str
    severity: Literal["error", "warning", "info"]
    message: str
    advice: str = ""
    images: Sequence[tuple[int, ...]] = ()


def one_by_one(rows: Iterable[int]) -> list[tuple[int, ...]]:
    """Rows as groups of one."""
    return [(int(row),) for row in rows]


def clean_rows(examples: Examples, findings: Sequence[Finding]) -> np.ndarray:
    """Rows without unreadable images, duplicates and duplicates with different labels, int64 [m].

    Of duplicates one is kept: in test, else in val, else the first.
    """
    out = set()
    for finding in findings:
        if finding.check == "unreadable" or finding.check.endswith("with different labels"):
            out |= set(itertools.chain(*finding.images))
        elif finding.check.startswith(("exact duplicates", "near duplicates")):
            for group in finding.images:
                kept = min(group, key=lambda row: ({"test": 0, "val": 1}.get(str(examples.parts[row]), 2), row))
                out |= set(group) - {kept}
    return np.array([row for row in range(len(examples)) if row not in out], np.int64)


def to_json(examples: Examples, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings with the ids of their images."""
    return [
        {
            "check": f.check,
            "severity": f.severity,
            "message": f.message,
            "advice": f.advice,
            "images": [[str(examples.ids[row]) for row in group] for group in f.images],
        }
        for f in findings
    ]


def to_html(title: str, examples: Examples, facts: Facts, findings: Sequence[Finding], most: int = 24) -> str:
    """Findings as one self-contained HTML page, with at most so many groups of images each."""
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)

    def shown(row: int) -> dict[str, str]:
        return {"id": str(examples.ids[row]), "image": data_url(facts.thumbnails[row]) if facts.readable[row] else ""}

    shown_findings = [
        {
            "check": f.check,
            "severity": f.severity,
            "message": f.message,
            "advice": f.advice,
            "groups": [[shown(row) for row in group] for group in f.images[:most]],
            "more": max(0, len(f.images) - most),
        }
        for f in findings
    ]
    return environment.get_template("audit.html").render(title=title, findings=shown_findings)
