"""A layer of KerasHub as a layer of a flat network that can be copied, saved and loaded."""

import contextlib
import importlib
import inspect
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from types import MethodType, ModuleType
from typing import Any

import keras
from keras import KerasTensor, layers, ops

from .weights import WeightsError


def import_keras_hub() -> ModuleType:
    """The package KerasHub.

    Raises:
        WeightsError: if it is not installed.
    """
    if not find_spec("keras_hub"):
        raise WeightsError(
            "Networks of KerasHub (backbone.name=hub:PRESET), and runs with them, need its package, which is not "
            'installed: pip install -c constraints.txt -e ".[hub]"'
        )
    warnings.filterwarnings("ignore", message="Layer 'attn' .* was passed an input with a mask")  # by Swin, to itself
    return importlib.import_module("keras_hub")


@contextlib.contextmanager
def noted_arguments() -> Iterator[None]:
    """Layers of KerasHub that are made meanwhile note their `arguments`, with which they can be made again.

    Their own `get_config` does not do: where a backbone makes its layers itself, theirs forgets arguments (of
    SwinTransformerBlock, HierarchicalTransformerEncoder), knows others (ViTEncoderBlock) or fails (PatchEmbedding).
    """
    new = keras.Operation.__new__

    def noting(cls: Any, *args: Any, **kwargs: Any) -> keras.Operation:
        made = new(cls, *args, **kwargs)
        if cls.__module__.startswith("keras_hub") and not issubclass(cls, keras.Model):
            given = inspect.signature(cls.__init__).bind(made, *args, **kwargs).arguments
            given |= given.pop("kwargs", {})
            vars(made)["arguments"] = {key: _plain(given[key]) for key in list(given)[1:] if key != "dtype"}
        return made

    keras.Operation.__new__ = staticmethod(noting)
    try:
        yield
    finally:
        keras.Operation.__new__ = staticmethod(new)


def _plain(value: Any) -> Any:
    """An argument as JSON holds it."""
    if isinstance(value, type):
        return {"layer": value.__name__}
    if callable(value):
        return keras.activations.serialize(value)
    return float(value) if ops.is_tensor(value) else value


@keras.saving.register_keras_serializable("template")
class HubLayer(layers.Layer):
    """A layer of KerasHub, which can be made again from its configuration, and drops nothing while it is frozen.

    Args:
        kind: module and name of its class, one in `keras_hub.src.models`.
        arguments: of its constructor.
        options: arguments of its `call`.
        given: those of its `call` that are the outputs of another layer for images of one shape, which does not look at
            them (rotary position embeddings): {argument: [kind, arguments, shape]}.

    Input shape:
        As of the layer: one tensor.

    Output shape:
        As of the layer.

    Example:
    >>> mlp = HubLayer("keras_hub.src.models.dinov2.dinov2_layers.DINOV2MLP", {"hidden_dim": 8, "intermediate_dim": 16})
    >>> mlp(np.ones((2, 5, 8))).shape
    TensorShape([2, 5, 8])
    """

    def __init__(
        self, kind: str, arguments: dict, options: dict | None = None, given: dict | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.kind, self.arguments, self.options, self.given = kind, arguments, options or {}, given or {}
        self.layer = self._make(kind, arguments)
        # Saved as any layer: DINOv2's embedding would save what it was loaded with, and not what it has learned.
        for name in ("save_own_variables", "load_own_variables"):
            setattr(self.layer, name, MethodType(getattr(layers.Layer, name), self.layer))

    def _make(self, kind: str, arguments: dict) -> layers.Layer:
        module, _, name = kind.rpartition(".")
        made: Any = None
        if module.startswith("keras_hub.src.models."):
            import_keras_hub()
            made = getattr(importlib.import_module(module), name)
        is_layer = isinstance(made, type) and issubclass(made, layers.Layer) and made.__module__ == module
        if not is_layer or hasattr(made, "from_preset"):  # which reads files
            raise ValueError(f"HubLayer: expected a layer of a backbone of KerasHub. Received: {kind!r}")
        kinds = {key: getattr(layers, value["layer"]) for key, value in arguments.items() if isinstance(value, dict)}
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.dtype_policy)  # MiT's layers make others without telling them theirs
        try:
            return made(**arguments | kinds, dtype=self.dtype_policy)
        finally:
            keras.config.set_dtype_policy(policy)

    def _given(self) -> dict:
        return {key: self._make(*layer)(ops.zeros(shape)) for key, (*layer, shape) in self.given.items()}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights of the layer, which shows what comes out: some layers do not say."""
        self.outputs = self.call(ops.zeros((1, *input_shape[1:]), self.compute_dtype))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple:
        """Of the outputs of the layer."""
        return keras.tree.map_structure(lambda output: (input_shape[0], *output.shape[1:]), self.outputs)

    def call(self, inputs: KerasTensor, training: bool = False) -> KerasTensor:
        """Outputs of the layer."""
        return self.layer(inputs, **self.options, **self._given(), training=bool(training and self.trainable))

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        own = {"kind": self.kind, "arguments": self.arguments, "options": self.options, "given": self.given}
        return {**super().get_config(), **own}
