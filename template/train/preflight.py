"""Checks before a long run: a few minutes in which most mistakes show, each with its number and what to try next.

After Karpathy 2019, "A recipe for training neural networks". Nothing here changes what a run will do.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image, ImageDraw
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..data.pipeline import Source, shuffled_batches
from ..evaluate.intervals import proportion
from .probe import fit_probe

FEW = 256
"""Pictures that a check of the whole model looks at."""


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


def entering(augmented: Source, class_names: Sequence[str], batch_size: int, seed: int) -> tuple[Check, Image.Image]:
    """What enters the network: a grid drawn from the very tensors of the first batch, with their labels."""
    images, labels = next(iter(shuffled_batches(augmented, len(class_names), batch_size, seed, range(1))))
    pixels, names = images.numpy(), [class_names[i] for i in labels.numpy().argmax(axis=1)]
    low, high = float(pixels.min()), float(pixels.max())
    check = Check(
        "pixels at the network's door",
        low >= 0 and 2 < high <= 255,
        f"{pixels.dtype}, {low:g} to {high:g}",
        "0 to 255; the network scales them itself",
        "Scaling twice, or not at all, costs ten points of accuracy and raises no error.",
    )
    return check, grid(pixels, names)


def grid(pixels: np.ndarray, names: Sequence[str], side: int = 160, columns: int = 8) -> Image.Image:
    """Pictures [n, size, size, 3] in 0-255, row by row, each with its name below."""
    rows, line = -(-len(pixels) // columns), 18
    out = Image.new("RGB", (columns * side, rows * (side + line)), "white")
    draw = ImageDraw.Draw(out)
    for number, (image, name) in enumerate(zip(pixels, names, strict=True)):
        left, top = number % columns * side, number // columns * (side + line)
        out.paste(Image.fromarray(image.astype(np.uint8)).resize((side, side)), (left, top))
        draw.text((left + 3, top + side + 3), name[:24].encode("ascii", "replace").decode(), fill="black")
    return out


def loss_at_init(model: keras.Model, train: Source) -> Check:
    """An untrained head must know the class frequencies and nothing else."""
    images, labels = _some(train, FEW)
    shares = np.bincount(train.labels) / len(train)
    expected = float(-np.log(shares[labels]).mean())
    found = _losses(model, images, labels).mean()
    return Check(
        "loss of the untrained head",
        abs(found - expected) <= 0.1 * expected,
        f"{found:.3f}",
        f"{expected:.3f}, the entropy of the class frequencies, within 10 %",
        "Its first weights are too large, or the labels are not what the loss takes them for.",
    )


def sees_the_pictures(model: keras.Model, val: Source) -> Check:
    """Black pictures must be worse than real ones."""
    images, labels = _some(val, FEW)
    real, black = (_losses(model, pixels, labels).mean() for pixels in (images, np.zeros_like(images)))
    return Check(
        "black pictures instead of real ones",
        real < black,
        f"loss {real:.3f} real, {black:.3f} black",
        "real ones are better",
        "The network does not look at its input: is the input connected?",
    )


def overfits(model: keras.Model, train: Source, steps: int = 150) -> Check:
    """Two pictures a class must be learned by heart; changes the model, so give a copy."""
    labels = train.labels
    rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[:2] for label in np.unique(labels)])[:40])
    images, wanted = tf.cast(train.read(0, rows), tf.float32), labels[rows]
    optimizer, loss, head = keras.optimizers.Adam(1e-2), np.inf, model.get_layer("logits")
    features = keras.Model(model.inputs[0], head.input)(images, training=False)
    features = (features - tf.reduce_mean(features, axis=0)) / (tf.math.reduce_std(features) + 1e-3)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(wanted, head(features), from_logits=True)
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, head.trainable_weights), head.trainable_weights)
    said = np.asarray(head(features)).argmax(axis=1)
    return Check(
        f"{len(rows)} pictures learned by heart by the head",
        float(loss) < 0.1,
        f"loss {float(loss):.4f}, {(said == wanted).sum()} of {len(rows)} right",
        "a loss below 0.1",
        "Features of different pictures are equal (a frozen input? all zeros?), or labels contradict.",
    )


def independent(model: keras.Model, train: Source) -> Check:
    """What the head sees of one picture must not depend on the others of its batch, also while training.

    Except where batch normalisation trains, as it does from scratch: there it is asked of the model at inference.
    """
    norms = any(isinstance(layer, layers.BatchNormalization) and layer.trainable for layer in model.layers)
    features = keras.Model(model.inputs[0], model.get_layer("logits").input)
    images = tf.cast(_some(train, 4)[0], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        first = tf.reduce_sum(features(images, training=not norms)[0])
    reach = tf.reduce_max(tf.abs(tape.gradient(first, images)), axis=(1, 2, 3)).numpy()
    return Check(
        "one picture's answer depends on the others",
        bool(reach[1:].max() == 0 and reach[0] > 0),
        f"gradient {reach[0]:.2g} of itself, {reach[1:].max():.2g} of others",
        "something, and exactly 0",
        "Batch normalisation is in training mode, or an axis was mixed up.",
    )


def frozen_stays(model: keras.Model, train: Source, classes: int, pretrained: bool) -> Check:
    """A training step must leave alone what does not train; in a pretrained network all batch normalisation too."""
    frozen = [layer for layer in model.layers if not layer.trainable]
    frozen += [layer for layer in model.layers if pretrained and isinstance(layer, layers.BatchNormalization)]
    rest = list({id(v): v for layer in frozen for v in layer.variables}.values())
    before = [v.numpy().copy() for v in rest]
    images, labels = _some(train, 8)
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    model.train_on_batch(images.astype(np.float32), np.eye(classes)[labels])
    moved = [v.path for v, old in zip(rest, before, strict=True) if not np.array_equal(v.numpy(), old)]
    return Check(
        "what is frozen after a step",
        not moved,
        f"{len(moved)} of {len(rest)} arrays moved",
        "0",
        f"Not frozen: {moved[:3]}. In Keras `base(x, training=False)` does not do it.",
    )


def float32_out(model: keras.Model) -> Check:
    """Also under mixed precision: a float16 softmax underflows."""
    found = model.get_layer("logits").compute_dtype
    return Check("arithmetic of the output", found == "float32", found, "float32", "Give the last layer float32.")


def same_pixels(trained: np.ndarray, served: np.ndarray) -> Check:
    """Training and prediction must decode a file to the same pixels."""
    most = int(np.abs(trained.astype(int) - served).max(initial=0))
    return Check(
        "pixels of training and prediction",
        most == 0,
        f"differ by {most} at most",
        "0",
        "The two read files differently, so the measured accuracy is not the one that users get.",
    )


def shuffled_labels(
    features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, truth: np.ndarray, seed: int
) -> Check:
    """Features [views, n, f] with labels in another order must teach nothing about held-out ones [n, f]."""
    classes = int(labels.max()) + 1
    wrong = np.random.default_rng(seed).permutation(labels)
    probe = fit_probe(features, wrong, classes, seed)
    hits = int(((held_out @ probe.kernel + probe.bias).argmax(axis=1) == truth).sum())
    chance = np.bincount(truth).max() / len(truth)
    found = proportion(hits, len(truth))
    return Check(
        "shuffled labels",
        found["low"] <= chance,
        f"accuracy {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]",
        f"no better than {chance:.3f}, the commonest class",
        "The validation pictures leak into training: are there copies?",
    )


def baselines(train: Source, val: Source) -> list[tuple[str, float]]:
    """Validation accuracies that a run has to beat: of the commonest class, and of colours alone."""
    found = [("commonest class", float((val.labels == np.bincount(train.labels).argmax()).mean()))]
    histograms = [_histograms(source) for source in (train, val)]
    colours = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    colours.fit(histograms[0], train.labels)
    found.append(("colours alone", float((colours.predict(histograms[1]) == val.labels).mean())))
    return found


def room(folder: Path, needed_bytes: float) -> Check:
    """Free disk where the run and its caches go."""
    there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    free = shutil.disk_usage(there).free
    return Check(
        "free disk",
        free > needed_bytes,
        f"{free / 2**30:.1f} GiB in {there}",
        f"{needed_bytes / 2**30:.1f} GiB for pixels, stored activations and checkpoints",
        "Give data.cache another disk, or lower train.feature_cache_gb.",
    )


def _some(source: Source, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels from all over a source."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int))
    return source.read(0, rows), source.labels[rows]


def _losses(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    logits = model.predict(images.astype(np.float32), verbose=0).astype(np.float64)
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def _histograms(source: Source) -> np.ndarray:
    """Share of the pixels in each of 64 colours, float64 [n, 64]."""
    out = []
    for start in range(0, len(source), 64):
        pixels = source.read(0, np.arange(start, min(start + 64, len(source))))
        colours = (pixels.astype(np.uint8) >> 6) @ np.array([16, 4, 1])
        out += [np.bincount(one.ravel(), minlength=64) / one.size for one in colours]
    return np.array(out)
