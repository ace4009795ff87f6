"""Which part of an image a prediction comes from: Grad-CAM and occlusion."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from scipy.special import expit, softmax

from ..data.array_file import Rows
from ..data.images.load import data_url
from ..evaluate.predictions import Predictions
from ..labels import texts
from ..model.hub_layer import HubLayer
from .occlusion import PATCHES, covered, evidence

THUMBNAIL = 160
"""Pixels a side."""


def figures(model: keras.Model, pixels: Rows, rows: np.ndarray, predictions: Predictions) -> list[dict[str, Any]]:
    """Images for a page, each with the Grad-CAM of its predicted class.

    Args:
        model: from `build`.
        pixels: uint8 [.., size, size, 3].
        rows: of the pixels, one a prediction.
        predictions: with labels, of these rows.

    Returns:
        `id`, `true`, `predicted`, `confidence`; `image` and `heat` (the image under its Grad-CAM) as data addresses.
    """
    names, confidence = predictions.class_names, predictions.probabilities.max(axis=1)
    said = [names[label] for label in predictions.predicted]
    return _figures(model, pixels, rows, predictions, predictions.predicted, list(zip(said, confidence, strict=True)))


def multilabel_figures(
    model: keras.Model, pixels: Rows, rows: np.ndarray, predictions: Predictions, classes: np.ndarray
) -> list[dict[str, Any]]:
    """`figures` where an image may have several labels: of wrong answers about one class each, int [n]."""
    has = predictions.labels[np.arange(len(rows)), classes] > 0
    probability = predictions.probabilities[np.arange(len(rows)), classes]
    names = [predictions.class_names[label] for label in classes]
    said = [
        (f"no {name}", 1 - p) if there else (name, p) for name, there, p in zip(names, has, probability, strict=True)
    ]
    return _figures(model, pixels, rows, predictions, classes, said)


def _figures(
    model: keras.Model,
    pixels: Rows,
    rows: np.ndarray,
    predictions: Predictions,
    classes: np.ndarray,
    said: Sequence[tuple[str, float]],
) -> list[dict[str, Any]]:
    """`figures`, with the Grad-CAM of these classes; what was said of each image, and with what confidence."""
    if not len(rows):
        return []
    images, true = pixels[rows], texts(predictions.labels, predictions.class_names)
    heats = grad_cam(model, images, classes)
    return [
        {
            "id": str(predictions.ids[i]),
            "true": true[i],
            "predicted": said[i][0],
            "confidence": float(said[i][1]),
            "image": _address(images[i]),
            "heat": _address(_under(images[i], heats[i])),
        }
        for i in range(len(rows))
    ]


def side_by_side(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """An image uint8 [size, size, 3] and, to its right, the same under a heat map of any size and range."""
    size, positive = image.shape[1::-1], np.clip(heat, 0, None) / max(float(heat.max()), 1e-12)
    large = cv2.resize(positive.astype(np.float32), size, interpolation=cv2.INTER_CUBIC).clip(0, 1)
    return Image.fromarray(np.hstack([image, _under(image, large)]))


def _under(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image in grey, with a heat map [size, size] in [0, 1] over it."""
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    colours = cv2.cvtColor(cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return (0.45 * grey + 0.55 * colours).astype(np.uint8)


def _address(image: np.ndarray) -> str:
    return data_url(cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA))


def grad_cam(model: keras.Model, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Heat maps of the evidence for a class in the topmost feature map.

    Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization".

    Args:
        model: from `build`, with any backbone and head.
        pixels: [n, size, size, 3], RGB 0-255.
        classes: int [n], what to explain in each image.

    Returns:
        float32 [n, size, size] in [0, 1], each with maximum 1 (all zero where nothing speaks for the class).
    """
    pools = [layer for layer in model.layers if layer.name.startswith(("pool_avg", "pool_max"))]
    lower = {id(layer.input): layer.input for layer in pools if layer.name not in {"pool_avg", "pool_max"}}
    top = next(layer.input for layer in pools if layer.name in {"pool_avg", "pool_max"})
    if len(top.shape) == 3:  # tokens: above the last block, the class token looks at no others any more
        top = [layer.input for layer in model.layers if isinstance(layer, HubLayer)][-1]
    pooled = [top, *(each for each in lower.values() if each is not top)]
    features = tf.nest.flatten(keras.Model(model.inputs[0], pooled)(tf.cast(pixels, tf.float32), training=False))
    with tf.GradientTape() as tape:  # of the head alone: nothing below it needs a gradient
        tape.watch(features)
        logits = keras.Model(pooled, model.outputs[0])(features, training=False)
        wanted = tf.gather(logits, classes, axis=1, batch_dims=1)
    maps, gradients = features[0], tape.gradient(wanted, features[0])
    if len(top.shape) == 3:  # the grid comes last
        side = math.isqrt(top.shape[1])
        maps, gradients = (tf.reshape(x[:, -side * side :], (-1, side, side, top.shape[2])) for x in (maps, gradients))
    weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    maps = tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1, keepdims=True))
    maps = tf.image.resize(maps, pixels.shape[1:3], method="bicubic")[..., 0].numpy().clip(0)
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


def occlusion(
    model: keras.Model, pixels: np.ndarray, classes: np.ndarray, patches: int = PATCHES, *, multi: bool = False
) -> np.ndarray:
    """The same without looking inside: `evidence` of each image, which takes patches^2 passes.

    Args:
        model: to logits.
        pixels: [n, size, size, 3], RGB 0-255.
        classes: int [n].
        patches: squares a side.
        multi: whether an image may have several labels.

    Returns:
        float64 [n, patches, patches], in nats; negative where a part speaks against the class.
    """
    found = []
    for image, label in zip(np.asarray(pixels, np.float32), classes, strict=True):
        logits = model.predict_on_batch(np.concatenate([image[None], covered(image, patches)]))
        logits = np.asarray(logits, np.float64)
        whole, *each = expit(logits) if multi else softmax(logits, axis=1)
        found.append(evidence(whole, each, label))
    return np.stack(found)
