"""Baselines that a run has to beat, and the learning curve."""

import cv2
import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .. import progress
from ..config import Backbone, Config, Head
from ..data.batches import inference_batches, shuffled_batches
from ..data.dataset import ArrayDataset, eval_dataset, subsample
from ..model.build import build
from ..model.inference import fold_batch_norm
from ..model_selection.auto import head_inputs, never_trained, probe_features, select_levels
from ..train.callbacks import Advance
from ..train.features import FeatureCache, from_boundary
from ..train.linear_probe import fit_probe

FEW = 200
"""Training images whose accuracy is reported."""
SIDE = 48
"""Pixels of the images that a small network from scratch sees."""
STEPS = 150
"""Of the small network from scratch."""
FRACTIONS = (0.1, 0.2, 0.4, 0.8, 1.0)
DRAWS = 3
MOST = 2000
"""Training images of the largest linear probe in the learning curve."""


def train_accuracy(model: keras.Model, train: ArrayDataset, config: Config, cache: FeatureCache) -> tuple[int, int]:
    """Correct predictions, and images predicted: up to FEW training images, without augmentation.

    Args:
        model: at inference.
        train: images as they are; the passes through what is never trained are those that novelty needs, too.
        config: without `auto`.
        cache: for features.
    """
    model, (train,) = from_boundary(model, never_trained(model, config), [train], cache)
    few = subsample(train, FEW)
    batches = inference_batches(few, config.train.batch_size)
    logits = fold_batch_norm(model).predict(batches, verbose=0)[: len(few)]
    return int((logits.argmax(axis=1) == few.labels).sum()), len(few)


def color_baseline(train: ArrayDataset, held_out: ArrayDataset) -> int:
    """Correct predictions of a logistic regression on colour histograms, which have no shapes at all."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    model.fit(_histograms(train), train.labels)
    return int((model.predict(_histograms(held_out)) == held_out.labels).sum())


def scratch_baseline(train: ArrayDataset, val: ArrayDataset, config: Config) -> int:
    """Correct predictions of the small network `tiny`, trained from random weights for STEPS steps on small copies."""
    train, val, classes = _shrunk(train), _shrunk(val), int(train.labels.max()) + 1
    model = build(Backbone(name="tiny", weights="none"), Head(dropout=0), SIDE, np.bincount(train.labels))
    optimizer = keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(3e-3, STEPS))
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)  # or the step is traced twice
    batches = shuffled_batches(train, classes, config.train.batch_size, config.train.seed, range(STEPS))
    with progress.step("small network from scratch", STEPS, "steps") as step:
        model.fit(batches.take(STEPS), shuffle=False, verbose=0, callbacks=[Advance(step)])
    logits = model.predict(inference_batches(val, config.train.batch_size), verbose=0)[: len(val)]
    return int((logits.argmax(axis=1) == val.labels).sum())


def learning_curve(
    model: keras.Model, base: keras.Model, config: Config, train: ArrayDataset, val: ArrayDataset, cache: FeatureCache
) -> tuple[list[int], list[float]]:
    """Training images, and mean validation error of a linear probe on so many of them.

    Each class gives the same share, group by group; the smaller ones are drawn several times.

    Args:
        model: from `init_model`, before its weights are trained.
        base: its backbone.
        config: without `auto`.
        train: images as they are.
        val: likewise.
        cache: for features.
    """
    features, widths = select_levels(probe_features(base, config, [train], cache), config.head)
    features, held_out = features[:1], head_inputs(model, config, [val], cache)  # one view: the plain one
    labels, classes, sizes, errors = train.labels, int(train.labels.max()) + 1, [], []
    most = min(1.0, MOST / len(train))
    for share in FRACTIONS:
        wrong = []
        for draw in range(DRAWS if share < 1 else 1):
            order = _drawn(train, draw, config.train.seed)
            rows = [order[labels[order] == label] for label in range(classes)]
            chosen = np.concatenate([mine[: max(2, round(share * most * len(mine)))] for mine in rows])
            mine = None if train.groups is None else train.groups[chosen]
            few = features[:, chosen], labels[chosen]
            probe = fit_probe(*few, classes, config.train.seed, widths, most_repeats=1, groups=mine)
            wrong.append(((held_out[0] @ probe.kernel + probe.bias).argmax(axis=1) != val.labels).mean())
        sizes.append(len(chosen))
        errors.append(float(np.mean(wrong)))
    return sizes, errors


def _drawn(dataset: ArrayDataset, draw: int, seed: int) -> np.ndarray:
    """Rows of a dataset in random order, those of a group one after the other: more images are of more groups."""
    order = np.random.default_rng([seed, draw]).permutation(len(dataset))
    if dataset.groups is None:
        return order
    _, first, group = np.unique(dataset.groups[order], return_index=True, return_inverse=True)
    return order[np.argsort(first[group], kind="stable")]


def _shrunk(dataset: ArrayDataset) -> ArrayDataset:
    """Its images, SIDE pixels wide, in memory."""
    rows = np.arange(len(dataset))
    small = [cv2.resize(dataset.read(0, rows[[i]])[0], (SIDE, SIDE), interpolation=cv2.INTER_AREA) for i in rows]
    return eval_dataset(np.stack(small), rows, dataset.labels)


def _histograms(dataset: ArrayDataset) -> np.ndarray:
    """Fraction of the pixels in each of 64 colour bins, float64 [n, 64]."""
    out = []
    for start in range(0, len(dataset), 64):
        pixels = dataset.read(0, np.arange(start, min(start + 64, len(dataset))))
        colours = (pixels.astype(np.uint8) >> 6) @ np.array([16, 4, 1])
        out += [np.bincount(one.ravel(), minlength=64) / one.size for one in colours]
    return np.array(out)
