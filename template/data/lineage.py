"""Which images a run, or the runs that it comes from, had in which part: by the digests in split.csv."""

import csv
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .audit.findings import Finding
from .examples import PARTS, Examples


def parts_in_run(run: Path, digests: Sequence[str]) -> np.ndarray:
    """Part of each image in the split of a run, or of those it comes from: [n] of PARTS, "" for new images.

    Of several parts it is the first of train, val and test. Train and val decided about the weights: val selected
    them, and may be trained on in a refit.

    Args:
        run: folder of a run; without a split.csv, all images are new.
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
    """The folder of a run, and those of the runs that it started from or learned from, as far as they still exist."""
    folders = [run]
    for folder in folders:  # grows
        try:
            settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
            teachers = map(Path, settings.get("train", {}).get("teachers", ()))
            before = [Path(settings["backbone"]["weights"]).parent, *teachers]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for one in (each.expanduser() for each in before):
            if (one / "split.csv").is_file() and one.resolve() not in {each.resolve() for each in folders}:
                folders.append(one)
    return folders


def warm_start_leaks(examples: Examples, weights: str) -> list[Finding]:
    """Validation and test images on which the run that the weights come from was trained or selected.

    Args:
        examples: with digests and parts.
        weights: `backbone.weights`; those of a run are in its folder, beside its split.csv.
    """
    before = Path(weights).expanduser().parent
    if not (before / "split.csv").is_file():
        return []
    seen = np.isin(parts_in_run(before, list(examples.known_digests)), ["train", "val"])
    rows = {part: np.flatnonzero(seen & (examples.parts == part)) for part in ("val", "test")}
    if not any(map(len, rows.values())):
        return []
    counts = [f"{len(rows[part])} of {(examples.parts == part).sum()} {part} images" for part in rows]
    return [
        Finding(
            "warm start",
            "error",
            f"{' and '.join(counts)} are among the train and val images of {str(before)!r}, whose weights this run "
            "starts from: scores on them are too high.",
            "Split as that run did (the same images, data.split_seed, data.val_fraction and data.test_fraction), test "
            "on images that it has never seen, or start from other weights.",
            [(int(row),) for part in ("test", "val") for row in rows[part]],
        )
    ]
