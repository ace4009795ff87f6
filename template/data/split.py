"""The split into train, val and test: stratified, grouped, decided once by the contents of the images."""

import csv
import dataclasses
import hashlib
import io
from collections.abc import Mapping

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..labels import is_multi, texts, to_matrix
from .examples import DataError, Examples
from .stratify import iterative_stratification


def split(examples: Examples, *, val_fraction: float, test_fraction: float, seed: int) -> Examples:
    """Split examples into train, val and test, stratified by class; groups and exact duplicates are never divided.

    A given part is kept; `val` and `test` are taken from the given `train` where they are missing.
    Images are placed by the hash of their contents and the seed: the same images get the same parts under any
    name and in any order, and adding a few moves few others.

    Args:
        examples: with digests, and parts "train", "val", "test" or "".
        val_fraction: in [0, 1). With 0 and no given val, that part is empty.
        test_fraction: likewise.
        seed: another seed, another split.

    Returns:
        The same examples in the same order with parts train, val or test, and "" for images left out (also in
        `skipped`): exact duplicates with different labels, and training images that are duplicates of given val or
        test images or in one of their groups.

    Raises:
        DataError: if a class would have no image in a part that others have, with the number that it needs.
    """
    reasons = _conflicts(examples)
    fractions = {"test": test_fraction, "val": val_fraction}
    fractions = {part: 0.0 if part in examples.parts else fraction for part, fraction in fractions.items()}
    parts = examples.parts.astype("U5")  # an array of "" alone would cut "train" to one letter
    parts[list(reasons)] = "out"
    free = np.flatnonzero((parts == "") | (parts == "train"))
    cluster = clusters(examples.take(free))
    counts = np.zeros((cluster.max(initial=-1) + 1, len(examples.class_names)), np.int64)
    np.add.at(counts, cluster, to_matrix(examples.labels[free], counts.shape[1]).astype(np.int64))
    first = sorted(zip(cluster, examples.known_digests[free], strict=True), reverse=True)
    name_of = dict(first)  # of equal keys the last one stays: the smallest digest names its cluster
    order = np.argsort([hashlib.sha256(f"{seed}:{name_of[c]}".encode()).hexdigest() for c in range(len(counts))])
    place = _place_by_labels if is_multi(examples.labels) else _place_by_class
    part_of = place(counts, np.bincount(cluster), order, fractions)
    parts[free] = part_of[cluster]
    parts[parts == "out"] = ""
    skipped = [(str(examples.ids[row]), reason) for row, reason in reasons.items()]
    _check_every_class_is_everywhere(examples, parts, fractions, skipped)
    return dataclasses.replace(examples, parts=parts, skipped=(*examples.skipped, *skipped))


def _place_by_class(
    counts: np.ndarray, sizes: np.ndarray, order: np.ndarray, fractions: Mapping[str, float]
) -> np.ndarray:
    """The part of each cluster: among those of its most frequent class, by its position in the order of their hashes.

    Args:
        counts: int64 [clusters, classes], images.
        sizes: int64 [clusters], images.
        order: the clusters, by their hashes.
        fractions: of all images, for test and val; the others are trained on.
    """
    part_of = np.full(len(sizes), "train")
    for label in range(counts.shape[1]):
        members = order[counts[order].argmax(axis=1) == label]
        wanted = {part: round(sizes[members].sum() * fraction) for part, fraction in fractions.items()}
        # A group that would fill the smallest part twice goes last, to train: placed first, it would leave that empty.
        limit = 2 * min(filter(None, wanted.values()), default=len(sizes) + sizes.sum())
        members = members[np.argsort(sizes[members] >= limit, kind="stable")]
        middles = np.cumsum(sizes[members]) - sizes[members] / 2
        start = 0
        for part, number in wanted.items():
            part_of[members[(middles >= start) & (middles < start + number)]] = part
            start += number
    return part_of


def _place_by_labels(
    counts: np.ndarray, sizes: np.ndarray, order: np.ndarray, fractions: Mapping[str, float]
) -> np.ndarray:
    """The part of each cluster, where images have several labels: `iterative_stratification`. As `_place_by_class`."""
    shares = {part: share for part, share in fractions.items() if share}
    shares["train"] = 1 - sum(shares.values())
    placed = iterative_stratification(np.column_stack([counts, sizes]), list(shares.values()), order)
    return np.array(list(shares))[placed]


def clusters(examples: Examples) -> np.ndarray:
    """Clusters of images that must stay together in a split and in cross-validation: int64 [n], the number of each.

    Images that share contents or group, directly or through others (connected components).

    Args:
        examples: with digests.
    """
    n = len(examples)
    _, by_content = np.unique(examples.known_digests, return_inverse=True)
    _, by_group = np.unique(group_names(examples), return_inverse=True)
    links = coo_matrix((np.ones(n), (by_content, n + by_group)), shape=(2 * n, 2 * n))
    return np.unique(connected_components(links, directed=False)[1][by_content], return_inverse=True)[1]


def to_csv(examples: Examples) -> str:
    """The split as a table `id,sha256,label,part`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "sha256", "label", "part"])
    labels = texts(examples.labels, examples.class_names)
    rows = zip(examples.ids, examples.known_digests, labels, examples.parts, strict=True)
    writer.writerows(row for row in rows if row[3])
    return out.getvalue()


def differences(before: str, now: str) -> list[str]:
    """Differences between two tables of `to_csv`, a line per image; missing images come first."""
    old, new = ({row["id"]: row for row in csv.DictReader(io.StringIO(text, newline=""))} for text in (before, now))
    gone = [f"missing or unreadable: {name!r}" for name in old if name not in new]
    both = [(name, row, new[name]) for name, row in old.items() if name in new]
    changed = [f"other contents: {name!r}" for name, a, b in both if a["sha256"] != b["sha256"]]
    moved = [
        f"{what} {a[what]!r} is now {b[what]!r}: {name!r}"
        for name, a, b in both
        for what in ("label", "part")
        if a[what] != b[what]
    ]
    added = [f"new: {name!r}" for name in new if name not in old]
    return [*gone, *changed, *added, *moved] or ["their order"]


def group_names(examples: Examples) -> np.ndarray:
    """Name of the group of each example; without a group, its digest."""
    groups = np.full(len(examples), "") if examples.groups is None else examples.groups
    return np.where(groups == "", examples.known_digests, groups)


def _conflicts(examples: Examples) -> dict[int, str]:
    """Row and reason of duplicates with different labels, and of images whose duplicate or group is held out."""
    rank = {"test": 0, "val": 1, "train": 2, "": 2}
    ties = [
        (("image", digest), ("group", group))
        for digest, group in zip(examples.known_digests, group_names(examples), strict=True)
    ]
    labels_of: dict[tuple[str, str], set[str]] = {}
    part_of: dict[tuple[str, str], str] = {}
    labels = texts(examples.labels, examples.class_names)
    for (image, group), label, part in zip(ties, labels, examples.parts, strict=True):
        labels_of.setdefault(image, set()).add(label)
        for tie in (image, group):
            part_of[tie] = min(part_of.get(tie, part), part, key=rank.__getitem__)
    reasons: dict[int, str] = {}
    for row, ((image, group), part) in enumerate(zip(ties, examples.parts, strict=True)):
        elsewhere = [tie for tie in (image, group) if rank[part_of[tie]] < rank[part]]
        if len(labels_of[image]) > 1:
            reasons[row] = f"the same image has several labels: {sorted(labels_of[image])}"
        elif elsewhere:
            reasons[row] = f"the same {elsewhere[0][0]} is in {part_of[elsewhere[0]]}/"
    return reasons


def _check_every_class_is_everywhere(
    examples: Examples, parts: np.ndarray, fractions: dict[str, float], skipped: list[tuple[str, str]]
) -> None:
    left_out = _named([*skipped, *examples.skipped])
    if len(examples.class_names) < 2:
        raise DataError(f"Expected at least two classes. Received: {list(examples.class_names)}")
    wanted = {"train", *parts[parts != ""].tolist(), *(part for part, fraction in fractions.items() if fraction > 0)}
    usable_of = (to_matrix(examples.labels, len(examples.class_names)).T > 0) & (parts != "")
    for name, usable in zip(examples.class_names, usable_of, strict=True):
        held = {*examples.parts[usable].tolist()}
        if held and held <= {"val", "test"}:
            raise DataError(
                f"Class {name!r} is in {' and '.join(f'{part}/' for part in sorted(held))} alone: it cannot be "
                "trained on. If its images have no labels, move them elsewhere and classify them with predict.py; "
                "else put some of them into the train part too." + left_out
            )
    for name, usable in zip(examples.class_names, usable_of, strict=True):
        missing = sorted(part for part in wanted if not (usable & (parts == part)).any())
        given = [part for part in missing if part != "train" and not fractions.get(part)]
        if given and usable.any():
            raise DataError(
                f"Class {name!r} has no image in the given {given} part, though other classes have. Add some; or move "
                "that part elsewhere (for evaluate.py --path), and one is split off train."
            )
        if missing:
            free = examples.take(usable & np.isin(examples.parts, ["", "train"]))
            count = len(set(clusters(free)))
            need = next((n for n in range(count + 1, 10_000) if _counts(n, fractions) > 0), 10_000)
            raise DataError(
                f"Class {name!r} has {count} usable images to split (duplicates, and images of a "
                f"group, count as one); {fractions['val']:.0%} val and {fractions['test']:.0%} test need at least "
                f"{need}, or more if groups differ much in size. "
                "Add images, remove the class, or set data.val_fraction and data.test_fraction." + left_out
            )


def _named(skipped: list[tuple[str, str]]) -> str:
    """The first skipped files, for an error that they may explain."""
    named = "".join(f"\n  skipped {name!r}: {reason}" for name, reason in skipped[:10])
    return named + (f"\n  and {len(skipped) - 10} more" if len(skipped) > 10 else "")


def _counts(n: int, fractions: dict[str, float]) -> int:
    """Size of the smallest wanted part when n images are divided."""
    held = [round(n * fraction) for fraction in fractions.values() if fraction > 0]
    return min([*held, n - sum(held)])
