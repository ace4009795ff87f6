"""Datasets in memory or in a cache file: pixels or activations with labels; augment, flip, subset, concatenate."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Augment
from .array_file import Rows
from .augment import POLICIES, VERSION, augment, strengthen
from .images.load import zoom_center

Reader = Callable[[int, np.ndarray], np.ndarray]
"""(epoch, rows) -> [rows, ...]. Pure: the same arguments give the same numbers."""


@dataclass(frozen=True)
class ArrayDataset:
    """Labels, and a function that reads the inputs that belong to them.

    Args:
        read: inputs.
        labels: int64 [n], or uint8 [n, classes] where an image may have several (`labels`).
        key: cache key of the inputs: datasets with the same key have equal inputs. Empty if unknown.
        names: [n] of the images, for messages; or empty.
        groups: int64 [n]; cross-validation keeps a group in one fold (`split.clusters`). Or None.
        whole: what this is a `share` of, and its rows there; or None.
        soft_labels: float32 [rows, classes], from which training learns in place of the labels; or None.
    """

    read: Reader
    labels: np.ndarray
    key: str = ""
    names: Sequence[str] = ()
    groups: np.ndarray | None = None
    whole: "tuple[ArrayDataset, np.ndarray] | None" = None
    soft_labels: Reader | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cached_images(self) -> int:
        """How many images are cached where features of these are."""
        return len(self.whole[0]) if self.whole else len(self)


def train_dataset(pixels: Rows, rows: np.ndarray, labels: np.ndarray, settings: Augment, seed: int) -> ArrayDataset:
    """These rows of the pixels and labels, augmented differently in every epoch."""
    policy = strengthen(POLICIES[settings.policy], settings.strength)
    policy = dataclasses.replace(
        policy,
        hflip=settings.flips,
        random_erasing=settings.random_erasing or policy.random_erasing,
        grayscale=settings.grayscale,
        blur=settings.blur,
        solarize=settings.solarize,
    )

    def read(epoch: int, i: np.ndarray) -> np.ndarray:
        return augment(pixels[rows[i]], policy, seed, epoch, rows[i])

    return ArrayDataset(read, labels[rows], _key(pixels, rows, policy, seed))


def eval_dataset(
    pixels: Rows | np.ndarray, rows: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> ArrayDataset:
    """These rows of the pixels, labels and groups, not augmented."""
    groups = None if groups is None else groups[rows]
    return ArrayDataset(lambda _, i: pixels[rows[i]], labels[rows], _key(pixels, rows), groups=groups)


def hflip(dataset: ArrayDataset) -> ArrayDataset:
    """The images of a dataset, flipped horizontally."""
    return _each(dataset, lambda images: images[:, :, ::-1], "hflip")


def center_zoom(dataset: ArrayDataset) -> ArrayDataset:
    """The centre of the images of a dataset, two thirds of width and height, resized to the size of the whole."""
    return _each(dataset, zoom_center, "zoom_center")  # "center_zoom" are those of version 0.1, by OpenCV


def _each(dataset: ArrayDataset, change: Callable[[np.ndarray], np.ndarray], name: str) -> ArrayDataset:
    """A dataset with its images changed, and with them the whole that it is a share of."""
    key, whole = dataset.key and f"{dataset.key} {name}", dataset.whole
    whole = whole and (_each(whole[0], change, name), whole[1])
    return dataclasses.replace(
        dataset, read=lambda epoch, rows: change(dataset.read(epoch, rows)), key=key, whole=whole
    )


def subset(dataset: ArrayDataset, rows: np.ndarray) -> ArrayDataset:
    """These rows of a dataset; the dataset itself if they are all rows in order."""
    if np.array_equal(rows, np.arange(len(dataset))):
        return dataset
    key = dataset.key and f"{dataset.key} of {hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()}"
    soft = dataset.soft_labels
    return ArrayDataset(
        lambda epoch, i: dataset.read(epoch, rows[i]),
        dataset.labels[rows],
        key,
        [dataset.names[row] for row in rows] if len(dataset.names) else (),
        None if dataset.groups is None else dataset.groups[rows],
        dataset.whole and (dataset.whole[0], dataset.whole[1][rows]),
        soft and (lambda epoch, i: soft(epoch, rows[i])),
    )


def share(dataset: ArrayDataset, rows: np.ndarray) -> ArrayDataset:
    """These rows of a dataset, whose features are cached with those of all its rows.

    So the folds of a cross-validation, which overlap, send each image through a frozen network once.
    """
    return dataclasses.replace(subset(dataset, rows), whole=(dataset, rows))


def subsample(dataset: ArrayDataset, max_images: int) -> ArrayDataset:
    """At most so many images of a dataset, evenly spaced, so of all classes where images are sorted by class."""
    return subset(dataset, evenly_spaced(len(dataset), max_images))


def evenly_spaced(n: int, limit: int) -> np.ndarray:
    """At most so many of n rows, evenly spaced, int64."""
    return np.unique(np.linspace(0, n - 1, min(limit, n)).astype(np.int64))


def concatenate(datasets: Sequence[ArrayDataset]) -> ArrayDataset:
    """One dataset of several, in their order."""
    starts = np.cumsum([0, *map(len, datasets)])

    def together(each: Sequence[Reader]) -> Reader:
        def read(epoch: int, rows: np.ndarray) -> np.ndarray:
            example = each[0](epoch, rows[:0])
            out = np.empty((len(rows), *example.shape[1:]), example.dtype)
            for one, start, stop in zip(each, starts, starts[1:], strict=False):
                inside = (rows >= start) & (rows < stop)
                out[inside] = one(epoch, rows[inside] - start)
            return out

        return read

    key = " + ".join(d.key for d in datasets) if all(d.key for d in datasets) else ""
    names = list(np.concatenate([d.names for d in datasets])) if all(len(d.names) for d in datasets) else ()
    groups = None if any(d.groups is None for d in datasets) else np.concatenate([d.groups for d in datasets])
    soft = [d.soft_labels for d in datasets if d.soft_labels]
    return ArrayDataset(
        together([d.read for d in datasets]), np.concatenate([d.labels for d in datasets]), key, names, groups,
        soft_labels=together(soft) if len(soft) == len(datasets) else None,
    )  # fmt: skip


def channel_statistics(dataset: ArrayDataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel over all pixels of a dataset of uint8 images, float64 [3] each, exact."""
    total, squares, count = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    for row in range(len(dataset)):
        pixels = dataset.read(0, np.array([row])).reshape(-1, 3).astype(np.int64)
        total, squares, count = total + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = total / count
    return mean, squares / count - mean**2


def _key(pixels: Rows | np.ndarray, rows: np.ndarray, *augmentation: object) -> str:
    """Cache key of rows of pixels, if the pixels have one (an array has none)."""
    key = getattr(pixels, "key", "")
    return key and f"{key} {hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()} {VERSION} {augmentation}"
