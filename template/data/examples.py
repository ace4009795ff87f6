"""Where images and labels come from. Every source becomes the same `Examples`."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .images.read import ImageSource
from .sources.folders import read_folder
from .sources.names import DataError, Found, matched, one_spelling, part_of
from .sources.tables import ENDINGS, read_table

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Examples:
    """Images with labels, from any source.

    Args:
        ids: what a person would call each image: its path below the data folder, or `digits/0001`.
        images: file, bytes or array, one an image.
        labels: int64 [n], index into `class_names`.
        class_names: one a class, in index order.
        parts: [n] of "train", "val", "test", or "" where the source does not say.
        groups: [n] of names that must not be divided between parts (patient, camera, video), or None.
        digests: [n] sha256 of each image's contents, once they have been read.
        notes: [n] what had to be assumed to see something in it, or "", once it has been decoded.
        skipped: (id, reason) of what was found beside these and left out.
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

    def take(self, rows: np.ndarray, skipped: Sequence[tuple[str, str]] = ()) -> "Examples":
        """The examples at these positions (or of this boolean mask); `skipped` is added to what was left out."""
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
        """The same examples with labels as indices into another list of classes, matched by how their names look.

        Raises:
            DataError: if a class here is not in the other list.
        """
        known = matched(self.class_names, class_names)
        unknown = sorted(set(self.class_names) - set(known))
        if unknown:
            raise DataError(
                f"The images have classes that the model was not trained on: {unknown}. "
                f"It knows {list(class_names)}. Rename or remove these folders or labels."
            )
        index = np.array([list(class_names).index(known[name]) for name in self.class_names])
        return dataclasses.replace(self, labels=index[self.labels], class_names=tuple(class_names))


def first_lines(lines: Sequence[str], most: int = 10) -> str:
    """The first few of many lines, for a message."""
    return "\n  ".join([*lines[:most], *[f"and {len(lines) - most} more"] * (len(lines) > most)])


def load_examples(path: str) -> Examples:
    """Find the images and labels at a folder, a CSV file, `tfds:NAME` or `digits`. Decodes nothing.

    Raises:
        DataError: if there is nothing there to train on, saying what was found instead.
    """
    if path == "digits":
        return _digits()
    if path.startswith("tfds:"):
        return _tfds(path.removeprefix("tfds:"))
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"data.path {path!r} does not exist. Expected a folder, a CSV file, tfds:NAME or digits.")
    if place.is_dir():
        return _assembled(*read_folder(place))
    if place.suffix.lower() in ENDINGS:
        return _assembled(*read_table(place))
    raise DataError(
        f"data.path {path!r} is neither a folder nor a CSV file. Unpack an archive; save another table as CSV."
    )


def _assembled(found: Sequence[Found], skipped: Sequence[tuple[str, str]], grouped: bool = False) -> Examples:
    """Examples of what a folder or a table says, with one class for names that look the same."""
    spelling = one_spelling(one.label for one in found)
    names = sorted(set(spelling.values()))
    for one, other in itertools.combinations(names, 2):
        if one.casefold() == other.casefold():
            print(f"classes {one!r} and {other!r} differ in case only: on Windows and macOS they would be one folder")
    return Examples(
        ids=np.array([one.id for one in found]),
        images=[one.image for one in found],
        labels=np.array([names.index(spelling[one.label]) for one in found], np.int64),
        class_names=tuple(names),
        parts=np.array([one.part for one in found]),
        groups=np.array([one.group for one in found]) if grouped else None,
        skipped=tuple(skipped),
    )


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
        raise DataError(f"TensorFlow dataset {name!r} is not one of images with one class label each.")
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
    labels = np.array(labels, np.int64)
    return Examples(np.array(ids), images, labels, class_names, np.array(parts), skipped=tuple(skipped))


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
