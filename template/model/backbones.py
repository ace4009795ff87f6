"""Backbones: builder, preprocessing and blocks of each network, in one table.

Add one by adding a row; tests/test_backbones.py then takes it through build, freeze, split, save and load.
"""

import re
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from ..config import Backbone, ConfigError
from .efficientnet_lite import efficientnet_lite
from .hub import count_hub_blocks, hub_backbone
from .layers import renormalise, with_stochastic_depth
from .weights import WeightsError, arrays_held, explained, load_file, standardises


def _as_is(pixels: KerasTensor) -> KerasTensor:
    """EfficientNet, ConvNeXt and MobileNetV3 have their own preprocessing layers."""
    return pixels


def _minus_one_to_one(pixels: KerasTensor) -> KerasTensor:
    return layers.Rescaling(1 / 127.5, offset=-1, dtype="float32", name="preprocess")(pixels)


def _torch(pixels: KerasTensor) -> KerasTensor:
    """ImageNet's mean 0 and deviation 1 in each channel, as DenseNet was trained."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scale, offset = (1 / 255 / deviation).tolist(), (-mean / deviation).tolist()
    return layers.Rescaling(scale, offset=offset, dtype="float32", name="preprocess")(pixels)


def _lite(pixels: KerasTensor) -> KerasTensor:
    """About -1 to 1, as EfficientNet-Lite was trained."""
    return layers.Rescaling(1 / 128, offset=-127 / 128, dtype="float32", name="preprocess")(pixels)


def _caffe(pixels: KerasTensor) -> KerasTensor:
    """BGR minus the ImageNet means, as the Caffe originals of VGG and ResNet were trained."""
    bgr = ops.flip(pixels, axis=-1)
    return layers.Rescaling(1.0, offset=[-103.939, -116.779, -123.68], dtype="float32", name="preprocess")(bgr)


def _standardised(pixels: KerasTensor) -> KerasTensor:
    """About -1 to 1 as well, until `standardise` sets mean and variance, which are weights of the network."""
    layer = layers.Normalization(dtype="float32", name="preprocess")
    standardised = layer(pixels)
    _set(layer, np.full(3, 127.5), np.full(3, 127.5**2))
    return standardised


def standardise(base: keras.Model, mean: np.ndarray, variance: np.ndarray) -> None:
    """Standardise the input of a network from scratch: mean 0 and standard deviation 1 in each channel.

    LeCun et al. 1998, "Efficient BackProp". Mean and variance are saved with the network, and used for all its later
    inputs. EfficientNet and ConvNeXt, which have their own preprocessing layers, and pretrained networks, which need
    that of their weights, stay as they are.

    Args:
        base: from `build_backbone`.
        mean: of the training images, [3], 0-255.
        variance: likewise, >= 0.
    """
    layer = next((layer for layer in base.layers if layer.name == "preprocess"), None)
    if isinstance(layer, layers.Normalization):
        _set(layer, mean, variance)


def _set(layer: layers.Normalization, mean: np.ndarray, variance: np.ndarray) -> None:
    layer.adapt_mean.assign(mean)
    layer.adapt_variance.assign(variance)
    layer.finalize_state()


@dataclass(frozen=True)
class Family:
    """How a network is built, its input preprocessed, and its layers divided into blocks."""

    build: Callable
    """keras.applications builder, or ours."""
    preprocess: Callable[[KerasTensor], KerasTensor]
    """RGB 0-255 to what the weights were trained on."""
    block: str
    """Regular expression for layer names; its group is the number of the block."""
    blocks: int
    """Number of blocks."""
    takes_alpha: bool = False
    """Whether it has a width multiplier `alpha`."""


def tiny(*, input_tensor: KerasTensor, **_: object) -> keras.Model:
    """Small residual network for images of about 16 to 64 pixels: 3 blocks, 0.2 million weights.

    Pre-activation residual blocks (He et al. 2016, "Identity Mappings in Deep Residual Networks") of width 32, 64, 96.
    """
    x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="stem")(input_tensor)
    for block, width in enumerate((32, 64, 96), start=1):
        name, stride = f"block{block}_", 1 if block == 1 else 2
        y = layers.BatchNormalization(momentum=0.9, name=name + "bn1")(x)
        y = layers.Activation("relu", name=name + "relu1")(y)
        if stride > 1:
            x = layers.Conv2D(width, 1, strides=stride, use_bias=False, name=name + "shortcut")(y)
        y = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False, name=name + "conv1")(y)
        y = layers.BatchNormalization(momentum=0.9, name=name + "bn2")(y)
        y = layers.Activation("relu", name=name + "relu2")(y)
        y = layers.Conv2D(width, 3, padding="same", use_bias=False, name=name + "conv2")(y)
        x = layers.Add(name=name + "add")([x, y])
    x = layers.BatchNormalization(momentum=0.9, name="top_bn")(x)
    return keras.Model(keras.utils.get_source_inputs(x), layers.Activation("relu", name="top_relu")(x))


_APPS = keras.applications


def efficientnet(make: Callable, /, *, weights: str | None, **shape: Any) -> keras.Model:
    """EfficientNet as Keras builds it for ImageNet weights, whatever its weights are.

    Keras scales the colours in one more layer, but only where it downloads the weights itself. Without that layer a
    run rebuilt from its file, or a file of these weights, would get other inputs than it was trained on.
    """
    network = make(weights=weights, **shape)
    if weights == "imagenet":
        return network
    scale = layers.Rescaling([deviation**-0.5 for deviation in (0.229, 0.224, 0.225)])

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> KerasTensor:
        output = layer(*args, **kwargs)
        return scale(output) if isinstance(layer, layers.Normalization) else output

    return keras.models.clone_model(network, call_function=call)


def inception(**how: Any) -> keras.Model:
    """InceptionV3 with layers named after their blocks: Keras names them after all that was built before.

    The stem is a chain that ends with its second pooling; each block is branches that join in `mixed0` to `mixed10`.
    """
    network = _APPS.InceptionV3(**how)
    names, block, poolings = dict[str, str](), -1, 0
    for number, layer in enumerate(network.layers):
        if number and layer.name != "preprocess":
            part = "stem" if block < 0 else f"block{block}"
            names[layer.name] = f"{part}_{number}_{re.sub(r'(_[0-9]+)?$', '', layer.name)}"
        poolings += isinstance(layer, layers.MaxPooling2D)
        if poolings == 2 and block < 0:
            block = 0
        elif re.fullmatch("mixed[0-9]+", layer.name):
            block += 1

    def clone(layer: layers.Layer) -> layers.Layer:
        return type(layer).from_config(layer.get_config() | {"name": names.get(layer.name, layer.name)})

    copy = keras.models.clone_model(network, clone_function=clone)
    copy.set_weights(network.get_weights())
    renormalise(copy)
    return copy


_CAFFE_RESNET: dict[str, Any] = {"preprocess": _caffe, "block": r"^conv(\d+)_block", "blocks": 4}
_RESNET_V2: dict[str, Any] = {"preprocess": _minus_one_to_one, "block": r"^conv(\d+)_block", "blocks": 4}
_DENSENET: dict[str, Any] = {"preprocess": _torch, "block": r"^conv(\d+)_block", "blocks": 4}
_EFFICIENTNET: dict[str, Any] = {"preprocess": _as_is, "block": r"^block(\d+)[a-z]", "blocks": 7}
_EFFICIENTNET_V2: dict[str, Any] = {"preprocess": _as_is, "block": r"^block(\d+)[a-z]", "blocks": 6}
_LITE: dict[str, Any] = {"preprocess": _lite, "block": r"^block(\d+)[a-z]", "blocks": 7}
_CONVNEXT: dict[str, Any] = {"preprocess": _as_is, "block": r"(?:stage|downsampling_block)_(\d+)", "blocks": 4}
_MOBILENET_V3: dict[str, Any] = {"preprocess": _as_is, "block": r"^expanded_conv_(\d+)_", "takes_alpha": True}

BACKBONES = {
    "tiny": Family(tiny, _minus_one_to_one, r"^block(\d+)_", 3),
    "vgg16": Family(_APPS.VGG16, _caffe, r"^block(\d+)_", 5),
    "vgg19": Family(_APPS.VGG19, _caffe, r"^block(\d+)_", 5),
    "resnet50": Family(_APPS.ResNet50, **_CAFFE_RESNET),
    "resnet101": Family(_APPS.ResNet101, **_CAFFE_RESNET),
    "resnet152": Family(_APPS.ResNet152, **_CAFFE_RESNET),
    "resnet50v2": Family(_APPS.ResNet50V2, **_RESNET_V2),
    "resnet101v2": Family(_APPS.ResNet101V2, **_RESNET_V2),
    "resnet152v2": Family(_APPS.ResNet152V2, **_RESNET_V2),
    "densenet121": Family(_APPS.DenseNet121, **_DENSENET),
    "densenet169": Family(_APPS.DenseNet169, **_DENSENET),
    "densenet201": Family(_APPS.DenseNet201, **_DENSENET),
    "inceptionv3": Family(inception, _minus_one_to_one, r"^block(\d+)_", 11),
    "xception": Family(_APPS.Xception, _minus_one_to_one, r"^block(\d+)_", 14),
    "mobilenet": Family(_APPS.MobileNet, _minus_one_to_one, r"^conv_(?:dw|pw|pad)_(\d+)", 13, takes_alpha=True),
    "mobilenetv2": Family(_APPS.MobileNetV2, _minus_one_to_one, r"^block_(\d+)_", 16, takes_alpha=True),
    "mobilenetv3small": Family(_APPS.MobileNetV3Small, **_MOBILENET_V3, blocks=10),
    "mobilenetv3large": Family(_APPS.MobileNetV3Large, **_MOBILENET_V3, blocks=14),
    "efficientnetb0": Family(partial(efficientnet, _APPS.EfficientNetB0), **_EFFICIENTNET),
    "efficientnetb1": Family(partial(efficientnet, _APPS.EfficientNetB1), **_EFFICIENTNET),
    "efficientnetb2": Family(partial(efficientnet, _APPS.EfficientNetB2), **_EFFICIENTNET),
    "efficientnetb3": Family(partial(efficientnet, _APPS.EfficientNetB3), **_EFFICIENTNET),
    "efficientnetv2b0": Family(_APPS.EfficientNetV2B0, **_EFFICIENTNET_V2),
    "efficientnetv2b1": Family(_APPS.EfficientNetV2B1, **_EFFICIENTNET_V2),
    "efficientnetv2b2": Family(_APPS.EfficientNetV2B2, **_EFFICIENTNET_V2),
    "efficientnetv2b3": Family(_APPS.EfficientNetV2B3, **_EFFICIENTNET_V2),
    "efficientnetv2s": Family(_APPS.EfficientNetV2S, **_EFFICIENTNET_V2),
    "efficientnet_lite0": Family(partial(efficientnet_lite, variant=0), **_LITE),
    "efficientnet_lite1": Family(partial(efficientnet_lite, variant=1), **_LITE),
    "efficientnet_lite2": Family(partial(efficientnet_lite, variant=2), **_LITE),
    "convnexttiny": Family(_APPS.ConvNeXtTiny, **_CONVNEXT),
    "convnextsmall": Family(_APPS.ConvNeXtSmall, **_CONVNEXT),
    "convnextbase": Family(_APPS.ConvNeXtBase, **_CONVNEXT),
}


def family(name: str) -> Family:
    """Row of `BACKBONES`; of `hub:PRESET` all but the number of blocks, for which it must be built."""
    if name.startswith("hub:"):
        return Family(partial(hub_backbone, name), _as_is, r"^block(\d+)_", 0)
    return BACKBONES[name]


def count_blocks(name: str) -> int:
    """Number of blocks of a network."""
    return count_hub_blocks(name) if name.startswith("hub:") else BACKBONES[name].blocks


def build_backbone(settings: Backbone, image_size: int) -> keras.Model:
    """A headless network: RGB pixels 0-255, float32 [n, size, size, 3], to the last feature map [n, h, w, channels].

    Transformers of KerasHub end with tokens, [n, tokens, width].

    Pixels are prepared as its weights were trained: as `Family.preprocess` does for ImageNet weights, by the
    standardisation of `standardise` from scratch (weights "none"), and for a .keras file as the network in it does. A
    .weights.h5 file has no network, but the mean and variance of the standardisation are among its arrays, so that they
    are the record: where they are, the weights were trained with them, and where not, without.

    Raises:
        WeightsError: if its weights are neither here nor can be downloaded; never a silent fall-back to random ones.
        ConfigError: if it does not exist in this width or takes no images this small.
    """
    file = Path(settings.weights) if settings.weights not in {"imagenet", "none"} else None
    if file and not file.is_file():
        raise WeightsError(f"backbone.weights: expected imagenet, none or a file. Received: {settings.weights!r}")
    held = arrays_held(file) if file else {}
    standardised = bool(settings.weights == "none" or (file and standardises(file, held)))
    backbone = _network(settings, image_size, "imagenet" if settings.weights == "imagenet" else None, standardised)
    if file:
        load_file(backbone, settings, held)
    damaged = [weight.path for weight in backbone.weights if not np.isfinite(weight.numpy()).all()]
    if damaged:
        raise WeightsError(f"Weights of {settings.name} ({settings.weights}) are not finite: {', '.join(damaged[:5])}")
    return with_stochastic_depth(backbone, settings.stochastic_depth)


def resized(network: keras.Model, settings: Backbone, image_size: int) -> keras.Model:
    """A copy of a network, with its weights, for images of another size.

    Not the same as building one for that size: the ImageNet weights of MobileNet depend on it. Not for KerasHub, where
    position embeddings do.

    Args:
        network: from `build_backbone`.
        settings: the settings it was built with.
        image_size: pixels a side.

    Raises:
        ConfigError: if it takes no images this small.
    """
    standardised = any(
        isinstance(layer, layers.Normalization) and layer.name == "preprocess" for layer in network.layers
    )
    copy = _network(settings, image_size, None, standardised)
    copy = with_stochastic_depth(copy, settings.stochastic_depth)
    copy.set_weights(network.get_weights())
    renormalise(copy)
    return copy


def _network(settings: Backbone, image_size: int, weights: str | None, standardised: bool) -> keras.Model:
    """Layers from pixels to the last feature map, with these weights (imagenet, or None for random ones)."""
    row = family(settings.name)
    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    preprocess = _standardised if standardised and row.preprocess is not _as_is else row.preprocess
    shape = {"input_tensor": preprocess(pixels), "input_shape": pixels.shape[1:]}
    alpha = {"alpha": settings.alpha} if row.takes_alpha else {}
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # Keras downloads without any time limit
    try:
        with warnings.catch_warnings():
            # At other sizes than those it was trained at, MobileNet warns that it takes the weights of 224 pixels.
            warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
            return row.build(include_top=False, weights=weights, **shape, **alpha)
    except (WeightsError, ConfigError):
        raise
    except Exception as error:
        raise explained(error, settings, image_size) from error
    finally:
        socket.setdefaulttimeout(before)
