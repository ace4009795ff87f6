"""From pixels to batches: shuffled, augmented, mixed, labels as shares, a few batches ahead of the network."""

import dataclasses
import hashlib
import math
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import tensorflow as tf

from ..config import Augment
from .augment import POLICIES, VERSION, augment, magnify, strengthen
from .rows import Rows


@dataclass(frozen=True)
class Source:
    """What a network learns from: labels, and a function that gives its inputs.

    Args:
        read: (epoch, rows) -> batch of inputs. Pure: the same arguments give the same numbers.
        labels: int64 [n].
        key: names the inputs: of two sources with one key they are equal. Empty if nobody knows.
        names: [n], what a person calls each picture, for messages; or nothing.
    """

    read: Callable[[int, np.ndarray], np.ndarray]
    labels: np.ndarray
    key: str = ""
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Mixing:
    """How the examples of a batch are mixed with one another, inputs and labels alike; each batch in one way.

    Args:
        mixup: alpha of the Beta distribution from which the share of a batch is drawn, >= 0; 0 for off. Every input
            becomes share * itself + (1 - share) * another (Zhang et al. 2018, "mixup"). Of stored activations, that is
            manifold mixup (Verma et al. 2019).
        cutmix: likewise; a rectangle of 1 - share of the area is taken from another (Yun et al. 2019, "CutMix"). Needs
            inputs [n, height, width, channels].
        until: number of the first epoch that sees its inputs as they are.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    until: int = 0


def training_source(pixels: Rows, rows: np.ndarray, labels: np.ndarray, settings: Augment, seed: int) -> Source:
    """These rows of the pixels and labels, augmented anew in every epoch."""
    policy = strengthen(POLICIES[settings.policy], settings.strength)
    policy = dataclasses.replace(
        policy,
        flip=settings.flip and settings.policy != "none",
        erasing=settings.erase or policy.erasing,
        grey=settings.grey,
        blur=settings.blur,
        solarize=settings.solarize,
    )

    def read(epoch: int, i: np.ndarray) -> np.ndarray:
        return augment(pixels[rows[i]], policy, seed, epoch, rows[i])

    return Source(read, labels[rows], _key(pixels, rows, policy, seed))


def plain_source(pixels: Rows, rows: np.ndarray, labels: np.ndarray) -> Source:
    """These rows of the pixels and labels as they are."""
    return Source(lambda _, i: pixels[rows[i]], labels[rows], _key(pixels, rows))


def mirrored(source: Source) -> Source:
    """The pictures of a source, left and right exchanged."""
    key = source.key and f"{source.key} mirrored"
    return Source(lambda epoch, rows: source.read(epoch, rows)[:, :, ::-1], source.labels, key)


def magnified(source: Source) -> Source:
    """The middle of the pictures of a source, as large as the whole: two thirds of the width and of the height."""
    key = source.key and f"{source.key} magnified"
    return Source(lambda epoch, rows: magnify(source.read(epoch, rows)), source.labels, key)


def some(source: Source, rows: np.ndarray) -> Source:
    """These rows of a source; itself, if they are all in order."""
    if np.array_equal(rows, np.arange(len(source))):
        return source
    key = source.key and f"{source.key} of {hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()}"
    return Source(lambda epoch, i: source.read(epoch, rows[i]), source.labels[rows], key)


def spread(source: Source, most: int) -> Source:
    """At most so many pictures of a source, from all over it, which is from all classes where they lie together."""
    return some(source, evenly(len(source), most))


def evenly(n: int, most: int) -> np.ndarray:
    """At most so many of n rows, evenly spaced, int64."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(np.int64))


def channel_statistics(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel over all pixels of a source of pictures, float64 [3] each, exact."""
    total, squares, count = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    for row in range(len(source)):
        pixels = source.read(0, np.array([row])).reshape(-1, 3).astype(np.int64)
        total, squares, count = total + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = total / count
    return mean, squares / count - mean**2


def joined(sources: Sequence[Source]) -> Source:
    """Several sources, one after the other."""
    starts = np.cumsum([0, *map(len, sources)])

    def read(epoch: int, rows: np.ndarray) -> np.ndarray:
        example = sources[0].read(epoch, rows[:0])
        out = np.empty((len(rows), *example.shape[1:]), example.dtype)
        for source, start, stop in zip(sources, starts, starts[1:], strict=False):
            mine = (rows >= start) & (rows < stop)
            out[mine] = source.read(epoch, rows[mine] - start)
        return out

    key = " + ".join(s.key for s in sources) if all(s.key for s in sources) else ""
    names = np.concatenate([s.names for s in sources]) if all(len(s.names) for s in sources) else ()
    return Source(read, np.concatenate([s.labels for s in sources]), key, names)


def _key(pixels: Rows, rows: np.ndarray, *how: object) -> str:
    """Name of what is read, if the pixels have one (an array has none)."""
    key = getattr(pixels, "key", "")
    return key and f"{key} {hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()} {VERSION} {how}"


def shuffled_batches(
    source: Source, classes: int, batch_size: int, seed: int, epochs: range, mixing: Mixing | None = None
) -> tf.data.Dataset:
    """Batches of (inputs, one-hot labels) for `fit`, `steps(source, batch_size)` an epoch.

    The order is a function of (seed, epoch), and how a batch is mixed one of (seed, epoch, number of the batch). Mixed
    labels are shares of the classes. Every example occurs once an epoch: instead of dropping the last batch,
    or training batch normalisation on a batch of one, batches differ in size by at most one.
    """
    n, count = len(source), steps(source, batch_size)

    def rows(step: int) -> tuple[int, np.ndarray]:
        epoch, number = divmod(step, count)
        return epoch, shuffled_rows(n, batch_size, seed, epoch)[number]

    def mix(step: int, inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epoch, number = divmod(step, count)
        return mixed(inputs, labels, mixing, seed, epoch, number) if epoch < mixing.until else (inputs, labels)

    on = mixing is not None and (mixing.mixup or mixing.cutmix)
    return _batches(source, classes, rows, range(epochs.start * count, epochs.stop * count), mix if on else None)


def shuffled_rows(n: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Rows of each batch of an epoch of n examples."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return np.array_split(order, math.ceil(n / batch_size))


def mixed(
    inputs: np.ndarray, labels: np.ndarray, mixing: Mixing, seed: int, epoch: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """A batch mixed with itself in another order, by mixup or cutmix, whichever is on or the lot falls on.

    Args:
        inputs: pictures, maps or (mixup alone) vectors, [n, ...], of any number type.
        labels: shares of the classes, float32 [n, classes].
        mixing: how; one of the two must be on.
        seed: of the run.
        epoch: of the batch.
        number: of the batch in its epoch.

    Returns:
        Inputs of the same type, and labels that hold exactly the shares that the inputs do.
    """
    # NumPy fills up with zeros: without the 1, batch 0 would draw the numbers that [seed, epoch] gave its order.
    generator = np.random.default_rng([seed, epoch, number, 1])
    others, lot, place = generator.permutation(len(inputs)), generator.random(), generator.random(2)
    if mixing.cutmix and (not mixing.mixup or lot < 0.5):
        inputs, share = _patched(inputs, inputs[others], generator.beta(mixing.cutmix, mixing.cutmix), place)
    else:
        share = np.float32(generator.beta(mixing.mixup, mixing.mixup))
        inputs = _blended(inputs, inputs[others], share)
    return inputs, share * labels + (1 - share) * labels[others]


def _blended(inputs: np.ndarray, others: np.ndarray, share: np.float32) -> np.ndarray:
    """The line between inputs and others at this share of the first, worked out in float32, in their type."""
    out = share * inputs.astype(np.float32) + (1 - share) * others.astype(np.float32)
    return (np.rint(out, out=out) if np.issubdtype(inputs.dtype, np.integer) else out).astype(inputs.dtype)


def _patched(inputs: np.ndarray, others: np.ndarray, share: float, place: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Inputs [n, h, w, c] with a rectangle about a place in [0, 1)^2 from others; and the share that stayed.

    What would lie outside is cut off, so that more may stay than was asked for.
    """
    area, half = np.array(inputs.shape[1:3]), np.sqrt(1 - share) / 2
    (top, left), (bottom, right) = (np.rint(np.clip(p, 0, 1) * area).astype(int) for p in (place - half, place + half))
    out = inputs.copy()
    out[:, top:bottom, left:right] = others[:, top:bottom, left:right]
    return out, np.float32(1 - (bottom - top) * (right - left) / area.prod())


def ordered_batches(source: Source, classes: int, batch_size: int) -> tf.data.Dataset:
    """Batches of (inputs, one-hot labels) in order, the smaller last one included, for `evaluate` and `predict`."""
    n = len(source)

    def rows(step: int) -> tuple[int, np.ndarray]:
        return 0, np.arange(n)[step * batch_size :][:batch_size]

    return _batches(source, classes, rows, range(steps(source, batch_size)))


def steps(source: Source, batch_size: int) -> int:
    """Batches an epoch: the fewest of which none is larger than batch_size."""
    return math.ceil(len(source) / batch_size)


def _batches(
    source: Source, classes: int, rows: Callable, numbers: range, mix: Callable | None = None
) -> tf.data.Dataset:
    """Map step numbers to batches in a few threads, in order, a few ahead of the network."""
    cv2.setNumThreads(1)  # one batch a thread is faster than several threads on one picture
    example = source.read(0, np.arange(0))  # of nothing: a part may be empty, and only shape and type are needed
    # TensorFlow never lets go of a function that it was given, and with it of all that the function holds.
    held = [source]
    del source

    def batch(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        source, (epoch, chosen) = held[0], rows(int(number))
        one_hot = source.labels[chosen, None] == np.arange(classes)
        inputs, labels = source.read(epoch, chosen), one_hot.astype(np.float32)
        return mix(int(number), inputs, labels) if mix else (inputs, labels)

    def call(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        inputs, labels = tf.numpy_function(batch, [number], [example.dtype, np.float32], stateful=False)
        return tf.ensure_shape(inputs, (None, *example.shape[1:])), tf.ensure_shape(labels, (None, classes))

    dataset = tf.data.Dataset.range(numbers.start, numbers.stop)
    threads = max(2, (os.cpu_count() or 2) // 2)
    dataset = dataset.map(call, num_parallel_calls=threads, deterministic=True).prefetch(2)
    weakref.finalize(dataset, held.clear)
    return dataset
