"""What is wrong with a dataset, before anything is trained on it. Only reads: no file is deleted, moved or changed.

Most projects that fail do so here: the same image in training and test, under two labels, or a class that can be told
by the size of its files (Karpathy 2019, "A recipe for training neural networks": become one with the data).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from ...labels import images_per_class, is_multi
from ..examples import Examples
from ..sources.names import part_of
from .duplicates import LOW_CONTRAST, exact_duplicates, near_duplicates
from .facts import Facts
from .findings import SEVERITIES, Finding, one_by_one

DARK, BRIGHT, TINY, ASPECT_RATIO = 15, 240, 48, 4.0
"""Warned of: mean brightness below or above, shorter side below (pixels), aspect ratio above."""


def audit(examples: Examples, facts: Facts) -> list[Finding]:
    """All findings, errors first.

    Args:
        examples: from `load_examples`, before a split.
        facts: from `read_facts` or `facts_from_pixels`.
    """
    checks = (
        _unreadable, _skipped, _assumed, _class_sizes, exact_duplicates, near_duplicates, _shortcuts, _wrong_extension,
        _outliers, _image_sizes, _folder_level,
    )  # fmt: skip
    findings = [finding for check in checks for finding in check(examples, facts)]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _unreadable(examples: Examples, facts: Facts) -> Iterator[Finding]:
    for reason in dict.fromkeys(facts.reason[~facts.readable]):
        rows = np.flatnonzero(facts.reason == reason)
        message = f"Images that cannot be read: {len(rows)} ({reason})"
        yield Finding(
            "unreadable", "warning", message, "Training skips them: repair or replace them.", one_by_one(rows)
        )


def _skipped(examples: Examples, _: Facts) -> Iterator[Finding]:
    for reason in dict.fromkeys(reason for _, reason in examples.skipped):
        names = [name for name, why in examples.skipped if why == reason]
        yield Finding(
            "skipped",
            "warning",
            f"Files that are skipped: {len(names)} ({reason}): {', '.join(map(repr, names[:5]))}",
            "If they are images, put them into the folder of their class.",
        )


def _assumed(_: Examples, facts: Facts) -> Iterator[Finding]:
    for note in dict.fromkeys(facts.note[facts.note != ""]):
        rows = np.flatnonzero(facts.note == note)
        yield Finding(
            "assumed",
            "warning",
            f"{note}: {len(rows)}",
            "Check that they look right; if not, convert them to JPEG or PNG with 8 bits.",
            one_by_one(rows),
        )


def _class_sizes(examples: Examples, facts: Facts) -> Iterator[Finding]:
    counts = images_per_class(examples.labels[facts.readable], len(examples.class_names))
    names = examples.class_names
    table = ", ".join(f"{name!r} {count}" for name, count in zip(names, counts, strict=True))
    yield Finding("classes", "info", f"{len(names)} classes, {facts.readable.sum()} images: {table}")
    if few := [names[i] for i in np.flatnonzero(counts < 10)]:
        yield Finding(
            "few images",
            "warning",
            f"Classes with fewer than 10 images: {few}. Expected: 20 or more per class.",
            "Collect more images, or merge classes; with so few, validation and test scores mean little.",
        )
    if counts.min() and counts.max() > 10 * counts.min():
        most, least = names[int(counts.argmax())], names[int(counts.argmin())]
        yield Finding(
            "class imbalance",
            "warning",
            f"Class {most!r} has {counts.max() / counts.min():.0f} times as many images as {least!r}.",
            "Read balanced accuracy and macro F1 instead of accuracy; `train.monitor=macro_f1` selects by it.",
        )


def _shortcuts(examples: Examples, facts: Facts) -> Iterator[Finding]:
    """Can the class be predicted from what has nothing to do with it? By a small decision tree, cross-validated."""
    good, labels = facts.readable, examples.labels[facts.readable]
    if is_multi(labels):  # which has no majority to be compared with
        return
    counts = np.bincount(labels)
    if (counts > 0).sum() < 2 or counts[counts > 0].min() < 5:
        return
    formats, modes = (np.unique(values[good], return_inverse=True)[1] for values in (facts.format, facts.mode))
    clues = {
        "width and height": np.stack([facts.width[good], facts.height[good]], axis=1),
        "file size": facts.file_size[good, None],
        "file format and colour mode": np.stack([formats, modes], axis=1),
        "mean brightness": facts.brightness[good, None],
        "mean colour": facts.thumbnails[good].mean(axis=(1, 2)),
    }
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    majority = (cross_val_predict(DummyClassifier(), clues["mean brightness"], labels, cv=folds) == labels).mean()
    for clue, values in clues.items():
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=5, random_state=0)
        accuracy = (cross_val_predict(tree, values, labels, cv=folds) == labels).mean()
        wrong = 1 - majority
        if accuracy - majority > max(0.4 * wrong, 4 * np.sqrt(wrong * majority / len(labels))):
            in_the_image = clue.startswith("mean")
            yield Finding(
                "shortcut",
                "warning" if in_the_image else "error",
                f"{clue.capitalize()} alone predicts the class with {100 * accuracy:.0f} % accuracy "
                f"(majority class: {100 * majority:.0f} %).",
                "If that comes from how the images were made and not from what they show, a network learns this "
                "shortcut and fails on other images. Make the files of all classes alike.",
            )


def _wrong_extension(examples: Examples, facts: Facts) -> Iterator[Finding]:
    formats = Image.registered_extensions()
    rows = [
        row
        for row, image in enumerate(examples.images)
        if isinstance(image, Path)
        and facts.readable[row]
        and image.suffix
        and formats.get(image.suffix.lower()) != str(facts.format[row]).replace("MPO", "JPEG")
    ]
    if rows:
        first = f"{str(examples.ids[rows[0]])!r} is {facts.format[rows[0]]}"
        yield Finding(
            "wrong extension",
            "info",
            f"Files whose extension does not fit their format: {len(rows)}; {first}.",
            "Training goes by the contents; other programs may not.",
            one_by_one(rows),
        )


def _outliers(examples: Examples, facts: Facts) -> Iterator[Finding]:
    shorter, longer = np.minimum(facts.width, facts.height), np.maximum(facts.width, facts.height)
    contrast = facts.thumbnails.std(axis=(1, 2)).max(axis=1)
    checks = (
        ("tiny", shorter < TINY, f"Shorter side below {TINY} pixels"),
        ("odd aspect ratio", longer > ASPECT_RATIO * np.maximum(shorter, 1), f"Aspect ratio above {ASPECT_RATIO:g}"),
        ("low contrast", contrast < LOW_CONTRAST, "Hardly any contrast"),
        ("dark", (facts.brightness < DARK) & (contrast >= LOW_CONTRAST), f"Mean brightness below {DARK} of 255"),
        ("bright", (facts.brightness > BRIGHT) & (contrast >= LOW_CONTRAST), f"Mean brightness above {BRIGHT} of 255"),
    )
    for name, mask, meaning in checks:
        rows = np.flatnonzero(mask & facts.readable)
        if 0 < len(rows) < 0.5 * facts.readable.sum():  # what most images are is no outlier
            message = f"{meaning}: {len(rows)}"
            yield Finding(name, "warning", message, "Check that they show what their label says.", one_by_one(rows))


def _image_sizes(_: Examples, facts: Facts) -> Iterator[Finding]:
    if facts.readable.any():
        width, height = facts.width[facts.readable], facts.height[facts.readable]
        low, median, high = np.quantile(np.minimum(width, height), [0.05, 0.5, 0.95])
        modes, counts = np.unique(facts.mode[facts.readable], return_counts=True)
        table = ", ".join(f"{mode} {count}" for mode, count in zip(modes, counts, strict=True))
        yield Finding(
            "image sizes",
            "info",
            f"Shorter side: median {median:.0f} pixels, 90 % from {low:.0f} to {high:.0f}; "
            f"width / height: median {np.median(width / height):.2f}; colour modes: {table}",
        )


def _folder_level(examples: Examples, _: Facts) -> Iterator[Finding]:
    """Class folders that all hold the same sub-folders: was a folder one level too high given?"""
    inside: dict[str, set[str]] = {}
    for name in examples.ids:
        above = Path(str(name)).parts[:-1]
        above = above[1:] if above and part_of(above[0]) else above
        if len(above) > 1:
            inside.setdefault(above[0], set()).add(above[1])
    folders = [names for names in inside.values() if len(names) > 1]
    if len(folders) > 1 and all(names == folders[0] for names in folders):
        yield Finding(
            "folder level",
            "error",
            f"All class folders ({sorted(inside)}) have the same sub-folders {sorted(folders[0])}.",
            "If these are the classes, give data.path one level deeper, or rename the folders to train/, val/ and "
            "test/.",
        )
