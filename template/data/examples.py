"""Images and labels from a folder, a CSV file, TensorFlow Datasets or scikit-learn: all become the same `Examples`."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..labels import SEPARATORS, is_multi
from .images.read import ImageSource
from .sources.folders import read_folder
from .sources.names import DataError, Entry, match_names, merge_levels, merge_spellings, part_of, tidy
from .sources.tables import ENDINGS, read_table

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Examples:
    """Images with labels, not yet decoded.

    Args:
        ids: name of each image: its path below the data folder, or `digits/0001`.
        images: a file, bytes or array each.
        labels: int64 [n], index into `class_names`; or uint8 [n, classes], where an image may have several (`labels`).
        class_names: in the order of their indices.
        parts: [n] of "train", "val", "test", or "" where that is not given.
        groups: [n] of names; a group is never divided between parts (patient, camera, video). Or None.
        digests: [n] sha256 of each image's contents, once they have been read.
        notes: [n] what had to be assumed to decode it, or "", once it has been decoded.
        skipped: (id, reason) of what was found and cannot be used.
    """

    ids: np.ndarray
    images: Sequence[ImageSource]
    labels: np.ndarray
    class_names: tuple[str, ...]
    parts: np.ndarray
    groups: np.ndarray | None = None
    digests: np.ndarray | None = None
    notes: np.ndarray | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def known_digests(self) -> np.ndarray:
        """`digests`, which are there from `load_data` on.

        Raises:
            ValueError: if they are not.
        """
        if self.digests is None:
            raise ValueError(
                "Expected examples whose images have been read (`decode.with_digests`). Received: no digests"
            )
        return self.digests

    def take(self, rows: np.ndarray, skipped: Sequence[tuple[str, str]] = ()) -> "Examples":
        """The examples at these positions (or of this boolean mask); `skipped` is added to what was skipped before."""
        rows = np.arange(len(self))[rows]
        return dataclasses.replace(
            self,
            ids=self.ids[rows],
            images=[self.images[i] for i in rows],
            labels=self.labels[rows],
            parts=self.parts[rows],
            groups=None if self.groups is None else self.groups[rows],
            digests=None if self.digests is None else self.digests[rows],
            notes=None if self.notes is None else self.notes[rows],
            skipped=(*self.skipped, *skipped),
        )

    def with_classes(self, class_names: Sequence[str]) -> "Examples":
        """The same examples with labels as indices into another list of classes; names that look the same match.

        Raises:
            DataError: if a class here is not in the other list.
        """
        matches = match_names(self.class_names, class_names)
        unknown = sorted(set(self.class_names) - set(matches))
        if unknown:
            raise DataError(
                f"The images have classes that the model was not trained on: {unknown}. "
                f"It knows {list(class_names)}. Rename or remove these folders or labels."
            )
        index = np.array([list(class_names).index(matches[name]) for name in self.class_names])
        if not is_multi(self.labels):
            labels = index[self.labels]
        else:
            labels = np.zeros((len(self), len(class_names)), np.uint8)
            labels[:, index] = self.labels
        return dataclasses.replace(self, labels=labels, class_names=tuple(class_names))


def first_lines(lines: Sequence[str], most: int = 10) -> str:
    """The first few of many lines, for a message."""
    return "\n  ".join([*lines[:most], *[f"and {len(lines) - most} more"] * (len(lines) > most)])


def load_examples(path: str, class_folders: str = "outer", labels: str = "single") -> Examples:
    """Find the images and labels of a folder, a CSV file, `tfds:NAME` or `digits`. Decodes nothing.

    Args:
        path: as `data.path`.
        class_folders: as the setting of this name.
        labels: likewise; `multi` for several labels an image, or none, which only a CSV file can say.

    Raises:
        DataError: if there are no images with labels, saying what was found instead.
    """
    if labels == "multi" and Path(path).suffix.lower() not in ENDINGS:
        raise DataError(
            "data.labels=multi: expected a CSV file with the columns path,label (cat;dog), or path and a column for "
            f"each class with 0 and 1. Received: {path!r}"
        )
    if path == "digits":
        return _digits()
    if path.startswith("tfds:"):
        return _tfds(path.removeprefix("tfds:"))
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"data.path {path!r} does not exist. Expected a folder, a CSV file, tfds:NAME or digits.")
    if place.is_dir():
        return _to_examples(*read_folder(place, inner=class_folders == "inner"))
    if place.suffix.lower() in ENDINGS:
        multi = labels == "multi"
        return (_to_multilabel if multi else _to_examples)(*read_table(place, multi=multi))
    raise DataError(
        f"data.path {path!r} is neither a folder nor a CSV file. Unpack an archive; save another table as CSV."
    )


def _to_examples(entries: Sequence[Entry], skipped: Sequence[tuple[str, str]], grouped: bool = False) -> Examples:
    """Examples of what a folder or a table lists, with one class for names that look the same."""
    spelling = merge_levels(entry.label for entry in entries)
    names = sorted(set(spelling.values()))
    _print_doubtful(names)
    return Examples(
        ids=np.array([entry.id for entry in entries]),
        images=[entry.image for entry in entries],
        labels=np.array([names.index(spelling[entry.label]) for entry in entries], np.int64),
        class_names=tuple(names),
        parts=np.array([entry.part for entry in entries]),
        groups=np.array([entry.group for entry in entries]) if grouped else None,
        skipped=tuple(skipped),
    )


def _to_multilabel(entries: Sequence[Entry], skipped: Sequence[tuple[str, str]], grouped: bool = False) -> Examples:
    """Examples of a table with several labels an image: in one cell, or one of them a row."""
    labels_of: dict[Entry, list[str]] = {}
    for entry in entries:
        found = [label.strip() for label in re.split(f"[{re.escape(SEPARATORS)}]", entry.label) if tidy(label)]
        labels_of.setdefault(entry._replace(label=""), []).extend(found)
    spelling = merge_spellings(label for found in labels_of.values() for label in found)
    names = sorted(set(spelling.values()))
    _print_doubtful(names)
    labels = np.zeros((len(labels_of), len(names)), np.uint8)
    for row, found in enumerate(labels_of.values()):
        labels[row, [names.index(spelling[label]) for label in found]] = 1
    return Examples(
        ids=np.array([entry.id for entry in labels_of]),
        images=[entry.image for entry in labels_of],
        labels=labels,
        class_names=tuple(names),
        parts=np.array([entry.part for entry in labels_of]),
        groups=np.array([entry.group for entry in labels_of]) if grouped else None,
        skipped=tuple(skipped),
    )


def _print_doubtful(names: Sequence[str]) -> None:
    """Names of classes that are hardly two, or that may be several in one."""
    several = [name for name in names if any(sign in name for sign in SEPARATORS)]
    if several:
        print(f"{several[0]!r} is taken as one class; where it is several labels of one image: --data.labels=multi")
    for one, other in itertools.combinations(names, 2):
        if one.casefold() == other.casefold():
            print(f"classes {one!r} and {other!r} differ only in case: on Windows and macOS they would be one folder")


def _tfds(name: str) -> Examples:
    """A TensorFlow dataset with an image and a class label; the encoded bytes go through our own decoder."""
    import tensorflow_datasets as tfds  # seconds to import, and few runs need it

    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
    except Exception as error:
        raise DataError(f"TensorFlow dataset {name!r} could not be loaded: {error}") from error
    keys = builder.info.supervised_keys
    if not keys or not isinstance(builder.info.features[keys[1]], tfds.features.ClassLabel):
        raise DataError(f"TensorFlow dataset {name!r} has no images with one class label each.")
    class_names = tuple(builder.info.features[keys[1]].names)
    ids, images, labels, parts, skipped = [], [], [], [], []
    for split in builder.info.splits:
        part = part_of(split) if len(builder.info.splits) > 1 else ""
        if part or len(builder.info.splits) == 1:
            raw = tfds.load(name, split=split, decoders={keys[0]: tfds.decode.SkipDecoding()})
            for number, example in enumerate(tfds.as_numpy(raw)):
                if example[keys[1]] < 0:  # how TensorFlow Datasets marks a test set whose labels are kept secret
                    skipped.append((f"{split}/{number:06d}", "it has no label"))
                    continue
                ids.append(f"{split}/{number:06d}")
                images.append(bytes(example[keys[0]]))
                labels.append(int(example[keys[1]]))
                parts.append(part)
    known = np.array(labels, np.int64)
    return Examples(np.array(ids), images, known, class_names, np.array(parts), skipped=tuple(skipped))


def _digits() -> Examples:
    """1,797 handwritten digits, 8 x 8 grey (Alpaydin and Kaynak 1998), shipped inside scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Examples(
        ids=np.array([f"digits/{i:04d}" for i in range(len(digits.target))]),
        images=list((digits.images * (255 / 16)).astype(np.uint8)),
        labels=digits.target.astype(np.int64),
        class_names=tuple(str(d) for d in range(10)),
        parts=np.full(len(digits.target), ""),
    )
