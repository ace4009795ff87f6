"""A small network, images and settings for tests of staged fine-tuning."""

import functools
from pathlib import Path

import keras
import numpy as np
from keras import layers

from template.config import Backbone, Head, Stage, Train
from template.data.dataset import ArrayDataset
from template.model.backbones import build_backbone
from template.model.blocks import Blocks, find_blocks
from template.model.build import build
from template.progress import Timer
from template.train.features import FeatureCache
from template.train.one_stage import TrainContext
from template.train.stages import fit

SIZE, CLASSES = 16, 3
STAGES = (
    Stage(unfreeze=0, epochs=3, learning_rate=5e-3),
    Stage(unfreeze=1, epochs=3, cached_augmentations=2, refresh=2, learning_rate=3e-3),
    Stage(unfreeze="all", epochs=2, learning_rate=3e-3),
)
SETTINGS = Train(batch_size=8, patience=5, mixup=0.1, cutmix=0.1, checkpoint_seconds=0)
HEAD = Head(dropout=0.1, feature_levels=2, power_norm=True, drop_block=0.05, drop_connect=0.05)


def coloured(n: int, seed: int) -> ArrayDataset:
    """Noise whose mean colour tells the class, a little brighter in every epoch."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    pixels = generator.integers(0, 120, (n, SIZE, SIZE, 3)).astype(np.uint8)
    pixels[np.arange(n), :, :, labels] += 100
    return ArrayDataset(lambda epoch, rows: pixels[rows] + np.uint8(2 * epoch), labels, f"coloured {n} {seed}")


def context(backbone: Backbone, folder: Path, stages=STAGES, settings=SETTINGS) -> TrainContext:
    cache = FeatureCache(folder / "cache", 1e9, settings.batch_size, Timer())
    return TrainContext(blocks(backbone), stages, settings, cache)


@functools.cache
def blocks(backbone: Backbone, head: Head = HEAD) -> Blocks:
    return find_blocks(build(backbone, head, SIZE, np.ones(CLASSES)), backbone)


def fresh(backbone: Backbone, settings=SETTINGS) -> keras.Model:
    keras.utils.set_random_seed(settings.seed)
    return build(backbone, HEAD, SIZE, np.ones(CLASSES))


def load_pretrained(folder: Path, stochastic_depth: float = 0.05) -> Backbone:
    """A network with weights from a file, as a stand-in for ImageNet's: batch norm statistics are not 0 and 1."""
    keras.utils.set_random_seed(0)  # or how much is learned in a few epochs would be luck
    base = build_backbone(Backbone(name="tiny", weights="none"), SIZE)
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(np.full(layer.moving_mean.shape, 0.1))
    base.save_weights(folder / "backbone.weights.h5")
    return Backbone(name="tiny", weights=str(folder / "backbone.weights.h5"), stochastic_depth=stochastic_depth)


def train(backbone, folder, stages=STAGES, settings=SETTINGS):
    model = fresh(backbone, settings)
    return model, fit(model, coloured(24, 0), coloured(12, 1), context(backbone, folder, stages, settings), folder)


def same(one: keras.Model, other: keras.Model, atol: float = 0.0) -> bool:
    """Whether two models have equal weights."""
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.allclose(a, b, atol=atol, rtol=0) if atol else a.tobytes() == b.tobytes() for a, b in pairs)
