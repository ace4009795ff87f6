"""What happens at the end of an epoch. Each callback is right alone; together they share one `State` of plain data."""

import dataclasses
import json
import math
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from scipy.special import softmax

from .. import disk, runs
from ..data.pipeline import Source, evenly, inference_batches
from ..model.layers import DropBlock
from .optimizers import Held
from .select import MONITORED, scores

WATCHED = 32
"""Validation images whose predictions are kept epoch by epoch."""


class NonFiniteError(RuntimeError):
    """A loss, weight or score became NaN or infinite. The message says where, and what to do."""


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
    blind: int = 0
    """Epochs in a row whose validation gave no number."""
    drops: list[int] = field(default_factory=list)
    """Epochs finished whenever the step size of this stage fell, where schedule=plateau."""
    gain: float = 1.0
    """Part of the validation loss (or error) that the last stage took away."""
    history: list[dict] = field(default_factory=list)
    """One row an epoch."""
    watched: list[list[float]] = field(default_factory=list)
    """Probability of its own label for each of a few validation pictures; one row an epoch."""
    plan: list[dict] = field(default_factory=list)
    """What was kept of each finished stage: epoch at its `start`, `epochs` trained, whether `averaged`,
    which `share` of the way, and after which epochs the step size `drops`."""


class Guard(keras.callbacks.Callback):
    """Stop training before anything is saved if the loss or a weight is not finite.

    Keras's TerminateOnNaN ends training "gracefully": other callbacks then save the ruined weights, as the best too.

    Args:
        whole: the model of which the one in training may be a part.
        names: (epoch, batch) -> what a person calls the pictures of a batch.
    """

    def __init__(self, whole: keras.Model, names: Callable[[int, int], Sequence[str]]) -> None:
        super().__init__()
        self.whole, self.names = whole, names

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remember the epoch for the message."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict) -> None:
        """Look at the loss, a mean over the epoch so far: once it is NaN, it stays so."""
        if not math.isfinite(logs["loss"]):
            pictures = ", ".join(repr(str(name)) for name in self.names(self.epoch, batch))
            raise NonFiniteError(
                f"The loss became {logs['loss']} in epoch {self.epoch + 1}, batch {batch + 1}. {ADVICE}"
                + (f" The pictures of this batch: {pictures}" if pictures else "")
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Look at the weights: the last step of an epoch can ruin them without showing in its loss."""
        for variable in self.whole.variables:
            if not np.isfinite(variable.numpy()).all():
                raise NonFiniteError(f"Weights of {variable.path!r} are not finite after epoch {epoch + 1}. {ADVICE}")


ADVICE = (
    "Nothing of this epoch was saved. Start a new run with a lower learning rate (--stages.N.learning_rate), or with "
    "--train.precision=float32 if it was another; if it happens again, look at the pictures (scripts/audit.py)."
)


class KeepBest(keras.callbacks.Callback):
    """Remember the weights of the best epoch, stop when none has been better for `patience` epochs.

    Unlike Keras's pair of EarlyStopping and ModelCheckpoint it has one notion of best, which lives in `state` and so
    survives a resume. A score that is not a number is never the best, and says nothing about whether training improves:
    it does not count as an epoch without improvement. Two of them in a row are an error.

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
        blind = not all(math.isfinite(number) for name, number in logs.items() if name.startswith("val_"))
        self.state.blind = self.state.blind + 1 if blind else 0
        if self.state.blind > 1:
            raise NonFiniteError(f"Validation gave no number in epochs {epoch} and {epoch + 1}. {ADVICE}")
        if blind:
            return
        if self.state.best is None or self.sign * (value - self.state.best) > 0:
            self.state.best, self.state.best_epoch, self.state.wait = float(value), epoch + 1, 0
            self.weights = self.model.get_weights()
        else:
            self.state.wait += 1
        if self.state.wait >= self.patience:
            self.model.stop_training = True


class Ramp(keras.callbacks.Callback):
    """Let the rate of DropBlock rise from 0 over a stage, to the whole of it in the last epoch.

    A function of the epoch, so that a resumed run and the final fit do it again.

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


class Plateau(keras.callbacks.Callback):
    """Take a tenth of the step size when the validation score stands still, as He et al. 2016 did by hand.

    Unlike Keras's ReduceLROnPlateau it goes on after a resume, by what is in `state`, and can be repeated.

    Args:
        rate: schedule of the optimizer.
        drops: numbers of epochs finished when the step size fell; in a first fit `state.drops`, which grows.
        every: epochs without improvement, after the warm-up.
        state: whose `wait` decides, after KeepBest; None to repeat what is in `drops`.
    """

    def __init__(self, rate: Held, drops: list[int], every: int, state: State | None = None) -> None:
        super().__init__()
        self.rate, self.drops, self.every, self.state = rate, drops, every, state

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Set the step size of this epoch."""
        self.rate.factor.assign(0.1 ** sum(drop <= epoch for drop in self.drops))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """See whether the score stands still; an epoch without a score does not say so."""
        if self.state is None or self.state.blind or not self.state.wait:
            return
        warm = (epoch + 1 - self.state.start) * self.params["steps"] > self.rate.warmup_steps
        if warm and self.state.wait % self.every == 0:
            self.drops.append(epoch + 1)


class Validate(keras.callbacks.Callback):
    """Predict the validation images once an epoch; what is logged, waited for and chosen are scores of these logits.

    Also remembers, epoch by epoch, how likely the labels of a few of them are said to be: what is learned early, late
    or never, and what is forgotten again, a mean over all images does not show.

    Args:
        state: whose `watched` grows.
        held_out: validation images, as the network in training takes them.
        monitor: `train.monitor`.
        batch_size: at most.
    """

    def __init__(self, state: State, held_out: Source, monitor: str, batch_size: int) -> None:
        super().__init__()
        self.state, self.held_out, self.monitor, self.batch_size = state, held_out, monitor, batch_size
        self.labels, self.column = held_out.labels, MONITORED[monitor]
        self.began = 0.0

    def logits(self, network: keras.Model) -> np.ndarray:
        """What a network says of the validation images, float32 [n, classes]."""
        return network.predict(inference_batches(self.held_out, self.batch_size), verbose=0)[: len(self.held_out)]

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        """Add the scores to the logs, for the callbacks that follow."""
        self.began = time.perf_counter()
        logits = self.logits(self.model)
        logs |= scores(logits, self.labels)
        few = evenly(len(logits), WATCHED)
        said = softmax(logits[few].astype(np.float64), axis=1)[np.arange(len(few)), self.labels[few]]
        self.state.watched.append(said.round(4).tolist())


class Log(keras.callbacks.Callback):
    """Add each epoch to `state.history`, history.csv and TensorBoard, and print a line that a person can follow."""

    def __init__(
        self, state: State, folder: Path, stage: str, last_epoch: int, images: int, validate: Validate
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
        print(
            f"{self.stage}  epoch {epoch + 1:>2}/{self.last_epoch}  loss {row['loss']:.3f}  "
            f"{said(row, self.validate.column)}{'   ' if self.state.wait else ' * '} {rate:,.0f} images/s  "
            f"{left:.0f} s left in this stage at most",
            flush=True,
        )


def said(scores: dict[str, float], column: str) -> str:
    """The score that decides, by the name of its column, and beside it the accuracy."""
    words = [f"{name.replace('_', ' ')} {scores[name]:.3f}" for name in dict.fromkeys((column, "val_accuracy"))]
    return "  ".join(words)


class Checkpoint(keras.callbacks.Callback):
    """After each epoch, save all that is needed to go on: weights, optimizer, random generators, best weights, state.

    A checkpoint is a folder that appears by one rename when its files are safely on disk, with a manifest of their
    digests; the last two are kept. An epoch whose validation gave no number is not saved.

    Args:
        state: saved as JSON, with the number of this epoch.
        folder: of the checkpoints.
        whole: the model of which the one in training may be a part.
        before: weights at the beginning of the stage.
        clock: which adds up the seconds as `checkpoints`.
        keep: holds the best weights, if somebody looks for them.
    """

    def __init__(
        self, state: State, folder: Path, whole: keras.Model, before: list, clock: runs.Clock,
        keep: KeepBest | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.state, self.folder, self.whole, self.before = state, folder, whole, before
        self.clock, self.keep = clock, keep

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write the checkpoint of this epoch."""
        if self.state.blind:
            return
        self.state.epoch = epoch + 1
        kinds = {
            "model": [variable.numpy() for variable in self.whole.variables],
            "optimizer": [variable.numpy() for variable in self.model.optimizer.variables],
            "best": self.keep.weights if self.keep else [],
            "before": self.before,
        }
        arrays = {f"{kind}_{i}": array for kind, group in kinds.items() for i, array in enumerate(group)}
        with self.clock("checkpoints"), disk.replacing_folder(self.folder / f"{epoch + 1:05d}") as temporary:
            with (temporary / "arrays.npz").open("wb") as file:
                np.savez(file, **arrays)
            # Not write_json: the history may hold a NaN, which our own reader takes.
            (temporary / "state.json").write_text(json.dumps(dataclasses.asdict(self.state)), encoding="utf-8")
            disk.seal(temporary)
        for old in sorted(self.folder.glob("[0-9]*"))[:-2]:
            disk.remove_folder(old)


def read_checkpoint(folder: Path) -> tuple[State, dict[str, list[np.ndarray]]]:
    """Newest whole checkpoint, or a fresh state and no arrays if there never was one.

    Returns:
        The state, and arrays by kind: "model", "optimizer", "best", "before".

    Raises:
        DamagedError: if there are checkpoints, and none of them is whole.
    """
    found = sorted(folder.glob("[0-9]*"), reverse=True)
    for checkpoint in found:
        try:
            disk.verify(checkpoint)
            state = State(**runs.read_json(checkpoint / "state.json"))
            with np.load(checkpoint / "arrays.npz", allow_pickle=False) as file:
                arrays: dict[str, list[np.ndarray]] = {}
                for name in file.files:  # in the order they were written
                    arrays.setdefault(name.partition("_")[0], []).append(file[name])
            return state, arrays
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            print(f"Checkpoint {str(checkpoint)!r} is damaged ({error}); trying the one before.")
    if found:
        raise disk.DamagedError(
            f"No checkpoint in {str(folder)!r} is whole. Start a new run; or move this folder away, and a resumed run "
            "begins again from its first epoch."
        )
    return State(), {}
