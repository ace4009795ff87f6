"""Batches of a dataset as `tf.data`: shuffled, mixup and cutmix, one-hot labels, prefetched."""

import functools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import tensorflow as tf

from .. import device
from ..labels import to_matrix
from .dataset import ArrayDataset, Reader


@dataclass(frozen=True)
class Mixing:
    """Mixup and cutmix of a batch with itself, inputs and labels alike; each batch with one of the two.

    Args:
        mixup: alpha of the Beta distribution from which the lambda of a batch is drawn, >= 0; 0 for off. Every input
            becomes lambda * itself + (1 - lambda) * another (Zhang et al. 2018, "mixup"). Of cached activations, that
            is manifold mixup (Verma et al. 2019).
        cutmix: likewise; a rectangle of 1 - lambda of the area is pasted from another (Yun et al. 2019, "CutMix").
            Needs inputs [n, height, width, channels].
        until: first epoch that is not mixed.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    until: int = 0


def shuffled_batches(
    dataset: ArrayDataset,
    classes: int,
    batch_size: int,
    seed: int,
    epochs: range,
    mixing: Mixing | None = None,
    sampling: str = "all",
) -> tf.data.Dataset:
    """Batches of (inputs, labels) for `fit`, `steps(dataset, batch_size)` per epoch: each `shuffled_batch`."""
    count, labels = steps(dataset, batch_size), dataset.labels

    @functools.lru_cache(maxsize=2)  # this epoch, and what is prefetched of the next
    def order(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return shuffled_rows(labels, batch_size, seed, epoch, sampling)

    def batch(dataset: ArrayDataset, step: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, number = divmod(step, count)
        return _shuffled_batch(dataset, classes, order(epoch)[number], mixing, (seed, epoch, number))

    return _batches(dataset, batch, range(epochs.start * count, epochs.stop * count), (None, classes))


def pad_batches(batches: tf.data.Dataset, images: int, batch_size: int) -> tf.data.Dataset:
    """`shuffled_batches`, smaller ones padded with their last image at sample weight 0: (inputs, labels, weights).

    XLA compiles a network once for every batch size, and devices that share a batch must have equal parts of it. The
    weights of the other images make up for it: loss and gradient are those of the smaller batch up to rounding. (Batch
    normalisation in training counts that image twice.) If all batches have such a size already, they are returned as
    they are.

    Args:
        batches: of (inputs, labels), of sizes that differ by at most one.
        images: per epoch.
        batch_size: largest, as given to `shuffled_batches`.
    """
    count = math.ceil(images / batch_size)
    size = share_evenly(math.ceil(images / count))
    if images == count * size:
        return batches

    def filled(inputs: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        n, places = tf.shape(labels)[0], tf.range(size)
        weights = tf.where(places < n, tf.cast(size / n, tf.float32), 0.0)
        return *(tf.gather(x, tf.minimum(places, n - 1)) for x in (inputs, labels)), weights

    return batches.map(filled, num_parallel_calls=1)


def shuffled_batch(
    dataset: ArrayDataset,
    classes: int,
    batch_size: int,
    seed: int,
    epoch: int,
    number: int,
    *,
    mixing: Mixing | None = None,
    sampling: str = "all",
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, float32 [n, classes], of the batch with this number in an epoch; a pure function.

    Labels are one-hot or multi-hot, or the soft ones of the dataset; or mixed by mixup and cutmix.
    """
    order = shuffled_rows(dataset.labels, batch_size, seed, epoch, sampling)
    return _shuffled_batch(dataset, classes, order[number], mixing, (seed, epoch, number))


def _shuffled_batch(
    dataset: ArrayDataset,
    classes: int,
    drawn: tuple[np.ndarray, np.ndarray],
    mixing: Mixing | None,
    numbers: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """`shuffled_batch` of these passes and rows; `numbers` are seed, epoch and number."""
    passes, rows = drawn
    inputs = _in_passes(dataset.read, passes, rows)
    soft = dataset.soft_labels
    labels = _in_passes(soft, passes, rows) if soft else to_matrix(dataset.labels[rows], classes)
    if mixing is None or not (mixing.mixup or mixing.cutmix) or numbers[1] >= mixing.until:
        return inputs, labels
    return mix_batch(inputs, labels, mixing, *numbers)


def shuffled_rows(
    labels: np.ndarray, batch_size: int, seed: int, epoch: int, sampling: str = "all"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each batch of an epoch, the images in it: how often each was used before (its pass), and its row.

    An epoch has as many samples as there are images. Instead of dropping the last batch, or training batch
    normalisation on a batch of one, batches differ in size by at most one.

    Args:
        labels: int64 [n]; or [n, classes], which only `all` takes.
        batch_size: largest.
        seed: of the run; order is a function of seed and epoch.
        epoch: from 0.
        sampling: `all`: every image once. `balanced`: every class equally often, give or take one. Images of a class
            take turns from epoch to epoch, so that all have been used equally often, give or take one. In each pass
            an image is augmented as in the epoch with that number, so never twice in the same way.
    """
    n = len(labels)
    passes, rows = _balanced_rows(labels, seed, epoch) if sampling == "balanced" else (np.full(n, epoch), np.arange(n))
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return [(passes[i], rows[i]) for i in np.array_split(order, math.ceil(n / batch_size))]


def _balanced_rows(labels: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Passes and rows of the n samples of an epoch in which all present classes occur equally often."""
    present, passes, rows = np.unique(labels), [], []
    for number, label in enumerate(present):
        # NumPy pads seeds with zeros: [seed, label] would equal [seed, epoch], and with a last 1 that of a mixed batch.
        members = np.random.default_rng([seed, label, 0, 2]).permutation(np.flatnonzero(labels == label))
        first, stop = ((e * len(labels) + number) // len(present) for e in (epoch, epoch + 1))
        places = np.arange(first, stop)  # of the class, counted from the first epoch on
        passes.append(places // len(members))
        rows.append(members[places % len(members)])
    return np.concatenate(passes), np.concatenate(rows)


def _in_passes(read: Reader, passes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What a dataset reads of rows, each as in the epoch with the number of its pass."""
    numbers = np.unique(passes)
    if len(numbers) == 1:
        return read(int(numbers[0]), rows)
    found = np.concatenate([read(int(number), rows[passes == number]) for number in numbers])
    return found[np.argsort(np.argsort(passes, kind="stable"))]


def ordered_batches(dataset: ArrayDataset, classes: int, batch_size: int) -> tf.data.Dataset:
    """Batches of (inputs, one-hot labels) in order, the smaller last one included, for `evaluate` and `predict`."""

    def batch(dataset: ArrayDataset, step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(dataset))[step * batch_size :][:batch_size]
        return dataset.read(0, rows), to_matrix(dataset.labels[rows], classes)

    return _batches(dataset, batch, range(steps(dataset, batch_size)), (None, classes))


def inference_batches(dataset: ArrayDataset, batch_size: int) -> tf.data.Dataset:
    """Batches of inputs in order, all of one size, for `predict`: drop predictions beyond `len(dataset)`.

    XLA compiles a network once for every batch size. So the last batch is padded with the last input, with fewer than
    there are batches, as the size is the smallest that will do.
    """
    n, count = len(dataset), steps(dataset, batch_size)
    size = share_evenly(math.ceil(n / max(1, count)))

    def batch(dataset: ArrayDataset, step: int) -> tuple[np.ndarray]:
        return (dataset.read(0, np.minimum(np.arange(step * size, (step + 1) * size), n - 1)),)

    return _batches(dataset, batch, range(count))


def replicas() -> int:
    """Devices that share each batch: 1 outside of a `tf.distribute` strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def share_evenly(size: int) -> int:
    """The smallest size of a batch, not below this one, of which all devices have equal parts.

    Of unequal ones Keras takes the mean of their means, in which the images of a smaller part count more.
    """
    return math.ceil(size / replicas()) * replicas()


def steps(dataset: ArrayDataset, batch_size: int) -> int:
    """Batches per epoch: the fewest of which none is larger than batch_size."""
    return math.ceil(len(dataset) / batch_size)


def mix_batch(
    inputs: np.ndarray, labels: np.ndarray, mixing: Mixing, seed: int, epoch: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """A batch mixed with itself in another order by mixup or cutmix; if both are on, by one of them at random.

    Args:
        inputs: images, maps or (mixup alone) vectors, [n, ...], of any number type.
        labels: one-hot or soft, float32 [n, classes].
        mixing: one of mixup and cutmix must be on.
        seed: of the run.
        epoch: of the batch.
        number: of the batch in its epoch.

    Returns:
        Inputs of the same type, and labels mixed in exactly the proportion of the inputs.
    """
    # NumPy pads seeds with zeros: without the 1, batch 0 would draw the numbers of [seed, epoch], its order.
    generator = np.random.default_rng([seed, epoch, number, 1])
    others, coin, place = generator.permutation(len(inputs)), generator.random(), generator.random(2)
    if mixing.cutmix and (not mixing.mixup or coin < 0.5):
        inputs, share = _cutmix(inputs, inputs[others], generator.beta(mixing.cutmix, mixing.cutmix), place)
    else:
        share = np.float32(generator.beta(mixing.mixup, mixing.mixup))
        share = max(share, 1 - share)  # an image stays mostly itself; the set of mixed pairs is the same
        inputs = _mixup(inputs, inputs[others], share)
    return inputs, share * labels + (1 - share) * labels[others]


def _mixup(inputs: np.ndarray, others: np.ndarray, share: np.float32) -> np.ndarray:
    """The sum share * inputs + (1 - share) * others, computed in float32, in the type of the inputs."""
    out = share * inputs.astype(np.float32) + (1 - share) * others.astype(np.float32)
    return (np.rint(out, out=out) if np.issubdtype(inputs.dtype, np.integer) else out).astype(inputs.dtype)


def _cutmix(inputs: np.ndarray, others: np.ndarray, share: float, place: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Inputs [n, h, w, c] with a rectangle centred at a place in [0, 1)^2 from others; and the share that stayed.

    The rectangle is clipped at the border, so more may stay than was asked for.
    """
    area, half = np.array(inputs.shape[1:3]), np.sqrt(1 - share) / 2
    (top, left), (bottom, right) = (np.rint(np.clip(p, 0, 1) * area).astype(int) for p in (place - half, place + half))
    out = inputs.copy()
    out[:, top:bottom, left:right] = others[:, top:bottom, left:right]
    return out, np.float32(1 - (bottom - top) * (right - left) / area.prod())


def _batches(
    dataset: ArrayDataset, make: Callable, numbers: range, *targets: tuple[int | None, ...]
) -> tf.data.Dataset:
    """Map step numbers to batches, make(dataset, number), in a few threads, in order, prefetched.

    Besides its inputs a batch has float32 arrays of these shapes.
    """
    cv2.setNumThreads(1)  # one thread per batch is faster than several on one image
    example = dataset.read(0, np.arange(0))  # of no rows: a dataset may be empty, and only shape and type are needed
    # TensorFlow never frees a function that it was given, nor what that function refers to.
    held = [dataset]
    del dataset

    shapes = ((None, *example.shape[1:]), *targets)
    types = [example.dtype, *(np.float32 for _ in targets)]

    def call(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        arrays = tf.numpy_function(lambda step: make(held[0], int(step)), [number], types, stateful=False)
        return tuple(tf.ensure_shape(array, shape) for array, shape in zip(arrays, shapes, strict=True))

    batches = tf.data.Dataset.range(numbers.start, numbers.stop)
    threads = max(2, device.cores() // 2)
    batches = batches.map(call, num_parallel_calls=threads, deterministic=True).prefetch(2)
    batches = batches.with_options(_untuned())
    weakref.finalize(batches, held.clear)
    return batches


def _untuned() -> tf.data.Options:
    """Autotuning off: there is nothing to tune, and its thread keeps the end of a long pass waiting for seconds."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return options
