"""Labels that persons gave, one file each, put together with those that a run was trained on: the next table to train.

The parts of the run are kept. New images go to train: they were chosen because they are hard, and a validation or test
part with them in it would no longer be a sample of what the classifier will see.
"""

import csv
import glob
import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from sklearn.metrics import cohen_kappa_score

from .. import runs
from ..data.examples import DataError, Examples
from .annotate import NONE

Answers = dict[str, str]
"""{id: class name} of one person; `NONE` is of no class."""


def answers_file(table: Path, annotator: str) -> Path:
    """Where the answers of a person are kept, beside the table that they are for."""
    return table.with_name(f"{table.stem}.{annotator}.json")


def read_answers(table: Path) -> dict[str, Answers]:
    """Of all persons who have answered so far, by name.

    Raises:
        DataError: if a file is damaged.
    """
    start, found = f"{table.stem}.", {}
    for file in sorted(table.parent.glob(f"{glob.escape(start)}*.json")):
        try:
            found[file.name[len(start) : -len(".json")]] = dict(runs.read_json(file))
        except (ValueError, TypeError) as error:
            raise DataError(f"{str(file)!r} holds no answers, or is damaged: {error}") from error
    return found


def settle(answers: Mapping[str, Answers]) -> tuple[Answers, list[str]]:
    """One label for each image that has an answer: that of the most persons; and the images without such a one."""
    votes: dict[str, Counter] = {}
    for given in answers.values():
        for name, label in given.items():
            votes.setdefault(name, Counter())[label] += 1
    settled, disputed = {}, []
    for name, counts in votes.items():
        (label, most), *others = counts.most_common()
        if others and others[0][1] == most:
            disputed.append(name)
        else:
            settled[name] = label
    return settled, disputed


def agreement(answers: Mapping[str, Answers]) -> list[dict]:
    """Of every two persons: `pair`, `images` that both have labelled, `agreed` share of them, and `cohen_kappa`.

    Kappa is 1 if they always agree, 0 if as often as by chance, and NaN if both always gave one and the same answer.
    """
    rows = []
    for (one, mine), (other, theirs) in itertools.combinations(answers.items(), 2):
        shared = sorted(mine.keys() & theirs.keys())
        if shared:
            both = [[given[name] for name in shared] for given in (mine, theirs)]
            agreed = float(np.mean([a == b for a, b in zip(*both, strict=True)]))
            kappa = float(cohen_kappa_score(*both)) if len(set(both[0]) | set(both[1])) > 1 else float("nan")
            rows.append({"pair": (one, other), "images": len(shared), "agreed": agreed, "cohen_kappa": kappa})
    return rows


def write_table(file: Path, labelled: Examples, new: Mapping[str, str]) -> None:
    """A CSV of path, label and split that `train.py --data.path` takes: the labelled images, then the new ones.

    Args:
        file: to write.
        labelled: with their parts; their images are files.
        new: {path: class name}.

    Raises:
        DataError: if the labelled images are not files.
    """
    files = [image for image in labelled.images if isinstance(image, Path)]
    if len(files) < len(labelled):
        raise DataError("The images of the run are not files on this machine, so that no table can name them.")
    names = labelled.class_names
    old = zip(files, labelled.labels, labelled.parts, strict=True)
    rows = [(str(image.resolve()), names[label], part) for image, label, part in old]
    rows += [(path, label, "train") for path, label in new.items() if label != NONE]
    with runs.replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("path", "label", "split"), *rows])
