"""Which images a run has seen already, known by their contents: its split.csv names the digest of each."""

import csv
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .audit.findings import Finding
from .examples import PARTS, Examples


def parts_in(run: Path, digests: Sequence[str]) -> np.ndarray:
    """Part that each image has in the split of a run, or of those it began from: [n] of PARTS, "" for new ones.

    Of several parts it is the first of train, val and test. All three but test decided about the weights: val chose
    them, and is learned from in a final fit.

    Args:
        run: folder of a run; without a split.csv, nothing is known of it.
        digests: sha256 of the contents of each image.
    """
    found: dict[str, str] = {}
    for folder in lineage(run):
        if (folder / "split.csv").is_file():
            with (folder / "split.csv").open(newline="", encoding="utf-8") as table:
                for row in csv.DictReader(table):
                    parts = row["part"], found.get(row["sha256"], PARTS[-1])
                    found[row["sha256"]] = min(parts, key=PARTS.index)
    return np.array([found.get(digest, "") for digest in digests], "U5")


def lineage(run: Path) -> list[Path]:
    """The folder of a run, and those of the runs whose weights it began from, as far as they are still there."""
    folders = [run]
    for folder in folders:  # grows
        try:
            weights = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))["backbone"]["weights"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        before = Path(weights).expanduser().parent
        if (before / "split.csv").is_file() and before.resolve() not in {each.resolve() for each in folders}:
            folders.append(before)
    return folders


def warm_start(examples: Examples, weights: str) -> list[Finding]:
    """Images of validation and test that the run whose weights are the start has learned from, or chosen by.

    Args:
        examples: with digests and parts.
        weights: as in the settings; those of a run are in its folder, beside its split.csv.
    """
    before = Path(weights).expanduser().parent
    if not (before / "split.csv").is_file():
        return []
    known = np.isin(parts_in(before, examples.digests), ["train", "val"])
    rows = {part: np.flatnonzero(known & (examples.parts == part)) for part in ("val", "test")}
    if not any(map(len, rows.values())):
        return []
    counts = [f"{len(rows[part])} of {(examples.parts == part).sum()} {part} images" for part in rows]
    return [
        Finding(
            "warm start",
            "error",
            f"{' and '.join(counts)} are among those that {str(before)!r}, whose weights this run begins with, has "
            "learned from or chosen by: numbers on them flatter.",
            "Divide as that run did (the same images, data.split_seed, data.val_fraction and data.test_fraction), test "
            "on images that it has never seen, or begin with other weights.",
            [(int(row),) for part in ("test", "val") for row in rows[part]],
        )
    ]
