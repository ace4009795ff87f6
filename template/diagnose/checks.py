"""Checks before a long run, each with its number, what was expected and what to look at if it is not so.

After Karpathy 2019, "A recipe for training neural networks". Nothing here changes what a run will do.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .. import device, disk
from ..config import Train
from ..data.batches import Mixing, shuffled_batches
from ..data.dataset import ArrayDataset, subsample
from ..evaluate import fonts
from ..train.features import split_model
from .grids import grid, label_text

FEW = 256
"""Images that a check of the whole model looks at."""


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        name: what was checked.
        passed: whether it was as expected.
        found: the number.
        expected: what it should be.
        advice: what to look at if it is not.
    """

    name: str
    passed: bool
    found: str
    expected: str
    advice: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "passed", bool(self.passed))  # and no bool of NumPy, which JSON does not know


def input_grid(
    augmented: ArrayDataset, class_names: Sequence[str], settings: Train, mixing: Mixing
) -> tuple[Check, Image.Image]:
    """What enters the network: a grid drawn from the very tensors of the first batch, with their labels."""
    class_names = fonts.drawable(class_names)
    order = (settings.batch_size, settings.seed, range(1), mixing, settings.sampling)
    images, labels = next(iter(shuffled_batches(augmented, len(class_names), *order)))
    pixels, names = images.numpy(), [label_text(label, class_names) for label in labels.numpy()]
    low, high = float(pixels.min()), float(pixels.max())
    check = Check(
        "pixel range of the input",
        low >= 0 and 2 < high <= 255,
        f"{pixels.dtype}, {low:g} to {high:g}",
        "0 to 255; the network scales them itself",
        "Scaling twice, or not at all, costs ten points of accuracy and raises no error.",
    )
    return check, grid(pixels, names)


def loss_at_init(model: keras.Model, train: ArrayDataset) -> Check:
    """An untrained head must know the class frequencies and nothing else.

    Args:
        model: without dropout, as it begins; seen as in training, where batch normalisation is what it will be.
        train: images as they are.
    """
    images, labels = _read(subsample(train, FEW))
    parts = np.array_split(np.random.default_rng(0).permutation(len(labels)), -(-len(labels) // 32))
    logits = np.concatenate([model(images[rows].astype(np.float32), training=True) for rows in parts])
    found = _cross_entropy(logits, labels[np.concatenate(parts)])
    shares = np.bincount(train.labels) / len(train)
    expected = float(-np.log(shares[labels]).mean())
    return Check(
        "loss at initialisation",
        abs(found - expected) <= 0.1 * expected,
        f"{found:.3f}",
        f"{expected:.3f}, the entropy of the class frequencies, within 10 %",
        "The initial scale of its weights is too large, or labels and loss do not fit.",
    )


def depends_on_input(model: keras.Model, train: ArrayDataset) -> Check:
    """Black images must be worse than real ones, of those that the model was fitted to.

    Of others, a handful may well be worse than black ones: of a weak network that is overconfident.
    """
    images, labels = _read(subsample(train, FEW))
    both = (model.predict(pixels.astype(np.float32), verbose=0) for pixels in (images, np.zeros_like(images)))
    real, black = (_cross_entropy(logits, labels) for logits in both)
    return Check(
        "loss on black images",
        real < black,
        f"loss {real:.3f} real, {black:.3f} black",
        "real ones are better",
        "The logits do not depend on the input: is it connected?",
    )


def overfit_small_batch(
    model: keras.Model,
    boundary: keras.KerasTensor | None,
    train: ArrayDataset,
    class_names: Sequence[str],
    steps: int = 200,
) -> tuple[Check, Image.Image]:
    """Two or three images per class must be memorised by what the first stage trains.

    Args:
        model: without dropout and penalties, frozen as in that stage; it is changed.
        boundary: where what trains begins, or None if all of it does.
        train: images as they are.
        class_names: in the order of the labels.
        steps: of gradient descent, at most.

    Returns:
        The check, and the images with their labels and the predicted classes.
    """
    each = max(1, min(3, 40 // len(class_names)))
    members = [np.flatnonzero(train.labels == label)[:each] for label in range(len(class_names))]
    rows = np.sort(np.concatenate(members)[:40])
    pixels, labels = train.read(0, rows), train.labels[rows]
    network, inputs, loss = model, pixels.astype(np.float32), np.inf
    if boundary is not None:
        bottom, network = split_model(model, boundary)
        inputs = np.asarray(bottom(inputs, training=False))
    network.compile(keras.optimizers.Adam(1e-3), keras.losses.CategoricalCrossentropy(from_logits=True))
    network.optimizer.build(network.trainable_variables)  # or the step is traced twice
    for _ in range(steps):
        loss = float(network.train_on_batch(inputs, np.eye(len(class_names))[labels]))
        if loss < 0.02:
            break
    predicted = np.asarray(network(inputs, training=True)).argmax(axis=1)  # batch norm as in training
    shown = fonts.drawable(class_names)
    names = [f"{shown[true]}: {shown[answer]}" for true, answer in zip(labels, predicted, strict=True)]
    check = Check(
        f"{len(rows)} images memorised",
        loss < 0.1,
        f"loss {loss:.4f}, {(predicted == labels).sum()} of {len(rows)} right",
        "a loss below 0.1",
        "Different images have equal features (is a layer frozen or disconnected?), or their labels contradict.",
    )
    return check, grid(pixels, names)


def no_batch_leakage(model: keras.Model, train: ArrayDataset) -> Check:
    """Features of one image must not depend on the others of its batch, also while training.

    Where batch normalisation trains, as it does from scratch, the model is checked at inference.
    """
    norms = any(isinstance(layer, layers.BatchNormalization) and layer.trainable for layer in model.layers)
    features = keras.Model(model.inputs[0], model.get_layer("logits").input)
    images = tf.cast(_read(subsample(train, 4))[0], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        first = tf.reduce_sum(features(images, training=not norms)[0])
    reach = tf.reduce_max(tf.abs(tape.gradient(first, images)), axis=(1, 2, 3)).numpy()
    return Check(
        "leakage between the images of a batch",
        bool(reach[1:].max() == 0 and reach[0] > 0),
        f"gradient {reach[0]:.2g} by its own pixels, {reach[1:].max():.2g} by those of others",
        "above 0, and exactly 0",
        "Batch normalisation is in training mode, or an axis was mixed up.",
    )


def frozen_unchanged(model: keras.Model, train: ArrayDataset, classes: int, pretrained: bool) -> Check:
    """A training step must not change frozen weights, nor any batch normalisation of a pretrained network."""
    frozen = [layer for layer in model.layers if not layer.trainable]
    frozen += [layer for layer in model.layers if pretrained and isinstance(layer, layers.BatchNormalization)]
    rest = list({id(v): v for layer in frozen for v in layer.variables}.values())
    before = [v.numpy().copy() for v in rest]
    images, labels = _read(subsample(train, 8))
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)  # or the step is traced twice
    model.train_on_batch(images.astype(np.float32), np.eye(classes)[labels])
    moved = [v.path for v, old in zip(rest, before, strict=True) if not np.array_equal(v.numpy(), old)]
    return Check(
        "frozen weights after a training step",
        not moved,
        f"{len(moved)} of {len(rest)} arrays moved",
        "0",
        f"Not frozen: {moved[:3]}. In Keras `base(x, training=False)` does not do it.",
    )


def float32_logits(model: keras.Model) -> Check:
    """Also under mixed precision: a float16 softmax underflows."""
    found = model.get_layer("logits").compute_dtype
    return Check("dtype of the logits", found == "float32", found, "float32", "Give the last layer float32.")


def train_serve_parity(trained: np.ndarray, served: np.ndarray) -> Check:
    """Training and prediction must decode a file to the same pixels."""
    most = int(np.abs(trained.astype(int) - served).max(initial=0))
    return Check(
        "pixels in training and in prediction",
        most == 0,
        f"differ by {most} at most",
        "0",
        "The two decode or resize differently, so the measured accuracy is not that of predict.py.",
    )


def random_labels(digests: Sequence[str], classes: int, seed: int) -> np.ndarray:
    """Labels that only the contents of the images decide, int64 [n]: equal images get equal ones."""
    return np.array([int(sha256(f"{seed} {digest}".encode()).hexdigest(), 16) % classes for digest in digests])


def random_label_accuracy(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, truth: np.ndarray) -> Check:
    """Random labels can be memorised but not generalise: on held-out images accuracy is chance.

    Args:
        features: float32 [n, f], of training images.
        labels: theirs, from `random_labels`.
        held_out: float32 [m, f], of validation images.
        truth: theirs, likewise.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=100, max_iter=1000)).fit(features, labels)
    correct, chance = int((model.predict(held_out) == truth).sum()), float(np.bincount(truth).max() / len(truth))
    return Check(
        "accuracy with random labels",
        binomtest(correct, len(truth), chance, alternative="greater").pvalue > 0.001,
        f"validation accuracy {correct / len(truth):.3f}",
        f"no better than {chance:.3f}, chance",
        "Images of validation are among those of training: look at split.csv.",
    )


def disk_space(folder: Path, needed_bytes: float) -> Check:
    """Free disk where the run and its caches go."""
    there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    free = shutil.disk_usage(there).free
    return Check(
        "free disk",
        free > needed_bytes,
        f"{disk.format_bytes(free)} in {there}",
        f"{disk.format_bytes(needed_bytes)} for pixels, cached activations and checkpoints",
        "Give data.cache another disk, or lower data.cache_gb.",
    )


def memory(needed_bytes: float) -> Check:
    """Free memory for decoded images, activations and the network."""
    free = device.available_memory()
    return Check(
        "free memory",
        free > needed_bytes,
        disk.format_bytes(free) if free < float("inf") else "unknown",
        f"{disk.format_bytes(needed_bytes)} for pixels, activations and network",
        "Close other programs, or lower data.memory_gb and data.cache_gb: more is then read from the disk.",
    )


def _read(dataset: ArrayDataset) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels."""
    return dataset.read(0, np.arange(len(dataset))), dataset.labels


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(np.asarray(logits, np.float64), axis=1)[np.arange(len(labels)), labels].mean())
