"""Datasets of arrays: pixels or activations read by rows, with labels; flipped, zoomed, cut and put together."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Augment
from .array_file import ArrayFile
from .augment import POLICIES, VERSION, augment, strengthen, zoom_center


@dataclass(frozen=True)
class ArrayDataset:
    """What a network learns from: labels, and a function that gives its inputs.

    Args:
        read: (epoch, rows) -> batch of inputs. Pure: the same arguments give the same numbers.
        labels: int64 [n].
        key: names the inputs: of two datasets with one key they are equal. Empty if nobody knows.
        names: [n], what a person calls each image, for messages; or nothing.
        groups: int64 [n], numbers of what must not be divided in cross-validation (`split.clusters`), or None.
    """

    read: Callable[[int, np.ndarray], np.ndarray]
    labels: np.ndarray
    key: str = ""
    names: Sequence[str] = ()
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


def train_dataset(
    pixels: ArrayFile, rows: np.ndarray, labels: np.ndarray, settings: Augment, seed: int
) -> ArrayDataset:
    """These rows of the pixels and labels, augmented anew in every epoch."""
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
    pixels: ArrayFile, rows: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> ArrayDataset:
    """These rows of the pixels, labels and groups as they are."""
    mine = None if groups is None else groups[rows]
    return ArrayDataset(lambda _, i: pixels[rows[i]], labels[rows], _key(pixels, rows), groups=mine)


def hflip(dataset: ArrayDataset) -> ArrayDataset:
    """The images of a dataset, left and right exchanged."""
    key = dataset.key and f"{dataset.key} hflip"
    return dataclasses.replace(dataset, read=lambda epoch, rows: dataset.read(epoch, rows)[:, :, ::-1], key=key)


def center_zoom(dataset: ArrayDataset) -> ArrayDataset:
    """The middle of the images of a dataset, as large as the whole: two thirds of the width and of the height."""
    key = dataset.key and f"{dataset.key} center_zoom"
    return dataclasses.replace(dataset, read=lambda epoch, rows: zoom_center(dataset.read(epoch, rows)), key=key)


def subset(dataset: ArrayDataset, rows: np.ndarray) -> ArrayDataset:
    """These rows of a dataset; itself, if they are all in order."""
    if np.array_equal(rows, np.arange(len(dataset))):
        return dataset
    key = dataset.key and f"{dataset.key} of {hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()}"
    return ArrayDataset(
        lambda epoch, i: dataset.read(epoch, rows[i]),
        dataset.labels[rows],
        key,
        [dataset.names[row] for row in rows] if len(dataset.names) else (),
        None if dataset.groups is None else dataset.groups[rows],
    )


def subsample(dataset: ArrayDataset, most: int) -> ArrayDataset:
    """At most so many images of a dataset, from all over it, which is from all classes where they lie together."""
    return subset(dataset, evenly_spaced(len(dataset), most))


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """At most so many of n rows, evenly spaced, int64."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(np.int64))


def concatenate(datasets: Sequence[ArrayDataset]) -> ArrayDataset:
    """Several datasets, one after the other."""
    starts = np.cumsum([0, *map(len, datasets)])

    def read(epoch: int, rows: np.ndarray) -> np.ndarray:
        example = datasets[0].read(epoch, rows[:0])
        out = np.empty((len(rows), *example.shape[1:]), example.dtype)
        for dataset, start, stop in zip(datasets, starts, starts[1:], strict=False):
            mine = (rows >= start) & (rows < stop)
            out[mine] = dataset.read(epoch, rows[mine] - start)
        return out

    key = " + ".join(d.key for d in datasets) if all(d.key for d in datasets) else ""
    names = np.concatenate([d.names for d in datasets]) if all(len(d.names) for d in datasets) else ()
    groups = None if any(d.groups is None for d in datasets) else np.concatenate([d.groups for d in datasets])
    return ArrayDataset(read, np.concatenate([d.labels for d in datasets]), key, names, groups)


def channel_statistics(dataset: ArrayDataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel over all pixels of a dataset of images, float64 [3] each, exact."""
    total, squares, count = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    for row in range(len(dataset)):
        pixels = dataset.read(0, np.array([row])).reshape(-1, 3).astype(np.int64)
        total, squares, count = total + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = total / count
    return mean, squares / count - mean**2


def _key(pixels: ArrayFile, rows: np.ndarray, *how: object) -> str:
    """Name of what is read, if the pixels have one (an array has none)."""
    key = getattr(pixels, "key", "")
    return key and f"{key} {hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()} {VERSION} {how}"
