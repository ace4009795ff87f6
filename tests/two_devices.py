"""A program for test_distribute.py: what one device computes, and what two do, which are a CPU that is made two.

python two_devices.py FOLDER RESULTS.npz
"""

import contextlib
import dataclasses
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from staged import CLASSES, SIZE, coloured, load_pretrained

from template.config import Head, Stage, Train
from template.data.batches import inference_batches
from template.evaluate.predictions import predict
from template.model.blocks import find_blocks
from template.model.build import build
from template.model.inference import inference
from template.progress import Timer
from template.train import checkpoint
from template.train.distribute import on_all, on_devices
from template.train.features import FeatureCache
from template.train.gradients import gradients
from template.train.one_stage import TrainContext
from template.train.stages import fit, refit

STAGES = (
    Stage(unfreeze=0, epochs=2, learning_rate=5e-3),
    Stage(unfreeze=1, epochs=5, learning_rate=3e-3, clipnorm=0.05, layer_decay=0.7, l2=1e-3, l2_sp=1e-3),
)
SETTINGS = Train(batch_size=8, checkpoint_seconds=0)
HEAD = Head(dropout=0.0, feature_levels=2, max_norm=1.0)


class Work:
    """A training with so many devices.

    Args:
        folder: for its checkpoints and its cache.
        devices: how many.
        images: to train on.
        stages: to train.
        changes: of the settings.
    """

    def __init__(self, folder: Path, devices: int, images: int, stages=STAGES, **changes) -> None:
        self.folder, self.images, self.stages = folder, images, stages
        self.settings = dataclasses.replace(SETTINGS, devices=devices, **changes)
        self.backbone = load_pretrained(folder.parent, 0.0)

    def start(self) -> tuple[keras.Model, TrainContext]:
        """A fresh model, in the scope of its devices."""
        keras.utils.set_random_seed(0)
        model = build(self.backbone, HEAD, SIZE, np.ones(CLASSES))
        cache = FeatureCache(self.folder / "cache", 1e9, self.settings.batch_size, Timer())
        initial = [variable.numpy() for variable in model.variables]
        return model, TrainContext(find_blocks(model, self.backbone), self.stages, self.settings, cache, initial)

    def train(self, stop_after: int | None = None, more: bool = False) -> dict[str, np.ndarray]:
        """Train, or go on: weights, history and predictions; with `more` gradients, and weights of a refit."""
        with on_devices(self.settings), interrupted(stop_after):
            model, context = self.start()
            val = coloured(11, 1)
            try:
                state = fit(model, coloured(self.images, 0), val, context, self.folder)
            except KeyboardInterrupt:
                return {}
            batches = inference_batches(val, 4)
            logits = predict(model, batches, [str(i) for i in range(11)], val.labels, ["a", "b", "c"]).logits
            found = {"weights": flat(model), "logits": logits, "plain": model(tf.cast(pixels(val), tf.float32)).numpy()}
            columns = ("loss", "cross_entropy", "val_cross_entropy")
            found["history"] = np.array([[row[column] for column in columns] for row in state.history])
            if not more:
                return found
            found["gradients"] = np.concatenate([g.ravel() for g in self.gradients(model)])
            fresh, context = self.start()
            refit(fresh, [coloured(self.images, 0), val], state.plan, context, self.folder)
            return found | {"refit": flat(fresh)}

    def gradients(self, model: keras.Model) -> list[np.ndarray]:
        few = coloured(8, 2)
        model.compile("sgd", "categorical_crossentropy")
        return gradients(model, tf.cast(pixels(few), tf.float32), tf.one_hot(few.labels, CLASSES))


@contextlib.contextmanager
def interrupted(epoch: int | None):
    """As by Ctrl-C after the checkpoint of an epoch."""
    original = checkpoint.Checkpoint.on_epoch_end

    def then_stop(self, number, logs=None):
        original(self, number, logs)
        if number + 1 == epoch:
            raise KeyboardInterrupt

    checkpoint.Checkpoint.on_epoch_end = then_stop
    try:
        yield
    finally:
        checkpoint.Checkpoint.on_epoch_end = original


def pixels(dataset) -> np.ndarray:
    return dataset.read(0, np.arange(len(dataset)))


def flat(model: keras.Model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def features(devices: int, folder: Path) -> dict[str, np.ndarray]:
    """Of batches that can be shared evenly, that cannot, and that are smaller than there are devices."""
    with on_devices(dataclasses.replace(SETTINGS, devices=devices)):
        keras.utils.set_random_seed(0)
        function = on_all(inference(build(load_pretrained(folder, 0.0), HEAD, SIZE, np.ones(CLASSES))))
        return {f"features {n}": function(tf.constant(pixels(coloured(n, 3)))).numpy() for n in (8, 5, 1)}


def main(folder: Path, results: Path) -> None:
    """Everything, twice."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    found = {}
    for devices in (1, 2):
        parts = {"even": Work(folder / f"even{devices}", devices, 24).train(more=True)}
        parts["uneven"] = Work(folder / f"uneven{devices}", devices, 22, STAGES[1:], patience=1).train()
        parts["features"] = features(devices, folder)
        found |= {f"{part} {devices} {name}": value for part, values in parts.items() for name, value in values.items()}
    resumed = Work(folder / "resumed", 2, 24)
    assert resumed.train(stop_after=4) == {}
    shutil.copytree(resumed.folder, folder / "moved")
    found |= {f"resumed 2 {name}": value for name, value in resumed.train().items()}
    found |= {f"resumed 1 {name}": value for name, value in Work(folder / "moved", 1, 24).train().items()}
    with results.open("wb") as out:
        np.savez(out, **found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
