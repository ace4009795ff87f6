"""Regularisation layers that Keras lacks. They act in training only, and a saved model is without them."""

from typing import Any

import keras
from keras import KerasTensor, layers, ops

LARGEST_BLOCK = 7
"""Side of DropBlock's blocks on large maps, as in the paper."""


@keras.saving.register_keras_serializable("template")
class DropBlock(layers.Layer):
    """Drops square blocks of each channel of a feature map: the neighbours of a single value would give it away.

    Blocks of 7 x 7, and of half the side on maps of less than 14, or they would leave nothing; every channel has blocks
    of its own. What is left of an image is scaled up by count / count_ones, so that the mean stays. At inference,
    nothing happens.

    Args:
        rate: fraction of the values to drop, in [0, 1); a little less is dropped, as blocks may overlap. The paper lets
            it rise from 0 during training: it is multiplied by the weight `ramp`, which is 1 until somebody sets it.

    Input shape:
        4D tensor `(batch, height, width, channels)`, of known height and width.

    Output shape:
        Same as the input.

    Reference:
        Ghiasi et al. 2018, "DropBlock: a regularization method for convolutional networks".

    Example:
    >>> DropBlock(0.1)(np.ones((2, 14, 14, 8)), training=True).shape
    TensorShape([2, 14, 14, 8])
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.seed_generator = rate, keras.random.SeedGenerator()

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weight `ramp`."""
        self.ramp = self.add_weight(name="ramp", shape=(), initializer="ones", trainable=False, autocast=False)

    def call(self, inputs: KerasTensor, training: bool = False) -> KerasTensor:
        """Feature maps with holes, scaled up."""
        if not training:
            return inputs
        images, (height, width, channels) = ops.shape(inputs)[0], inputs.shape[1:]
        side = min(LARGEST_BLOCK, max(1, min(height, width) // 2))
        corners = (height - side + 1, width - side + 1)  # blocks lie within the map
        chance = self.rate * self.ramp * height * width / (side**2 * corners[0] * corners[1])
        drawn = keras.random.uniform((images, *corners, channels), dtype="float32", seed=self.seed_generator) < chance
        around = [[0, 0], [side - 1, side - 1], [side - 1, side - 1], [0, 0]]
        holes = ops.max_pool(ops.pad(ops.cast(drawn, "float32"), around), side, strides=1, data_format="channels_last")
        left = ops.mean(1 - holes, axis=(1, 2, 3), keepdims=True)
        return inputs * ops.cast((1 - holes) / ops.maximum(left, keras.config.epsilon()), inputs.dtype)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable("template")
class DropConnect(layers.Dense):
    """Dense layer that drops weights of its kernel in training, others for each batch, and scales up those left.

    Unlike the paper, one mask per batch (one per image would need a kernel for each) and the mean kernel at inference,
    as with dropout. Weights, regularizers and constraints are those of `Dense`.

    Args:
        units: number of outputs, as of `Dense`.
        rate: fraction of the weights to drop, in [0, 1).
        **kwargs: as of `Dense`.

    Input shape:
        2D tensor `(batch, features)`.

    Output shape:
        2D tensor `(batch, units)`.

    Reference:
        Wan et al. 2013, "Regularization of neural networks using DropConnect".

    Example:
    >>> DropConnect(3, rate=0.5)(np.ones((2, 8)), training=True).shape
    TensorShape([2, 3])
    """

    def __init__(self, units: int, rate: float, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.rate, self.seed_generator = rate, keras.random.SeedGenerator()

    def call(self, inputs: KerasTensor, training: bool = False) -> KerasTensor:
        """Outputs of the layer, of a kernel with holes in training."""
        if not training:
            return super().call(inputs)
        kernel = keras.random.dropout(self.kernel, self.rate, seed=self.seed_generator)
        return self.activation(ops.matmul(inputs, kernel) + self.bias)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable("template")
class StochasticDepth(layers.Dropout):
    """Dropout that, like batch normalisation, runs in inference mode while it is frozen (`trainable=False`).

    So a frozen block gives the same activations wherever they are computed. With `noise_shape=(None, 1, 1, 1)` on the
    branch of a residual block, whole branches are dropped, for each image anew.

    Attributes:
        rate: fraction to drop, in [0, 1), and all else as of `keras.layers.Dropout`.

    Input shape:
        Any.

    Output shape:
        Same as the input.

    Reference:
        Huang et al. 2016, "Deep networks with stochastic depth".

    Example:
    >>> drop = StochasticDepth(0.5, noise_shape=(None, 1, 1, 1))
    >>> drop.trainable = False
    >>> float(drop(np.ones((1, 2, 2, 1)), training=True)[0, 0, 0, 0])
    1.0
    """

    def call(self, inputs: KerasTensor, training: bool = False) -> KerasTensor:
        """Inputs, some of them dropped if the layer trains."""
        return super().call(inputs, training=training and self.trainable)


def strip_training_layers(model: keras.Model) -> keras.Model:
    """A model as it is at inference: to be evaluated, saved, and loaded without our code.

    Without optimizer, loss and the layers of this module, and float32 throughout, as its weights are in mixed
    precision too. The remaining layers are in the order of a network that was built without, by which Keras finds the
    weights in a file. It shares its layers with the model, unless one must be replaced.
    """
    graph = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # Keras would compile a copy too
    kinds = (DropBlock, DropConnect, StochasticDepth)
    if not any(isinstance(layer, kinds) or layer.compute_dtype != "float32" for layer in graph.layers[1:]):
        return graph

    def clone(layer: layers.Layer) -> layers.Layer:
        config, kind = _in_float32(layer.get_config()), type(layer)
        if kind is DropConnect:
            kind = layers.Dense
            del config["rate"]
        return kind.from_config(config)

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> KerasTensor:
        return args[0] if isinstance(layer, (DropBlock, StochasticDepth)) else layer(*args, **kwargs)

    plain = keras.models.clone_model(graph, clone_function=clone, call_function=call)
    take_weights(plain, graph)
    return plain


def _in_float32(config: Any) -> Any:
    """A configuration in which all layers, those within layers included, compute in float32."""
    if isinstance(config, list):
        return [_in_float32(part) for part in config]
    if isinstance(config, dict):
        return {key: "float32" if key == "dtype" else _in_float32(value) for key, value in config.items()}
    return config


def with_stochastic_depth(network: keras.Model, rate: float = 0.0) -> keras.Model:
    """Replace dropout by `StochasticDepth`, and add it to residual branches; the network itself if nothing changes.

    Dropout of the network itself becomes `StochasticDepth`, which is inactive while it is frozen. With a rate, residual
    branches are dropped too: Huang et al. 2016, "Deep networks with stochastic depth", with its linear rule: of L
    branches, the l-th from below is dropped with probability rate * l / L, for each image anew, and scaled up where it
    is not. Preprocessing layers compute in float32, in mixed precision too: bfloat16 has fewer values than pixels.

    Args:
        network: with a rate, each of its Add layers takes the shortcut and the branch, in this order.
        rate: of the top branch, in [0, 1).

    Returns:
        A copy with the same weights, or the network.
    """
    stem = next(i for i, x in enumerate(network.layers) if x.weights and not isinstance(x, layers.Normalization))
    prepare = network.layers[1:stem]  # 0 is the input
    adds = [layer.name for layer in network.layers if isinstance(layer, layers.Add)] if rate else []
    drops = any(isinstance(layer, layers.Dropout) for layer in network.layers)
    if not adds and not drops and all(layer.compute_dtype == "float32" for layer in prepare):
        return network

    def clone(layer: layers.Layer) -> layers.Layer:
        kind = StochasticDepth if isinstance(layer, layers.Dropout) else type(layer)
        return kind.from_config(layer.get_config() | ({"dtype": "float32"} if layer in prepare else {}))

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> KerasTensor:
        if layer.name not in adds:
            return layer(*args, **kwargs)
        shortcut, branch = args[0]
        linear = rate * (adds.index(layer.name) + 1) / len(adds)
        drop = StochasticDepth(linear, noise_shape=(None, 1, 1, 1), name=f"{layer.name}_drop")
        return layer([shortcut, drop(branch)], **kwargs)

    copy = keras.models.clone_model(network, clone_function=clone, call_function=call)
    take_weights(copy, network)
    return copy


def take_weights(copy: keras.Model, network: keras.Model) -> None:
    """Give a copy of a network that lacks layers without weights, or has more of them, its weights, by name."""
    for layer in copy.layers:
        if layer.weights:
            layer.set_weights(network.get_layer(layer.name).get_weights())
    renormalise(copy)


def renormalise(network: keras.Model) -> None:
    """Let Normalization layers use the weights they have been given; they would go on with those from before."""
    for layer in network.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
