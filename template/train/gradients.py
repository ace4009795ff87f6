"""Vanishing and exploding gradients, update ratios and dead ReLUs by block, measured after each epoch."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from .. import runs
from ..data.batches import replicas
from ..data.dataset import ArrayDataset
from ..labels import to_matrix

VANISHING, EXPLODING, DEAD = 1e-4, 1000.0, 0.5
"""Thresholds of a warning: gradient norm of a block relative to the largest; gradient norm; fraction of dead ReLUs."""

HEADER = "stage,epoch,block,gradient,update,dead"


class Gradients(keras.callbacks.Callback):
    """After each epoch, write for every block that trains a row of gradients.csv, and the same to TensorBoard.

    - gradient: Euclidean norm of the gradient of the training loss, penalties included, over all weights of the block;
      of one batch, as training sees it, before clipping.
    - update: change of the weights in the epoch, relative to their norm: |after - before| / |before|.
    - dead: fraction of the block's ReLUs (units, or channels of a map) that are zero everywhere in every image of the
      batch; nothing for a block without ReLUs.

    Warns once per stage if gradients vanish or explode or ReLUs are dead, with what to try (Pascanu et al. 2013, "On
    the difficulty of training recurrent neural networks"; Glorot and Bengio 2010; Lu et al. 2019, "Dying ReLU and
    initialization"). Leaves the training as it was, bit for bit: what measuring changes (batch statistics, random
    generators) is restored.

    Args:
        inputs: one batch to measure on, as the network in training takes it.
        titles: name of each layer's block, from `Blocks.titles`.
        stage: its number, from 1.
        folder: the run's.
    """

    def __init__(self, inputs: ArrayDataset, titles: Mapping[str, str], stage: int, folder: Path) -> None:
        super().__init__()
        self.inputs, self.titles, self.stage, self.folder = inputs, titles, stage, folder
        self.board = tf.summary.create_file_writer(str(folder / "tensorboard"))
        self.printed: set[str] = set()

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Find the ReLUs."""
        self.dead = dead_relus(self.model, self.titles)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remember the weights."""
        self.before = [variable.numpy() for variable in self.model.trainable_variables]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Measure, write, and warn."""
        images = tf.cast(self.inputs.read(epoch, np.arange(len(self.inputs))), tf.float32)
        labels = tf.constant(to_matrix(self.inputs.labels, self.model.output_shape[-1]))
        after = [variable.numpy() for variable in self.model.trainable_variables]
        moved = [new - old for new, old in zip(after, self.before, strict=True)]
        gradient, update, size = map(self._by_block, (gradients(self.model, images, labels), moved, self.before))
        update = {block: length / size[block] if size[block] else math.nan for block, length in update.items()}
        dead = {block: part for block, part in self.dead(images).items() if block in gradient}
        self._write(epoch + 1, gradient, update, dead)
        for sentence in warnings(gradient, dead):
            if sentence not in self.printed:
                print(f"stage {self.stage}, epoch {epoch + 1}: {sentence}", flush=True)
                self.printed.add(sentence)

    def _by_block(self, arrays: Sequence[np.ndarray]) -> dict[str, float]:
        """Euclidean norm over the arrays of each block, one for each trainable variable, the lowest block first."""
        block_of = {id(v): self.titles[layer.name] for layer in self.model.layers for v in layer.trainable_variables}
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
    shares, strategy = replicas(), tf.distribute.get_strategy()

    def measure() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = network.compute_loss(x=images, y=labels, y_pred=logits, training=True) * scale
        return tape.gradient(loss, [v.value for v in network.trainable_variables], unconnected_gradients="zero")

    # With several devices all measure the same, which Keras takes for a part of the batch.
    found = measure() if shares == 1 else [strategy.experimental_local_results(g)[0] for g in strategy.run(measure)]
    for variable, value in zip(network.non_trainable_variables, before, strict=True):
        variable.assign(value)
    return [shares * tf.convert_to_tensor(gradient).numpy() / float(scale) for gradient in found]


def dead_relus(network: keras.Model, titles: Mapping[str, str]) -> Callable[[tf.Tensor], dict[str, float]]:
    """A function from inputs of the network to the fraction of ReLUs by block that are zero everywhere in all of them.

    A layer that is a ReLU (at most 6 or not) or has one as its activation counts; one with a slope below zero does not
    die. Only layers of this network count, which may be the top of another.

    Args:
        network: not changed.
        titles: name of each layer's block, from `Blocks.titles`.
    """
    found: dict[str, list[keras.KerasTensor]] = {}

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        output = layer(*args, **kwargs)
        if _is_relu(layer):
            peak = ops.max(output, axis=tuple(range(len(output.shape) - 1)))  # of each unit or channel
            found.setdefault(titles[layer.name], []).append(peak)
        return output

    # `layer.output` would be that in the network from which this one was cut.
    graph = keras.Model(network.inputs[0], network.outputs[0])  # Keras would compile a copy too
    same = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
    if not found:
        return lambda images: {}
    peaks = keras.Model(same.inputs[0], found)

    def dead(images: tf.Tensor) -> dict[str, float]:
        found = peaks(images, training=False)
        return {block: float(np.mean(np.concatenate(each) <= 0)) for block, each in found.items()}

    return dead


def _is_relu(layer: layers.Layer) -> bool:
    if isinstance(layer, layers.ReLU):
        return not layer.negative_slope
    return getattr(layer, "activation", None) in (keras.activations.relu, keras.activations.relu6)


def warnings(gradient: Mapping[str, float], dead: Mapping[str, float]) -> list[str]:
    """Warnings for these norms, each with what to try.

    Args:
        gradient: norm by block, the lowest block first.
        dead: part of the ReLUs by block, where there are any.
    """
    found = []
    lengths = np.array(list(gradient.values()))
    if not lengths.max() <= EXPLODING:  # nor is NaN
        found.append(
            "gradients explode. Try stages.N.clipnorm=1, a learning rate ten times lower (scripts/find_lr.py), or "
            "more stages.N.warmup."
        )
    elif lengths.max() > 0 and lengths.min() < VANISHING * lengths.max():
        least = min(gradient, key=gradient.__getitem__)
        found.append(
            f"gradients vanish: hardly any reaches {least}. Try a backbone with residuals "
            "and normalisation (resnet50, mobilenetv2), pretrained weights, or unfreeze fewer blocks "
            "(stages.N.unfreeze)."
        )
    dying = [block for block, part in dead.items() if part > DEAD]
    if "head" in dying:
        found.append(
            "more than half of the hidden ReLUs of the head are dead. Try head.activation=leaky_relu, fewer units "
            "(head.hidden), or a lower learning rate."
        )
    if below := [block for block in dying if block != "head"]:
        found.append(
            f"more than half of the ReLUs of {', '.join(below)} are dead. Try a lower learning rate, more "
            "stages.N.warmup, or stages.N.clipnorm=1."
        )
    return found
