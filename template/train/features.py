"""While the lower blocks are frozen, run them once: activations at the boundary, for several augmented views."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..data.pipeline import Source, ordered_batches
from ..data.rows import Rows

FLOAT16_MAX = float(np.finfo(np.float16).max)
"""Activations beyond it are stored as it: an infinity would become NaN in the first step."""


def cut(model: keras.Model, boundary: keras.KerasTensor) -> tuple[keras.Model, keras.Model]:
    """Divide a flat model at one of its tensors.

    Returns:
        From the model's input to the boundary, and from there to its output. Both share the model's layers: training
        the second trains the model.
    """
    return keras.Model(model.inputs[0], boundary), keras.Model(boundary, model.outputs[0])


def inference(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """A network as a compiled function from pictures of any number type to float32, not training."""
    return tf.function(
        lambda inputs: tf.cast(network(tf.cast(inputs, tf.float32), training=False), tf.float32), reduce_retracing=True
    )


def activations(network: Callable, source: Source, epoch: int, batch_size: int) -> Iterator[np.ndarray]:
    """Outputs of `inference` over one epoch of a source, batch by batch in order, float32 [batch, ...]."""
    view = Source(lambda _, rows: source.read(epoch, rows), source.labels)
    for inputs, _ in ordered_batches(view, 1, batch_size):
        yield network(inputs).numpy()


def cached(
    bottom: keras.Model, source: Source, views: int, *, batch_size: int, folder: Path, memory_bytes: float
) -> Source:
    """Run a frozen network over several views of a source, and give its outputs in place of its inputs.

    Epoch e of the result is view e modulo `views`, float16: for no more epochs than views, training on it sees what
    training on the source itself would.

    Args:
        bottom: from `cut`.
        source: what `bottom` takes.
        views: how many epochs of the source to store.
        batch_size: of the passes.
        folder: where the values go; their file has no name and is gone with the process.
        memory_bytes: values of at most this size are held in memory.
    """
    n, shape, network = len(source), bottom.output_shape[1:], inference(bottom)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-features-") as file:
        for view in range(views):
            for batch in activations(network, source, view, batch_size):
                file.write(np.clip(batch, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16).tobytes())
        file.flush()
        values = Rows(Path(file.name), (views * n, *shape), np.float16, memory_bytes)
    return Source(lambda epoch, rows: values[(epoch % views) * n + rows], source.labels)


def divide(
    model: keras.Model,
    boundary: keras.KerasTensor | None,
    train: Source,
    val: Source | None,
    *,
    views: int,
    batch_size: int,
    folder: Path,
    limit_bytes: float,
) -> tuple[keras.Model, Source, Source | None]:
    """What to train, and on what: the tail above a boundary on stored activations, or the whole model on pictures.

    Storing pays whenever something is frozen: with no more views than epochs it never computes more than training on
    pictures would. It is not done where the activations would not fit. Says which and why.

    Args:
        model: with everything below the boundary frozen.
        boundary: input of its lowest trainable block, or None if nothing is frozen.
        train: pictures, augmented.
        val: pictures, or None.
        views: epochs of the pictures to store.
        batch_size: of the passes.
        folder: for activations that do not fit into memory.
        limit_bytes: of storage; a quarter of it in memory.
    """
    if boundary is None:
        print("  on pictures: nothing is frozen below what trains")
        return model, train, val
    bottom, tail = cut(model, boundary)
    size = 2 * len(train) * views * int(np.prod(bottom.output_shape[1:]))
    if size > limit_bytes:
        print(f"  on pictures: {views} views of activations would take {size / 2**30:.1f} GiB")
        return model, train, val
    print(f"  on {views} stored views, activations {bottom.output_shape[1:]}, {size / 2**20:,.0f} MiB")
    how = {"batch_size": batch_size, "folder": folder, "memory_bytes": limit_bytes / 4}
    return tail, cached(bottom, train, views, **how), val and cached(bottom, val, 1, **how)
