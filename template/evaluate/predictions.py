"""Logits of a model for some images: everything in this wing takes them, and a run saves them."""

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit, softmax

from .. import disk, runs
from ..labels import is_multi


@dataclass(frozen=True)
class Predictions:
    """Logits of n images, in the order of their ids.

    Args:
        ids: [n] names of the images.
        labels: int64 [n] true classes, -1 where unknown; or int64 [n, classes] of 0 and 1, where an image may have
            several.
        logits: float32 [n, classes], finite.
        class_names: one per class, in index order.
        groups: [n] names of what belongs together (patient, camera), or None; the bootstrap then draws whole groups.

    Raises:
        ValueError: if the lengths disagree, a label is out of range, or a logit is not finite.
    """

    ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        expected = (len(self.ids), len(self.class_names))
        if self.logits.shape != expected or self.labels.shape not in {expected[:1], expected}:
            raise ValueError(
                f"Expected logits {expected} and labels {expected[:1]}, one row per id and one column per class. "
                f"Received: logits {self.logits.shape}, labels {self.labels.shape}"
            )
        if self.groups is not None and self.groups.shape != expected[:1]:
            raise ValueError(f"Expected a group for each of {expected[0]} images. Received: {self.groups.shape}")
        low, high = (0, 1) if self.multi else (-1, expected[1] - 1)
        if len(self.labels) and not low <= self.labels.min() <= self.labels.max() <= high:
            raise ValueError(f"Expected labels from {low} to {high}. Received: {np.unique(self.labels)}")
        bad = self.ids[~np.isfinite(self.logits).all(axis=1)]
        if len(bad):
            raise ValueError(f"The logits of {len(bad)} images are not finite, the first: {str(bad[0])!r}")

    @property
    def multi(self) -> bool:
        """Whether an image may have several labels."""
        return is_multi(self.labels)

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [n, classes]; rows sum to 1, unless an image may have several labels."""
        logits = self.logits.astype(np.float64)
        return expit(logits) if self.multi else softmax(logits, axis=1)

    @property
    def predicted(self) -> np.ndarray:
        """int64 [n], the most probable class (of equal ones, the first)."""
        return self.logits.argmax(axis=1)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Predictions":
        """The predictions of the images at these positions."""
        groups = None if self.groups is None else self.groups[rows]
        return dataclasses.replace(
            self, ids=self.ids[rows], labels=self.labels[rows], logits=self.logits[rows], groups=groups
        )

    def scaled(self, temperature: float) -> "Predictions":
        """The same with logits divided by a temperature: no prediction changes, only its confidence."""
        return dataclasses.replace(self, logits=self.logits / np.float32(temperature))

    def save(self, path: Path) -> None:
        """Write ids, labels, logits and class names as .npz; nothing in it is executed on load."""
        with runs.replacing(path) as temporary, temporary.open("wb") as file:
            groups: dict[str, Any] = {} if self.groups is None else {"groups": self.groups}
            names = np.array(self.class_names)
            np.savez_compressed(file, ids=self.ids, labels=self.labels, logits=self.logits, class_names=names, **groups)

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            DamagedError: if it is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                ids, labels, logits = (file[name] for name in ("ids", "labels", "logits"))
                return cls(ids, labels, logits, tuple(map(str, file["class_names"])), file.get("groups"))
        except (EOFError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise disk.DamagedError(
                f"{str(path)!r} is damaged, or no file of predictions: {error}. Copy it again from where it is whole."
            ) from error


def predict(
    model: Any, batches: Iterable, ids: Sequence[str] | np.ndarray, labels: np.ndarray, class_names: Sequence[str],
    callbacks: Sequence[Any] = (),
) -> Predictions:  # fmt: skip
    """Run a Keras model over ordered, complete batches.

    Args:
        model: keras.Model to logits.
        batches: what its `predict` takes, in the order of `ids`; what lies beyond them, to fill up a batch, is cut off.
        ids: names of the images.
        labels: true classes, -1 where unknown; or [n, classes].
        class_names: one per column of the logits.
        callbacks: of Keras, for `predict`.
    """
    logits = (
        model.predict(batches, verbose=0, callbacks=list(callbacks)) if len(ids) else np.zeros((0, len(class_names)))
    )
    logits = np.asarray(logits, np.float32)[: len(ids)]
    return Predictions(np.asarray(ids), np.asarray(labels, np.int64), logits, tuple(class_names))


def pool(several: Sequence[Predictions]) -> Predictions:
    """One set of predictions from several of different images and the same classes, in their order.

    Raises:
        ValueError: if an image occurs twice, or the classes differ.
    """
    first, ids = several[0], np.concatenate([p.ids for p in several])
    if len(np.unique(ids)) < len(ids) or any(p.class_names != first.class_names for p in several):
        raise ValueError("Expected predictions of different images and the same classes.")
    groups = None if any(p.groups is None for p in several) else np.concatenate([p.groups for p in several])
    labels, logits = (np.concatenate([getattr(p, name) for p in several]) for name in ("labels", "logits"))
    return Predictions(ids, labels, logits, first.class_names, groups)


def average(several: Sequence[Predictions]) -> Predictions:
    """One prediction from several of the same images (test-time views, or an ensemble): mean probabilities.

    Raises:
        ValueError: if they are not of the same images and classes in the same order.
    """
    first = several[0]
    if len(several) == 1:
        return first
    for other in several[1:]:
        if not np.array_equal(first.ids, other.ids) or first.class_names != other.class_names:
            raise ValueError("Expected predictions of the same images and classes, in the same order.")
    mean = np.mean([p.probabilities for p in several], axis=0)
    logits = logit(np.clip(mean, 1e-15, 1 - 1e-15)) if first.multi else np.log(np.clip(mean, 1e-30, None))
    return dataclasses.replace(first, logits=logits.astype(np.float32))
