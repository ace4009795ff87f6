"""What happens at the end of an epoch. Each callback is right alone; together they share one `State` of plain data."""

import dataclasses
import json
import math
import os
import shutil
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from scipy.special import softmax

from .. import runs


@dataclass
class State:
    """Where a training stands; together with the weights, all that is needed to go on."""

    stage: int = 0
    """Stages finished."""
    epoch: int = 0
    """Epochs finished, over all stages."""
    start: int = 0
    """Epochs that were finished when this stage began."""
    best: float | None = None
    """Best validation score so far, over all stages."""
    best_epoch: int | None = None
    """Epochs finished when this stage reached it; None if it is from before the stage."""
    wait: int = 0
    """Epochs of this stage since its last improvement."""
    gain: float = 1.0
    """Part of the validation loss (or error) that the last stage took away."""
    history: list[dict] = field(default_factory=list)
    """One row an epoch."""
    watched: list[list[float]] = field(default_factory=list)
    """Probability of its own label for each of a few validation pictures; one row an epoch."""
    plan: list[dict] = field(default_factory=list)
    """What was kept of each finished stage: epoch at its `start`, `epochs` trained, whether `averaged`, and
    which `share` of the way."""


class KeepBest(keras.callbacks.Callback):
    """Remember the weights of the best epoch, stop when none has been better for `patience` epochs.

    Unlike Keras's pair of EarlyStopping and ModelCheckpoint it has one notion of best, which lives in `state` and so
    survives a resume, and a score that is not a number is never the best.

    Args:
        state: whose `best` and `wait` are kept up to date.
        monitor: name in the logs.
        patience: epochs without improvement.
        weights: those that `state.best` belongs to; the current ones if None.
    """

    def __init__(self, state: State, monitor: str, patience: int, weights: list[np.ndarray] | None = None) -> None:
        super().__init__()
        self.state, self.monitor, self.patience, self.weights = state, monitor, patience, weights
        self.sign = 1 if monitor.endswith(("accuracy", "f1")) else -1

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Start from the weights as they are: a stage can only improve on what came before."""
        if self.weights is None:
            self.weights = self.model.get_weights()

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        """Compare this epoch with the best."""
        value = logs[self.monitor]
        if math.isfinite(value) and (self.state.best is None or self.sign * (value - self.state.best) > 0):
            self.state.best, self.state.best_epoch, self.state.wait = float(value), epoch + 1, 0
            self.weights = self.model.get_weights()
        else:
            self.state.wait += 1
        if self.state.wait >= self.patience:
            self.model.stop_training = True


class Watch(keras.callbacks.Callback):
    """Remember, epoch by epoch, how likely the labels of a few validation pictures are said to be.

    What is learned early, late or never, and what is forgotten again, a mean over all pictures does not show.

    Args:
        state: whose `watched` grows.
        inputs: of the model in training, of these pictures.
        labels: theirs, int64 [n].
    """

    def __init__(self, state: State, inputs: np.ndarray, labels: np.ndarray) -> None:
        super().__init__()
        self.state, self.inputs, self.labels = state, inputs, labels

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Predict."""
        said = softmax(np.asarray(self.model.predict_on_batch(self.inputs), np.float64), axis=1)
        self.state.watched.append(said[np.arange(len(said)), self.labels].round(4).tolist())


class Log(keras.callbacks.Callback):
    """Add each epoch to `state.history`, history.csv and TensorBoard, and print a line that a person can follow."""

    def __init__(self, state: State, folder: Path, stage: str, last_epoch: int, images: int) -> None:
        super().__init__()
        self.state, self.folder, self.stage, self.last_epoch, self.images = state, folder, stage, last_epoch, images
        self.board = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the epoch's clock."""
        self.start, self.trained = time.perf_counter(), None

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Validation begins: the training part of the epoch is over."""
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        """Write and print."""
        now = time.perf_counter()
        rate = self.images / ((self.trained or now) - self.start)
        row = {"stage": self.state.stage + 1, "epoch": epoch + 1, **{k: float(v) for k, v in logs.items()}}
        row |= {"learning_rate": float(self.model.optimizer.learning_rate), "seconds": now - self.start}
        self.state.history.append(row)
        self.state.epoch = epoch + 1
        lines = [",".join(row), *(",".join(f"{x:.6g}" for x in r.values()) for r in self.state.history)]
        runs.write_text(self.folder / "history.csv", "\n".join(lines) + "\n")
        with self.board.as_default(step=epoch + 1):
            for name, value in row.items():
                tf.summary.scalar(name, value)
        left = (self.last_epoch - epoch - 1) * (now - self.start)
        print(
            f"{self.stage}  epoch {epoch + 1:>2}/{self.last_epoch}  loss {row['loss']:.3f}  "
            f"val cross-entropy {row['val_cross_entropy']:.3f}  accuracy {row['val_accuracy']:.3f}"
            f"{'   ' if self.state.wait else ' * '} {rate:,.0f} images/s  {left:.0f} s left in this stage at most",
            flush=True,
        )


class Checkpoint(keras.callbacks.Callback):
    """After each epoch, save all that is needed to go on: weights, optimizer, random generators, best weights, state.

    A checkpoint is a folder that appears by one rename when its files are safely on disk; the last two are kept.

    Args:
        state: saved as JSON.
        folder: of the checkpoints.
        whole: the model of which the one in training may be a part.
        keep: holds the best weights.
        before: weights at the beginning of the stage.
    """

    def __init__(self, state: State, folder: Path, whole: keras.Model, keep: KeepBest, before: list) -> None:
        super().__init__()
        self.state, self.folder, self.whole, self.keep, self.before = state, folder, whole, keep, before

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write the checkpoint of this epoch."""
        kinds = {
            "model": [variable.numpy() for variable in self.whole.variables],
            "optimizer": [variable.numpy() for variable in self.model.optimizer.variables],
            "best": self.keep.weights,
            "before": self.before,
        }
        arrays = {f"{kind}_{i}": array for kind, group in kinds.items() for i, array in enumerate(group)}
        final, temporary = self.folder / f"{epoch + 1:05d}", self.folder / f".tmp-{os.getpid()}-{epoch + 1:05d}"
        temporary.mkdir(parents=True, exist_ok=True)
        with runs.replacing(temporary / "arrays.npz") as file:
            np.savez(file, **arrays)
        # Not write_json: the history may hold a NaN, which our own reader takes and must not stop a run that recovers.
        runs.write_text(temporary / "state.json", json.dumps(dataclasses.asdict(self.state)))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in sorted(self.folder.glob("[0-9]*"))[:-2]:
            shutil.rmtree(old)


def read_checkpoint(folder: Path) -> tuple[State, dict[str, list[np.ndarray]]]:
    """Newest whole checkpoint, or a fresh state and no arrays.

    Returns:
        The state, and arrays by kind: "model", "optimizer", "best", "before".
    """
    for checkpoint in sorted(folder.glob("[0-9]*"), reverse=True):
        try:
            state = State(**runs.read_json(checkpoint / "state.json"))
            with np.load(checkpoint / "arrays.npz", allow_pickle=False) as file:
                arrays: dict[str, list[np.ndarray]] = {}
                for name in file.files:  # in the order they were written
                    arrays.setdefault(name.partition("_")[0], []).append(file[name])
            return state, arrays
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            print(f"Checkpoint {str(checkpoint)!r} is damaged ({error}); trying the one before.")
    return State(), {}
