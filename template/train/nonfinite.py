"""A loss, weight or activation that became NaN or infinite: stop, and find the batch."""

import math
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf


class NonFiniteError(RuntimeError):
    """A loss, weight or score became NaN or infinite. The message says where, and what to do."""


ADVICE = (
    "Nothing of this epoch was saved. Start a new run with a lower learning rate (--stages.N.learning_rate), or with "
    "--train.precision=float32 if it was another; if it happens again, look at the images (scripts/audit.py)."
)


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Stop training before anything is saved if the loss or a weight is not finite.

    Keras's TerminateOnNaN ends training "gracefully": other callbacks then save the ruined weights, as the best too. It
    also reads the loss after every batch, for which a GPU must wait; here once at the end of an epoch is enough, as the
    loss is a mean over the epoch and stays NaN, and the batch is found by going through them once more.

    Args:
        whole: the model of which the one in training may be a part.
        find: epoch -> epoch, batch and names of its images, all of the first batch whose loss is not finite when
            training is repeated up to that epoch from the last checkpoint; None if all are.
    """

    def __init__(
        self, whole: keras.Model, find: Callable[[int], tuple[int, int, Sequence[str]] | None] = lambda epoch: None
    ) -> None:
        super().__init__()
        self.whole, self.find = whole, find

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Look at the loss, and at the weights: the last step of an epoch can ruin them without showing in its loss."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            where, names = f"epoch {epoch + 1}", ""
            if found := self.find(epoch):
                where = f"epoch {found[0] + 1}, batch {found[1] + 1}"
                names = ", ".join(repr(str(name)) for name in found[2])
            names = f" The images of this batch: {names}" if names else ""
            raise NonFiniteError(f"The loss became {loss} in {where}. {ADVICE}{names}")
        floats = [v for v in self.whole.variables if "float" in v.dtype]
        finite = np.asarray(tf.stack([tf.reduce_all(tf.math.is_finite(v.value)) for v in floats]))  # one wait for all
        if not finite.all():
            raise NonFiniteError(
                f"Weights of {floats[finite.argmin()].path!r} are not finite after epoch {epoch + 1}. {ADVICE}"
            )


def first_bad_batch(
    network: keras.Model,
    epochs: range,
    batches: Callable[[int], Iterable],
    changes: Sequence[keras.callbacks.Callback] = (),
) -> tuple[int, int] | None:
    """Train on, batch by batch, until a loss is not finite: its epoch and the number of the batch; None if all are.

    Args:
        network: compiled, with the weights and the optimizer of the beginning of the first epoch. It is changed.
        epochs: numbers of those to go through.
        batches: of an epoch, as `fit` saw them.
        changes: whose `on_epoch_begin` sets what depends on the epoch.
    """
    for epoch in epochs:
        for change in changes:
            change.on_epoch_begin(epoch)
        network.reset_metrics()
        for number, batch in enumerate(batches(epoch)):
            if not math.isfinite(network.train_on_batch(*batch, return_dict=True)["loss"]):
                return epoch, number
    return None
