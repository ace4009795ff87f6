"""From pixels to batches: shuffled, augmented, mixed, labels as shares, a few batches ahead of the network."""

import dataclasses
import functools
import hashlib
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import tensorflow as tf

from .. import device
from ..config import Augment
from .array_file import ArrayFile
from .augment import POLICIES, VERSION, augment, strengthen, zoom_center


@dataclass(frozen=True)
class ArrayDataset:
    """What a network learns from: labels, and a function that gives its inputs.

    Args:
        read: (epoch, rows) -> batch of inputs. Pure: the same arguments give the same numbers.
        labels: int64 [n].
        key: names the inputs: of two sources with one key they are equal. Empty if nobody knows.
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


def train_dataset(
    pixels: ArrayFile, rows: np.ndarray, labels: np.ndarray, settings: Augment, seed: int
) -> ArrayDataset:
    """These rows of the pixels and labels, augmented anew in every epoch."""
    policy = strengthen(POLICIES[settings.policy], settings.strength)
    policy = dataclasses.replace(
        policy,
        flip=settings.flips,
        erasing=settings.erase or policy.erasing,
        grey=settings.grey,
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


def hflip(source: ArrayDataset) -> ArrayDataset:
    """The images of a source, left and right exchanged."""
    key = source.key and f"{source.key} mirrored"
    return dataclasses.replace(source, read=lambda epoch, rows: source.read(epoch, rows)[:, :, ::-1], key=key)


def center_zoom(source: ArrayDataset) -> ArrayDataset:
    """The middle of the images of a source, as large as the whole: two thirds of the width and of the height."""
    key = source.key and f"{source.key} magnified"
    return dataclasses.replace(source, read=lambda epoch, rows: zoom_center(source.read(epoch, rows)), key=key)


def subset(source: ArrayDataset, rows: np.ndarray) -> ArrayDataset:
    """These rows of a source; itself, if they are all in order."""
    if np.array_equal(rows, np.arange(len(source))):
        return source
    key = source.key and f"{source.key} of {hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()}"
    return ArrayDataset(
        lambda epoch, i: source.read(epoch, rows[i]),
        source.labels[rows],
        key,
        [source.names[row] for row in rows] if len(source.names) else (),
        None if source.groups is None else source.groups[rows],
    )


def subsample(source: ArrayDataset, most: int) -> ArrayDataset:
    """At most so many images of a source, from all over it, which is from all classes where they lie together."""
    return subset(source, evenly_spaced(len(source), most))


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """At most so many of n rows, evenly spaced, int64."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(np.int64))


def channel_statistics(source: ArrayDataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel over all pixels of a source of images, float64 [3] each, exact."""
    total, squares, count = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    for row in range(len(source)):
        pixels = source.read(0, np.array([row])).reshape(-1, 3).astype(np.int64)
        total, squares, count = total + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = total / count
    return mean, squares / count - mean**2


def concatenate(sources: Sequence[ArrayDataset]) -> ArrayDataset:
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
    groups = None if any(s.groups is None for s in sources) else np.concatenate([s.groups for s in sources])
    return ArrayDataset(read, np.concatenate([s.labels for s in sources]), key, names, groups)


def _key(pixels: ArrayFile, rows: np.ndarray, *how: object) -> str:
    """Name of what is read, if the pixels have one (an array has none)."""
    key = getattr(pixels, "key", "")
    return key and f"{key} {hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()} {VERSION} {how}"


def shuffled_batches(
    source: ArrayDataset,
    classes: int,
    batch_size: int,
    seed: int,
    epochs: range,
    mixing: Mixing | None = None,
    sampling: str = "all",
) -> tf.data.Dataset:
    """Batches of (inputs, one-hot labels) for `fit`, `steps(source, batch_size)` an epoch: each `shuffled_batch`."""
    count, labels = steps(source, batch_size), source.labels

    @functools.lru_cache(maxsize=2)  # once an epoch, and what is read ahead
    def order(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return shuffled_rows(labels, batch_size, seed, epoch, sampling)

    def batch(source: ArrayDataset, step: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, number = divmod(step, count)
        return _shuffled_batch(source, classes, order(epoch)[number], mixing, (seed, epoch, number))

    return _batches(source, batch, range(epochs.start * count, epochs.stop * count), (None, classes))


def of_one_size(batches: tf.data.Dataset, images: int, batch_size: int) -> tf.data.Dataset:
    """`shuffled_batches`, the smaller ones filled up with their last image, of weight zero: (inputs, labels, weights).

    XLA compiles a network once for every size of a batch that it meets. The weights of the others make up for it: loss
    and gradient are to the last digits those of the smaller batch. (Batch normalisation that trains sees that image
    twice.) Where all batches have one size already, they are given as they are.

    Args:
        batches: of (inputs, labels), of sizes that differ by at most one.
        images: in an epoch.
        batch_size: at most, as it was asked for.
    """
    count = math.ceil(images / batch_size)
    size = math.ceil(images / count)
    if images == count * size:
        return batches

    def filled(inputs: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        n, places = tf.shape(labels)[0], tf.range(size)
        weights = tf.where(places < n, tf.cast(size / n, tf.float32), 0.0)
        return *(tf.gather(x, tf.minimum(places, n - 1)) for x in (inputs, labels)), weights

    return batches.map(filled, num_parallel_calls=1)


def shuffled_batch(
    source: ArrayDataset,
    classes: int,
    batch_size: int,
    seed: int,
    epoch: int,
    number: int,
    *,
    mixing: Mixing | None = None,
    sampling: str = "all",
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and one-hot labels, float32 [n, classes], of the batch with this number in an epoch; a pure function.

    Mixed labels are shares of the classes.
    """
    order = shuffled_rows(source.labels, batch_size, seed, epoch, sampling)
    return _shuffled_batch(source, classes, order[number], mixing, (seed, epoch, number))


def _shuffled_batch(
    source: ArrayDataset,
    classes: int,
    places: tuple[np.ndarray, np.ndarray],
    mixing: Mixing | None,
    which: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """`shuffled_batch` of these passes and rows; `which` are seed, epoch and number."""
    passes, rows = places
    inputs, labels = _in_passes(source, passes, rows), _one_hot(source.labels[rows], classes)
    if mixing is None or not (mixing.mixup or mixing.cutmix) or which[1] >= mixing.until:
        return inputs, labels
    return mix_batch(inputs, labels, mixing, *which)


def shuffled_rows(
    labels: np.ndarray, batch_size: int, seed: int, epoch: int, sampling: str = "all"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each batch of an epoch, the images in it: how often each was read before (its pass), and their rows.

    An epoch has as many places as there are images. Instead of dropping the last batch, or training batch
    normalisation on a batch of one, batches differ in size by at most one.

    Args:
        labels: int64 [n].
        batch_size: at most.
        seed: of the run; with the epoch it says the order.
        epoch: from 0.
        sampling: `all`: every image once. `balanced`: every class as often, give or take one place. Its images come
            in turn, from epoch to epoch, so that at any time all of them have been read as often, give or take one. In
            each pass an image is varied as it would be in the epoch with that number: no two are alike.
    """
    n = len(labels)
    passes, rows = _balanced_rows(labels, seed, epoch) if sampling == "balanced" else (np.full(n, epoch), np.arange(n))
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return [(passes[i], rows[i]) for i in np.array_split(order, math.ceil(n / batch_size))]


def _balanced_rows(labels: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Passes and rows of the n places of an epoch, in which all classes that there are occur equally often."""
    present, passes, rows = np.unique(labels), [], []
    for number, label in enumerate(present):
        # Filled up with zeros, [seed, label] would be an epoch's, and with a 1 at the end those of a mixed batch.
        mine = np.random.default_rng([seed, label, 0, 2]).permutation(np.flatnonzero(labels == label))
        first, stop = ((e * len(labels) + number) // len(present) for e in (epoch, epoch + 1))
        places = np.arange(first, stop)  # of the class, counted from the first epoch on
        passes.append(places // len(mine))
        rows.append(mine[places % len(mine)])
    return np.concatenate(passes), np.concatenate(rows)


def _in_passes(source: ArrayDataset, passes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a source, each as in the epoch with the number of its pass."""
    numbers = np.unique(passes)
    if len(numbers) == 1:
        return source.read(int(numbers[0]), rows)
    inputs = np.concatenate([source.read(int(number), rows[passes == number]) for number in numbers])
    return inputs[np.argsort(np.argsort(passes, kind="stable"))]


def mix_batch(
    inputs: np.ndarray, labels: np.ndarray, mixing: Mixing, seed: int, epoch: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """A batch mixed with itself in another order, by mixup or cutmix, whichever is on or the lot falls on.

    Args:
        inputs: images, maps or (mixup alone) vectors, [n, ...], of any number type.
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
        inputs, share = _cutmix(inputs, inputs[others], generator.beta(mixing.cutmix, mixing.cutmix), place)
    else:
        share = np.float32(generator.beta(mixing.mixup, mixing.mixup))
        share = max(share, 1 - share)  # an image stays mostly itself; of all pairs of a batch it makes the same
        inputs = _mixup(inputs, inputs[others], share)
    return inputs, share * labels + (1 - share) * labels[others]


def _mixup(inputs: np.ndarray, others: np.ndarray, share: np.float32) -> np.ndarray:
    """The line between inputs and others at this share of the first, worked out in float32, in their type."""
    out = share * inputs.astype(np.float32) + (1 - share) * others.astype(np.float32)
    return (np.rint(out, out=out) if np.issubdtype(inputs.dtype, np.integer) else out).astype(inputs.dtype)


def _cutmix(inputs: np.ndarray, others: np.ndarray, share: float, place: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Inputs [n, h, w, c] with a rectangle about a place in [0, 1)^2 from others; and the share that stayed.

    What would lie outside is cut off, so that more may stay than was asked for.
    """
    area, half = np.array(inputs.shape[1:3]), np.sqrt(1 - share) / 2
    (top, left), (bottom, right) = (np.rint(np.clip(p, 0, 1) * area).astype(int) for p in (place - half, place + half))
    out = inputs.copy()
    out[:, top:bottom, left:right] = others[:, top:bottom, left:right]
    return out, np.float32(1 - (bottom - top) * (right - left) / area.prod())


def ordered_batches(source: ArrayDataset, classes: int, batch_size: int) -> tf.data.Dataset:
    """Batches of (inputs, one-hot labels) in order, the smaller last one included, for `evaluate` and `predict`."""

    def batch(source: ArrayDataset, step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(source))[step * batch_size :][:batch_size]
        return source.read(0, rows), _one_hot(source.labels[rows], classes)

    return _batches(source, batch, range(steps(source, batch_size)), (None, classes))


def inference_batches(source: ArrayDataset, batch_size: int) -> tf.data.Dataset:
    """Batches of inputs in order, all of one size, for `predict`: cut off what comes out beyond `len(source)`.

    XLA compiles a network once for every size of a batch. So none is smaller: the last is filled up with its last
    input, of which there are fewer than batches, as the size is the smallest that will do.
    """
    n, count = len(source), steps(source, batch_size)
    size = math.ceil(n / max(1, count))

    def batch(source: ArrayDataset, step: int) -> tuple[np.ndarray]:
        return (source.read(0, np.minimum(np.arange(step * size, (step + 1) * size), n - 1)),)

    return _batches(source, batch, range(count))


def steps(source: ArrayDataset, batch_size: int) -> int:
    """Batches an epoch: the fewest of which none is larger than batch_size."""
    return math.ceil(len(source) / batch_size)


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return (labels[:, None] == np.arange(classes)).astype(np.float32)


def _batches(source: ArrayDataset, make: Callable, numbers: range, *beside: tuple[int | None, ...]) -> tf.data.Dataset:
    """Map step numbers to batches, make(source, number), in a few threads, in order, a few ahead of the network.

    Beside its inputs a batch has float32 arrays of these shapes.
    """
    cv2.setNumThreads(1)  # one batch a thread is faster than several threads on one image
    example = source.read(0, np.arange(0))  # of nothing: a part may be empty, and only shape and type are needed
    # TensorFlow never lets go of a function that it was given, and with it of all that the function holds.
    held = [source]
    del source

    shapes = ((None, *example.shape[1:]), *beside)
    types = [example.dtype, *(np.float32 for _ in beside)]

    def call(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        made = tf.numpy_function(lambda step: make(held[0], int(step)), [number], types, stateful=False)
        return tuple(tf.ensure_shape(array, shape) for array, shape in zip(made, shapes, strict=True))

    dataset = tf.data.Dataset.range(numbers.start, numbers.stop)
    threads = max(2, device.cores() // 2)
    dataset = dataset.map(call, num_parallel_calls=threads, deterministic=True).prefetch(2)
    weakref.finalize(dataset, held.clear)
    return dataset
