"""Image backbones of KerasHub as flat networks: `backbone.name = "hub:PRESET"`."""

import contextlib
import functools
import inspect
import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from ..config import ConfigError, hub_folder
from .hub_layer import HubLayer, import_keras_hub, noted_arguments
from .weights import WeightsError, way_to_preset


def hub_backbone(
    name: str, *, weights: str | None, input_tensor: KerasTensor, input_shape: tuple[int, int, int], **_: object
) -> keras.Model:
    """A flat network of the image backbone of a preset of KerasHub, its preprocessing included.

    Its stacks of layers are taken apart, so that it can be frozen and cut between any two blocks. Position embeddings
    are interpolated to the size of the images (Dosovitskiy et al. 2021, "An image is worth 16x16 words").

    Args:
        name: `hub:` and the name of a preset, a `kaggle://` or `hf://` address, or a folder.
        weights: None for random ones; else those of the preset.
        input_tensor: RGB 0-255, [n, size, size, 3].
        input_shape: of an image.

    Returns:
        Model to the last feature map, [n, h, w, channels], or to tokens, [n, tokens, width].

    Raises:
        WeightsError: if KerasHub is not installed, or the preset neither here nor to be downloaded.
        ConfigError: if it is not of an image backbone.
    """
    original, converter, shape_key = _load(name, weights is not None)
    settings = {key: value for key, value in original.get_config().items() if key != "dtype"}
    with noted_arguments():
        network = type(original).from_config(settings | {shape_key: input_shape})
    for weight, pretrained in zip(network.weights, original.weights, strict=True):
        weight.assign(_interpolated(pretrained.numpy(), weight.shape))
    scale, offset = (np.asarray(value).tolist() for value in (converter.scale or 1.0, converter.offset or 0.0))
    prepare = layers.Rescaling(scale, offset, dtype="float32", name="preprocess")
    return _name_blocks(_copied(_taken_apart(network, input_tensor, prepare)))


@functools.cache
def count_hub_blocks(name: str) -> int:
    """Number of blocks of a preset, which is built for it."""
    shape = (224, 224, 3)
    flat = hub_backbone(name, weights=None, input_tensor=keras.Input(shape), input_shape=shape)
    return len({layer.name.partition("_")[0] for layer in flat.layers if layer.name.startswith("block")})


def _load(name: str, load_weights: bool) -> tuple[keras.Model, layers.Layer, str]:
    """The backbone of a preset, what prepares images for it, and the name of its argument for their shape."""
    hub, folder = import_keras_hub(), hub_folder(name)
    preset = str(Path(folder).expanduser()) if folder else name.removeprefix("hub:")
    try:
        kind = hub.src.utils.preset_utils.get_preset_loader(preset).check_backbone_class()
        shape_key = {"image_shape", "input_shape"} & set(inspect.signature(kind.__init__).parameters)
        network = kind.from_preset(preset, load_weights=load_weights) if shape_key else None
        if network is None or len(network.inputs) > 1:
            raise ConfigError(f"{name} is a {kind.__name__}. Expected an image backbone, such as hub:dinov2_small.")
        return network, hub.layers.ImageConverter.from_preset(preset), shape_key.pop()
    except ConfigError:
        raise
    except Exception as error:  # of Kaggle, Hugging Face, JSON or HDF5
        way_out = way_to_preset(preset, bool(folder), hub.models.Backbone.presets)
        raise WeightsError(f"{name}: {way_out}\nReason: {error}") from error


def _interpolated(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Position embeddings [..., positions, width] of one grid for another; tokens before the grid keep theirs."""
    if values.shape == tuple(shape):
        return values
    before, after = values.shape[-2], shape[-2]
    tokens = next(k for k in range(before) if all(math.isqrt(n - k) ** 2 == n - k for n in (before, after)))
    old, new = (math.isqrt(n - tokens) for n in (before, after))
    grid = ops.image.resize(values[..., tokens:, :].reshape(1, old, old, -1), (new, new), interpolation="bicubic")
    grid = ops.convert_to_numpy(grid).reshape(*values.shape[:-2], new * new, -1)
    return np.concatenate([values[..., :tokens, :], grid], axis=-2)


def _taken_apart(network: keras.Model, pixels: KerasTensor, prepare: layers.Layer) -> keras.Model:
    """A network whose stacks of layers are taken apart, with the preprocessing of its input."""
    prepared, whole = prepare(pixels), set()

    def call(layer: keras.Operation, *args: Any, training: bool | None = None, **kwargs: Any) -> KerasTensor:
        args = tuple(prepared if arg is pixels else arg for arg in args)
        if _is_stack(layer) and id(layer) not in whole:
            for part in vars(layer)["_layers"]:
                part.name = f"{layer.name}_{part.name}"
            with contextlib.suppress(ValueError):
                return layer.call(*args, **kwargs)  # leaves its layers in the graph, and not itself
            whole.add(id(layer))  # one of them gives more than tensors
        return layer(*args, **kwargs)

    flat, inputs = keras.Model(network.inputs[0], min(network.outputs, key=_positions)), pixels
    while inputs is not None or any(_is_stack(layer) and id(layer) not in whole for layer in flat.layers):
        flat = keras.models.clone_model(flat, inputs, clone_function=lambda layer: layer, call_function=call)
        inputs = None
    return flat


def _is_stack(layer: keras.Operation) -> bool:
    """Whether a layer of KerasHub is a list of others, or has batch normalisation, which must be seen to be frozen."""
    if not type(layer).__module__.startswith("keras_hub"):
        return False
    lists = [value for key, value in vars(layer).items() if isinstance(value, list) and not key.startswith("_")]
    if any(isinstance(part, layers.Layer) for parts in lists for part in parts):
        return True
    return any(isinstance(part, layers.BatchNormalization) or _is_stack(part) for part in vars(layer)["_layers"])


def _copied(flat: keras.Model) -> keras.Model:
    """A copy in which every layer of KerasHub is a `HubLayer`, and names do not depend on what was built before."""
    copies: list[tuple[layers.Layer, layers.Layer]] = []
    shape_only: dict[int, list[Any]] = {}

    def clone(layer: keras.Operation) -> keras.Operation:
        if not isinstance(layer, layers.Layer) or isinstance(layer, layers.Identity):
            return layer
        name = layer.name if layer.name == "preprocess" else f"{len(copies)}_{type(layer).__name__.lower()}"
        if type(layer).__module__.startswith("keras_hub"):
            copy = HubLayer(f"{type(layer).__module__}.{type(layer).__name__}", layer.arguments, name=name)
        else:
            copy = type(layer).from_config(layer.get_config() | {"name": name})
        copies.append((copy, layer))
        return copy

    def call(layer: keras.Operation, *args: Any, training: bool | None = None, **kwargs: Any) -> KerasTensor:
        if not isinstance(layer, HubLayer):
            return args[0] if isinstance(layer, layers.Identity) else layer(*args, **kwargs)
        for key, value in kwargs.items():
            first = keras.tree.flatten(value)[0]
            if isinstance(first, KerasTensor):
                layer.given[key] = shape_only[id(first)]
            else:
                layer.options[key] = value
        outputs = layer(args[0])
        if not layer.weights:
            shape_only[id(keras.tree.flatten(outputs)[0])] = [layer.kind, layer.arguments, [1, *args[0].shape[1:]]]
        return outputs

    copy = keras.models.clone_model(flat, clone_function=clone, call_function=call)
    for ours, theirs in copies:
        ours.set_weights(theirs.get_weights())
    return copy


def _positions(tensor: KerasTensor) -> int:
    """Number of places in a feature map [n, h, w, channels], or of tokens [n, tokens, width]."""
    return math.prod(tensor.shape[1:-1])


def _name_blocks(flat: keras.Model) -> keras.Model:
    """Layers are named `block<number>_...` after their block: a transformer block, or else what has one resolution."""
    parts = [part for part in _parts(flat) if any(layer.weights for layer in part if isinstance(layer, layers.Layer))]
    ends = [keras.tree.flatten(part[-1].output)[0] for part in parts]
    alone = [part[0] for part in parts if len(part) == 1 and isinstance(part[0], HubLayer)]
    starts = [x for x in alone if len(x.input.shape) == 3 and x.input.shape == keras.tree.flatten(x.output)[0].shape]
    falls = [_positions(above) < _positions(below) for below, above in pairwise(ends)]
    starts = starts or [part[0] for part, fall in zip(parts[1:], falls, strict=True) if fall]
    number = 0
    for layer in flat.layers[1:]:
        number += layer in starts
        if layer.name != "preprocess":
            layer.name = f"block{number}_{layer.name}" if number else f"stem_{layer.name}"
    return flat


def _parts(flat: keras.Model) -> Iterator[list[keras.Operation]]:
    """Parts of a network, lowest first, each of which begins and ends with a single tensor."""
    used = [id(tensor) for operation in flat.operations for tensor in keras.tree.flatten(operation.input)]
    uses, waiting, part = Counter([*used, id(flat.outputs[0])]), set(), []
    for operation in flat.operations[1:]:
        part.append(operation)
        uses.subtract(map(id, keras.tree.flatten(operation.input)))
        waiting |= set(map(id, keras.tree.flatten(operation.output)))
        waiting = {tensor for tensor in waiting if uses[tensor] > 0}
        if len(waiting) == 1:
            yield part
            part = []
