"""Callbacks of a stage. Each is right alone; together they share one `TrainState`."""

import math
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from .. import progress, runs
from ..data.batches import inference_batches
from ..data.dataset import ArrayDataset, evenly_spaced
from ..model.layers import DropBlock
from .checkpoint import TrainState
from .nonfinite import ADVICE, NonFiniteError
from .optimizers import PlateauSchedule
from .select import MONITORED, probability_of_labels, scores

DYNAMICS_IMAGES = 32
"""Validation images whose predictions are kept epoch by epoch."""


class Advance(keras.callbacks.Callback):
    """Count the batches of a step of the progress."""

    async_safe = True  # nothing is read of what the batch gave: a GPU need not wait

    def __init__(self, step: progress.Step) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """One more."""
        self.step.advance()


class KeepBest(keras.callbacks.Callback):
    """Early stopping: remember the weights of the best epoch, stop when none was better for `patience` epochs.

    Unlike Keras's pair of EarlyStopping and ModelCheckpoint it has one notion of best, which lives in `state` and so
    survives a resume. A score that is not finite is never the best, and does not count as an epoch without
    improvement. Two of them in a row are an error.

    Args:
        state: whose `best` and `wait` are kept up to date.
        monitor: name in the logs.
        patience: epochs without improvement.
        weights: those that `state.best` belongs to; the current ones if None.
    """

    def __init__(self, state: TrainState, monitor: str, patience: int, weights: list[np.ndarray] | None = None) -> None:
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
        nonfinite = not all(math.isfinite(number) for name, number in logs.items() if name.startswith("val_"))
        self.state.nonfinite_epochs = self.state.nonfinite_epochs + 1 if nonfinite else 0
        if self.state.nonfinite_epochs > 1:
            raise NonFiniteError(f"The validation score was not finite in epochs {epoch} and {epoch + 1}. {ADVICE}")
        if nonfinite:
            return
        if self.state.best is None or self.sign * (value - self.state.best) > 0:
            self.state.best, self.state.best_epoch, self.state.wait = float(value), epoch + 1, 0
            self.weights = self.model.get_weights()
        else:
            self.state.wait += 1
        if self.state.wait >= self.patience:
            self.model.stop_training = True


class DropBlockSchedule(keras.callbacks.Callback):
    """Let the rate of DropBlock rise from 0 over a stage, to the whole of it in the last epoch.

    A function of the epoch, so that a resumed run and a refit repeat it.

    Args:
        start: epochs finished when the stage began.
        epochs: of the stage, as planned.
    """

    def __init__(self, start: int, epochs: int) -> None:
        super().__init__()
        self.start, self.epochs = start, epochs

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Set the rate of this epoch."""
        for layer in self.model.layers:
            if isinstance(layer, DropBlock):
                layer.ramp.assign((epoch + 1 - self.start) / self.epochs)


class ReduceLROnPlateau(keras.callbacks.Callback):
    """Divide the learning rate by ten when the validation score stops improving, as He et al. 2016 did by hand.

    Unlike Keras's ReduceLROnPlateau it goes on after a resume, by what is in `state`, and a refit repeats it.

    Args:
        rate: schedule of the optimizer.
        state: whose `wait`, which KeepBest counts before, decides, and whose `lr_drops` grow. In a refit `wait` is 0,
            and the learning rate drops where `lr_drops` says.
        patience: epochs without improvement, after the warm-up.
    """

    def __init__(self, rate: PlateauSchedule, state: TrainState, patience: int) -> None:
        super().__init__()
        self.rate, self.state, self.patience = rate, state, patience

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Set the learning rate of this epoch."""
        self.rate.factor.assign(0.1 ** sum(drop <= epoch for drop in self.state.lr_drops))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """See whether the score has stopped improving; an epoch without a finite score does not count."""
        if self.state.nonfinite_epochs or not self.state.wait:
            return
        warm = (epoch + 1 - self.state.start) * self.params["steps"] > self.rate.warmup_steps
        if warm and self.state.wait % self.patience == 0:
            self.state.lr_drops.append(epoch + 1)


class Validate(keras.callbacks.Callback):
    """Predict the validation images once an epoch; what is logged, waited for and chosen are scores of these logits.

    Also remembers, epoch by epoch, the predicted probability of the label for a few of them: what is learned early,
    late or never, and what is forgotten again, a mean over all images does not show.

    Args:
        state: whose `prediction_dynamics` grow.
        held_out: validation images, as the network in training takes them.
        monitor: `train.monitor`.
        batch_size: at most.
    """

    def __init__(self, state: TrainState, held_out: ArrayDataset, monitor: str, batch_size: int) -> None:
        super().__init__()
        self.state, self.held_out, self.monitor = state, held_out, monitor
        self.labels, self.column = held_out.labels, MONITORED[monitor]
        self.batches = inference_batches(held_out, batch_size)
        self.began = 0.0

    def logits(self, network: keras.Model) -> np.ndarray:
        """Predictions for the validation images, float32 [n, classes]."""
        return network.predict(self.batches, verbose=0)[: len(self.held_out)]

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        """Add the scores to the logs, for the callbacks that follow."""
        self.began = time.perf_counter()
        logits = self.logits(self.model)
        logs |= scores(logits, self.labels)
        few = evenly_spaced(len(logits), DYNAMICS_IMAGES)
        probabilities = probability_of_labels(logits[few], self.labels[few])
        self.state.prediction_dynamics.append(probabilities.round(4).tolist())


class Log(keras.callbacks.Callback):
    """Add each epoch to `state.history`, history.csv and TensorBoard, and print a line that a person can follow."""

    def __init__(
        self, state: TrainState, folder: Path, stage: str, last_epoch: int, images: int, validate: Validate
    ) -> None:
        super().__init__()
        self.state, self.folder, self.stage, self.last_epoch, self.images = state, folder, stage, last_epoch, images
        self.validate = validate
        self.board = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the epoch's clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        """Write and print."""
        now = time.perf_counter()
        rate = self.images / (self.validate.began - self.start)
        row = {"stage": self.state.stage + 1, "epoch": epoch + 1, **{name: float(x) for name, x in logs.items()}}
        row["penalty"] = float(sum(self.model.losses))  # which is a part of the loss
        row |= {"learning_rate": float(self.model.optimizer.learning_rate), "seconds": now - self.start}
        self.state.history.append(row)
        self.state.epoch = epoch + 1
        table = [[r.get(name, math.nan) for name in row] for r in self.state.history]  # an older version had fewer
        lines = [",".join(row), *(",".join(f"{x:.6g}" for x in values) for values in table)]
        runs.write_text(self.folder / "history.csv", "\n".join(lines) + "\n")
        with self.board.as_default(step=epoch + 1):
            for name, value in row.items():
                tf.summary.scalar(name, value)
        left = (self.last_epoch - epoch - 1) * (now - self.start)
        progress.print_line(
            f"{self.stage}  epoch {epoch + 1:>2}/{self.last_epoch}  loss {row['loss']:.3f}  "
            f"{format_scores(row, self.validate.column)}{'   ' if self.state.wait else ' * '} {rate:,.0f} images/s  "
            f"{left:.0f} s left in this stage at most"
        )


def format_scores(scores: dict[str, float], column: str) -> str:
    """The score that decides, by the name of its column, and beside it the accuracy."""
    words = [f"{name.replace('_', ' ')} {scores[name]:.3f}" for name in dict.fromkeys((column, "val_accuracy"))]
    return "  ".join(words)
