"""The graph that every format holds: pixels in, calibrated probabilities out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from ... import device
from ...model.layers import renormalise
from ..novelty import Novelty
from ..predictor import with_features
from ..runtime import NOVELTY, OUTPUT

INPUT = "pixels"
COPIES = 20
"""Of the weights, that are in memory while a network is converted: 22 to 26 were measured."""
ANSWER = "calibrated"
"""Name scope of what comes after the logits, which is never quantised."""


class Served(tf.Module):
    """A network with all that follows its logits.

    float32 [n, size, size, 3], RGB 0-255, to probabilities float32 [n, classes]: the network with its preprocessing,
    the mean over an image and its mirror image, the temperature, softmax (or where an image may have several labels,
    sigmoid). And, of an image without its mirror image,
    novelty float32 [n].

    Args:
        model: of a run, to logits.
        temperature: of its calibration, > 0.
        hflip: whether its answers are means over mirror images too.
        novelty: of the run, or None.
        multi: whether an image may have several labels.
    """

    def __init__(
        self,
        model: keras.Model,
        temperature: float,
        hflip: bool,
        novelty: Novelty | None = None,
        *,
        multi: bool = False,
    ) -> None:
        super().__init__()
        self.multi = multi
        self.model, self.temperature, self.hflip = with_depthwise(model), temperature, hflip
        self.novelty, self.network = novelty, with_features(self.model) if novelty else self.model
        self.signature = tf.function(self._answer, input_signature=[tf.TensorSpec(model.input_shape, name=INPUT)])

    @property
    def outputs(self) -> list[str]:
        """Names of what it gives."""
        return [OUTPUT, NOVELTY] if self.novelty else [OUTPUT]

    def _answer(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        both = tf.concat([pixels, pixels[:, :, ::-1]], axis=0) if self.hflip else pixels
        seen = self.network(both, training=False)
        logits, features = seen if self.novelty else (seen, None)
        with tf.name_scope(ANSWER):
            link = tf.sigmoid if self.multi else tf.nn.softmax

            def log_mean(each: tf.Tensor) -> tf.Tensor:
                mean = tf.reduce_mean(tf.reshape(link(each), [2, -1, logits.shape[1]]), axis=0)
                return tf.math.log(tf.maximum(mean, 1e-30))

            if self.hflip:  # of several labels the log-odds; 1 - p is the sigmoid of -logit, and never rounded to zero
                logits = log_mean(logits) - log_mean(-logits) if self.multi else log_mean(logits)
            answer = {OUTPUT: link(logits / self.temperature, name=OUTPUT)}
            if self.novelty and features is not None:
                answer[NOVELTY] = _novelty(features[: tf.shape(pixels)[0]], self.novelty)
            return answer


def _novelty(features: tf.Tensor, novelty: Novelty) -> tf.Tensor:
    """`Novelty.score`, as part of a network."""
    similarity = tf.math.l2_normalize(features, axis=1) @ tf.constant(novelty.features.T, tf.float32)
    return tf.maximum(1 - tf.reduce_max(similarity, axis=1), 0) / novelty.threshold


def freeze(served: Served) -> Any:
    """The function with all weights as constants.

    Converters take constants of layers (EfficientNet's Normalization) for inputs, or lose weights, otherwise. It is no
    part of `Served`, with which TensorFlow would save it.

    Raises:
        MemoryError: if there is less memory than converters take; the system would end the process without a word.
    """
    needed, free = COPIES * 4 * served.model.count_params(), device.available_memory()
    if needed > free:
        have = f"about {needed / 1e9:.1f} GB of memory are needed, and {free / 1e9:.1f} GB can be had now"
        raise MemoryError(f"{have}. Close other programs, or export on a machine with more")
    return convert_variables_to_constants_v2(served.signature.get_concrete_function())


def with_depthwise(model: keras.Model) -> keras.Model:
    """A network whose convolutions of one channel a group (ConvNeXt's) are depthwise ones; itself where it has none.

    The same arithmetic. On a CPU, Keras compiles grouped convolutions by XLA, which no converter can look into.
    """

    def separate(layer: keras.layers.Layer) -> bool:
        return isinstance(layer, keras.layers.Conv2D) and 1 < layer.groups == layer.filters == layer.input.shape[-1]

    if not any(map(separate, model.layers)):
        return model

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if not separate(layer):
            return type(layer).from_config(config)
        same = ("name", "kernel_size", "strides", "padding", "dilation_rate", "activation", "use_bias")
        return keras.layers.DepthwiseConv2D(**{key: config[key] for key in same})

    copy = keras.models.clone_model(model, clone_function=clone)
    for old in filter(lambda layer: layer.weights, model.layers):
        weights = old.get_weights()
        if separate(old):
            weights[0] = weights[0].swapaxes(2, 3)  # [height, width, 1, channels] to [height, width, channels, 1]
        copy.get_layer(old.name).set_weights(weights)
    renormalise(copy)
    return copy


def write_saved_model(served: Served, folder: Path, about: dict[str, Any]) -> None:
    """Write a TensorFlow SavedModel; what is known about it goes into `assets.extra`, the place for files of users."""
    tf.saved_model.save(served, str(folder), signatures=served.signature)
    extra = folder / "assets.extra"
    extra.mkdir()
    for name, value in about.items():
        temporary = extra / f"{name}.json"
        temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def load_saved_model(folder: Path) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The function of a SavedModel, as TensorFlow Serving would call it."""
    loaded = tf.saved_model.load(str(folder))  # whose functions live as long as it does
    answer = loaded.signatures["serving_default"]
    names = [name for name in (OUTPUT, NOVELTY) if name in answer.structured_outputs]

    def infer(pixels: np.ndarray, _: Any = loaded) -> list[np.ndarray]:
        found = answer(**{INPUT: tf.constant(pixels)})
        return [found[name].numpy() for name in names]

    return infer
