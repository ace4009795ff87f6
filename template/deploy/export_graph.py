"""The graph that every format holds: pixels in, calibrated probabilities out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

INPUT, OUTPUT = "pixels", "probabilities"
ANSWER = "calibrated"
"""Name scope of what comes after the logits, which is never quantised."""


class Served(tf.Module):
    """A network with all that follows its logits.

    float32 [n, size, size, 3], RGB 0-255, to probabilities float32 [n, classes]: the network with its preprocessing,
    the mean over an image and its mirror image, the temperature, softmax.

    Args:
        model: of a run, to logits.
        temperature: of its calibration, > 0.
        hflip: whether its answers are means over mirror images too.
    """

    def __init__(self, model: keras.Model, temperature: float, hflip: bool) -> None:
        super().__init__()
        self.model, self.temperature, self.hflip = model, temperature, hflip
        self.signature = tf.function(self._answer, input_signature=[tf.TensorSpec(model.input_shape, name=INPUT)])

    def _answer(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        both = tf.concat([pixels, pixels[:, :, ::-1]], axis=0) if self.hflip else pixels
        logits = self.model(both, training=False)
        with tf.name_scope(ANSWER):
            if self.hflip:
                each = tf.reshape(tf.nn.softmax(logits), [2, -1, logits.shape[1]])
                logits = tf.math.log(tf.maximum(tf.reduce_mean(each, axis=0), 1e-30))
            return {OUTPUT: tf.nn.softmax(logits / self.temperature, name=OUTPUT)}

    def frozen(self) -> Any:
        """The function with all weights as constants.

        Converters take constants of layers (EfficientNet's Normalization) for inputs, or lose weights, otherwise.
        """
        return convert_variables_to_constants_v2(self.signature.get_concrete_function())


def write_saved_model(served: Served, folder: Path, about: dict[str, Any]) -> None:
    """Write a TensorFlow SavedModel; what is known about it goes into `assets.extra`, the place for files of users."""
    tf.saved_model.save(served, str(folder), signatures=served.signature)
    extra = folder / "assets.extra"
    extra.mkdir()
    for name, value in about.items():
        temporary = extra / f"{name}.json"
        temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def load_saved_model(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a SavedModel, as TensorFlow Serving would call it."""
    loaded = tf.saved_model.load(str(folder))  # whose functions live as long as it does
    answer = loaded.signatures["serving_default"]
    return lambda pixels, _=loaded: answer(**{INPUT: tf.constant(pixels)})[OUTPUT].numpy()
