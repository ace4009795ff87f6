"""Do gradients reach the lower blocks, and how large are they? A look at the end of each epoch, off by default."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from .. import runs
from ..config import Backbone
from ..data.pipeline import Source
from ..model.backbones import block_numbers
from ..model.build import depths

VANISHING, EXPLODING, DEAD = 1e-4, 1000.0, 0.5
"""A block's gradient that small beside the largest, a gradient that long, and that many dead units are worth a word."""

HEADER = "stage,epoch,block,gradient,update,dead"


def block_names(model: keras.Model, backbone: Backbone) -> dict[str, str]:
    """What to call the block of each layer by name: `head`, `block3`, or `stem` for what is below the first block.

    Args:
        model: from `build`.
        backbone: the settings it was built with.
    """
    below_head, numbers = depths(model, backbone), block_numbers(model, backbone.name)
    names = {name: "stem" if number is None else f"block{number}" for name, number in numbers.items()}
    return {name: names[name] if depth else "head" for name, depth in below_head.items()}


class Gradients(keras.callbacks.Callback):
    """After each epoch, write for every block that trains a row of gradients.csv, and the same to TensorBoard.

    - gradient: Euclidean norm of the gradient of the training loss, penalties included, over all weights of the block;
      of one batch, as training sees it, before clipping.
    - update: how far the epoch moved the weights, as a part of their own size: |after - before| / |before|.
    - dead: part of the ReLUs of the head's hidden layer that are zero for every picture of the batch.

    Says once a stage if gradients vanish or explode or units are dead, and what to try (Pascanu et al. 2013, "On the
    difficulty of training recurrent neural networks"; Glorot and Bengio 2010). Leaves the training as it was, to the
    bit: what a look moves (batch statistics, random generators) is put back.

    Args:
        inputs: the pictures to look at, as the network in training takes them.
        blocks: name of each layer's block, from `block_names`.
        stage: its number, from 1.
        folder: the run's.
    """

    def __init__(self, inputs: Source, blocks: Mapping[str, str], stage: int, folder: Path) -> None:
        super().__init__()
        self.inputs, self.blocks, self.stage, self.folder = inputs, blocks, stage, folder
        self.board = tf.summary.create_file_writer(str(folder / "tensorboard"))
        self.said: set[str] = set()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remember the weights."""
        self.before = [variable.numpy() for variable in self.model.trainable_variables]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Look, write, and speak up."""
        images = tf.cast(self.inputs.read(epoch, np.arange(len(self.inputs))), tf.float32)
        labels = tf.one_hot(self.inputs.labels, self.model.output_shape[-1])
        after = [variable.numpy() for variable in self.model.trainable_variables]
        moved = [new - old for new, old in zip(after, self.before, strict=True)]
        gradient, update, size = map(self._by_block, (gradients(self.model, images, labels), moved, self.before))
        update = {block: length / size[block] if size[block] else math.nan for block, length in update.items()}
        dead = dead_units(self.model, images)
        self._write(epoch + 1, gradient, update, {} if dead is None else {"head": dead})
        for sentence in worries(gradient, dead):
            if sentence not in self.said:
                print(f"stage {self.stage}, epoch {epoch + 1}: {sentence}", flush=True)
                self.said.add(sentence)

    def _by_block(self, arrays: Sequence[np.ndarray]) -> dict[str, float]:
        """Euclidean norm over the arrays of each block, one for each trainable variable, the lowest block first."""
        block_of = {id(v): self.blocks[layer.name] for layer in self.model.layers for v in layer.trainable_variables}
        squares: dict[str, float] = {}
        for variable, array in zip(self.model.trainable_variables, arrays, strict=True):
            block = block_of[id(variable)]
            squares[block] = squares.get(block, 0.0) + float(np.sum(np.square(array, dtype=np.float64)))
        return {block: math.sqrt(square) for block, square in squares.items()}

    def _write(self, epoch: int, gradient: dict, update: dict, dead: dict) -> None:
        file = self.folder / "gradients.csv"
        old = file.read_text(encoding="utf-8").splitlines()[1:] if file.exists() else []
        kept = [line for line in old if int(line.split(",")[1]) < epoch]  # a resumed run may do an epoch again
        new = [
            f"{self.stage},{epoch},{block},{gradient[block]:.6g},{update[block]:.6g},"
            + (f"{dead[block]:.6g}" if block in dead else "")
            for block in gradient
        ]
        runs.write_text(file, "\n".join([HEADER, *kept, *new]) + "\n")
        with self.board.as_default(step=epoch):
            for name, values in {"gradient": gradient, "update": update, "dead": dead}.items():
                for block, value in values.items():
                    tf.summary.scalar(f"{name}/{block}", value)


def gradients(network: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> list[np.ndarray]:
    """Gradient of the training loss by each trainable variable, on one batch in training mode; nothing is changed.

    Args:
        network: compiled.
        images: what it takes, float32 [n, ...].
        labels: one-hot, float32 [n, classes].
    """
    before = [variable.numpy() for variable in network.non_trainable_variables]
    scale = network.optimizer.scale_loss(1.0)  # float16 would round small gradients of the plain loss to zero
    with tf.GradientTape() as tape:
        logits = network(images, training=True)
        loss = network.compute_loss(x=images, y=labels, y_pred=logits, training=True) * scale
    found = tape.gradient(loss, [v.value for v in network.trainable_variables], unconnected_gradients="zero")
    for variable, value in zip(network.non_trainable_variables, before, strict=True):
        variable.assign(value)
    return [tf.convert_to_tensor(gradient).numpy() / float(scale) for gradient in found]


def dead_units(network: keras.Model, images: tf.Tensor) -> float | None:
    """Part of the ReLUs of the head's hidden layer that are zero for all of these pictures; None if it has none."""
    hidden = next((layer for layer in network.layers if layer.name == "head_hidden"), None)
    if hidden is None or hidden.activation is not keras.activations.relu:
        return None
    values = keras.Model(network.inputs[0], hidden.output)(images, training=False)
    return float(np.mean(np.max(values, axis=0) <= 0))


def worries(gradient: Mapping[str, float], dead: float | None) -> list[str]:
    """What the norms of a look say is wrong, and what to try, in a sentence each.

    Args:
        gradient: norm by block, the lowest block first.
        dead: part of the hidden ReLUs, or None.
    """
    said = []
    lengths = np.array(list(gradient.values()))
    if not lengths.max() <= EXPLODING:  # nor is NaN
        said.append(
            "gradients explode. Try stages.N.clip=1, a learning rate ten times lower (scripts/find_lr.py), or "
            "more stages.N.warmup."
        )
    elif lengths.max() > 0 and lengths.min() < VANISHING * lengths.max():
        said.append(
            f"gradients vanish, hardly any reaches {min(gradient, key=gradient.get)}. Try a backbone with residuals "
            "and normalisation (resnet50, mobilenetv2), pretrained weights, or thaw fewer blocks (stages.N.unfreeze)."
        )
    if dead is not None and dead > DEAD:
        said.append(
            "more than half of the hidden ReLUs are dead. Try head.activation=leaky_relu, fewer units (head.hidden), "
            "or a lower learning rate."
        )
    return said
